"""``StabilityPool``: a pool for SQLAlchemy's engines that neither hangs nor leaks.

``create_engine(url, poolclass=StabilityPool)``, or with Flask-SQLAlchemy
``SQLALCHEMY_ENGINE_OPTIONS = {"poolclass": StabilityPool}``. Nothing else in the app changes: the engine's own creator
opens the connections, and SQLAlchemy's events and the options of its `QueuePool` keep their meaning.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import get_ident
from time import monotonic
from typing import Any

import sqlalchemy
from flask import current_app, has_app_context
from sqlalchemy import event, exc
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool as BasePool
from sqlalchemy.pool.base import _ConnectionRecord

from . import exceptions, request, scoreboard
from .config import Settings
from .database.connector import Connector
from .database.engine_driver import EngineDriver
from .database.inventory import IN_USE, REMOVED
from .database.pool import Pool
from .database.record import ConnectionRecord, not_the_app
from .database.statements import TRANSACTION, stays_within
from .dberrors import CONSEQUENCES, means_unavailable
from .runtime import runtime

__all__ = ["CircuitOpen", "PoolTimeout", "StabilityPool", "Unavailable"]

not_the_app.append(os.path.dirname(os.path.abspath(sqlalchemy.__file__)))

#: Maximum of open connections for an engine without a limit of its own (max_overflow=-1).
_UNLIMITED = 10_000
_A_YEAR = 365 * 86400.0
#: Keys in a Session's ``info``: our records of its transaction's connections, and its current unit of work.
RECORDS, UNIT = "flask_stability.records", "flask_stability.unit"
_READS = re.compile(r"[\s(]*+(?:select|show|set|explain|describe|desc|values|pragma|use)\b", re.IGNORECASE)


class PoolTimeout(exceptions.PoolTimeout, exc.TimeoutError):  # type: ignore[misc]
    """No connection became free within the time that the caller had; SQLAlchemy's `TimeoutError` too."""


class Unavailable(exceptions.DatabaseUnavailable, exc.OperationalError):  # type: ignore[misc]
    """The database cannot be had now; SQLAlchemy's `OperationalError` too."""

    def __init__(self, error: exceptions.DatabaseUnavailable) -> None:
        exc.OperationalError.__init__(self, None, None, error)
        self.retry_after = error.retry_after

    def __str__(self) -> str:
        return str(self.orig)


class CircuitOpen(Unavailable, exceptions.CircuitOpen):
    """The database did not answer lately; connecting is suspended until a probe succeeds."""


class TooManyRequests(Unavailable, exceptions.TooManyRequests):
    """The threads allowed inside a slow database are all taken."""


class _Record(_ConnectionRecord):  # type: ignore[misc]
    """SQLAlchemy's record of a connection, linked to ours.

    :ivar house: our pool, which owns the connection.
    :ivar entry: our record of it; None until the connection is open.
    :ivar held: a borrower has it.
    :ivar wrote: the open transaction has written something.
    :ivar lost: its borrower dropped it without check-in, and a finalizer found it.
    """

    house: _House
    entry: ConnectionRecord | None = None
    held = wrote = lost = False

    @property
    def forgotten(self) -> bool:
        """Return whether the borrower's proxy is gone, so a finalizer runs. (SQLAlchemy 2.0 has no `needs_gc`.)"""
        proxy = self.fairy_ref
        return proxy is not None and proxy() is None

    def checkin(self, _fairy_was_created: bool = True) -> None:
        self.lost = self.lost or self.forgotten
        super().checkin(_fairy_was_created)

    def get_connection(self) -> Any:
        connection = super().get_connection()
        entry = self.entry
        if entry is not None and entry.raw is not connection:  # SQLAlchemy reconnected in place
            self.house.exchange(self, entry)
        return connection

    def release(self) -> None:
        """Take the connection away from a Session that still holds it after its request ended.

        Interrupt, invalidate and discard it: no other borrower may get it, and that Session cannot use it any more.
        """
        house, entry = self.house, self.entry
        if not self.held or entry is None:
            return
        house.events.log("connection_left_open", seconds=round(monotonic() - entry.since, 1), taken_at=entry.taken_at())
        self.held = False
        entry.broken, entry.cut = True, "the request that took it is over"
        entry.request = None
        house.driver.interrupt(entry.raw, entry.link)
        with suppress(Exception):
            self.invalidate()
        house.connector.discard(entry)


