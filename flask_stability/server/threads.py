"""The threads of a gthread worker: when all of them are stuck, and how many more there may be. Pure."""

from __future__ import annotations

FIRST, AGAIN = 1.0, 0.5  #: seconds without progress, with work queued, after which spare threads come, and more of them
LASTING = 2.0  #: seconds from the first spare threads on in which it has to get better
MOST = 8  #: × the worker's threads: so many spare ones at the most
COST = 1 << 20  #: bytes of memory that a thread is taken to need


class Stuck:
    """Watches one worker's progress.

    The first time as many spare threads as there are threads are wanted. As long as those get stuck too and work that
    was accepted waits, more are wanted, twice as many each time, up to a limit.

    :ivar since: when progress stopped, 0.0 = it did not.
    :ivar times: how often all threads were found stuck.
    :ivar added: spare threads wanted so far.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._progress: object = None
        self._first = 0.0
        self.since = 0.0
        self.times = self.added = 0

    def look(self, now: float, queued: int, progress: object, began: list[float]) -> int:
        """How many spare threads are wanted now.

        :param queued: accepted connections that no thread has taken yet.
        :param progress: anything that changes when a request begins or ends.
        :param began: when each request in flight began, monotonic seconds.
        """
        if not queued:
            self.since = 0.0
            return 0
        if not self.since or progress != self._progress:
            # with a request in every thread it is known when the last of them was taken
            self.since = max(began) if len(began) >= self._threads + self.added else now
            self._progress = progress
        if now - self.since < (AGAIN if self.times else FIRST):
            return 0
        self.since = now
        self._first = self._first or now
        self.times += 1
        wanted = max(0, min(self._threads + self.added, MOST * self._threads - self.added))
        self.added += wanted
        return wanted

    def lasting(self, now: float) -> bool:
        """Stuck again although there was time for spare threads to help."""
        return now - self._first >= LASTING


def for_clients(threads: int, now: int, waiting: int, room: int) -> int:
    """How many threads a worker is to get in place of those that wait for slow clients: twice as many each time, since
    the next ones may wait for such as well. Pure.

    :param threads: its own; so many are to be free for others.
    :param now: how many it has.
    :param waiting: how many of those wait.
    :param room: how many more there may be.
    """
    return min(max(0, waiting + max(threads, waiting) - now), max(0, room))


def room(given: int, most: int, free: int | None) -> int:
    """How many threads more a worker may have. Pure.

    :param given: how many it has beside its own.
    :param most: STABILITY_SPARE_MAX.
    :param free: bytes of memory that are free, None if that is not known; half of it may be used.
    """
    spare = most - given
    return max(0, spare if free is None else min(spare, free // 2 // COST))
