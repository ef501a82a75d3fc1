"""A circuit breaker around connecting: during an outage, requests do not each try the database.

Requests never probe; the housekeeper does. Nygard, "Release It!", 2nd edition, chapter 5.
"""

from __future__ import annotations

import threading
import time

FAILURES = 5
#: A link lost within this time after its connect began was still in its handshake, seconds.
SET_UP = 1.0


class Breaker:
    """CLOSED until `threshold` consecutive failures or `trip`, then OPEN until `success`.

    It holds no lock during I/O: callers report the result and the start time. A result that began before the latest
    success is outdated and does not count.
    """

    def __init__(self, threshold: int = FAILURES) -> None:
        self._threshold = threshold
        self._lock = threading.Lock()
        self._failures = 0
        self._succeeded = self._failed = 0.0
        #: Time of the latest opening, `time.monotonic` seconds.
        self.opened = 0.0
        self.open = False
        self.reason = ""

    @property
    def state(self) -> str:
        """Return "open" or "closed", for people."""
        return "open" if self.open else "closed"

    @property
    def failing(self) -> bool:
        """Return whether the latest connect failed."""
        return self.open or self._failures > 0

    def failure(self, reason: str, started: float, *, lost: bool = False) -> bool:
        """Count a failed connect; return whether that opened the breaker.

        :param started: when the connect began, `time.monotonic`.
        :param lost: the connect reached the server, and the link was lost. An event that ends several links in their
            handshake at once (a KILL of all sessions, a proxy's restart) is one failure: the next one counts only if
            its connect began after that failure.
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
        """Open at once because of a call that began at `started` (`time.monotonic`); return whether that opened it."""
        with self._lock:
            if self.open or started < self._succeeded:
                return False
            self.open, self.opened, self.reason = True, time.monotonic(), reason
            return True

    def success(self) -> bool:
        """Record a successful connect or probe; return whether that closed the breaker."""
        with self._lock:
            self._succeeded = time.monotonic()
            was, self.open, self._failures = self.open, False, 0
            return was
