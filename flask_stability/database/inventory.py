"""Bookkeeping of connections and their use: under one lock, without I/O and without a driver.

Invariants: `taken` and idle connections together never exceed `size`. If a connection is idle while a thread waits, one
of these holds: a woken waiter is on its way; the first waiter looks every few milliseconds; `most_used` connections are
taken, and `spread` will raise that limit.
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

#: Maximum of taken connections when the database has come back and many threads wait.
AT_FIRST = 2
#: Maximum of concurrent connects after one has failed.
FEW = 5

IDLE, IN_USE, RESERVED, REMOVED = "idle", "in use", "reserved", "removed"


class Stocked(Protocol):
    """The attributes of a connection that the inventory needs; see `ConnectionRecord`."""

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
    """The connections of one pool, the slots for more, and the waiters.

    A connection that comes back becomes idle, and the inventory wakes the first waiter. A thread that arrives meanwhile
    may take the connection first: that saves a thread switch. A waiter that was woken in vain is not woken again, since
    each wake-up costs a thread switch. It looks by itself. Once it has waited for long, `give` hands it a connection.

    :param size: maximum of connections.
    :param max_idle: maximum of idle connections to keep.
    :ivar records: all open connections.
    :ivar idle: idle connections, the warmest last.
    :ivar taken: slots that are in use or reserved, including those of connections that are being opened.
    :ivar opening: slots of connections that are being opened.
    :ivar waiters: waiting threads, the first to arrive first.
    :ivar generation: rises with each failure; a connection that was last checked in an older one is pinged before use.
    :ivar most_used: maximum of `taken`: `size`, but 0 while the database is away, and few while a queue of long waits
        is served.
    :ivar most_opening: maximum of concurrent connects: `size`, but few while connects fail; each success doubles it. So
        the waiters do not overrun a server that has no connection left, or hardly one.
    :ivar given_at: when a connection came back last, `time.monotonic`.
    :ivar requests: checkouts so far.
    :ivar usage: seconds that connections were in use.
    """

    def __init__(self, size: int, max_idle: int) -> None:
        self.size, self.max_idle = size, max_idle
        self.lock = threading.Lock()  # held only briefly: each waiter waits on a gate of its own
        self.records: set[S] = set()
        self.idle: list[S] = []
        self.waiters: collections.deque[Waiter[S]] = collections.deque()
        self.taken = self.opening = self.generation = self.requests = 0
        self.most_used = self.most_opening = size
        self.usage = self.given_at = 0.0
        self.closed = False
        self._called: Waiter[S] | None = None
        self._renewed = 0.0
        #: Take the connection that came back first, not the warmest.
        self.fifo = False

    def __repr__(self) -> str:
        idle = len(self.idle)
        return f"size {self.taken + idle}, in use {self.in_use}, idle {idle}, waiting {len(self.waiters)}"

    @property
    def in_use(self) -> int:
        """Return how many connections borrowers have or the pool works on."""
        return max(0, self.taken - self.opening)

    def has_room(self) -> bool:
        """Return whether a connection is idle or another one may be opened."""
        return self.taken < self.size

    def snapshot(self) -> list[S]:
        """Return all open connections."""
        with self.lock:
            return list(self.records)

    # -- taking --------------------------------------------------------------------------------------------------

    def count_request(self) -> None:
        """Count a checkout that takes no connection."""
        with self.lock:
            self.requests += 1

    def take_warm(self, now: float, window: float) -> S | None:
        """Take the warmest idle connection if it was known to be good at most `window` s ago; else return None."""
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
        """Reserve an idle connection, or join the queue.

        Return the connection or None, the waiter, and for how many reserved slots to open a connection.

        :param waiter: from a thread that has waited already and got an unusable connection: it rejoins at the front.
        :param request, hasty: for the new waiter.
        :param refuse: raises if the thread must not wait. It runs under the lock, so `send_all_away` misses no waiter.
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
        """Wait until a waiter has a connection or an error; return False if it has neither by the deadline.

        After False, an error or an interruption, the caller must call `leave`.
        """
        while True:
            left = max(0.0, deadline - monotonic())
            woken = waiter.gate.acquire(timeout=min(left, LOOK_INTERVAL) if waiter.in_vain else left)
            with self.lock:
                if not woken:
                    waiter.gate.acquire(blocking=False)  # released since the timeout: its cause is handled below
                if self._called is waiter or (waiter.in_vain and self.waiters and self.waiters[0] is waiter):
                    self._come(waiter)
                if waiter.record is not None or waiter.error is not None:
                    return True
                if not woken and monotonic() >= deadline:
                    return False

    def _come(self, waiter: Waiter[S]) -> None:
        """Serve a waiter that was woken or looks by itself.

        If no connection is left, it keeps its place and looks by itself from now on.
        """
        if self._called is waiter:
            self._called = None
        waiter.in_vain = not self._available()
        if not waiter.in_vain:
            self.waiters.remove(waiter)
            waiter.record = self._take_idle()
            self._call()

    def _call(self) -> None:
        """Wake the first waiter if a connection is available, unless one is on its way or looks by itself soon."""
        if self._available() and self.waiters and self._called is None and not self.waiters[0].in_vain:
            self._called = self.waiters[0]
            self._called.gate.release()

    def leave(self, waiter: Waiter[S]) -> S | None:
        """Leave the queue; return a connection that was handed over meanwhile, for the next waiter."""
        with self.lock:
            self._dequeue(waiter)
            record, waiter.record = waiter.record, None
            return record

    def _dequeue(self, waiter: Waiter[S]) -> bool:
        """Remove a waiter from the queue; return whether it was woken, so that its gate is already open."""
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
        """Return the waiters, the first to arrive first."""
        with self.lock:
            return list(self.waiters)

    def waiting_since(self) -> float:
        """Return when the longest waiter arrived; 0.0 if no thread waits."""
        with self.lock:
            return min((waiter.since for waiter in self.waiters), default=0.0)

    # -- sending away --------------------------------------------------------------------------------------------

    def send_all_away(self, make_error: Callable[[], BaseException] = _closed,
                      which: Callable[[Waiter[S]], bool] = lambda waiter: True) -> None:
        """Let all waiters fail, or those that `which` selects, each with a separate error."""
        with self.lock:
            for waiter in [waiter for waiter in self.waiters if which(waiter)]:
                self._send_away(waiter, make_error())

    def send_latest_away(self, threads: Container[int], error: BaseException) -> int | None:
        """Let the latest waiter among these threads fail; return its thread's id, None if none of them waits."""
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
        """Hand a good connection, returned or new, to the first waiter, or make it idle.

        Return False if it must be closed: it is surplus, cut off or expired, or the pool is closed.

        :param used: seconds that it was in use.
        :param cold: take it last.
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
        """Count the usage of a connection that came back and will be closed."""
        with self.lock:
            self.usage += used

    def remove(self, record: S) -> bool:
        """Forget a connection and keep its slot; return False if that was done before."""
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
        """Reserve slots for connections that are missing up to `min_idle`; return how many."""
        with self.lock:
            return 0 if self.closed else self._reserve(min_idle - len(self.idle))

    def free_slot(self) -> int:
        """Free a slot; return how many slots are now reserved for waiters instead."""
        with self.lock:
            self.taken -= 1
            return self._reserve(0)

    def release_slots(self, count: int) -> None:
        """Release reserved slots in which no connection will be opened."""
        with self.lock:
            self.opening -= count
            self.taken -= count

    def release_slot_unless_needed(self) -> bool:
        """Release the slot of a failed connect and return True; or return False to attempt once more.

        Another attempt is due while a thread waits and few other attempts are under way.
        """
        with self.lock:
            self.most_opening = min(self.size, FEW)
            if self.waiters and not self.closed and self.opening <= self.most_opening:
                return False
            self.opening -= 1
            self.taken -= 1
            return True

    def opened(self) -> int:
        """Count a connection as open in its reserved slot; return how many more slots are now reserved.

        It reserves more only if failed connects have lowered `most_opening`.
        """
        with self.lock:
            self.opening -= 1
            if self.most_opening >= self.size:
                return 0
            self.most_opening = min(self.size, self.most_opening * 2)
            return self._reserve(0, coming=1)

    def add(self, record: S) -> None:
        """Add an open connection that already has a slot."""
        with self.lock:
            self.records.add(record)

    def reserve_idle(self, due: Callable[[S], bool]) -> list[S]:
        """Reserve the idle connections that are due for upkeep, the warmest first."""
        with self.lock:
            chosen = [record for record in self.idle if due(record)]
            for record in chosen:
                record.state = RESERVED
                self.idle.remove(record)
                self.taken += 1
        return chosen[::-1]

    # -- after an outage, or a standstill ------------------------------------------------------------------------

    def pause(self) -> None:
        """Reserve no slots and give out no connection while the database is away."""
        with self.lock:
            self.most_used = 0

    def resume(self, *, paced: bool) -> int:
        """Give out connections again after an outage; return how many slots are now reserved.

        :param paced: begin with few, since the housekeeper calls `spread` for more; else lift the limit at once.
        """
        with self.lock:
            self.most_used = min(self.size, AT_FIRST) if paced else self.size
            return self._reserve(0)

    def throttle(self) -> None:
        """Prepare for the end of a standstill: serve a queue longer than the pool slowly, as after an outage."""
        with self.lock:
            if self.taken >= self.size and len(self.waiters) > self.size:
                self.most_used = min(self.size, AT_FIRST)

    def spread(self) -> int:
        """Raise `most_used`, to `size` once no thread waits; return how many slots are now reserved.

        As in TCP's slow start, this does not overrun a server that has just come back, and this process still serves
        other requests.
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
        """Expire all present connections, as after a failover. At most once a second; return False if called sooner.

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
        """Give out no more connections; return the idle ones, each with its slot."""
        with self.lock:
            self.closed = True
            idle, self.idle = self.idle, []
            self.taken += len(idle)
            return idle
