"""``StabilityPool``: the pool that cannot hang or leak, for SQLAlchemy's engines.

``create_engine(url, poolclass=StabilityPool)``, or with Flask-SQLAlchemy
``SQLALCHEMY_ENGINE_OPTIONS = {"poolclass": StabilityPool}``. Nothing else in an app has to change: connections are
opened by the engine's own creator, SQLAlchemy's events and the options of its `QueuePool` mean what they do there.
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

#: Connections of an engine without a limit of its own (max_overflow=-1).
_UNLIMITED = 10_000
_A_YEAR = 365 * 86400.0
#: In a Session's ``info``: our records of the connections of its transaction, and the unit of work it is in.
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
    """A connection as SQLAlchemy's pool knows it, with what ours knows of it.

    :ivar house: our pool, whose it is.
    :ivar entry: it there; None while it is being opened.
    :ivar held: it is lent.
    :ivar wrote: something was written in the transaction that is open.
    :ivar lost: its borrower forgot it, and a finalizer found it.
    """

    house: _House
    entry: ConnectionRecord | None = None
    held = wrote = lost = False

    @property
    def forgotten(self) -> bool:
        """The borrower's proxy is gone, so a finalizer is running. (SQLAlchemy 2.0 has no `needs_gc`.)"""
        proxy = self.fairy_ref
        return proxy is not None and proxy() is None

    def checkin(self, _fairy_was_created: bool = True) -> None:
        self.lost = self.lost or self.forgotten
        super().checkin(_fairy_was_created)

    def get_connection(self) -> Any:
        connection = super().get_connection()
        entry = self.entry
        if entry is not None and entry.raw is not connection:  # it was opened anew in place
            self.house.exchange(self, entry)
        return connection

    def release(self) -> None:
        """The request is over and a Session still holds it: nobody else may get it, and that Session no more of it."""
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
    """Opens connections by an engine's creator, with its events; DBUtils has no part in it."""

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
        # the engine's check need not wait for its time
        self.availability.changed = lambda: runtime.my_row().add(scoreboard.W_ENGINE_ERRORS)

    def _lend(self, entry: ConnectionRecord) -> Any:
        record = entry.steady
        record.entry, record.held, record.wrote, record.lost = entry, True, False, False
        return record

    def give_back(self, record: _Record) -> None:
        """What SQLAlchemy gives back, after its own reset. Never raises; may be called in a finalizer if it is lost."""
        entry = record.entry
        if not record.held or entry is None:
            return
        record.held = False
        if record.lost:  # no more here: a finalizer may run anywhere, in any lock
            entry.effect = max(entry.effect, TRANSACTION)
            if record.dbapi_connection is None:  # invalidated: nothing may keep the driver's object
                entry.broken, entry.raw = True, None
            self.lost.append(entry)
            return
        if entry.request is not None:
            entry.request.drop(record)
        if record.dbapi_connection is None:  # invalidated, or detached and the app's from now on
            self.connector.discard(entry)
        else:
            self.take_back(entry)

    def exchange(self, record: _Record, old: ConnectionRecord) -> None:
        """The connection of a borrower was replaced by a new one."""
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
    """The pool of this package for an engine.

    Waits are bounded and fair, nothing is opened or asked under a lock, a database that is gone is not asked by every
    request, a call ends at its request's deadline, and what is not given back is told of.

    :param creator: opens a connection; an engine's own.
    :param pool_size: idle connections kept; 0 = any number may be open.
    :param max_overflow: connections beside these at the most; -1 = any number.
    :param timeout: seconds to wait for a connection, and never longer than the request may; ``pool_timeout``.
    :param use_lifo: the connection that was given back last is used first; ``pool_use_lifo``.
    :param pre_ping: ask each connection before it is used, instead of those that were silent for longer than
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
        #: Connections to a database in memory that threads opened at once: the first is the one that all share.
        self._opened: list[Any] = []
        #: Connections that told where the database is, until somebody takes them, and the process that opened them.
        self._probed: list[tuple[int, Any]] = []
        self._on_disk = False
        super().__init__(creator, **kw)

    # -- SQLAlchemy's side -----------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_dialect":  # an engine gives it after it has made the pool
            _watch(value)

    def _create_connection(self) -> Any:
        return _Record(self)

    def _do_get(self) -> Any:
        if self._in_memory():
            return self._shared
        house = self._house or self._open()
        if not house.calls.watched:  # before the first connection: while there is none to be had, requests are held
            serving = request.current()
            if serving is not None and serving.supervised:
                house.start()
        while True:
            try:
                patience = self._patience()
                if house.inventory.has_room():  # the time is for one that is in use: to open one takes its own
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
        """Close what is idle; what is in use is closed when it comes back."""
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
        """A new pool with the same arguments."""
        self.logger.info("Pool recreating")
        return self.__class__(
            self._creator, pool_size=self._size, max_overflow=self._max_overflow, timeout=self._timeout,
            use_lifo=self._use_lifo, pre_ping=self._asks_always, recycle=self._recycle, echo=self.echo,
            logging_name=self._orig_logging_name, reset_on_return=self._reset_on_return, _dispatch=self.dispatch,
            dialect=self._dialect)

    def status(self) -> str:
        """For people."""
        return (f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} Current Overflow: "
                f"{self.overflow()} Current Checked out connections: {self.checkedout()}")

    def size(self) -> int:
        """Idle connections that are kept."""
        return self._size

    def timeout(self) -> float | None:
        """Seconds to wait for a connection."""
        return self._timeout

    def checkedin(self) -> int:
        """Idle connections."""
        return int(self.stats()["pool_available"])

    def checkedout(self) -> int:
        """Connections in use."""
        return int(self.stats()["pool_in_use"])

    def overflow(self) -> int:
        """Open connections less those that are kept."""
        return int(self.stats()["pool_size"]) - self._size if self._size else 0

    # -- ours ------------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int | float | str]:
        """Figures of the pool, as ``stability.pool.stats()``."""
        house = self._house or self._open()
        if house.lost:
            house.reclaim_lost()
        return house.stats()

    def ask(self, timeout: float = 10.0) -> None:
        """One round trip on a connection of its own, within `timeout` seconds to open it; raises if there is none.

        A pool whose connections are all in use is not a database that is gone.
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
        """The pool of ours, made at the first use, when settings and dialect are known. Opens no connection."""
        def record() -> Any:
            opened = self._take_probed() or self._create_connection()
            opened.house = made
            return opened

        driver = EngineDriver(record, self._bare, lambda: self.__dict__.get("_dialect"))
        made = _House(self._settings(), driver, lifo=self._use_lifo)
        if self._house is None:
            self._house = made  # two threads at once: the loser's opened nothing
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
        """Seconds to wait for a connection; None, for ever, is a year."""
        return _A_YEAR if self._timeout is None else max(self._timeout, 0.001)

    def _bare(self) -> Any:
        """A connection without events, for a question."""
        return self._invoke_creator(_ConnectionRecord(self, connect=False))

    def _translated(self, error: exceptions.DatabaseUnavailable) -> BaseException:
        """The error as SQLAlchemy's users know it: the driver's own where that is what failed."""
        cause = error.__cause__
        if isinstance(error, exceptions.CircuitOpen) or means_unavailable(cause):
            runtime.my_row().add(scoreboard.W_ENGINE_ERRORS)  # the check need not wait for its time
        if type(error) is exceptions.DatabaseUnavailable and cause is not None:
            return cause.with_traceback(None)
        if isinstance(error, exceptions.PoolTimeout):
            return PoolTimeout(str(error))
        kind = (CircuitOpen if isinstance(error, exceptions.CircuitOpen) else
                TooManyRequests if isinstance(error, exceptions.TooManyRequests) else Unavailable)
        return kind(error)

    def _in_memory(self) -> bool:
        """Whether it is SQLite's database in memory: that is its connection, and all have to share it."""
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
        except Exception:  # whatever a creator of the app's own gives
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
        """A connection that `_in_memory` opened in this process; None if there is none."""
        while self._probed:
            try:
                pid, record = self._probed.pop()
            except IndexError:  # another thread was first
                break
            if pid == os.getpid():
                return record
        return None


def _watch(dialect: Any) -> None:
    """Let an engine's calls into the driver be seen, so that they can be cut off. Idempotent."""
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
    """The one connection of a database in memory is every thread's."""
    parameters["check_same_thread"] = False


def record_of(connection: Any) -> _Record | None:
    """Ours behind a connection of SQLAlchemy's pool."""
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
        refused = unit is not None and unit.doomed is not None  # nothing is sent then
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
    """Within a limit: a link that is cut for it is rolled back by the server."""

    @functools.wraps(original)
    def rollback(connection: Any) -> None:
        record = record_of(connection)
        if record is None or record.entry is None:
            original(connection)
            return
        house, entry = record.house, record.entry
        if record.forgotten:
            record.lost = True  # a finalizer does not wait: it is rolled back before it is used again
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
