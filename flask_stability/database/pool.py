"""The pool: DBUtils' `PooledDB` with every wait bounded, no I/O under its lock, and no statement run twice.

What DBUtils does on its own account (pinging, reconnecting and executing again, usage limits, sharing) is switched
off. Under the lock there is bookkeeping only: who waits gets a connection or an error handed over, in the order of
arrival. Connections are opened by short-lived threads of the pool, so a request waits for a connection exactly as
long as it may, and can be sent away at any time.
"""

from __future__ import annotations

import collections
import os
import sys
import threading
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

from dbutils import steady_db
from dbutils.pooled_db import PooledDB

from .. import logs, request, scoreboard
from ..config import Settings
from ..exceptions import CircuitOpen, PoolClosed, PoolTimeout, TooManyRequests
from .breaker import Breaker
from .bulkhead import Bulkhead
from .calls import PATIENCE, within
from .connection import PooledConnection
from .credentials import Source
from .drivers import make_driver
from .entry import IDLE, IN_USE, REMOVED, RESERVED, Entry
from .keeper import PROBE_INTERVAL, Keeper
from .killing import Killer
from .opening import fill, open_instead, reserve_slots
from .statements import SESSION
from .stats import Counters, publish_gauges
from .waiting import Queue, Waiter

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_inherited: list[Entry] = []