class _Connector(Connector):
    """Opens connections with the engine's creator and its events, without DBUtils."""

    def _steady_connection(self, query_timeout: float | None) -> Any:
        return self._driver.connect()


class _House(Pool):
    """Our pool behind an engine."""

    _connector_class = _Connector
    _holds_longer = True

    def __init__(self, settings: Settings, driver: EngineDriver, *, lifo: bool) -> None:
        self._lifo = lifo
        super().__init__(settings, driver=driver)

    def _wire(self) -> None:
        super()._wire()
        self.inventory.fifo = not self._lifo
        # wake the engine's health check before its next interval
        self.availability.changed = lambda: runtime.my_row().add(scoreboard.W_ENGINE_ERRORS)

    def _lend(self, entry: ConnectionRecord) -> Any:
        record = entry.steady
        record.entry, record.held, record.wrote, record.lost = entry, True, False, False
        return record

    def give_back(self, record: _Record) -> None:
        """Take a connection back from SQLAlchemy, which has already reset it. Never raises.

        If the connection is lost, a finalizer may be the caller.
        """
        entry = record.entry
        if not record.held or entry is None:
            return
        record.held = False
        if record.lost:  # do no more here: a finalizer may run anywhere, under any lock
            entry.effect = max(entry.effect, TRANSACTION)
            if record.dbapi_connection is None:  # invalidated: keep no reference to the driver's object
                entry.broken, entry.raw = True, None
            self.lost.append(entry)
            return
        if entry.request is not None:
            entry.request.drop(record)
        if record.dbapi_connection is None:  # invalidated, or detached: the app owns it from now on
            self.connector.discard(entry)
        else:
            self.take_back(entry)

    def exchange(self, record: _Record, old: ConnectionRecord) -> None:
        """Replace the record of a borrowed connection that SQLAlchemy has reopened."""
        raw = record.dbapi_connection
        new = ConnectionRecord(record, self.driver.link(raw), self.settings.db_max_lifetime,
                               self.inventory.generation)
        new.state, new.since, new.request = IN_USE, monotonic(), old.request
        new.thread_id, new.stack = old.thread_id, old.stack
        with self.inventory.lock:
            old.state = REMOVED
            self.inventory.records.discard(old)
            self.inventory.records.add(new)
        if old.link is not None:
            old.link.close()
        record.entry = new


