"""A circuit breaker around connecting: a database that is gone is not asked by every request.

Requests never probe; the housekeeper does. Nygard, "Release It!", 2nd edition, chapter 5.
"""

from __future__ import annotations

import threading
import time

FAILURES = 5
#: A link that is lost within so many seconds of the begin of its connect was still being set up.
SET_UP = 1.0


class Breaker:
    """CLOSED until `threshold` failures in a row or `trip`, then OPEN until `success`.

    No lock is held over I/O: callers report what came of it and when they began. What began before the latest
    success is old news and does not count.
    """

    def __init__(self, threshold: int = FAILURES) -> None:
        self._threshold = threshold
        self._lock = threading.Lock()
        self._failures = 0
        self._succeeded = self._failed = 0.0
        #: When it opened last, `time.monotonic` seconds.
        self.opened = 0.0
        self.open = False
        self.reason = ""

    @property
    def state(self) -> str:
        """For people: "open" or "closed"."""
        return "open" if self.open else "closed"

    def failure(self, reason: str, started: float, *, lost: bool = False) -> bool:
        """Count one more failed connect, begun at `started` (`time.monotonic`); True if it opened the breaker.

        :param lost: the server was reached, and the link was lost. What ends several links in their set-up at once (a
            KILL of all sessions, a proxy that restarts) is one failure: the next to count began after it.
        """
        now = time.monotonic()
        with self._lock:
            if started < self._succeeded or (lost and started < self._failed and now - started < SET_UP):
                return False
            self._failures += 1
            self._failed = now
            if self.open or self._failures < self._threshold:
                return False
            self.open, self.opened, self.reason = True, now, reason
            return True

    def trip(self, reason: str, started: float) -> bool:
        """Open at once, for what began at `started`; True if it was closed."""
        with self._lock:
            if self.open or started < self._succeeded:
                return False
            self.open, self.opened, self.reason = True, time.monotonic(), reason
            return True

    def success(self) -> bool:
        """A connect or a probe worked; True if that closed it."""
        with self._lock:
            self._succeeded = time.monotonic()
            was, self.open, self._failures = self.open, False, 0
            return was
