"""Decide when all threads of a gthread worker are stuck, and how many spare ones it may have. Pure."""

from __future__ import annotations

#: seconds without progress, with work queued, before spare threads are added, and before more of them are
FIRST, AGAIN = 1.0, 0.5
LASTING = 2.0  #: seconds that the first spare threads have to help
MOST = 8  #: × the worker's threads: maximum number of spare threads
COST = 1 << 20  #: bytes of memory that a thread is assumed to need


class Stuck:
    """Watch one worker's progress.

    At first it wants as many spare threads as there are threads. While those get stuck too and accepted work waits, it
    wants twice as many each time, up to a limit.

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
        """Return how many spare threads are wanted now.

        :param queued: accepted connections that no thread has taken yet.
        :param progress: anything that changes when a request begins or ends.
        :param began: when each request in flight began, monotonic seconds.
        """
        if not queued:
            self.since = 0.0
            return 0
        if not self.since or progress != self._progress:
            # with a request in every thread, it is known when the last thread was taken
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
        """Return whether the worker is stuck although spare threads had time to help."""
        return now - self._first >= LASTING


def for_clients(threads: int, now: int, waiting: int, room: int) -> int:
    """Return how many threads to add in place of those that wait for slow clients.

    The number doubles each time, since the next threads may wait for slow clients as well.

    :param threads: configured threads; as many should be free for other requests.
    :param now: threads that the worker has.
    :param waiting: those among them that wait.
    :param room: how many more it may have.
    """
    return min(max(0, waiting + max(threads, waiting) - now), max(0, room))


def room(given: int, most: int, free: int | None) -> int:
    """Return how many more threads a worker may have.

    :param given: spare threads that it has.
    :param most: STABILITY_SPARE_MAX.
    :param free: free memory in bytes, None if unknown; half of it may be used.
    """
    spare = most - given
    return max(0, spare if free is None else min(spare, free // 2 // COST))