class StabilityPool(BasePool):  # type: ignore[misc]
    """This package's pool for an SQLAlchemy engine.

    Waits are bounded and fair. The pool does no I/O under a lock. During an outage, requests do not each try the
    database. Each call ends at its request's deadline. The pool logs connections that a borrower never gives back.

    :param creator: the engine's own function that opens a connection.
    :param pool_size: maximum of idle connections to keep; 0 = no limit on open connections.
    :param max_overflow: maximum of open connections beyond `pool_size`; -1 = no limit.
    :param timeout: maximum wait for a connection in seconds, capped by the request's own deadline; ``pool_timeout``.
    :param use_lifo: check out the connection that came back last first; ``pool_use_lifo``.
    :param pre_ping: ping each connection at checkout, instead of only those that were silent for longer than
        STABILITY_DB_ALIVE_BYPASS_WINDOW; ``pool_pre_ping``.

    Everything else is as in SQLAlchemy's `QueuePool`.
    """

    _is_asyncio = False

    def __init__(self, creator: Any, pool_size: int = 5, max_overflow: int = 10,
                 timeout: float | None = 30.0, use_lifo: bool = False, **kw: Any) -> None:
        self._size = pool_size
        self._max_overflow = -1 if pool_size == 0 else max_overflow
        self._timeout, self._use_lifo = timeout, use_lifo
        self._asks_always = bool(kw.pop("pre_ping", False))
        self._house: _House | None = None
        self._shared: Any = None
        #: Connections to an in-memory database that threads opened at the same time; all threads share the first one.
        self._opened: list[Any] = []
        #: Connections that `_in_memory` opened to find out where the database is, until a checkout takes them. Each is
        #: paired with the id of the process that opened it.
        self._probed: list[tuple[int, Any]] = []
        self._on_disk = False
        super().__init__(creator, **kw)

    # -- SQLAlchemy's side -----------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_dialect":  # the engine sets its dialect after it has created the pool
            _watch(value)

    def _create_connection(self) -> Any:
        return _Record(self)

    def _do_get(self) -> Any:
        if self._in_memory():
            return self._shared
        house = self._house or self._open()
        # before the first connection: an outage may have begun, and only a pool with a housekeeper holds requests
        if not house.calls.watched:
            serving = request.current()
            if serving is not None and serving.supervised:
                house.start()
        while True:
            try:
                patience = self._patience()
                # `patience` limits the wait for a connection in use; opening one has a limit of its own
                if house.inventory.has_room():
                    patience = max(patience, house.settings.db_connect_timeout)
                record: Any = house.connection(patience)
            except exceptions.DatabaseUnavailable as error:
                raise self._translated(error) from error.__cause__
            if record._is_hard_or_soft_invalidated():
                record.held = False
                if record.entry.request is not None:
                    record.entry.request.drop(record)
                house.connector.discard(record.entry)
                continue
            return record

    def _do_return_conn(self, record: Any) -> None:
        if record is not self._shared:
            record.house.give_back(record)

    def dispose(self) -> None:
        """Close the idle connections. Those in use are closed at check-in."""
        house, self._house = self._house, None
        shared, self._shared, self._opened = self._shared, None, []
        if house is not None:
            house.close()
        while (probed := self._take_probed()) is not None:
            probed.close()
        if shared is not None and shared.dbapi_connection is not None:
            shared.close()
        self.logger.info("Pool disposed. %s", self.status())

    def recreate(self) -> StabilityPool:
        """Return a new pool with the same arguments."""
        self.logger.info("Pool recreating")
        return self.__class__(
            self._creator, pool_size=self._size, max_overflow=self._max_overflow, timeout=self._timeout,
            use_lifo=self._use_lifo, pre_ping=self._asks_always, recycle=self._recycle, echo=self.echo,
            logging_name=self._orig_logging_name, reset_on_return=self._reset_on_return, _dispatch=self.dispatch,
            dialect=self._dialect)

    def status(self) -> str:
        """Return a summary for people."""
        return (f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} Current Overflow: "
                f"{self.overflow()} Current Checked out connections: {self.checkedout()}")

    def size(self) -> int:
        """Return the maximum of idle connections that the pool keeps."""
        return self._size

    def timeout(self) -> float | None:
        """Return the maximum wait for a connection, in seconds; None = no limit."""
        return self._timeout

    def checkedin(self) -> int:
        """Return the number of idle connections."""
        return int(self.stats()["pool_available"])

    def checkedout(self) -> int:
        """Return the number of connections in use."""
        return int(self.stats()["pool_in_use"])

    def overflow(self) -> int:
        """Return the number of open connections minus `pool_size`; 0 without a limit."""
        return int(self.stats()["pool_size"]) - self._size if self._size else 0

    # -- ours ------------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int | float | str]:
        """Return the pool's figures, as ``stability.pool.stats()`` does."""
        house = self._house or self._open()
        if house.lost:
            house.reclaim_lost()
        return house.stats()

    def ask(self, timeout: float = 10.0) -> None:
        """Make one round trip on a separate connection; raise if the database does not answer.

        An exhausted pool does not mean an outage, so this takes no connection from the pool.

        :param timeout: maximum time to open that connection, in seconds.
        """
        dialect: Any = self._dialect
        if self._in_memory():
            dialect.do_ping(self._shared.dbapi_connection)
            return
        raw = (self._house or self._open()).driver.connect(timeout)
        try:
            dialect.do_ping(raw)
        finally:
            raw.close()

    def _open(self) -> _House:
        """Create our pool at first use, when settings and dialect are known, and return it. Opens no connection."""
        def record() -> Any:
            opened = self._take_probed() or self._create_connection()
            opened.house = made
            return opened

        driver = EngineDriver(record, self._bare, lambda: self.__dict__.get("_dialect"))
        made = _House(self._settings(), driver, lifo=self._use_lifo)
        if self._house is None:
            self._house = made  # if two threads race, the loser's pool has opened nothing
        return self._house

    def _settings(self) -> Settings:
        state = current_app.extensions.get("stability") if has_app_context() else None
        settings: Settings = state.settings if state is not None else Settings.from_environ()
        unlimited = self._max_overflow < 0
        most = _UNLIMITED if unlimited else max(1, self._size + self._max_overflow)
        return replace(
            settings, db_max_size=most, db_max_idle=most if not self._size else self._size, db_min_idle=0,
            db_timeout=self._patience(), db_query_timeout=0.0, db_autocommit=True,
            db_reset_on_return="rollback",
            db_max_lifetime=float(self._recycle) if self._recycle > 0 else settings.db_max_lifetime,
            db_alive_bypass_window=0.0 if self._asks_always else settings.db_alive_bypass_window)

    def _patience(self) -> float:
        """Return the maximum wait for a connection in seconds; a year if `timeout` is None (no limit)."""
        return _A_YEAR if self._timeout is None else max(self._timeout, 0.001)

    def _bare(self) -> Any:
        """Open a connection without events, for a probe."""
        return self._invoke_creator(_ConnectionRecord(self, connect=False))

    def _translated(self, error: exceptions.DatabaseUnavailable) -> BaseException:
        """Return the error as SQLAlchemy's users expect it: the driver's own error if the driver failed."""
        cause = error.__cause__
        if isinstance(error, exceptions.CircuitOpen) or means_unavailable(cause):
            runtime.my_row().add(scoreboard.W_ENGINE_ERRORS)  # wake the engine's health check before its next interval
        if type(error) is exceptions.DatabaseUnavailable and cause is not None:
            return cause.with_traceback(None)
        if isinstance(error, exceptions.PoolTimeout):
            return PoolTimeout(str(error))
        kind = (CircuitOpen if isinstance(error, exceptions.CircuitOpen) else
                TooManyRequests if isinstance(error, exceptions.TooManyRequests) else Unavailable)
        return kind(error)

    def _in_memory(self) -> bool:
        """Return whether this is an in-memory SQLite database. Its only connection is shared by all threads."""
        if self._shared is not None:
            return True
        if self._on_disk or getattr(self._dialect, "name", "") != "sqlite":
            return False
        record: Any = self._create_connection()
        try:
            cursor = record.dbapi_connection.cursor()
            cursor.execute("PRAGMA database_list")
            rows = list(cursor.fetchall())
            cursor.close()
        except Exception:  # the app's own creator may return anything
            rows = [(0, "main", "unknown")]
        if any(row[2] for row in rows if row[1] == "main"):
            self._on_disk = True
            self._probed.append((os.getpid(), record))
            return False
        opened = self._opened
        opened.append(record)
        self._shared = opened[0]
        return True

    def _take_probed(self) -> Any:
        """Return a connection that `_in_memory` opened in this process; None if there is none."""
        while self._probed:
            try:
                pid, record = self._probed.pop()
            except IndexError:  # another thread was first
                break
            if pid == os.getpid():
                return record
        return None


