"""Whether the database answers: what calls, connects and probes have seen comes together here.

While it does not, nobody waits for a connection. Once it does again, what was suspended goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..dberrors import CONSEQUENCES, COUNTS, WAITS, ErrorClass, proves_alive
from ..exceptions import CircuitOpen, DatabaseUnavailable, TooManyRequests
from .breaker import Breaker
from .bulkhead import Bulkhead
from .drivers import Driver
from .events import Events
from .guarded_calls import GuardedCalls
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
GRACE = 0.25


class Availability:
    """Judges whether one pool's database answers, and acts on it.

    :ivar last_error: why the latest connect failed, None if it did not.
    :ivar misses: probes in a row that got no answer.
    :ivar wake: tells the housekeeper to look at once.
    """

    def __init__(self, driver: Driver, inventory: Inventory[ConnectionRecord], calls: GuardedCalls,
                 bulkhead: Bulkhead, counters: Counters, events: Events, window: float) -> None:
        self.breaker = Breaker()
        self.last_error: BaseException | None = None
        self.wake = threading.Event()
        self._driver, self._inventory, self._calls = driver, inventory, calls
        self._bulkhead, self._counters, self._events, self._window = bulkhead, counters, events, window
        self._asked = 0.0
        self._lock = threading.Lock()
        self._probes = self.misses = 0
        self._probed = self._answered = 0.0

    # -- whether to use a connection, or to wait for one ---------------------------------------------------------

    def refuse_if_gone(self) -> None:
        """Let nobody wait for a database that does not answer.

        :raises CircuitOpen: while the breaker is open.
        """
        if self.breaker.open and not self._may_ask():
            raise CircuitOpen(f"the database does not answer ({self.breaker.reason}); asked again every "
                              f"{PROBE_INTERVAL} s")

    def _may_ask(self) -> bool:
        """Where no housekeeper does, one checkout asks whether the database is back."""
        now = monotonic()
        if self._calls.watched or now - max(self._asked, self.breaker.opened) < PROBE_INTERVAL:
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
            self._bulkhead.forgiven = monotonic()
            self._events.log("database_back", level="INFO")

    def gone(self, reason: str) -> None:
        """The breaker opened: nobody has to wait."""
        self._inventory.generation += 1
        self._send_away(reason)
        self._events.log("database_gone", reason=reason)
        self.wake.set()

    def _send_away(self, reason: str) -> None:
        self._inventory.send_all_away(lambda: CircuitOpen(f"the database does not answer ({reason})"))

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
                self.gone(reason)
            elif self.breaker.open:
                self._send_away(reason)
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
            self._bulkhead.silent = False
        if not self.breaker.open:
            return
        limit = monotonic() + GRACE
        for record in self._inventory.snapshot():  # a link that was cut off without a reset may never answer
            if record.inside and record.request is not None:
                record.limit = limit
        self.answered()

    def _missed(self, started: float, code: Any) -> None:
        with self._lock:
            if started < self._answered:
                return
            self.misses += 1
            misses = self.misses
            self._bulkhead.silent = True
        if misses >= MISSES and self.breaker.trip(f"error {code}", started):
            self.gone(f"error {code}")
        threads = self._bulkhead.threads
        if threads and len(self._calls.inside) >= threads:
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
        if not self._bulkhead.full(now, room=self._inventory.has_room()):
            return
        inside = self._calls.inside
        thread = self._inventory.send_latest_away(inside, TooManyRequests(self._bulkhead.why()))
        if thread is not None:
            inside.pop(thread, None)  # on its way, however long that takes: no other has to go


def caused(error: DatabaseUnavailable, cause: BaseException) -> DatabaseUnavailable:
    """An error with its cause."""
    error.__cause__ = cause
    return error
