"""Whether requests wait so long that waiting helps nobody, and which of them goes next. Pure: numbers and a clock.

*Overload* is a standing queue, found as CoDel finds one (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue
2012; RFC 8289): for a whole interval no thread that became free found the oldest request waiting for less than the
target, and the queue became no shorter: a burst drains, however slowly, and is served whole. Under overload the newest
request goes first, since its client is the most likely to be there still, and what has waited above a limit is refused:
Facebook's adaptive LIFO with CoDel (Maurer, "Fail at Scale", ACM Queue 2015). Target and interval grow with the time
that a request takes: where that is five seconds, a wait of one second is no sign of anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

INTERVAL = 1.0  #: seconds for which the queue has to stand at least
SERVICE_TIMES = 4  #: × what a request takes: the interval at least
CLEAR = 4  #: the oldest waits less than this part of the target: the overload is over
SAMPLES = 64  #: ages at which clients hung up, remembered
ENOUGH = 8  #: of them, before they count
SHARE = 0.5  #: of the time that clients have patience for, a request may wait

#: Classes of requests, the first goes first.
HEALTH, CRITICAL, CHEAP, NORMAL, SHEDDABLE = range(5)
KINDS = 5
#: × the limit: what each class may wait under overload; a health endpoint's is never refused.
_LIMITS = (float("inf"), 4.0, 1.0, 1.0, 0.25)
TURNS = 4  #: every so many times a lower class has its turn, so that no class starves another


class QueueDelay:
    """One worker's judgement. No method waits; races between threads cost precision only.

    :param target: seconds that a service in good health keeps the oldest request below, now and then at least.
    :param limit: seconds of waiting above which a request is refused under overload; 0 = none ever is.
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
        """Seconds: the oldest waiting longer than that throughout an interval is overload."""
        return max(self._target, self.service)

    @property
    def limit(self) -> float:
        """Seconds that a request may wait under overload: less where clients were seen to leave early."""
        return max(self.target, min(max(self._limit, self.service), SHARE * self._patience))

    @property
    def watchful(self) -> bool:
        """There is overload, or the beginning of one."""
        return self.overloaded or bool(self._stands_at)

    def note(self, now: float, oldest: float, waiting: int) -> bool:
        """A thread is free: judge by how long the oldest request has waited, 0.0 if none does; return whether there
        is overload.

        :param waiting: how many wait.
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
        """What waited up to now waited for something else than a thread's time: there is no overload."""
        self._stands_at, self.overloaded = 0.0, False

    def may_wait(self, kind: int) -> float:
        """Seconds that a request of a class may wait; infinite without overload."""
        return _LIMITS[kind] * self.limit if self.overloaded else float("inf")

    def may_have_waited(self, kind: int) -> float:
        """The same where requests come in the order of their arrival, as from the kernel's queue: there the limit is
        what each of them waits, so it is half of the target; what is cheap costs less than to refuse it.
        """
        if not self.overloaded or kind in (HEALTH, CRITICAL, CHEAP):
            return self.may_wait(HEALTH if kind == CHEAP else kind)
        return max(0.5 * self._target * (1.0 if kind == NORMAL else 0.5), self.service)

    def left(self, age: float) -> None:
        """A client hung up at that age of its request, seconds."""
        self._left.append(age)
        if len(self._left) >= ENOUGH:
            ages = sorted(self._left)
            self._patience = ages[len(ages) // 10]

    def took(self, seconds: float) -> None:
        """Requests took so long of late, in the mean."""
        self.service += 0.5 * (seconds - self.service) if self.service else seconds


T = TypeVar("T")


class Line(Generic[T]):
    """Requests that wait for a thread, by class, each with the monotonic time of its arrival. Not safe for threads."""

    def __init__(self) -> None:
        self._classes: tuple[deque[tuple[float, T]], ...] = tuple(deque() for _ in _LIMITS)
        self._turn = 0
        self.number = 0

    def add(self, kind: int, arrived: float, one: T) -> None:
        """One more waits."""
        self._classes[kind].append((arrived, one))
        self.number += 1

    def oldest(self, now: float) -> float:
        """Seconds for which the oldest has waited, 0.0 if none does."""
        return max((now - waiting[0][0] for waiting in self._classes if waiting), default=0.0)

    def next(self, *, newest: bool) -> tuple[float, T] | None:
        """Take the next one, with its arrival: of the first class, but every fourth time of the next; None if none
        waits.

        :param newest: the newest of its class.
        """
        waiting = [each for each in self._classes if each]
        if not waiting:
            return None
        self._turn += 1
        chosen = waiting[1] if len(waiting) > 1 and self._turn % TURNS == 0 else waiting[0]
        self.number -= 1
        return chosen.pop() if newest else chosen.popleft()

    def overdue(self, now: float, limits: Sequence[float]) -> list[tuple[float, T]]:
        """Take those that have waited above their class's limit, but not the last one that waits: it is better off
        with the next free thread.
        """
        found = []
        for waiting, limit in zip(reversed(self._classes), reversed(limits), strict=True):
            while waiting and self.number > 1 and now - waiting[0][0] > limit:
                found.append(waiting.popleft())
                self.number -= 1
        return found

    def all(self) -> Iterable[T]:
        """Those that wait."""
        return [one for waiting in self._classes for _, one in waiting]
