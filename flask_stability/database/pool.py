"""The pool: DBUtils' `PooledDB` with every wait bounded, no I/O under its lock, and no statement run twice.

What DBUtils does on its own account (pinging, reconnecting and executing again, usage limits, sharing) is switched
off. A slot is reserved under the lock; connecting, checking, resetting and closing happen outside of it.
"""

from __future__ import annotations

import collections
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from dbutils.pooled_db import PooledDB

from .. import logs, request, scoreboard
from ..config import Settings
from ..exceptions import CircuitOpen, DatabaseUnavailable, PoolClosed, PoolTimeout, TooManyRequests
from .breaker import Breaker
from .connection import Entry, PooledConnection, deadline_error
from .drivers import ErrorClass, make_driver
from .statements import CLEAN, SESSION

T = TypeVar("T")

#: A thread that is longer than this inside the database makes the bulkhead close and the probe ask, seconds.
SLOW = 1.0
#: What checking or resetting a connection may take, seconds.
PATIENCE = 2.0

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_inherited: list[Any] = []


class Pool(PooledDB):  # type: ignore[misc]
    """A bounded pool of connections of one app in one process.

    :param name, instance_path: of the app, for the embedded default.
    """

    def __init__(self, settings: Settings, *, name: str = "app", instance_path: str = ".") -> None:
        self.settings = settings
        self.driver = make_driver(settings, instance_path, name)
        self.breaker = Breaker()
        self.in_use: set[Entry] = set()
        #: Threads inside the database (waiting, connecting or in a call) and since when.
        self.inside: dict[int, float] = {}
        self.handover = threading.Lock()
        self.counters: dict[str, float] = dict.fromkeys(
            ("requests_num", "requests_queued", "requests_wait_ms", "requests_errors", "usage_ms", "returns_bad",
             "connections_num", "connections_ms", "connections_errors", "connections_lost", "leaks_suspected",
             "retries_num"), 0)
        self.waiting = 0
        self.generation = 0
        self.closed = False
        self.last_error: BaseException | None = None
        self._lost: collections.deque[Entry] = collections.deque()
        self._keeper: Any = None
        super().__init__(self.driver, mincached=0, maxcached=settings.db_max_idle, maxshared=0,
                         maxconnections=settings.db_max_size, blocking=True, maxusage=None, setsession=None,
                         reset=False, failures=(self.driver.dbapi.Error,), ping=0, isfatal=lambda error: False)
        self._maxconnections = settings.db_max_size
        _pools.add(self)

    # -- taking --------------------------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None) -> PooledConnection:  # type: ignore[override]
        """A connection within `timeout` seconds (default STABILITY_DB_TIMEOUT), and never beyond the request's time.

        :raises PoolTimeout: if none became free, or none could be opened, in that time.
        :raises CircuitOpen: at once, while the database is known not to answer.
        :raises TooManyRequests: at once, while the database is slow and only one thread is left for the rest.
        :raises PoolClosed: after `close`.
        """
        started = time.monotonic()
        deadline = started + (self.settings.db_timeout if timeout is None else timeout)
        left = request.remaining()
        if left is not None:
            deadline = min(deadline, started + left - 1.0)
        self.counters["requests_num"] += 1
        ident = threading.get_ident()
        nested = ident in self.inside
        try:
            self._admit(ident, started)
            entry = self._take(deadline)
        except BaseException:
            self.counters["requests_errors"] += 1
            raise
        finally:
            if not nested:
                self.inside.pop(ident, None)
        record = request.current()
        entry.taken(record)
        connection = PooledConnection(self, entry)
        if record is not None:
            record.hold(connection)
        return connection

    def dedicated_connection(self) -> PooledConnection:
        """The same: connections are never shared."""
        return self.connection()

    def _admit(self, ident: int, now: float) -> None:
        """Breaker and bulkhead; enters the thread among those inside."""
        if self.closed:
            raise PoolClosed("the pool is closed: the process is ending")
        if self.breaker.open:
            raise CircuitOpen(f"the database does not answer ({self.breaker.reason}); asked again every 0.5 s")
        if ident not in self.inside:
            self._bulkhead(now)
            self.inside[ident] = now

    def _bulkhead(self, now: float) -> None:
        """Keep one thread of the worker out of a slow database."""
        threads = self.threads
        if threads < 2 or len(self.inside) < threads - 1 or self.settings.db_bulkhead is False:
            return
        if now - min(list(self.inside.values()), default=now) > SLOW:
            raise TooManyRequests(f"{len(self.inside)} of {threads} threads wait for a slow database; "
                                  "the last one stays free for other requests")

    @property
    def threads(self) -> int:
        """Threads of this worker that serve requests; 0 = not known."""
        return int(scoreboard.my_row().words[scoreboard.W_THREADS])

    def _take(self, deadline: float) -> Entry:
        """An idle connection that is alive, else a new one, else wait."""
        while True:
            entry = self._reserve(deadline)
            if entry is None:
                return self._open(deadline)
            if self._usable(entry, deadline):
                with self._lock:
                    self.in_use.add(entry)
                return entry
            self._discard(entry)  # the slot is free again

    def _reserve(self, deadline: float) -> Entry | None:
        """An idle connection, or None for the right to open one. Nothing but bookkeeping under the lock."""
        queued = 0.0
        with self._lock:
            try:
                while True:
                    if self.closed:
                        raise PoolClosed("the pool is closed: the process is ending")
                    if self.breaker.open:
                        raise CircuitOpen(f"the database does not answer ({self.breaker.reason})")
                    if self._idle_cache:
                        self._connections += 1
                        entry: Entry = self._idle_cache.pop()  # last in, first out: the warmest
                        return entry
                    if self._connections < self._maxconnections:
                        self._connections += 1
                        return None
                    now = time.monotonic()
                    if not queued:
                        queued = now
                        self.counters["requests_queued"] += 1
                    if now >= deadline:
                        raise PoolTimeout(self._why(now - queued)) from self.last_error
                    self.waiting += 1
                    try:
                        self._lock.wait(deadline - now)
                    finally:
                        self.waiting -= 1
            finally:
                if queued:
                    self.counters["requests_wait_ms"] += (time.monotonic() - queued) * 1000

    def _why(self, waited: float) -> str:
        return (f"no connection within {waited:.1f} s: size {self._connections + len(self._idle_cache)}, in use "
                f"{self._connections}, idle {len(self._idle_cache)}, waiting {self.waiting}")

    def _usable(self, entry: Entry, deadline: float) -> bool:
        """Whether an idle connection may be used: not expired, nothing on its socket, and if in doubt, it answers."""
        now = time.monotonic()
        if now >= entry.expires or not self.driver.alive(entry.link):
            if now < entry.expires:
                self.counters["connections_lost"] += 1
                self.generation += 1
            return False
        if entry.generation == self.generation and now - entry.last_used <= self.settings.db_alive_bypass_window:
            return True
        entry.limit = min(deadline, now + PATIENCE)
        entry.inside = now
        with self._lock:
            self.in_use.add(entry)  # where the keeper sees it
        try:
            self.driver.ping(entry.raw)
        except Exception as error:
            self.counters["connections_lost"] += 1
            self.last_error = error
            self.generation += 1
            return False
        finally:
            entry.inside = entry.limit = 0.0
            with self._lock:
                self.in_use.discard(entry)
        entry.generation = self.generation
        return True

    def _open(self, deadline: float) -> Entry:
        """A new connection in a slot that is reserved already; tried again until the deadline if that may help."""
        attempt = 0
        try:
            while True:
                try:
                    entry = self.connect(deadline)
                    break
                except self.driver.dbapi.Error as error:
                    attempt += 1
                    self._connect_failed(error, attempt, deadline)
            with self._lock:
                self.in_use.add(entry)
            return entry
        except BaseException:
            self._free_slot()
            raise

    def connect(self, deadline: float) -> Entry:
        """Open a connection; the breaker learns what came of it."""
        started = time.monotonic()
        self.driver.set_limit(max(0.1, deadline - started))
        try:
            steady = self.steady_connection()
        except BaseException:
            self.counters["connections_errors"] += 1
            raise
        finally:
            self.counters["connections_num"] += 1
            self.counters["connections_ms"] += (time.monotonic() - started) * 1000
        if self.breaker.success():
            self._tell("database_back", level="INFO")
        raw = steady.dbapi_connection
        lifetime = self.settings.db_max_lifetime * random.uniform(0.975, 1.0)
        return Entry(steady, raw, self.driver.link(raw), time.monotonic() + lifetime, self.generation)

    def _connect_failed(self, error: BaseException, attempt: int, deadline: float) -> None:
        """Wait a little and return, or raise what the caller gets.

        :raises DatabaseUnavailable: from the driver's error.
        """
        self.last_error = error
        self.generation += 1
        kind = self.driver.classify(error)
        code = error.args[0] if error.args else "?"
        gone = kind in (ErrorClass.CONNECT, ErrorClass.LINK_LOST) and code not in (1040, 1203)
        if gone and self.breaker.failure(f"error {code}"):
            self._tell("database_gone", code=code)
            self._wake()
        if kind is ErrorClass.REFUSED or kind is ErrorClass.OTHER:
            raise DatabaseUnavailable(f"cannot connect to the database: {type(error).__name__} {code}") from error
        if self.breaker.open:
            raise CircuitOpen(f"the database does not answer (error {code})") from error
        pause = random.uniform(0.02, min(1.0, 0.05 * 2 ** attempt))
        if time.monotonic() + pause >= deadline:
            raise PoolTimeout(f"no connection could be opened in time (error {code}): " + self._why(0.0)) from error
        time.sleep(pause)

    # -- using ---------------------------------------------------------------------------------------------------

    def call(self, entry: Entry, function: Callable[..., T], *args: Any) -> T:
        """Call into the driver, visible to the keeper, which cuts it off at its deadline.

        :raises DeadlineExceeded: if that happened.
        """
        inside = self.inside
        ident = threading.get_ident()
        now = time.monotonic()
        nested = ident in inside
        if not nested:
            if len(inside) >= 1:
                self._bulkhead(now)
            inside[ident] = now
        entry.inside = now
        if self.driver.kind == "sqlite" and self.settings.db_query_timeout:
            entry.limit = now + self.settings.db_query_timeout
        try:
            return function(*args)
        except self.driver.dbapi.Error as error:
            self._failed(entry, error)
            if entry.cut:
                raise deadline_error(entry, error) from error
            raise
        finally:
            entry.inside = entry.limit = 0.0
            if not nested:
                inside.pop(ident, None)

    def _failed(self, entry: Entry, error: BaseException) -> None:
        """Remember what an error means for the connection, and for the transaction that it is in."""
        kind = self.driver.classify(error)
        if entry.unit is not None and kind in (ErrorClass.ROLLED_BACK, ErrorClass.LINK_LOST):
            entry.unit.doomed = error
        if kind in (ErrorClass.LINK_LOST, ErrorClass.READ_ONLY, ErrorClass.STALE, ErrorClass.CONNECT):
            entry.broken = True
            self.generation += 1
            self.last_error = error
            if kind is ErrorClass.LINK_LOST:
                self.counters["connections_lost"] += 1

    # -- giving back ---------------------------------------------------------------------------------------------

    def cache(self, entry: Entry) -> None:
        """Take a connection back: cleared, stamped, and only then for the next one to use. Never raises."""
        now = time.monotonic()
        self.counters["usage_ms"] += (now - entry.since) * 1000
        if entry.reported:
            self._tell("connection_returned_after_all", level="INFO", seconds=round(now - entry.since, 1),
                       thread=entry.thread_name)
        keep = not (entry.broken or entry.cut or self.closed or now >= entry.expires)
        if keep and (entry.effect or entry.in_transaction or not self.settings.db_autocommit
                     or self.settings.db_reset_on_return == "session"):
            keep = self._clear(entry)
        elif not keep:
            self.counters["returns_bad"] += 1
        entry.request, entry.stack, entry.effect, entry.in_transaction = None, (), CLEAN, False
        entry.last_used = time.monotonic()
        with self._lock:
            self.in_use.discard(entry)
            if keep and not self.closed and (not self._maxcached or len(self._idle_cache) < self._maxcached):
                self._idle_cache.append(entry)
                self._connections -= 1
                self._lock.notify()
                return
        self._discard(entry)

    def _clear(self, entry: Entry) -> bool:
        """Roll back, or reset the session if that may have been changed; False if the connection is of no more use."""
        entry.limit = time.monotonic() + PATIENCE
        entry.inside = time.monotonic()
        try:
            if entry.effect == SESSION or self.settings.db_reset_on_return == "session":
                self.driver.reset(entry.raw)
            else:
                entry.raw.rollback()
                self.driver.restore(entry.raw)
            return not entry.cut
        except Exception:
            self.counters["returns_bad"] += 1
            return False
        finally:
            entry.inside = entry.limit = 0.0

    def _discard(self, entry: Entry) -> None:
        """Close a connection and free its slot. Never raises."""
        with self._lock:
            self.in_use.discard(entry)
        try:
            self._shut(entry)
        finally:
            self._free_slot()

    def _shut(self, entry: Entry) -> None:
        """Close without waiting for an answer."""
        try:
            if entry.broken or entry.cut:
                self.driver.interrupt(entry.raw, entry.link)
            entry.steady.close()
        except Exception:
            pass
        if entry.link is not None:
            entry.link.close()

    def _free_slot(self) -> None:
        with self._lock:
            self._connections -= 1
            self._lock.notify()

    def lost(self, entry: Entry) -> None:
        """A proxy was collected without having been given back; called by a finalizer, so nothing is done here."""
        self._lost.append(entry)
        if self._keeper is None:
            self.adopt()
        else:
            self._keeper.wake()

    def adopt(self) -> None:
        """Take back what finalizers found."""
        while self._lost:
            try:
                entry = self._lost.popleft()
            except IndexError:
                return
            self.cache(entry)

    # -- the life of the pool ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the keeper. Idempotent."""
        from .keeper import Keeper

        with self.handover:
            if self._keeper is None and not self.closed:
                self._keeper = Keeper(self)
                self._keeper.start()

    def close(self) -> None:
        """Close what is idle, refuse what is asked, close the rest when it comes back."""
        lock = getattr(self, "_lock", None)
        if lock is None:
            return
        with lock:
            self.closed = True
            idle, self._idle_cache = self._idle_cache, []
            lock.notify_all()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.stop()
        for entry in idle:
            self._shut(entry)

    def _wake(self) -> None:
        if self._keeper is not None:
            self._keeper.wake()

    def _tell(self, event: str, *, level: str = "WARNING", **fields: Any) -> None:
        """The one shape of the pool's log lines."""
        stats = self.stats()
        logs.error(event, level=level, database=self.driver.describe(), total=stats["pool_size"],
                   active=stats["pool_in_use"], idle=stats["pool_available"], waiting=stats["requests_waiting"],
                   **fields)

    def stats(self) -> dict[str, Any]:
        """Figures under psycopg_pool's names; times in milliseconds."""
        counters = {name: int(number) for name, number in self.counters.items()}
        requests = counters["requests_num"]
        return {"pool_max": self._maxconnections, "pool_size": self._connections + len(self._idle_cache),
                "pool_available": len(self._idle_cache), "pool_in_use": len(self.in_use),
                "requests_waiting": self.waiting, **counters, "breaker_state": self.breaker.state,
                "success_rate": 1.0 - counters["requests_errors"] / requests if requests else 1.0}

    def _after_fork(self) -> None:
        """In a forked child: begin empty, with new locks, and never speak on the parent's sockets."""
        for entry in [*self._idle_cache, *self.in_use]:
            _inherited.append(entry)  # never finalized: closing would speak
            if entry.link is not None:
                _silence(entry)
        self._idle_cache = []
        self.in_use = set()
        self.inside = {}
        self._connections = self.waiting = 0
        self._lock = threading.Condition()
        self.handover = threading.Lock()
        self._lost = collections.deque()
        self.breaker = Breaker()
        self._keeper = None


def _silence(entry: Entry) -> None:
    """Put /dev/null in the place of an inherited socket."""
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(null, entry.raw.fileno(), inheritable=False)
            if entry.link is not None:
                os.dup2(null, entry.link.fileno(), inheritable=False)
        finally:
            os.close(null)
    except Exception:
        pass


def _after_fork() -> None:
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork)
