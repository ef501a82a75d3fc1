"""Storms: one exception a thousand times a minute is one story."""

from __future__ import annotations

import threading
import time

FIRST = 20
WINDOW = 60.0  #: seconds
_MOST = 512


class Storms:
    """Counts the records of each kind, and says which of them are written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[object, list[float]] = {}

    def sample(self, key: object, now: float | None = None) -> int | None:
        """Return None if a record of this kind is left out, else how many were left out since the last one.

        The first 20 of a minute are written, then the 40th, 80th, 160th …, and the next minute's first tells the rest.
        """
        now = time.monotonic() if now is None else now
        with self._lock:
            state = self._kinds.get(key)
            if state is None:
                if len(self._kinds) >= _MOST:
                    self._kinds.clear()
                state = self._kinds[key] = [now, 0.0, 0.0]
            if now - state[0] >= WINDOW:
                state[0], state[1] = now, 0.0
            state[1] += 1
            seen = int(state[1])
            due = seen <= FIRST or (seen % FIRST == 0 and (seen // FIRST).bit_count() == 1)
            if due:
                left_out, state[2] = int(state[2]), 0.0
                return left_out
            state[2] += 1
        return None

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self._kinds.clear()

    def renew_lock(self) -> None:
        """In a forked child: another thread of the parent may have held it."""
        self._lock = threading.Lock()
