"""The pool: every wait is bounded, no I/O runs under its lock, and no statement runs twice.

This facade wires the parts. Connections are DBUtils' `SteadyDBConnection`, without its own additions: pinging,
reconnecting, executing again and usage limits are switched off. `Pool` does not inherit DBUtils' `PooledDB`, which does
its I/O under its lock: its bookkeeping, waiting, check-in and closing would all need a replacement.
"""

from __future__ import annotations

import collections
import math
import sys
import threading
import weakref
from time import monotonic
from typing import Any

from .. import request
from ..config import Settings
from ..exceptions import CircuitOpen, DatabaseUnavailable, PoolTimeout, TooManyRequests
from ..runtime import Part, runtime
from .availability import Availability
from .breaker import Breaker
from .bulkhead import Bulkhead
from .connection import PooledConnection
from .connector import Connector
from .credentials import Source
from .drivers import Driver, make_driver
from .events import Events
from .guarded_calls import GuardedCalls
from .hold import Hold
from .housekeeper import Housekeeper
from .inventory import IN_USE, REMOVED, Inventory
from .leaks import Leaks
from .record import ConnectionRecord
from .statements import SESSION
from .stats import Counters, Stats, publish_gauges
from .upkeep import Upkeep
from .waiters import Waiter


class _Pools(Part):
    """The pools of this process, and the connections that a forked child inherited and never uses."""

    def __init__(self) -> None:
        self.all: weakref.WeakSet[Pool] = weakref.WeakSet()
        self.inherited: list[ConnectionRecord] = []

    def reset_after_fork(self) -> None:
        """Empty every pool: a child must not use its parent's connections."""
        for pool in list(self.all):
            self.inherited += pool.reset_after_fork()


_pools = runtime.add("pools", _Pools())


def inside() -> list[float]:
    """Return since when each request thread is inside a database, of any pool: monotonic seconds."""
    return [since for pool in list(_pools.all) for since in list(pool.bulkhead.inside.values())]


class _Wish:
    """What a checkout asks for. Times are `time.monotonic` seconds.

    :ivar deadline: until when it waits.
    :ivar limit: until when it may wait at most, whatever the database does.
    :ivar request, hasty: see `Waiter`.
    """

    __slots__ = ("deadline", "hasty", "limit", "request", "since")

    def __init__(self, since: float, deadline: float, limit: float, *, hasty: bool) -> None:
        self.since, self.deadline, self.limit, self.hasty = since, deadline, limit, hasty
        self.request: request.RequestRecord | None = None