class Pool(PooledDB):  # type: ignore[misc]
    """A bounded pool of connections of one app in one process. Opens nothing before it is asked for a connection.

    A process that serves gives it a keeper (`start`). Without one, as in a script, connections are not looked after
    while nobody asks: no leak is told of, none is closed for being idle, SQLite's statements have no time limit.

    :param name, instance_path: of the app, for the embedded default.
    :param credentials: gives the password, or user and password, for each connect.
    :ivar entries: all open connections.
    :ivar inside: requests' threads inside the database (waiting or in a call) and since when.
    :ivar connecting: slots of connections that are being opened.
    :ivar full_since: since when the keeper finds all connections that there may be in use; 0.0 = not now.
    :ivar generation: rises with each failure; what was checked in an older one is pinged before it is used.
    :ivar lost: what finalizers found; `adopt` takes it back.
    """

    _idle_cache: list[Entry]
    _lock: threading.Lock

    def __init__(self, settings: Settings, *, name: str = "app", instance_path: str = ".",
                 credentials: Source | None = None) -> None:
        self.settings = settings
        self.driver = make_driver(settings, instance_path, name, credentials)
        self.killer = Killer(self)
        self.breaker = Breaker()
        self.counters = Counters()
        self.entries: set[Entry] = set()
        self.waiters = Queue()
        self.bulkhead = Bulkhead(settings)
        self.inside = self.bulkhead.inside
        self.lost: collections.deque[Entry] = collections.deque()
        self.generation = 0
        self.full_since = 0.0
        self._renewed = self._asked = 0.0
        #: Counted here, under the lock that is held anyway; seconds.
        self._requests, self._usage = 0, 0.0
        self.closed = False
        self.last_error: BaseException | None = None
        self.connecting = 0
        self._keeper: Keeper | None = None
        self._window = settings.db_alive_bypass_window
        #: A connection that ran plain statements only need not be cleared.
        self._trusting = settings.db_autocommit and settings.db_reset_on_return == "rollback"
        super().__init__(self.driver, mincached=0, maxcached=0, maxshared=0, maxconnections=settings.db_max_size,
                         blocking=True, maxusage=None, setsession=None, reset=False,
                         failures=(self.driver.dbapi.Error,), ping=0, isfatal=lambda error: False)
        self._lock = threading.Lock()  # nobody waits on it: each waiter has a gate of its own
        _pools.add(self)

    def __repr__(self) -> str:
        return f"<Pool of {self.driver.describe()}: {self._why()}>"

    # -- taking --------------------------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None, *, query_timeout: float | None = None) -> PooledConnection:
        """A connection within `timeout` seconds (default STABILITY_DB_TIMEOUT), and never beyond the request's time.

        :param query_timeout: seconds that each of its statements may take, instead of STABILITY_DB_QUERY_TIMEOUT;
            0 = no limit but the request's own. It costs a round trip or, for more time than usual, a connect.
        :raises PoolTimeout: if none became free, or none could be opened, in that time.
        :raises CircuitOpen: at once, while the database is known not to answer.
        :raises TooManyRequests: while the database is slow and only one thread is left for the rest.
        :raises PoolClosed: after `close`.
        """
        now, ident = monotonic(), threading.get_ident()
        record = request.inflight.get(ident)
        if self.lost:
            self.adopt()
        entry: Entry | None = None
        try:
            if record is not None and self.inside:
                self._admit(now)
            entry = self._warm(now)
            if entry is None:
                entry = self._patiently(now, self.settings.db_timeout if timeout is None else timeout, record)
            if query_timeout is not None:
                entry = self._limited(entry, query_timeout, now + (timeout or self.settings.db_timeout))
            entry.taken(ident, record, sys._getframe(1))
            connection = PooledConnection(self, entry)
            if record is not None:
                record.hold(connection)
            return connection
        except BaseException:
            self.counters.add("requests_errors")
            if entry is not None:
                self.discard(entry)
            raise

    def dedicated_connection(self) -> PooledConnection:
        """The same: connections are never shared."""
        return self.connection()

    def _admit(self, now: float) -> None:
        try:
            self.bulkhead.admit(now, room=self.has_room())
        except TooManyRequests:
            with self._lock:
                self._requests += 1
            raise

    def steady_connection(self, query_timeout: float | None = None) -> Any:
        """A new connection of the driver's under DBUtils' wrapper."""
        if query_timeout is None:
            return super().steady_connection()
        return steady_db.connect(self.driver, failures=self._failures, ping=0, isfatal=self._isfatal,
                                 query_timeout=query_timeout)

    def _limited(self, entry: Entry, seconds: float, deadline: float) -> Entry:
        """Give the borrower's statements another limit; a new connection where the client itself would end them."""
        self.start()  # which ends what the server does not
        left = request.remaining()
        if left is not None:
            deadline = min(deadline, monotonic() + left - 1.0)
        if entry.backstop and (not seconds or self.driver.backstop(seconds) > entry.backstop):
            entry = open_instead(self, entry, seconds, deadline)
            entry.since, entry.state = monotonic(), IN_USE
        else:
            within(self, entry, min(deadline, monotonic() + PATIENCE), self.driver.limit, entry.raw, seconds)
        entry.query_timeout, entry.effect = seconds, SESSION
        return entry

    def _warm(self, now: float) -> Entry | None:
        """The warmest idle connection, if it may be used without a question: one lock, one look at its socket."""
        with self._lock:
            self._requests += 1
            if not self._idle_cache or self.closed or self.breaker.open:
                return None
            entry = self._idle_cache[-1]
            if (entry.generation != self.generation or now >= entry.expires
                    or now - entry.checked > self._window):
                return None
            self._idle_cache.pop()
            self._connections += 1
            entry.since = now
            entry.state = IN_USE
        if entry.readable is None or not entry.readable(0):
            return entry
        self._lost_one()
        self.discard(entry)
        return None

    def _patiently(self, now: float, timeout: float, record: request.RequestRecord | None) -> Entry:
        """Whatever it takes, within the time that there is."""
        deadline = now + timeout
        if record is None:
            return self._take(now, deadline)
        left = request.remaining()
        if left is not None:
            deadline = min(deadline, now + left - 1.0)
        ident = threading.get_ident()
        self.inside[ident] = now
        try:
            return self._take(now, deadline)
        finally:
            self.inside.pop(ident, None)

    def _take(self, now: float, deadline: float) -> Entry:
        """An idle connection that is alive, else whatever comes first: one given back or a new one."""
        waiter: Waiter | None = None
        while True:
            entry, waiter = self._reserve(now, waiter)
            if entry is None:
                assert waiter is not None
                entry = self._wait(waiter, deadline)
            try:
                usable = self._usable(entry, deadline)
            except BaseException:
                self.discard(entry)
                raise
            if usable:
                return entry
            self.discard(entry)

    def _reserve(self, now: float, waiter: Waiter | None) -> tuple[Entry | None, Waiter | None]:
        """An idle connection, or a place in the queue; who has waited already stays the first."""
        with self._lock:
            self._refuse_if_hopeless()
            if self._idle_cache:
                self._connections += 1
                entry = self._idle_cache.pop()  # last in, first out: the warmest
                entry.state = RESERVED
                return entry, waiter
            waiter = self.waiters.join(waiter.since if waiter else now, first=waiter is not None)
            wanted = reserve_slots(self)
        fill(self, wanted)
        return None, waiter

    def _refuse_if_hopeless(self) -> None:
        if self.closed:
            raise PoolClosed("the pool is closed: the process is ending")
        if self.breaker.open and not self._may_ask():
            raise CircuitOpen(f"the database does not answer ({self.breaker.reason}); asked again every "
                              f"{PROBE_INTERVAL} s")

    def _may_ask(self) -> bool:
        """Where no keeper does, one checkout asks whether the database is back."""
        now = monotonic()
        if self.kept or now - max(self._asked, self.breaker.opened) < PROBE_INTERVAL:
            return False
        self._asked = now
        return True

    def _wait(self, waiter: Waiter, deadline: float) -> Entry:
        try:
            while not waiter.gate.acquire(timeout=max(0.0, deadline - monotonic())):
                with self._lock:
                    if waiter.entry is None and waiter.error is None and monotonic() >= deadline:
                        raise PoolTimeout(f"no connection within {monotonic() - waiter.since:.1f} s: "
                                          + self._why()) from self.last_error
            if waiter.error is not None:
                raise waiter.error
            assert waiter.entry is not None
            return waiter.entry
        except BaseException:
            self._withdraw(waiter)
            raise
        finally:
            self.counters.add("requests_queued")
            self.counters.add("requests_wait_ms", (monotonic() - waiter.since) * 1000)

    def _withdraw(self, waiter: Waiter) -> None:
        """Out of the queue; what was handed over meanwhile goes to the next."""
        with self._lock:
            entry = self.waiters.leave(waiter)
        if entry is not None:
            self.publish(entry)

    def send_all_away(self, make_error: Callable[[], BaseException]) -> None:
        """Let all waiters fail, each with an error of its own."""
        with self._lock:
            for waiter in list(self.waiters):
                self.waiters.send_away(waiter, make_error())

    def _why(self) -> str:
        idle = len(self._idle_cache)
        return f"size {self._connections + idle}, in use {self._in_use()}, idle {idle}, waiting {len(self.waiters)}"

    def has_room(self) -> bool:
        """A connection is idle, or another one may be opened."""
        return bool(self._connections < self._maxconnections)

    def _in_use(self) -> int:
        return max(0, self._connections - self.connecting)

    def _usable(self, entry: Entry, deadline: float) -> bool:
        """Whether a connection may be used: not expired, nobody hung up, and if in doubt, it answers."""
        now = monotonic()
        if now >= entry.expires:
            return False
        if entry.hung_up():
            self._lost_one()
            return False
        fresh = entry.generation == self.generation and now - entry.checked <= self._window
        if not fresh and not self.ping(entry, min(deadline, now + PATIENCE)):
            return False
        with self._lock:  # whoever cuts does so under the lock: it either did already, or finds nobody inside
            entry.since = monotonic()
            entry.state = IN_USE
            return not entry.cut

    def ping(self, entry: Entry, deadline: float) -> bool:
        """Whether a reserved connection answers by then."""
        generation = self.generation
        try:
            within(self, entry, deadline, self.driver.ping, entry.raw)
        except self.driver.dbapi.Error:
            self._lost_one()
            return False
        entry.generation, entry.checked = generation, monotonic()
        return not entry.cut

    def _lost_one(self) -> None:
        self.counters.add("connections_lost")
        self.generation += 1

    # -- the database is gone, and back ---------------------------------------------------------------------------

    def answered(self) -> None:
        """The database answered: whatever was suspended goes on."""
        if self.breaker.success():
            self.bulkhead.forgiven = monotonic()
            self.tell("database_back", level="INFO")

    def gone(self, reason: str) -> None:
        """The breaker opened: nobody has to wait."""
        self.generation += 1
        self.send_all_away(lambda: CircuitOpen(f"the database does not answer ({reason})"))
        self.tell("database_gone", reason=reason)
        self._wake()

    def renew(self) -> bool:
        """After a failover connections may lead to what was the primary: none of them is used again.

        At most once a second: a server that stays read-only must not cost a connect for each error.
        """
        now = monotonic()
        with self._lock:
            if now - self._renewed < 1.0:
                return False
            self._renewed = now
            for entry in self.entries:
                entry.expires = now
            return True

    # -- giving back ---------------------------------------------------------------------------------------------

    def cache(self, entry: Entry) -> None:
        """Take a connection back: cleared, stamped, and only then for the next one to use. Never raises."""
        if entry.state is not IN_USE:
            return  # a forked child has no part in it
        now = monotonic()
        used = now - entry.since
        if entry.reported:
            self.tell("connection_returned_after_all", level="INFO", seconds=round(used, 1),
                      thread=entry.thread_name())
        if entry.streams and any(stream.unread for stream in entry.streams):
            entry.broken = True
            self.driver.interrupt(entry.raw, entry.link)  # else all that is left would be read now
        bad = entry.broken or entry.cut or entry.inside
        if not bad and (entry.effect or entry.in_transaction or not self._trusting):
            bad = not self._cleared(entry)
            now = monotonic()
        entry.given_back(now, self._window)
        with self._lock:
            self._usage += used
            if not bad and self._handed_on(entry, now):
                return
        if bad:
            self.counters.add("returns_bad")
        self.discard(entry)

    def _cleared(self, entry: Entry) -> bool:
        """Roll back, or reset the session if that may have been changed; False if the connection is of no more use."""
        session = entry.effect == SESSION or self.settings.db_reset_on_return == "session"
        ident, serving = threading.get_ident(), entry.request is not None
        if serving:
            self.inside[ident] = monotonic()
        try:
            within(self, entry, monotonic() + PATIENCE,
                   self.driver.reset if session else self.driver.rollback, entry.raw)
            if session:
                entry.query_timeout = self.settings.db_query_timeout
            return not entry.cut
        except Exception:
            return False
        finally:
            if serving:
                self.inside.pop(ident, None)

    def publish(self, entry: Entry, *, cold: bool = False) -> None:
        """Give a new connection, or one that was checked, to whoever is to have it. Never raises."""
        with self._lock:
            if self._handed_on(entry, monotonic(), cold=cold):
                return
        self.discard(entry)

    def _handed_on(self, entry: Entry, now: float, *, cold: bool = False) -> bool:
        """To the first waiter, else to the idle ones; False if it is not to be used again. The lock is held."""
        if entry.cut or self.closed or now >= entry.expires:
            return False
        if self.waiters:
            self.waiters.serve(entry)
            return True
        if len(self._idle_cache) >= self.settings.db_max_idle:
            return False
        entry.state = IDLE
        self._connections -= 1
        if cold:
            self._idle_cache.insert(0, entry)
        else:
            self._idle_cache.append(entry)
        return True

    def discard(self, entry: Entry) -> None:
        """Close a connection and free its slot. Never raises."""
        if self.remove(entry):
            self.free_slot()

    def remove(self, entry: Entry) -> bool:
        """Close a connection and keep its slot; False if that was done before. Never raises."""
        with self._lock:
            if entry.state is REMOVED:
                return False
            entry.state = REMOVED
            self.entries.discard(entry)
        self._shut(entry)
        return True

    def free_slot(self) -> None:
        """A slot is free again: open a connection in it if somebody waits for one."""
        with self._lock:
            self._connections -= 1
            wanted = reserve_slots(self)
        fill(self, wanted)

    def _shut(self, entry: Entry) -> None:
        """Close without waiting for an answer."""
        try:
            if entry.broken or entry.cut or entry.inside:
                self.driver.interrupt(entry.raw, entry.link)
            entry.steady.close()
        except Exception:
            pass
        if entry.link is not None:
            entry.link.close()

    def adopt(self) -> None:
        """Take back what finalizers found."""
        while self.lost:
            try:
                entry = self.lost.popleft()
            except IndexError:
                return
            self.cache(entry)

    # -- the life of the pool ------------------------------------------------------------------------------------

    @property
    def kept(self) -> bool:
        """It has a keeper."""
        return self._keeper is not None

    def start(self) -> None:
        """Start the keeper. Idempotent."""
        with self._lock:
            if self._keeper is None and not self.closed:
                self._keeper = Keeper(self)
                self._keeper.start()

    def close(self) -> None:
        """Close what is idle, refuse what is asked for, close the rest when it comes back. Idempotent."""
        with self._lock:
            self.closed = True
            idle, self._idle_cache = self._idle_cache, []
            self._connections += len(idle)
            keeper, self._keeper = self._keeper, None
        self.send_all_away(lambda: PoolClosed("the pool is closed: the process is ending"))
        if keeper is not None:
            keeper.stop()
            self.publish_figures()
        for entry in idle:
            self.discard(entry)
        self.adopt()

    def __del__(self) -> None:
        """What is idle closes itself when it is finalized; the keeper notices that the pool is gone."""

    def _wake(self) -> None:
        if self._keeper is not None:
            self._keeper.wake()

    def tell(self, event: str, *, level: str = "WARNING", **fields: Any) -> None:
        """The one shape of the pool's log lines."""
        stats = self.stats()
        logs.error(event, level=level, database=self.driver.describe(), total=stats["pool_size"],
                   active=stats["pool_in_use"], idle=stats["pool_available"], waiting=stats["requests_waiting"],
                   **fields)

    def publish_figures(self) -> None:
        """Put the pool's counts on the scoreboard, and the gauges of all pools of this process."""
        row = scoreboard.my_row()
        self.counters.publish(row, self.stats())
        publish_gauges(row, [(pool.stats(), pool.full_since) for pool in list(_pools) if pool.kept])

    def stats(self) -> dict[str, int | float | str]:
        """Figures under psycopg_pool's names; times in milliseconds."""
        requests = self._requests
        counters = {name: int(number) for name, number in self.counters.items()}
        counters.update(requests_num=requests, usage_ms=int(self._usage * 1000))
        idle = len(self._idle_cache)
        return {"pool_max": self._maxconnections, "pool_size": self._connections + idle, "pool_available": idle,
                "pool_in_use": self._in_use(), "requests_waiting": len(self.waiters), **counters,
                "breaker_state": self.breaker.state,
                "success_rate": 1.0 - counters["requests_errors"] / requests if requests else 1.0}

    def _after_fork(self) -> None:
        """In a forked child: begin empty, with new locks, and never speak on the parent's sockets."""
        self._lock = threading.Lock()
        for entry in list(self.entries):
            entry.state, entry.cut, entry.broken = REMOVED, "it belongs to the parent process", True
            entry.silence()
            _inherited.append(entry)
        self.entries, self.waiters, self.lost = set(), Queue(), collections.deque()
        self.inside.clear()
        self.full_since = 0.0
        self.bulkhead.silent = False
        self._idle_cache = []
        self._connections = self.connecting = 0
        self.breaker, self.counters, self._keeper = Breaker(), Counters(), None
        self.killer = Killer(self)
        self._requests, self._usage = 0, 0.0


def _after_fork() -> None:
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork)
