"""Whether the database answers: what calls, connects and probes have seen comes together here.

While it does not, nobody opens a connection, and requests are held or refused (`hold`). Once it does again, what was
suspended goes on.
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

#: A call this long raises the question whether the database answers at all, seconds.
SUSPICIOUS = 1.0
PROBE_INTERVAL, PROBE_TIMEOUT = 0.5, 1.0
#: Probes in a row without an answer that open the breaker.
MISSES = 2
#: Probes under way at once: a slow one must not delay the one that finds the database back.
PROBES = 3
#: What a call of before the outage gets to end by itself once the database is back, seconds.
GRACE = 2.0


class Availability:
    """Judges whether one pool's database answers, and acts on it.

    :ivar last_error: why the latest connect failed, None if it did not.
    :ivar misses: probes in a row that got no answer.
    :ivar wake: tells the housekeeper to look at once.
    :ivar back: called when the database is back: opens connections for those that wait.
    :ivar changed: called when the database is found to be away, and when it is back.
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
        self._before: list[tuple[ConnectionRecord, float]] = []  # calls of before the outage, and when they began
        self._grace_until = 0.0

    @property
    def watched(self) -> bool:
        """A housekeeper looks after the pool."""
        return self._calls.watched

    # -- whether to use a connection, or to wait for one ---------------------------------------------------------

    def refuse_if_gone(self, request: RequestRecord | None) -> None:
        """Let nobody wait for a database that does not answer but a request that may be held.

        :raises CircuitOpen: while the breaker is open.
        """
        if self.breaker.open and self._hold.refuses(request, monotonic()) and not self._may_ask():
            raise CircuitOpen(f"the database does not answer ({self.breaker.reason}); asked again every "
                              f"{PROBE_INTERVAL} s")

    def _may_ask(self) -> bool:
        """Where no housekeeper does, one checkout asks whether the database is back."""
        now = monotonic()
        if self.watched or now - max(self._asked, self.breaker.opened) < PROBE_INTERVAL:
            return False
        self._asked = now
        return True

    def check(self, record: ConnectionRecord, deadline: float) -> bool:
        """Whether a reserved connection may be used: not expired, nobody hung up, and if in doubt, it answers."""
        now = monotonic()
        if now >= record.expires:
            return False
        if record.hung_up():
            self.lost_one()
            return False
        fresh = record.generation == self._inventory.generation and now - record.checked <= self._window
        if not fresh and not self.ping(record, deadline):
            return False
        with self._inventory.lock:  # whoever cancels does so under it: it either did already, or finds nobody inside
            record.since = monotonic()
            record.state = IN_USE
            return not record.cut

    def ping(self, record: ConnectionRecord, deadline: float) -> bool:
        """Whether a reserved connection answers by then."""
        generation = self._inventory.generation
        try:
            self._calls.run_bounded(record, self._driver.ping, record.raw, deadline=deadline)
        except self._driver.dbapi.Error:
            self.lost_one()
            return False
        record.generation, record.checked = generation, monotonic()
        return not record.cut

    def lost_one(self) -> None:
        """A connection was lost: the others are asked before they are used."""
        self._counters.add("connections_lost")
        self._inventory.generation += 1

    # -- gone, and back ------------------------------------------------------------------------------------------

    def answered(self) -> None:
        """The database answered: whatever was suspended goes on."""
        if self.breaker.success():
            self._follow()

    def gone(self) -> None:
        """The breaker opened: those wait that may be held."""
        self._follow()

    def _follow(self) -> None:
        """Do what the breaker's state asks for; whoever has changed it calls this, in whichever order."""
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
        """A connect worked."""
        self.answered()
        self.last_error = None

    def connect_failed(self, error: BaseException, started: float) -> bool:
        """Whether to try again; if not, the waiters have been told."""
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
        """Ask while a thread has been inside a networked database for long, and from a miss on until an answer.

        :param start: runs what may wait in a thread of its own; False if there is none to be had.
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
        """Ask on a connection of its own."""
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
        """From the housekeeper: end what began before an outage and has got no answer since; its link was cut off
        without a reset. What is still to come of it counts as a lost link.
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
        """Every thread of the worker waits for a database that does not answer: one has to be free for the rest."""
        stuck = [(record.inside, record) for record in self._inventory.snapshot()
                 if record.inside and record.request is not None]
        if any(record.cut and record.link is not None for _, record in stuck):
            return  # that one's thread is on its way
        for inside, record in sorted(stuck, key=lambda pair: pair[0], reverse=True):
            if self._calls.cancel(record, inside, "the database does not answer"):
                return

    def keep_one_free(self, now: float) -> None:
        """If every thread of the worker is inside, one of them for long, the latest of them to wait is sent away."""
        if not self._bulkhead.full(now):
            return
        inside = self._calls.inside
        thread = self._inventory.send_latest_away(inside, TooManyRequests(self._bulkhead.why()))
        if thread is not None:
            inside.pop(thread, None)  # on its way, however long that takes: no other has to go


def caused(error: DatabaseUnavailable, cause: BaseException) -> DatabaseUnavailable:
    """An error with its cause."""
    error.__cause__ = cause
    return error