class Pool:
    """A bounded pool of connections of one app in one process. Opens no connection before the first checkout.

    A process that serves requests starts the housekeeper (`start`). Without it, as in a script, nothing looks after the
    connections between calls: the pool logs no leak, closes no connection for being idle, and does not limit the time
    of SQLite's statements.

    :param name, instance_path: of the app, for the embedded default.
    :param credentials: returns the password, or user and password, for each connect.
    :param driver: opens the connections, instead of the driver that the settings name.
    :ivar lost: connections that finalizers found; `reclaim_lost` takes them back.
    """

    _connector_class: type[Connector] = Connector
    #: A request may be held beyond its `timeout` argument, because that comes from a setting.
    _holds_longer = False

    def __init__(self, settings: Settings, *, name: str = "app", instance_path: str = ".",
                 credentials: Source | None = None, driver: Driver | None = None) -> None:
        self.settings = settings
        self.driver: Driver = driver or make_driver(settings, instance_path, name, credentials)
        self._window = settings.db_alive_bypass_window
        #: A connection that ran only plain statements needs no clearing.
        self._trusting = settings.db_autocommit and settings.db_reset_on_return == "rollback"
        self._wire()
        _pools.all.add(self)

    def _wire(self) -> None:
        """Create all parts anew: empty books, new locks, no history. No part refers to the pool."""
        settings, driver = self.settings, self.driver
        self.lost: collections.deque[ConnectionRecord] = collections.deque()
        self.counters = Counters()
        self.bulkhead = Bulkhead(settings)
        inventory = self.inventory = Inventory[ConnectionRecord](settings.db_max_size, settings.db_max_idle)
        self.bulkhead.given_at = lambda: inventory.given_at
        self.events = Events(driver, self.inventory)
        breaker = Breaker()
        self.hold = Hold(settings, self.inventory, breaker, self.events)
        self.calls = GuardedCalls(driver, self.inventory, self.counters, self.bulkhead.inside)
        self.availability = Availability(driver, self.inventory, self.calls, self.bulkhead, breaker, self.hold,
                                         self.counters, self.events, self._window)
        self.connector = self._connector_class(settings, driver, self.inventory, self.availability, self.counters)
        self.upkeep = Upkeep(settings, driver, self.inventory, self.availability, self.connector, self.events)
        self.leaks = Leaks(settings, self.inventory, self.counters, self.events)
        self.housekeeper: Housekeeper | None = None
        self._starting = threading.Lock()

    def __repr__(self) -> str:
        return f"<Pool of {self.driver.describe()}: {self.inventory!r}>"

    # -- taking --------------------------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None, *, query_timeout: float | None = None,
                   wait: bool = True) -> PooledConnection:
        """Check a connection out. Wait at most `timeout` seconds, and never beyond the request's own deadline.

        While the database is away, a request is held for STABILITY_DB_OUTAGE_PATIENCE instead (see `hold`), but no
        longer than an explicit `timeout`.

        :param timeout: default: STABILITY_DB_TIMEOUT.
        :param query_timeout: seconds that each of its statements may take, instead of STABILITY_DB_QUERY_TIMEOUT;
            0 = no limit but the request's own. It costs a round trip or, for more time than usual, a connect.
        :param wait: False: wait neither for a database that is away nor for a connection that others use; for code that
            has a fallback. Opening a connection may still take STABILITY_DB_CONNECT_TIMEOUT.
        :raises PoolTimeout: if no connection became free or could be opened in that time.
        :raises CircuitOpen: while the database is known not to answer: at once, or after a request was held too long.
        :raises TooManyRequests: while the database is slow and only one thread is left for other requests.
        :raises PoolClosed: after `close`.
        """
        now, ident = monotonic(), threading.get_ident()
        serving = request.inflight.get(ident)
        if self.lost:
            self.reclaim_lost()
        record: ConnectionRecord | None = None
        try:
            if serving is not None and self.bulkhead.inside:
                self._admit(now)
            record = self._warm(now)
            if record is None:
                record = self._patiently(now, timeout, serving, wait)
            if query_timeout is not None:
                record = self._limited(record, query_timeout,
                                       now + (self.settings.db_timeout if timeout is None else timeout))
            record.taken(ident, serving, sys._getframe(1))
            connection: PooledConnection = self._lend(record)
            if serving is not None:
                serving.hold(connection)
            return connection
        except BaseException as error:
            self.counters.add("requests_errors")
            if serving is not None and isinstance(error, DatabaseUnavailable):
                self.hold.count_refused()
            if record is not None:
                self.connector.discard(record)
            raise

    def _lend(self, record: ConnectionRecord) -> Any:
        """Return what the borrower gets; the end of its request calls `release` on it."""
        return PooledConnection(self, record)

    def dedicated_connection(self) -> PooledConnection:
        """Return a connection as `connection` does: connections are never shared."""
        return self.connection()

    def _admit(self, now: float) -> None:
        try:
            self.bulkhead.admit(now)
        except TooManyRequests:
            self.inventory.count_request()
            raise

    def _limited(self, record: ConnectionRecord, seconds: float, deadline: float) -> ConnectionRecord:
        """Set another time limit for the borrower's statements.

        If the client itself would end such statements too early, open a new connection instead.
        """
        self.start()  # the housekeeper ends statements that the server does not end
        left = request.remaining()
        if left is not None:
            deadline = min(deadline, monotonic() + left - 1.0)
        if record.backstop and (not seconds or self.driver.backstop(seconds) > record.backstop):
            record = self.connector.open_instead(record, seconds, deadline)
            record.since, record.state = monotonic(), IN_USE
        else:
            self.calls.run_bounded(record, self.driver.limit, record.raw, seconds, deadline=deadline)
        record.query_timeout, record.effect = seconds, SESSION
        return record

    def _warm(self, now: float) -> ConnectionRecord | None:
        """Return the warmest idle connection if it needs no ping: one lock, one look at its socket."""
        if self.availability.breaker.open:
            self.inventory.count_request()
            return None
        record = self.inventory.take_warm(now, self._window)
        if record is None or record.readable is None or not record.readable(0):
            return record
        self.availability.lost_one()
        self.connector.discard(record)
        return None

    def _patiently(self, now: float, timeout: float | None, serving: request.RequestRecord | None,
                   wait: bool) -> ConnectionRecord:
        """Return a connection by any means within the caller's time; count its thread as inside meanwhile."""
        wish = _Wish(now, now + (self.settings.db_timeout if timeout is None else timeout),
                     math.inf if timeout is None or self._holds_longer else now + timeout, hasty=not wait)
        if serving is None:
            return self._take(wish)
        left = request.remaining()
        if left is not None:
            wish.limit = min(wish.limit, now + left - 1.0)
            wish.deadline = min(wish.deadline, wish.limit)
        if wait and self.calls.watched:
            wish.request = self.hold.candidate(serving)
        ident, inside = threading.get_ident(), self.bulkhead.inside
        inside[ident] = now
        try:
            return self._take(wish)
        finally:
            inside.pop(ident, None)

    def _take(self, wish: _Wish) -> ConnectionRecord:
        """Return an idle connection that is alive, or else the first that comes: a returned or a new one."""
        waiter: Waiter[ConnectionRecord] | None = None
        while True:
            record, waiter, wanted = self.inventory.take_or_join(
                waiter, wish.since, wish.deadline, lambda: self.availability.refuse_if_gone(wish.request),
                wish.request, hasty=wish.hasty)
            if record is None:
                record = self._wait(waiter, wanted, wish)
            try:
                usable = self.availability.check(record, wish.deadline)
            except BaseException:
                self.connector.discard(record)
                raise
            if usable:
                return record
            self.connector.discard(record)

    def _wait(self, waiter: Waiter[ConnectionRecord], wanted: int, wish: _Wish) -> ConnectionRecord:
        inventory, hold, served = self.inventory, self.hold, False
        try:
            self.connector.fill(wanted)
            if wish.hasty and not wanted:
                raise PoolTimeout(f"no connection at once: {inventory!r}") from self.availability.last_error
            hold.join(waiter)
            while not inventory.wait(waiter, wish.deadline):
                now = monotonic()
                wish.deadline = min(hold.until(waiter, now), wish.limit)
                if wish.deadline <= now:
                    raise PoolTimeout(f"no connection within {now - waiter.since:.1f} s: {inventory!r}"
                                      ) from self.availability.last_error
            if waiter.error is not None:
                raise waiter.error
            if hold.client_left(waiter, monotonic()):
                raise CircuitOpen("the client has left")
            assert waiter.record is not None
            served = True
            return waiter.record
        except BaseException:
            record = inventory.leave(waiter)
            if record is not None:  # a connection was handed over meanwhile
                self.connector.publish(record)
            raise
        finally:
            hold.leave(waiter, served=served)
            self.counters.add("requests_queued")
            self.counters.add("requests_wait_ms", (monotonic() - waiter.since) * 1000)

    # -- giving back ---------------------------------------------------------------------------------------------

    def take_back(self, record: ConnectionRecord) -> None:
        """Take a connection back: clear it, stamp it, and only then let the next borrower use it. Never raises."""
        if record.state is not IN_USE:
            return  # a forked child must not touch its parent's connection
        now = monotonic()
        used = now - record.since
        if record.reported:
            self.events.log("connection_returned_after_all", level="INFO", seconds=round(used, 1),
                            thread=record.thread_name())
        if record.streams and any(stream.unread for stream in record.streams):
            record.broken = True
            self.driver.interrupt(record.raw, record.link)  # else the driver would read all remaining rows now
        bad = record.broken or record.cut or record.inside
        if not bad and (record.effect or record.in_transaction or not self._trusting):
            bad = not self._cleared(record)
            now = monotonic()
        record.given_back(now, self._window)
        if bad:
            self.inventory.count_usage(used)
            self.counters.add("returns_bad")
        elif self.inventory.give(record, now, used=used):
            return
        self.connector.discard(record)

    def _cleared(self, record: ConnectionRecord) -> bool:
        """Roll back, or reset the session if it may have changed; return False if the connection is of no more use."""
        session = record.effect == SESSION or self.settings.db_reset_on_return == "session"
        ident, serving, inside = threading.get_ident(), record.request is not None, self.bulkhead.inside
        if serving:
            inside[ident] = monotonic()
        try:
            self.calls.run_bounded(record, self.driver.reset if session else self.driver.rollback, record.raw)
            if session:
                record.query_timeout = self.settings.db_query_timeout
            return not record.cut
        except Exception:
            return False
        finally:
            if serving:
                inside.pop(ident, None)

    @property
    def has_lost(self) -> bool:
        """Return whether borrowers dropped connections without check-in."""
        return bool(self.lost)

    def reclaim_lost(self) -> None:
        """Take back the connections that finalizers found."""
        while self.lost:
            try:
                record = self.lost.popleft()
            except IndexError:
                return
            self.take_back(record)

    # -- the life of the pool ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the housekeeper. Idempotent."""
        if self.calls.watched:
            return
        with self._starting:
            if self.housekeeper is None and not self.inventory.closed:
                self.housekeeper = Housekeeper(self)
                self.housekeeper.start()
                self.calls.watched = True

    def close(self) -> None:
        """Close the idle connections, refuse checkouts, and close other connections at check-in. Idempotent."""
        idle = self.inventory.close()
        with self._starting:
            housekeeper, self.housekeeper = self.housekeeper, None
            self.calls.watched = False
        self.inventory.send_all_away()
        if housekeeper is not None:
            housekeeper.stop()
            self.publish_figures()
        for record in idle:
            self.connector.discard(record)
        self.reclaim_lost()

    def publish_figures(self) -> None:
        """Write the pool's counts, and the gauges of all pools of this process, to the scoreboard."""
        row = runtime.my_row()
        self.counters.publish(row, self.stats())
        publish_gauges(row, [(pool.stats(), pool.leaks.full_since) for pool in list(_pools.all) if pool.calls.watched])

    def stats(self) -> Stats:
        """Return the figures under psycopg_pool's names; times in milliseconds."""
        inventory = self.inventory
        requests, idle = inventory.requests, len(inventory.idle)
        counters = {name: int(number) for name, number in self.counters.items()}
        counters.update(requests_num=requests, usage_ms=int(inventory.usage * 1000))
        return {"pool_max": inventory.size, "pool_size": inventory.taken + idle, "pool_available": idle,
                "pool_in_use": inventory.in_use, "requests_waiting": len(inventory.waiters), **counters,
                "breaker_state": self.availability.breaker.state,
                "success_rate": 1.0 - counters["requests_errors"] / requests if requests else 1.0}

    def reset_after_fork(self) -> list[ConnectionRecord]:
        """In a forked child: start empty, with new locks.

        Return the parent's connections. The child must keep them and never use them.
        """
        inherited = list(self.inventory.records)
        for record in inherited:
            record.state, record.cut, record.broken = REMOVED, "it belongs to the parent process", True
            record.silence()
        self._wire()
        return inherited
