"""The pool: DBUtils' `PooledDB` with every wait bounded, no I/O under its lock, and no statement run twice.

What DBUtils does on its own account (pinging, reconnecting and executing again, usage limits, sharing) is switched
off. Under the lock there is bookkeeping only: who waits gets a connection or an error handed over, in the order of
arrival. Connections are opened by short-lived threads of the pool, so a request waits for a connection exactly as
long as it may, and can be sent away at any time.
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
from ..dberrors import ErrorClass
from ..exceptions import (
    CircuitOpen,
    DatabaseUnavailable,
    DeadlineExceeded,
    PoolClosed,
    PoolTimeout,
    TooManyRequests,
)
from .breaker import Breaker
from .connection import IDLE, IN_USE, REMOVED, RESERVED, Entry, PooledConnection
from .drivers import make_driver
from .keeper import Keeper
from .statements import SESSION
from .stats import Counters

T = TypeVar("T")

#: A thread that is longer than this inside the database closes the bulkhead, seconds.
SLOW = 1.0
#: What checking or clearing a connection may take, seconds.
PATIENCE = 2.0
#: Between attempts to connect at the most, seconds.
LONGEST_PAUSE = 0.25

_FULL = (1040, 1203)  # the server is there, but has no connection to give
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_inherited: list[Entry] = []


class Waiter:
    """A thread that waits for a connection. `entry` or `error` is handed over under the pool's lock."""

    __slots__ = ("entry", "error", "gate", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.entry: Entry | None = None
        self.error: BaseException | None = None
        self.gate = threading.Lock()
        self.gate.acquire()


class Pool(PooledDB):  # type: ignore[misc]
    """A bounded pool of connections of one app in one process. Opens nothing before it is asked for a connection.

    :param name, instance_path: of the app, for the embedded default.
    :ivar entries: all open connections.
    :ivar inside: requests' threads inside the database (waiting or in a call) and since when.
    :ivar generation: rises with each failure; what was checked in an older one is pinged before it is used.
    :ivar lost: what finalizers found; `adopt` takes it back.
    """

    _idle_cache: list[Entry]
    _lock: threading.Lock

    def __init__(self, settings: Settings, *, name: str = "app", instance_path: str = ".") -> None:
        self.settings = settings
        self.driver = make_driver(settings, instance_path, name)
        self.breaker = Breaker()
        self.counters = Counters()
        self.entries: set[Entry] = set()
        self.waiters: collections.deque[Waiter] = collections.deque()
        self.inside: dict[int, float] = {}
        self.lost: collections.deque[Entry] = collections.deque()
        self.generation = 0
        #: Where nobody waits as long as SLOW, waiting for a connection would never count as slow.
        self.slow = min(SLOW, settings.db_timeout / 2)
        self.forgiven = self._renewed = 0.0
        self.closed = False
        self.last_error: BaseException | None = None
        self._connecting = 0
        self._keeper: Keeper | None = None
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

    def connection(self, timeout: float | None = None) -> PooledConnection:
        """A connection within `timeout` seconds (default STABILITY_DB_TIMEOUT), and never beyond the request's time.

        :raises PoolTimeout: if none became free, or none could be opened, in that time.
        :raises CircuitOpen: at once, while the database is known not to answer.
        :raises TooManyRequests: while the database is slow and only one thread is left for the rest.
        :raises PoolClosed: after `close`.
        """
        now = time.monotonic()
        deadline = now + (self.settings.db_timeout if timeout is None else timeout)
        record = request.current()
        if record is not None:
            left = request.remaining()
            if left is not None:
                deadline = min(deadline, now + left - 1.0)
        with self._lock:
            self.counters["requests_num"] += 1
        if self.lost:
            self.adopt()
        try:
            if record is None:
                entry = self._take(now, deadline)
            else:
                self.bulkhead(now)
                ident = threading.get_ident()
                self.inside[ident] = now
                try:
                    entry = self._take(now, deadline)
                finally:
                    self.inside.pop(ident, None)
        except BaseException:
            self.counters.add("requests_errors")
            raise
        entry.taken(record)
        connection = PooledConnection(self, entry)
        if record is not None:
            record.hold(connection)
        return connection

    def dedicated_connection(self) -> PooledConnection:
        """The same: connections are never shared."""
        return self.connection()

    def bulkhead(self, now: float) -> None:
        """Keep one thread of the worker out of a slow database.

        :raises TooManyRequests: if this thread would be the last one.
        """
        inside = self.inside
        if not inside or self.settings.db_bulkhead is False:
            return
        threads = self.threads
        if threads < 2 or len(inside) < threads - 1:
            return
        if now - max(min(list(inside.values()), default=now), self.forgiven) > self.slow:
            raise TooManyRequests(self.crowded())

    def crowded(self) -> str:
        """For people: why a request is sent away."""
        return (f"{len(self.inside)} of {self.threads} threads wait for a slow database; "
                "the last one stays free for other requests")

    @property
    def threads(self) -> int:
        """Threads of this worker that serve requests; 0 = not known."""
        return int(scoreboard.my_row().words[scoreboard.W_THREADS])

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
            if waiter is None:
                waiter = Waiter(now)
                self.waiters.append(waiter)
            else:
                waiter = Waiter(waiter.since)
                self.waiters.appendleft(waiter)
            wanted = self._slots()
        self._open(wanted)
        return None, waiter

    def _refuse_if_hopeless(self) -> None:
        if self.closed:
            raise PoolClosed("the pool is closed: the process is ending")
        if self.breaker.open:
            raise CircuitOpen(f"the database does not answer ({self.breaker.reason}); asked again every 0.5 s")

    def _wait(self, waiter: Waiter, deadline: float) -> Entry:
        try:
            while not waiter.gate.acquire(timeout=max(0.0, deadline - time.monotonic())):
                with self._lock:
                    if waiter.entry is None and waiter.error is None and time.monotonic() >= deadline:
                        raise PoolTimeout(f"no connection within {time.monotonic() - waiter.since:.1f} s: "
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
            self.counters.add("requests_wait_ms", (time.monotonic() - waiter.since) * 1000)

    def _withdraw(self, waiter: Waiter) -> None:
        """Out of the queue; what was handed over meanwhile goes to the next."""
        with self._lock:
            try:
                self.waiters.remove(waiter)
            except ValueError:
                pass
            entry, waiter.entry = waiter.entry, None
        if entry is not None:
            self.publish(entry)

    def send_away(self, waiter: Waiter, error: BaseException) -> bool:
        """Let a waiter fail; False if it has got something meanwhile. The lock is held."""
        try:
            self.waiters.remove(waiter)
        except ValueError:
            return False
        waiter.error = error
        waiter.gate.release()
        return True

    def send_all_away(self, make_error: Callable[[], BaseException]) -> None:
        """Let all waiters fail, each with an error of its own."""
        with self._lock:
            for waiter in list(self.waiters):
                self.send_away(waiter, make_error())

    def _why(self) -> str:
        idle = len(self._idle_cache)
        return f"size {self._connections + idle}, in use {self._in_use()}, idle {idle}, waiting {len(self.waiters)}"

    def _in_use(self) -> int:
        return max(0, self._connections - self._connecting)

    def _usable(self, entry: Entry, deadline: float) -> bool:
        """Whether a connection may be used: not expired, nobody hung up, and if in doubt, it answers."""
        now = time.monotonic()
        if now >= entry.expires:
            return False
        if entry.hung_up():
            self._lost_one()
            return False
        fresh = entry.generation == self.generation and now - entry.checked <= self.settings.db_alive_bypass_window
        if fresh:
            entry.state = IN_USE
            return True
        if not self.ping(entry, min(deadline, now + PATIENCE)):
            return False
        with self._lock:  # the keeper cuts under the lock: it either did already, or finds nobody inside
            entry.state = IN_USE
            return not entry.cut

    def ping(self, entry: Entry, deadline: float) -> bool:
        """Whether a reserved connection answers by then."""
        generation = self.generation
        try:
            self._within(entry, deadline, self.driver.ping, entry.raw)
        except self.driver.dbapi.Error:
            self._lost_one()
            return False
        entry.generation, entry.checked = generation, time.monotonic()
        return not entry.cut

    def _within(self, entry: Entry, deadline: float, function: Callable[..., object], *args: Any) -> None:
        """A call of the pool's own, which the keeper cuts off at the deadline."""
        entry.limit, entry.inside = deadline, time.monotonic()
        try:
            function(*args)
        finally:
            entry.inside = entry.limit = 0.0

    def _lost_one(self) -> None:
        self.counters.add("connections_lost")
        self.generation += 1

    # -- opening -------------------------------------------------------------------------------------------------

    def _slots(self, ahead: int = 0) -> int:
        """Reserve slots for the connections that waiters need, or `ahead` of need; how many. The lock is held."""
        room = self._maxconnections - self._connections - len(self._idle_cache)
        count: int = max(0, min(room, max(len(self.waiters), ahead) - self._connecting))
        self._connections += count
        self._connecting += count
        return count

    def open_ahead(self) -> None:
        """Open what is missing of STABILITY_DB_MIN_IDLE."""
        with self._lock:
            if self.closed or self.breaker.open:
                return
            count = self._slots(self.settings.db_min_idle - len(self._idle_cache))
        self._open(count)

    def _open(self, count: int) -> None:
        """Fill reserved slots in the background."""
        for number in range(count):
            try:
                threading.Thread(target=self._connect, name="stability-connect", daemon=True).start()
            except RuntimeError:  # whoever waits must not wait for this one
                with self._lock:
                    self._connecting -= count - number
                    self._connections -= count - number
                self.send_all_away(lambda: DatabaseUnavailable("cannot connect to the database: no more threads"))
                return

    def _connect(self) -> None:
        """Open a connection in a reserved slot; again while somebody waits and it may help. Never raises."""
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                entry = self._new_entry(started)
                break
            except BaseException as error:
                attempt += 1
                error.__traceback__ = None
                again = self._connect_failed(error, started)
            with self._lock:
                if not again or self.closed or not self.waiters:
                    self._connecting -= 1
                    self._connections -= 1
                    return
            time.sleep(random.uniform(0.02, min(LONGEST_PAUSE, 0.05 * 2 ** attempt)))
        with self._lock:
            self._connecting -= 1
        self.publish(entry)

    def _new_entry(self, started: float) -> Entry:
        generation = self.generation
        try:
            steady = self.steady_connection()
        except BaseException:
            self.counters.add("connections_errors")
            raise
        finally:
            self.counters.add("connections_num")
            self.counters.add("connections_ms", (time.monotonic() - started) * 1000)
        self.answered()
        self.last_error = None
        entry = Entry(steady, self.driver.link(steady.dbapi_connection), self.settings.db_max_lifetime, generation)
        with self._lock:
            self.entries.add(entry)
        return entry

    def answered(self) -> None:
        """The database answered: whatever was suspended goes on."""
        if self.breaker.success():
            self.forgiven = time.monotonic()
            self.tell("database_back", level="INFO")

    def gone(self, reason: str) -> None:
        """The breaker opened: nobody has to wait."""
        self.generation += 1
        self.send_all_away(lambda: CircuitOpen(f"the database does not answer ({reason})"))
        self.tell("database_gone", reason=reason)
        self._wake()

    def _connect_failed(self, error: BaseException, started: float) -> bool:
        """Whether to try again; if not, the waiters have been told."""
        self.last_error = error
        kind = self.driver.classify(error)
        code = error.args[0] if error.args else "?"
        remedy = self.driver.remedy(error)
        if kind in (ErrorClass.CONNECT, ErrorClass.LINK_LOST):
            reason = f"error {code}: {remedy}" if remedy else f"error {code}"
            if code not in _FULL and self.breaker.failure(reason, started):
                self.gone(reason)
            return not self.breaker.open
        if kind is ErrorClass.LOCK_WAIT:
            return True
        text = f"{type(error).__name__} {error if self.driver.kind == 'sqlite' else code}"
        if remedy:
            text = f"{text}: {remedy}"
        self.send_all_away(lambda: _caused(DatabaseUnavailable(f"cannot connect to the database: {text}"), error))
        return False

    # -- using ---------------------------------------------------------------------------------------------------

    def admit(self, entry: Entry) -> None:
        """Before a new statement of a request.

        :raises TooManyRequests: as `bulkhead`.
        """
        if self.inside and entry.request is not None:
            self.bulkhead(time.monotonic())

    def call(self, entry: Entry, function: Callable[..., T], *args: Any) -> T:
        """Call into the driver, visible to the keeper, which cuts it off at its deadline.

        :raises DeadlineExceeded: if that happened.
        :raises Exception: what ended the transaction, if it is over and the app goes on.
        """
        if entry.cut:
            if entry.state is REMOVED:
                raise self.driver.dbapi.InterfaceError(f"this connection cannot be used: {entry.cut}")
            raise DeadlineExceeded(f"the call to the database was cut off: {entry.cut}")
        if entry.unit is not None and entry.unit.doomed is not None:
            raise entry.unit.doomed  # the server ended the transaction: a statement now would be stored alone
        serving = entry.request is not None
        now = time.monotonic()
        if serving:
            self.inside[threading.get_ident()] = now
        entry.inside = now
        try:
            return function(*args)
        except self.driver.dbapi.Error as error:
            self._failed(entry, error)
            if entry.cut:
                raise DeadlineExceeded(f"the call to the database was cut off: {entry.cut}") from error
            raise
        except Exception:
            raise  # a wrong argument, say: nothing was sent
        except BaseException as error:
            entry.broken = True  # interrupted midway: an answer may be left unread
            if entry.unit is not None:
                entry.unit.doom(error)
            raise
        finally:
            entry.inside = 0.0
            if serving:
                self.inside.pop(threading.get_ident(), None)

    def _failed(self, entry: Entry, error: BaseException) -> None:
        """Remember what an error means for the connection, and for the transaction that it is in."""
        kind = self.driver.classify(error)
        if kind in (ErrorClass.OTHER, ErrorClass.REFUSED) and (remedy := self.driver.remedy(error)):
            error.add_note(remedy)
        if entry.unit is not None:
            entry.unit.failed(entry.raw, error)
        if kind is ErrorClass.READ_ONLY:
            self._renew()
        if kind in (ErrorClass.LINK_LOST, ErrorClass.READ_ONLY, ErrorClass.STALE, ErrorClass.CONNECT):
            entry.broken = True
            self.generation += 1
            if kind is ErrorClass.LINK_LOST and not entry.cut:
                self.counters.add("connections_lost")

    def _renew(self) -> None:
        """After a failover connections may lead to what was the primary: none of them is used again.

        At most once a second: a server that stays read-only must not cost a connect for each error.
        """
        now = time.monotonic()
        with self._lock:
            if now - self._renewed >= 1.0:
                self._renewed = now
                for entry in self.entries:
                    entry.expires = now

    # -- giving back ---------------------------------------------------------------------------------------------

    def cache(self, entry: Entry) -> None:
        """Take a connection back: cleared, stamped, and only then for the next one to use. Never raises."""
        if entry.state is not IN_USE:
            return  # a forked child has no part in it
        now = time.monotonic()
        self.counters.add("usage_ms", (now - entry.since) * 1000)
        if entry.reported:
            self.tell("connection_returned_after_all", level="INFO", seconds=round(now - entry.since, 1),
                      thread=entry.thread_name())
        bad = entry.broken or entry.cut or entry.inside
        if not bad and (entry.effect or entry.in_transaction or not self._trusting):
            bad = not self._cleared(entry)
            now = time.monotonic()
        entry.given_back(now)
        if bad:
            self.counters.add("returns_bad")
            self.discard(entry)
        else:
            self.publish(entry)

    def _cleared(self, entry: Entry) -> bool:
        """Roll back, or reset the session if that may have been changed; False if the connection is of no more use."""
        session = entry.effect == SESSION or self.settings.db_reset_on_return == "session"
        ident, serving = threading.get_ident(), entry.request is not None
        if serving:
            self.inside[ident] = time.monotonic()
        try:
            self._within(entry, time.monotonic() + PATIENCE,
                         self.driver.reset if session else self.driver.rollback, entry.raw)
            return not entry.cut
        except Exception:
            return False
        finally:
            if serving:
                self.inside.pop(ident, None)

    def publish(self, entry: Entry, *, cold: bool = False) -> None:
        """Give a checked or new connection to the first waiter, else to the idle ones. Never raises."""
        with self._lock:
            if not (entry.cut or self.closed or entry.checked >= entry.expires):
                entry.state = RESERVED
                if self.waiters:
                    waiter = self.waiters.popleft()
                    waiter.entry = entry
                    waiter.gate.release()
                    return
                if len(self._idle_cache) < self.settings.db_max_idle:
                    entry.state = IDLE
                    self._idle_cache.insert(0 if cold else len(self._idle_cache), entry)
                    self._connections -= 1
                    return
        self.discard(entry)

    def discard(self, entry: Entry) -> None:
        """Close a connection and free its slot. Never raises."""
        with self._lock:
            if entry.state is REMOVED:
                return
            entry.state = REMOVED
            self.entries.discard(entry)
        self._shut(entry)
        with self._lock:
            self._connections -= 1
            wanted = self._slots()
        self._open(wanted)

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

    def stats(self) -> dict[str, int | float | str]:
        """Figures under psycopg_pool's names; times in milliseconds."""
        counters = {name: int(number) for name, number in self.counters.items()}
        requests = counters["requests_num"]
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
            _silence(entry)
            _inherited.append(entry)
        self.entries, self.waiters, self.lost = set(), collections.deque(), collections.deque()
        self.inside, self._idle_cache = {}, []
        self._connections = self._connecting = 0
        self.breaker, self.counters, self._keeper = Breaker(), Counters(), None


def _caused(error: DatabaseUnavailable, cause: BaseException) -> DatabaseUnavailable:
    error.__cause__ = cause
    return error


def _silence(entry: Entry) -> None:
    """Put /dev/null in the place of an inherited socket, whoever was using it."""
    if entry.link is None:
        return
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(null, entry.fd, inheritable=False)
            os.dup2(null, entry.link.fileno(), inheritable=False)
        finally:
            os.close(null)
    except OSError:
        pass


def _after_fork() -> None:
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork)
