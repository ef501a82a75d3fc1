"""gunicorn 23's arbiter collects its workers in the signal handler itself, in the middle of whatever the master does.

Here the handler only takes note, as gunicorn 24's does, and the collecting is done where the master would rest.
"""

from __future__ import annotations

import select
from typing import Any

from .arbiter import SupervisedArbiter


class SupervisedArbiter23(SupervisedArbiter):
    """For an arbiter without `wait_for_signals`; made one before its signal handlers are set."""

    _due = _reaping = _ends = False

    def handle_chld(self, number: int, frame: Any) -> None:
        """SIGCHLD."""
        self._due = True
        if self._ends:
            self._collect()  # gunicorn's own loop waits for the handler to do it
        self.wakeup()

    def sleep(self) -> None:
        """Until a signal comes or something is due."""
        if not self._due:
            seconds = self._rest(1.0)
            if seconds >= 1.0 or select.select([self.PIPE[0]], [], [], seconds)[0]:
                super().sleep()
        self._collect()

    def stop(self, graceful: bool = True) -> None:
        """The end of the service."""
        self._ends = True
        super().stop(graceful)

    def _collect(self) -> None:
        if self._reaping:
            return  # this handler interrupted itself
        self._reaping = True
        try:
            while self._due:
                self._due = False
                self.reap_workers()
        finally:
            self._reaping = False
