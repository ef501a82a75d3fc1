"""A circuit breaker around connecting: a database that is gone is not asked by every request.

Requests never probe; the keeper does. Nygard, "Release It!", 2nd edition, chapter 5.
"""

from __future__ import annotations

import threading

FAILURES = 5


class Breaker:
    """CLOSED until `threshold` failures in a row or `trip`, then OPEN until `success`.

    No lock is held over I/O: callers report what came of it.
    """

    def __init__(self, threshold: int = FAILURES) -> None:
        self._threshold = threshold
        self._lock = threading.Lock()
        self._failures = 0
        self.open = False
        self.reason = ""

    @property
    def state(self) -> str:
        """For people: "open" or "closed"."""
        return "open" if self.open else "closed"

    def failure(self, reason: str) -> bool:
        """One more failed connect; True if that opened it."""
        with self._lock:
            self._failures += 1
            if self.open or self._failures < self._threshold:
                return False
            self.open, self.reason = True, reason
            return True

    def trip(self, reason: str) -> bool:
        """Open at once; True if it was closed."""
        with self._lock:
            was, self.open, self.reason = self.open, True, reason
            return not was

    def success(self) -> bool:
        """A connect or a probe worked; True if that closed it."""
        with self._lock:
            was, self.open, self._failures = self.open, False, 0
            return was
