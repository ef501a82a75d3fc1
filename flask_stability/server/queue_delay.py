"""Decide whether requests wait too long to be worth serving, and which one goes next. Pure: numbers and a clock.

*Overload* is a standing queue, found as CoDel finds one (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue
2012; RFC 8289): for a whole interval no thread that became free found the oldest request waiting for less than the
target, and the queue became no shorter. A burst that drains, however slowly, is served whole. Under overload the newest
request goes first, since its client is the most likely to be still connected, and requests that have waited longer than
a limit are refused: Facebook's adaptive LIFO with CoDel (Maurer, "Fail at Scale", ACM Queue 2015). Target and interval
grow with the service time: where a request takes five seconds, a wait of one second is no sign of overload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

INTERVAL = 1.0  #: seconds: shortest interval for which the queue has to stand
SERVICE_TIMES = 4  #: × the service time of a request: the interval at least
CLEAR = 4  #: the oldest request waits less than the target divided by this: the overload is over
SAMPLES = 64  #: number of remembered ages at which clients hung up
ENOUGH = 8  #: number of such ages from which they count
SHARE = 0.5  #: share of the clients' patience that a request may wait

#: Classes of requests; the first class goes first.
HEALTH, CRITICAL, CHEAP, NORMAL, SHEDDABLE = range(5)
KINDS = 5
#: × the limit: the wait that each class may have under overload; a health request is never refused.
_LIMITS = (float("inf"), 4.0, 1.0, 1.0, 0.25)
TURNS = 4  #: one turn in this many goes to the next lower class, so that no class starves another


class QueueDelay:
    """One worker's view of its queue. No method waits; races between threads cost precision only.

    :param target: seconds of waiting that the oldest request of a healthy service falls below now and then.
    :param limit: seconds of waiting above which a request is refused under overload; 0 = never refuse.
    :ivar overloaded: there is overload now.
    :ivar since: when it began, monotonic seconds.
    :ivar service: seconds that a request takes, without its wait.
    """

    def __init__(self, target: float, limit: float) -> None:
        self._target, self._limit = target, limit
        self.overloaded = False
        self.since = 0.0
        self.service = 0.0
        self._stands_at, self._stood = 0.0, 0
        self._left: deque[float] = deque(maxlen=SAMPLES)
        self._patience = float("inf")

    @property
    def target(self) -> float:
        """Return the target in seconds: if the oldest request waits longer throughout an interval, there is overload.
        """
        return max(self._target, self.service)

    @property
    def limit(self) -> float:
        """Return the seconds that a request may wait under overload, reduced where clients have hung up early."""
        return max(self.target, min(max(self._limit, self.service), SHARE * self._patience))

    @property
    def watchful(self) -> bool:
        """Return whether there is overload, or the beginning of one."""
        return self.overloaded or bool(self._stands_at)

    def note(self, now: float, oldest: float, waiting: int) -> bool:
        """Record, when a thread is free, how long the oldest request has waited; return whether there is overload.

        :param oldest: seconds that the oldest request has waited, 0.0 if none waits.
        :param waiting: the number of waiting requests.
        """
        if oldest < self.target or not self._limit:
            self._stands_at = 0.0
            if oldest < self.target / CLEAR:
                self.overloaded = False
        elif not self._stands_at or (now >= self._stands_at and waiting < self._stood):
            self._stands_at, self._stood = now + max(INTERVAL, SERVICE_TIMES * self.service), waiting
        elif now >= self._stands_at and not self.overloaded:
            self.overloaded, self.since = True, now
        return self.overloaded

    def forget(self) -> None:
        """Forget the overload: the requests waited for something else than a thread's time."""
        self._stands_at, self.overloaded = 0.0, False

    def may_wait(self, kind: int) -> float:
        """Return the seconds that a request of a class may wait; infinite without overload."""
        return _LIMITS[kind] * self.limit if self.overloaded else float("inf")

    def may_have_waited(self, kind: int) -> float:
        """Return the same limit for requests that come in the order of their arrival, as from the kernel's queue.

        There every request waits up to the limit, so it is half of the target. A cheap request has no limit, since
        serving it costs less than refusing it.
        """
        if not self.overloaded or kind in (HEALTH, CRITICAL, CHEAP):
            return self.may_wait(HEALTH if kind == CHEAP else kind)
        return max(0.5 * self._target * (1.0 if kind == NORMAL else 0.5), self.service)

    def left(self, age: float) -> None:
        """Record the age of a request, in seconds, at which its client hung up."""
        self._left.append(age)
        if len(self._left) >= ENOUGH:
            ages = sorted(self._left)
            self._patience = ages[len(ages) // 10]

    def took(self, seconds: float) -> None:
        """Record the mean service time of the latest requests, in seconds."""
        self.service += 0.5 * (seconds - self.service) if self.service else seconds


T = TypeVar("T")


class Line(Generic[T]):
    """Requests that wait for a thread, by class, each with the monotonic time of its arrival. Not thread-safe."""

    def __init__(self) -> None:
        self._classes: tuple[deque[tuple[float, T]], ...] = tuple(deque() for _ in _LIMITS)
        self._turn = 0
        self.number = 0

    def add(self, kind: int, arrived: float, one: T) -> None:
        """Add a request with its class and time of arrival."""
        self._classes[kind].append((arrived, one))
        self.number += 1

    def oldest(self, now: float) -> float:
        """Return the seconds for which the oldest request has waited, 0.0 if none waits."""
        return max((now - waiting[0][0] for waiting in self._classes if waiting), default=0.0)

    def next(self, *, newest: bool) -> tuple[float, T] | None:
        """Take the next request, with its arrival; return None if none waits.

        It comes from the first class, every fourth time from the next.

        :param newest: take the newest of its class, else the oldest.
        """
        waiting = [each for each in self._classes if each]
        if not waiting:
            return None
        self._turn += 1
        chosen = waiting[1] if len(waiting) > 1 and self._turn % TURNS == 0 else waiting[0]
        self.number -= 1
        return chosen.pop() if newest else chosen.popleft()

    def overdue(self, now: float, limits: Sequence[float]) -> list[tuple[float, T]]:
        """Take the requests that have waited longer than their class's limit, but never the last waiting one.

        That one is better off with the next free thread.
        """
        found = []
        for waiting, limit in zip(reversed(self._classes), reversed(limits), strict=True):
            while waiting and self.number > 1 and now - waiting[0][0] > limit:
                found.append(waiting.popleft())
                self.number -= 1
        return found

    def all(self) -> Iterable[T]:
        """Return the waiting requests."""
        return [one for waiting in self._classes for _, one in waiting]