def _watch(dialect: Any) -> None:
    """Wrap the dialect's calls into the driver, so that the housekeeper can see and cancel them. Idempotent."""
    if dialect is None or not hasattr(dialect, "do_execute") or getattr(dialect, "_stability_watched", False):
        return
    dialect._stability_watched = True
    if dialect.name == "sqlite":
        event.listen(dialect, "do_connect", _for_all_threads)
    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, name, _execution(getattr(dialect, name)))
    dialect.do_commit = _commit(dialect.do_commit)
    dialect.do_rollback = _rollback(dialect.do_rollback)


def _for_all_threads(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
    """Allow all threads to use a connection: an in-memory database has only one."""
    parameters["check_same_thread"] = False


def record_of(connection: Any) -> _Record | None:
    """Return our record behind a connection of SQLAlchemy's pool; None if another pool owns the connection."""
    record = getattr(connection, "_connection_record", None)
    return record if isinstance(record, _Record) and record.entry is not None else None


def _execution(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def execute(cursor: Any, statement: Any, *args: Any, **kwargs: Any) -> Any:
        context = kwargs.get("context") or (args[-1] if args else None)
        root = getattr(context, "root_connection", None)
        record = record_of(root._dbapi_connection) if root is not None else None
        if record is None or record.entry is None:
            return original(cursor, statement, *args, **kwargs)
        if not record.wrote and not _READS.match(statement):
            record.wrote = True
        house, entry = record.house, record.entry
        if entry.unit is not None and not stays_within(statement):
            entry.unit.torn = True
        if house.bulkhead.inside and entry.request is not None:
            house.bulkhead.admit(monotonic())
        return house.calls.run(entry, functools.partial(original, cursor, statement, *args, **kwargs))

    return execute


def _commit(original: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(original)
    def commit(connection: Any) -> None:
        record = record_of(connection)
        if record is None or record.entry is None:
            original(connection)
            return
        house, entry = record.house, record.entry
        if entry.cut:
            raise exceptions.DeadlineExceeded(
                "the transaction was cut off before COMMIT was sent: nothing of it is stored")
        unit: Any = entry.unit
        refused = unit is not None and unit.doomed is not None  # then `run` raises before it sends anything
        try:
            house.calls.run(entry, original, connection)
        except (house.driver.dbapi.Error, exceptions.DeadlineExceeded) as error:
            if unit is not None and not refused and _may_be_stored(house, error):
                unit.unconfirmed = True
            raise
        record.wrote = False
        if unit is not None:
            unit.committed = True
            unit.torn = unit.torn or not unit.ending

    return commit


def _may_be_stored(house: _House, error: BaseException) -> bool:
    return house.driver.kind != "sqlite" and CONSEQUENCES[house.driver.classify(error)].stored


def _rollback(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap ROLLBACK with a time limit. If that cuts the link, the server rolls back."""

    @functools.wraps(original)
    def rollback(connection: Any) -> None:
        record = record_of(connection)
        if record is None or record.entry is None:
            original(connection)
            return
        house, entry = record.house, record.entry
        if record.forgotten:
            record.lost = True  # a finalizer must not wait: `take_back` rolls back before the next checkout
            return
        record.wrote = False
        if entry.cut:
            return
        if not house.calls.watched:
            original(connection)
            return
        ident, serving = get_ident(), entry.request is not None
        if serving:
            house.bulkhead.inside[ident] = monotonic()
        try:
            house.calls.run_bounded(entry, original, connection)
        except Exception:
            if not entry.cut:
                raise
        finally:
            if serving:
                house.bulkhead.inside.pop(ident, None)

    return rollback


def _after_begin(session: Session, _transaction: Any, connection: Any) -> None:
    record = record_of(connection.connection)
    session.info.setdefault(RECORDS, []).append(record)
    unit = session.info.get(UNIT)
    if unit is not None:
        unit.use(record)


def _after_end(session: Session, transaction: Any) -> None:
    if transaction.parent is None:
        session.info.pop(RECORDS, None)


event.listen(Session, "after_begin", _after_begin)
event.listen(Session, "after_transaction_end", _after_end)
