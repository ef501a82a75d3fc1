"""gunicorn 23's arbiter collects its workers in the signal handler itself, in the middle of whatever the master does.

Here the handler only takes note, as gunicorn 24's does, and the collecting is done where the master would rest.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any


class Signals23:
    """Replaces `handle_chld` and `sleep` of one arbiter, before its signal handlers are set.

    :param reap: collects the workers that ended.
    :param rest: seconds until something is due; at most the argument.
    :param stopping: the service ends: then gunicorn's own loop waits for the handler to collect.
    """

    def __init__(self, server: Any, reap: Callable[[], None], rest: Callable[[float], float],
                 stopping: Callable[[], bool]) -> None:
        self._server, self._reap, self._rest, self._stopping = server, reap, rest, stopping
        self._sleep = server.sleep
        self._due = self._reaping = False
        server.handle_chld, server.sleep = self.handle_chld, self.sleep

    def handle_chld(self, number: int, frame: Any) -> None:
        """SIGCHLD."""
        self._due = True
        if self._stopping():
            self._collect()
        self._server.wakeup()

    def sleep(self) -> None:
        """Until a signal comes or something is due."""
        if not self._due:
            seconds = self._rest(1.0)
            if seconds >= 1.0 or select.select([self._server.PIPE[0]], [], [], seconds)[0]:
                self._sleep()
        self._collect()

    def _collect(self) -> None:
        if self._reaping:
            return  # this handler interrupted itself
        self._reaping = True
        try:
            while self._due:
                self._due = False
                self._reap()
        finally:
            self._reaping = False
