"""The threads of a gthread worker: when all of them are stuck, and more of them. `Stuck` is pure."""

from __future__ import annotations

import contextlib
import select
from typing import Any

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
        wanted = min(self._threads + self.added, MOST * self._threads - self.added)
        self.added += wanted
        return wanted

    def lasting(self, now: float) -> bool:
        """Stuck again although there was time for spare threads to help."""
        return now - self._first >= LASTING


def queued(worker: Any) -> int:
    """Connections that a gthread worker accepted and no thread has taken; on other workers 0.

    One whose connections are all taken, by idle clients for the most part, accepts no more: then whether any wait.
    """
    try:
        return int(worker.tpool._work_queue.qsize()) or int(_full(worker) and knocking(worker.sockets))
    except (AttributeError, OSError):
        return 0


def for_clients(threads: int, now: int, waiting: int, room: int) -> int:
    """How many threads a worker is to get in place of those that wait for slow clients: twice as many each time, since
    the next ones may wait for such as well. Pure.

    :param threads: its own; so many are to be free for others.
    :param now: how many it has.
    :param waiting: how many of those wait.
    :param room: how many more there may be.
    """
    return min(max(0, waiting + max(threads, waiting) - now), max(0, room))


def room(worker: Any, threads: int, most: int, free: int | None) -> int:
    """How many threads more a worker may have.

    :param threads: its own.
    :param most: STABILITY_SPARE_MAX.
    :param free: bytes of memory that are free, None if that is not known; half of it may be used.
    """
    spare = most - (number(worker) - threads)
    return max(0, spare if free is None else min(spare, free // 2 // COST))


def number(worker: Any) -> int:
    """How many threads a gthread worker has, or may have as soon as it needs them."""
    return int(getattr(getattr(worker, "tpool", None), "_max_workers", 1))


def _full(worker: Any) -> bool:
    return bool(worker.nr_conns >= worker.worker_connections)


def knocking(listeners: list[Any]) -> bool:
    """Whether a connection waits that no worker has accepted yet."""
    poll = select.poll()
    for listener in listeners:
        poll.register(listener.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def add_threads(worker: Any, number: int) -> bool:
    """Give a gthread worker more threads, and as many connections; False if this Python's pool has not what that
    needs.
    """
    pool = getattr(worker, "tpool", None)
    if not (hasattr(pool, "_max_workers") and hasattr(pool, "_adjust_thread_count")):
        return False
    assert pool is not None
    with getattr(pool, "_shutdown_lock", None) or contextlib.nullcontext():
        pool._max_workers += number
        for _ in range(min(number, queued(worker))):
            pool._adjust_thread_count()
    with contextlib.suppress(AttributeError, OSError):
        worker.worker_connections += number
        worker.method_queue.defer(int)  # its loop looks at that number after each event
    return True
