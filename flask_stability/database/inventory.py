"""Which connections there are, and who has them: bookkeeping under one lock, without I/O and without a driver.

What always holds: `taken` and idle connections together are no more than `size`; and where a connection is idle while
a thread waits, one of those that wait has been called and is on its way, or the first looks every few milliseconds, or
`most_used` are taken, and `spread` goes on.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Container
from time import monotonic
from typing import Generic, Protocol, TypeVar

from ..exceptions import PoolClosed
from ..request import RequestRecord
from .waiters import LOOK_INTERVAL, Waiter

#: Connections that may be taken when the database is back, while many wait.
AT_FIRST = 2
#: Connections that may be opened at once after one could not be.
FEW = 5

IDLE, IN_USE, RESERVED, REMOVED = "idle", "in use", "reserved", "removed"


class Stocked(Protocol):
    """What the inventory needs to know of a connection; see `ConnectionRecord`."""

    state: str
    cut: str
    since: float
    expires: float
    checked: float
    generation: int


S = TypeVar("S", bound=Stocked)


def _closed() -> PoolClosed:
    return PoolClosed("the pool is closed: the process is ending")


class Inventory(Generic[S]):
    """The connections of one pool, the slots for more, and the threads that wait.

    A connection that comes back lies idle and the first of those that wait is called, but who comes by meanwhile may
    take it: that saves a switch of threads. Who was called in vain is not called again, since each call is a switch: it
    looks by itself, until it has waited for long: then it is handed what comes back.

    :param size: connections that there may be.
    :param max_idle: idle ones that are kept.
    :ivar records: all open connections.
    :ivar idle: those that nobody uses, the warmest last.
    :ivar taken: slots in use, reserved, or of connections that are being opened.
    :ivar opening: slots of connections that are being opened.
    :ivar waiters: who waits, the first to come first.
    :ivar generation: rises with each failure; what was checked in an older one is asked before it is used.
    :ivar most_used: how many may be taken: `size`, but 0 while the database is away, and few while a queue of those
        that have waited for long gets its turn.
    :ivar most_opening: how many may be opened at once: `size`, but few while opening fails, and twice as many with each
        one that is open: those that wait must not run over a server that has no connection left, or hardly one.
    :ivar given_at: when a connection came back last, `time.monotonic`.
    :ivar requests: checkouts so far.
    :ivar usage: seconds that connections were in use.
    """

    def __init__(self, size: int, max_idle: int) -> None:
        self.size, self.max_idle = size, max_idle
        self.lock = threading.Lock()  # nobody waits on it: each waiter has a gate of its own
        self.records: set[S] = set()
        self.idle: list[S] = []
        self.waiters: collections.deque[Waiter[S]] = collections.deque()
        self.taken = self.opening = self.generation = self.requests = 0
        self.most_used = self.most_opening = size
        self.usage = self.given_at = 0.0
        self.closed = False
        self._called: Waiter[S] | None = None
        self._renewed = 0.0
        #: The connection that was given back first is taken first, not the warmest.
        self.fifo = False

    def __repr__(self) -> str:
        idle = len(self.idle)
        return f"size {self.taken + idle}, in use {self.in_use}, idle {idle}, waiting {len(self.waiters)}"

    @property
    def in_use(self) -> int:
        """Connections that an app has or the pool works on."""
        return max(0, self.taken - self.opening)

    def has_room(self) -> bool:
        """A connection is idle, or another one may be opened."""
        return self.taken < self.size

    def snapshot(self) -> list[S]:
        """All open connections."""
        with self.lock:
            return list(self.records)

    # -- taking --------------------------------------------------------------------------------------------------

    def count_request(self) -> None:
        """One more checkout, which takes nothing."""
        with self.lock:
            self.requests += 1

    def take_warm(self, now: float, window: float) -> S | None:
        """The warmest idle connection if it was known to be good less than `window` seconds ago."""
        with self.lock:
            self.requests += 1
            if (not self.idle or self.closed or self.taken >= self.most_used
                    or (self.waiters and now >= self.waiters[0].hand_over_from)):
                return None
            record = self.idle[-1]
            if (record.generation != self.generation or now >= record.expires or now - record.checked > window):
                return None
            self.idle.pop()
            self.taken += 1
            record.since = now
            record.state = IN_USE
            return record

    def take_or_join(self, waiter: Waiter[S] | None, now: float, deadline: float, refuse: Callable[[], None],
                     request: RequestRecord | None = None, *, hasty: bool = False
                     ) -> tuple[S | None, Waiter[S], int]:
        """A reserved connection that was idle, or a place in the queue, and for how many slots one is to be opened.

        :param waiter: of who has waited already and was served badly: it is the first again.
        :param request, hasty: the new waiter's.
        :param refuse: raises where nobody is to wait; called under the lock, so that who sends all waiters away
            misses none.
        :raises PoolClosed: after `close`.
        """
        place: Waiter[S] = Waiter(waiter.since if waiter else now, deadline, request, hasty=hasty)
        with self.lock:
            if self.closed:
                raise _closed()
            refuse()
            if self._available() and (waiter or not self.waiters or now < self.waiters[0].hand_over_from):
                return self._take_idle(), place, 0
            if waiter:
                self.waiters.appendleft(place)
            else:
                self.waiters.append(place)
            return None, place, self._reserve(0)

    def _available(self) -> bool:
        return bool(self.idle) and self.taken < self.most_used

    def _take_idle(self) -> S:
        record = self.idle.pop()  # last in, first out: the warmest
        record.state = RESERVED
        self.taken += 1
        return record

    def wait(self, waiter: Waiter[S], deadline: float) -> bool:
        """Wait until there is a connection or an error for a waiter; False if there was none by the deadline.

        Whoever is interrupted here, or has waited in vain, has to `leave`.
        """
        while True:
            left = max(0.0, deadline - monotonic())
            woken = waiter.gate.acquire(timeout=min(left, LOOK_INTERVAL) if waiter.in_vain else left)
            with self.lock:
                if not woken:
                    waiter.gate.acquire(blocking=False)  # released since: what it was for is seen now
                if self._called is waiter or (waiter.in_vain and self.waiters and self.waiters[0] is waiter):
                    self._come(waiter)
                if waiter.record is not None or waiter.error is not None:
                    return True
                if not woken and monotonic() >= deadline:
                    return False

    def _come(self, waiter: Waiter[S]) -> None:
        """Who was called is here. If there is nothing any more, it keeps its place and looks by itself from now on."""
        if self._called is waiter:
            self._called = None
        waiter.in_vain = not self._available()
        if not waiter.in_vain:
            self.waiters.remove(waiter)
            waiter.record = self._take_idle()
            self._call()

    def _call(self) -> None:
        """Where there is something for somebody, the first is on its way, or will look soon."""
        if self._available() and self.waiters and self._called is None and not self.waiters[0].in_vain:
            self._called = self.waiters[0]
            self._called.gate.release()

    def leave(self, waiter: Waiter[S]) -> S | None:
        """Out of the queue; what was handed over meanwhile, to be given to the next."""
        with self.lock:
            self._dequeue(waiter)
            record, waiter.record = waiter.record, None
            return record

    def _dequeue(self, waiter: Waiter[S]) -> bool:
        """Out of the queue; whether it was called, so that its gate is open already."""
        try:
            self.waiters.remove(waiter)
        except ValueError:
            return False
        called = self._called is waiter
        if called:
            self._called = None
            self._call()
        return called

    def waiting(self) -> list[Waiter[S]]:
        """Return those that wait, the first to come first."""
        with self.lock:
            return list(self.waiters)

    def waiting_since(self) -> float:
        """When the first of those came that wait, 0.0 if nobody does."""
        with self.lock:
            return min((waiter.since for waiter in self.waiters), default=0.0)

    # -- sending away --------------------------------------------------------------------------------------------

    def send_all_away(self, make_error: Callable[[], BaseException] = _closed,
                      which: Callable[[Waiter[S]], bool] = lambda waiter: True) -> None:
        """Let all waiters fail, or those that `which` chooses, each with an error of its own."""
        with self.lock:
            for waiter in [waiter for waiter in self.waiters if which(waiter)]:
                self._send_away(waiter, make_error())

    def send_latest_away(self, threads: Container[int], error: BaseException) -> int | None:
        """Let the waiter fail that came last of these threads; which one that was."""
        with self.lock:
            latest = next((waiter for waiter in reversed(self.waiters) if waiter.thread_id in threads), None)
            if latest is None:
                return None
            self._send_away(latest, error)
            return latest.thread_id

    def _send_away(self, waiter: Waiter[S], error: BaseException) -> None:
        waiter.error = error
        if not self._dequeue(waiter):
            waiter.gate.release()

    # -- giving back ---------------------------------------------------------------------------------------------

    def give(self, record: S, now: float, *, used: float = 0.0, cold: bool = False) -> bool:
        """A good connection comes back, or a new one comes; False if it is not to be used again.

        :param used: seconds that it was in use.
        :param cold: it is the last to be taken.
        """
        with self.lock:
            self.usage += used
            self.given_at = now
            if record.cut or self.closed or now >= record.expires:
                return False
            if self.waiters:
                if self.taken <= self.most_used and (now >= self.waiters[0].hand_over_from
                                                     or len(self.idle) >= self.max_idle):
                    self._hand_over(record)
                    return True
            elif len(self.idle) >= self.max_idle:
                return False
            record.state = IDLE
            self.taken -= 1
            if cold or self.fifo:
                self.idle.insert(0, record)
            else:
                self.idle.append(record)
            if self.waiters:
                self._call()
            return True

    def _hand_over(self, record: S) -> None:
        waiter = self.waiters[0]
        record.state, waiter.record = RESERVED, record
        if not self._dequeue(waiter):
            waiter.gate.release()

    def count_usage(self, used: float) -> None:
        """A connection came back that is of no more use."""
        with self.lock:
            self.usage += used

    def remove(self, record: S) -> bool:
        """Forget a connection and keep its slot; False if that was done before."""
        with self.lock:
            if record.state is REMOVED:
                return False
            record.state = REMOVED
            self.records.discard(record)
            return True

    # -- slots ---------------------------------------------------------------------------------------------------

    def _reserve(self, ahead: int, *, coming: int = 0) -> int:
        room = self.most_used - self.taken - len(self.idle)
        wanted = min(max(len(self.waiters) - coming, ahead), self.most_opening) - self.opening
        count = max(0, min(room, wanted))
        self.taken += count
        self.opening += count
        return count

    def reserve_ahead(self, min_idle: int) -> int:
        """Reserve slots for what is missing of `min_idle` connections; how many."""
        with self.lock:
            return 0 if self.closed else self._reserve(min_idle - len(self.idle))

    def free_slot(self) -> int:
        """A slot is free again; how many are reserved instead for those who wait."""
        with self.lock:
            self.taken -= 1
            return self._reserve(0)

    def release_slots(self, count: int) -> None:
        """No connection is opened for so many reserved slots."""
        with self.lock:
            self.opening -= count
            self.taken -= count

    def release_slot_unless_needed(self) -> bool:
        """Give up the slot of a connection that could not be opened; False for one more try, if somebody waits and few
        others try.
        """
        with self.lock:
            self.most_opening = min(self.size, FEW)
            if self.waiters and not self.closed and self.opening <= self.most_opening:
                return False
            self.opening -= 1
            self.taken -= 1
            return True

    def opened(self) -> int:
        """A connection was opened in a reserved slot, which it has now; how many more slots are reserved, where some
        wait since opening failed.
        """
        with self.lock:
            self.opening -= 1
            if self.most_opening >= self.size:
                return 0
            self.most_opening = min(self.size, self.most_opening * 2)
            return self._reserve(0, coming=1)

    def add(self, record: S) -> None:
        """One more open connection, which has a slot already."""
        with self.lock:
            self.records.add(record)

    def reserve_idle(self, due: Callable[[S], bool]) -> list[S]:
        """Take those idle connections out that are due to be worked on, the warmest first."""
        with self.lock:
            chosen = [record for record in self.idle if due(record)]
            for record in chosen:
                record.state = RESERVED
                self.idle.remove(record)
                self.taken += 1
        return chosen[::-1]

    # -- after an outage, or a standstill ------------------------------------------------------------------------

    def pause(self) -> None:
        """The database is away: reserve no slots, take nothing."""
        with self.lock:
            self.most_used = 0

    def resume(self, *, paced: bool) -> int:
        """The database is back: a few may be taken, more with each `spread`; how many slots are reserved now.

        :param paced: somebody calls that; else as many as there are may be taken.
        """
        with self.lock:
            self.most_used = min(self.size, AT_FIRST) if paced else self.size
            return self._reserve(0)

    def throttle(self) -> None:
        """Nothing comes back: when it does, a queue that is longer than the pool gets its turn as after an outage."""
        with self.lock:
            if self.taken >= self.size and len(self.waiters) > self.size:
                self.most_used = min(self.size, AT_FIRST)

    def spread(self) -> int:
        """More may be taken, as many as there are once nobody waits; how many slots are reserved now.

        As in TCP's slow start, a server that has just come back is not run over, and this process still serves others.
        """
        with self.lock:
            if not 0 < self.most_used < self.size:
                return 0
            self.most_used = min(self.size, max(self.most_used + 1, self.most_used * 11 // 10))
            if not self.waiters:
                self.most_used = self.size
            while self._available() and self.waiters:
                self._hand_over(self._take_idle())
            return self._reserve(0)

    # -- all of them ---------------------------------------------------------------------------------------------

    def renew(self) -> bool:
        """None of the connections of now is used again, as after a failover; at most once a second, else False.

        A server that stays read-only must not cost a connect for each error.
        """
        now = monotonic()
        with self.lock:
            if now - self._renewed < 1.0:
                return False
            self._renewed = now
            for record in self.records:
                record.expires = now
            return True

    def close(self) -> list[S]:
        """Give out no more; what was idle, each with its slot."""
        with self.lock:
            self.closed = True
            idle, self.idle = self.idle, []
            self.taken += len(idle)
            return idle
