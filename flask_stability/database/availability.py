"""Judge whether the database answers, from the results of calls, connects and probes.

While it does not answer, the pool opens no connection, and `hold` holds or refuses the requests. When it answers again,
the suspended work resumes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..dberrors import CONSEQUENCES, COUNTS, WAITS, ErrorClass, proves_alive
from ..exceptions import CircuitOpen, DatabaseUnavailable, TooManyRequests
from ..request import RequestRecord
from .breaker import Breaker
from .bulkhead import Bulkhead
from .drivers import Driver
from .events import Events
from .guarded_calls import LINK_LOST, GuardedCalls
from .hold import Hold, hosted
from .inventory import IN_USE, Inventory
from .record import ConnectionRecord
from .stats import Counters

#: A call that lasts longer than this makes the housekeeper probe the database, seconds.
SUSPICIOUS = 1.0
PROBE_INTERVAL, PROBE_TIMEOUT = 0.5, 1.0
#: Consecutive unanswered probes that open the breaker.
MISSES = 2
#: Maximum of concurrent probes: a slow one must not delay the one that finds the database back.
PROBES = 3
#: Time for a call from before the outage to end by itself once the database is back, seconds.
GRACE = 2.0


class Availability:
    """Judges whether one pool's database answers, and acts on it.

    :ivar last_error: why the latest connect failed; None if it succeeded.
    :ivar misses: consecutive probes without an answer.
    :ivar wake: makes the housekeeper look at once.
    :ivar back: called when the database is back; opens connections for the waiters.
    :ivar changed: called when an outage begins, and when it ends.
    """

    def __init__(self, driver: Driver, inventory: Inventory[ConnectionRecord], calls: GuardedCalls,
                 bulkhead: Bulkhead, breaker: Breaker, hold: Hold, counters: Counters, events: Events,
                 window: float) -> None:
        self.breaker = breaker
        self.back: Callable[[], None] = lambda: None
        self.changed: Callable[[], None] = lambda: None
        self.last_error: BaseException | None = None
        self.wake = threading.Event()
        self._driver, self._inventory, self._calls = driver, inventory, calls
        self._bulkhead, self._hold = bulkhead, hold
        self._counters, self._events, self._window = counters, events, window
        bulkhead.hurry = self.wake.set
        self._asked = 0.0
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._probes = self.misses = 0
        self._probed = self._answered = 0.0
        # calls from before the outage, each with its start time
        self._before: list[tuple[ConnectionRecord, float]] = []
        self._grace_until = 0.0

    @property
    def watched(self) -> bool:
        """Return whether a housekeeper looks after the pool."""
        return self._calls.watched

    # -- whether to use a connection, or to wait for one ---------------------------------------------------------

    def refuse_if_gone(self, request: RequestRecord | None) -> None:
        """Refuse a checkout while the database does not answer, unless its request may be held.

        :raises CircuitOpen: while the breaker is open.
        """
        if self.breaker.open and self._hold.refuses(request, monotonic()) and not self._may_ask():
            raise CircuitOpen(f"the database does not answer ({self.breaker.reason}); asked again every "
                              f"{PROBE_INTERVAL} s")

    def _may_ask(self) -> bool:
        """Return whether this checkout may ask if the database is back.

        Only without a housekeeper, and for one checkout every `PROBE_INTERVAL` seconds.
        """
        now = monotonic()
        if self.watched or now - max(self._asked, self.breaker.opened) < PROBE_INTERVAL:
            return False
        self._asked = now
        return True

    def check(self, record: ConnectionRecord, deadline: float) -> bool:
        """Return whether a reserved connection may be used, and mark it in use if so.

        It must not have expired, and the server must not have closed it. If it was not checked recently, or if another
        connection has failed since, it must answer a ping by the deadline.
        """
        now = monotonic()
        if now >= record.expires:
            return False
        if record.hung_up():
            self.lost_one()
            return False
        fresh = record.generation == self._inventory.generation and now - record.checked <= self._window
        if not fresh and not self.ping(record, deadline):
            return False
        # `GuardedCalls.cancel` holds this lock: it has either set `cut` already, or it will find no call to cancel
        with self._inventory.lock:
            record.since = monotonic()
            record.state = IN_USE
            return not record.cut

    def ping(self, record: ConnectionRecord, deadline: float) -> bool:
        """Return whether a reserved connection answers a ping by the deadline (`time.monotonic`)."""
        generation = self._inventory.generation
        try:
            self._calls.run_bounded(record, self._driver.ping, record.raw, deadline=deadline)
        except self._driver.dbapi.Error:
            self.lost_one()
            return False
        record.generation, record.checked = generation, monotonic()
        return not record.cut

    def lost_one(self) -> None:
        """Count a lost connection, and have the other ones checked before their next use."""
        self._counters.add("connections_lost")
        self._inventory.generation += 1

    # -- gone, and back ------------------------------------------------------------------------------------------

    def answered(self) -> None:
        """Record that the database answered, and resume what was suspended if that closes the breaker."""
        if self.breaker.success():
            self._follow()

    def gone(self) -> None:
        """Act on a breaker that has opened: `hold` holds the waiters that may be held and refuses the others."""
        self._follow()

    def _follow(self) -> None:
        """Bring the pool in line with the breaker's state.

        Each caller that changed the state calls this; the order of these calls does not matter.
        """
        with self._turn:
            away = self.breaker.open
            if away == self._bulkhead.away:
                return
            self._bulkhead.away = away
            if away:
                self._inventory.generation += 1
                if self.watched:
                    self._inventory.pause()
                self._hold.begin(self.breaker.reason)
                self.wake.set()
            else:
                self._bulkhead.forgiven = monotonic()
                self._hold.end()
                self.back()
            self.changed()

    def connected(self) -> None:
        """Record a successful connect."""
        self.answered()
        self.last_error = None

    def connect_failed(self, error: BaseException, started: float) -> bool:
        """Record a failed connect; return whether the connector should try again.

        If it returns False, the waiters have already been held or refused.
        """
        self.last_error = error
        driver = self._driver
        code = error.args[0] if error.args else "?"
        remedy = driver.remedy(error)
        if driver.kind != "sqlite" and proves_alive(error):
            self.answered()
        kind = driver.classify(error)
        connecting = CONSEQUENCES[kind].connecting
        if connecting is COUNTS:
            reason = f"error {code}: {remedy}" if remedy else f"error {code}"
            if self.breaker.failure(reason, started, lost=kind is ErrorClass.LINK_LOST):
                self.gone()
            else:
                self._hold.refuse(f"the database does not answer ({reason})",
                                  lambda waiter: waiter.hasty or (self.breaker.open and waiter.request is None))
            return not self.breaker.open
        if connecting is WAITS:
            return True
        text = f"{type(error).__name__} {error if driver.kind == 'sqlite' else code}"
        if remedy:
            text = f"{text}: {remedy}"
        self._inventory.send_all_away(
            lambda: caused(DatabaseUnavailable(f"cannot connect to the database: {text}"), error))
        return False

    # -- asking --------------------------------------------------------------------------------------------------

    def probe_if_due(self, records: list[ConnectionRecord], now: float,
                     start: Callable[[Callable[[], None]], bool]) -> None:
        """Start a probe if one is due; only for a networked database.

        That is so while a thread has been inside the database for more than `SUSPICIOUS` seconds, while the breaker is
        open, and after a miss until the next answer.

        :param start: runs a blocking job in a thread of its own; returns False if no thread can be started.
        """
        if self._driver.kind != "mysql":
            return
        oldest = min([record.inside for record in records if record.inside] + list(self._calls.inside.values()),
                     default=now)
        if not self.breaker.open and not self.misses and now - oldest <= SUSPICIOUS:
            return
        with self._lock:
            if now - self._probed < PROBE_INTERVAL or self._probes >= PROBES:
                return
            self._probed = now
            self._probes += 1
        if not start(self.probe):
            with self._lock:
                self._probes -= 1

    def probe(self) -> None:
        """Probe the database on a separate connection."""
        started = monotonic()
        code: Any = None
        try:
            self._driver.connect(PROBE_TIMEOUT).close()
            alive = True
        except Exception as error:
            code = error.args[0] if error.args else type(error).__name__
            alive = proves_alive(error)
        finally:
            with self._lock:
                self._probes -= 1
        if alive:
            self._found()
        else:
            self._missed(started, code)

    def _found(self) -> None:
        with self._lock:
            self._answered, self.misses = monotonic(), 0
        if not self.breaker.open:
            return
        self._before = [(record, record.inside) for record in self._inventory.snapshot()
                        if record.inside and record.request is not None]
        self._grace_until = monotonic() + GRACE
        self.answered()

    def end_lost(self, now: float) -> None:
        """Cancel calls that began before an outage and still have no answer `GRACE` seconds after it.

        The housekeeper calls this. The outage cut their links without a reset. Their later errors count as a lost link.
        """
        if self._before and now >= self._grace_until:
            before, self._before = self._before, []
            for record, inside in before:
                self._calls.cancel(record, inside, LINK_LOST)

    def _missed(self, started: float, code: Any) -> None:
        with self._lock:
            if started < self._answered:
                return
            self.misses += 1
            misses = self.misses
        if misses >= MISSES and self.breaker.trip(f"error {code}", started):
            self.gone()
        if self._bulkhead.helpless() and not (self._bulkhead.threads == 1 and hosted()):
            self.release_youngest()

    # -- one thread of the worker stays free ---------------------------------------------------------------------

    def release_youngest(self) -> None:
        """Cancel the youngest call while every thread of the worker waits for a database that does not answer.

        That frees one thread for requests without the database.
        """
        stuck = [(record.inside, record) for record in self._inventory.snapshot()
                 if record.inside and record.request is not None]
        if any(record.cut and record.link is not None for _, record in stuck):
            return  # a cancelled call's thread will be free in a moment
        for inside, record in sorted(stuck, key=lambda pair: pair[0], reverse=True):
            if self._calls.cancel(record, inside, "the database does not answer"):
                return

    def keep_one_free(self, now: float) -> None:
        """Send the latest waiter away if every thread of the worker is inside the database, one of them for long."""
        if not self._bulkhead.full(now):
            return
        inside = self._calls.inside
        thread = self._inventory.send_latest_away(inside, TooManyRequests(self._bulkhead.why()))
        if thread is not None:
            inside.pop(thread, None)  # this thread leaves in any case, so no other waiter has to go


def caused(error: DatabaseUnavailable, cause: BaseException) -> DatabaseUnavailable:
    """Return `error` with `cause` as its ``__cause__``."""
    error.__cause__ = cause
    return error
