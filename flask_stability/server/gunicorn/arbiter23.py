"""gunicorn 23's arbiter collects its workers in the signal handler itself, interrupting the master at any point.

Here the handler only takes note, as gunicorn 24's does, and the arbiter collects where it would rest.
"""

from __future__ import annotations

import select
from typing import Any

from .arbiter import SupervisedArbiter


class SupervisedArbiter23(SupervisedArbiter):
    """Supervises an arbiter without `wait_for_signals`; its class is set before its signal handlers are."""

    _due = _reaping = _ends = False

    def handle_chld(self, number: int, frame: Any) -> None:
        """Handle SIGCHLD: note that workers are due for collection."""
        self._due = True
        if self._ends:
            self._collect()  # gunicorn's own loop waits for the handler to collect
        self.wakeup()

    def sleep(self) -> None:
        """Sleep until a signal arrives or a look is due, then collect."""
        if not self._due:
            seconds = self._rest(1.0)
            if seconds >= 1.0 or select.select([self.PIPE[0]], [], [], seconds)[0]:
                super().sleep()
        self._collect()

    def stop(self, graceful: bool = True) -> None:
        """End the service; from now on the handler itself collects."""
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
