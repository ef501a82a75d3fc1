"""The connection and the cursor that an app holds, and the pool's record of what is behind them.

A proxy is cut off from its connection when that is given back: whatever is called on it, or on one of its cursors,
afterwards raises and never touches the next borrower's work.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..exceptions import DeadlineExceeded
from ..request import RequestRecord
from .statements import CLEAN, SESSION, TRANSACTION, effect_of

if TYPE_CHECKING:
    from .pool import Pool

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Entry:
    """One connection as the pool knows it.

    :ivar steady: DBUtils' connection; the driver's is ``raw``.
    :ivar since: when its borrower took it, `time.monotonic` seconds.
    :ivar inside: since when a thread is in a call on it; 0.0 = none is.
    :ivar limit: `time.monotonic` seconds at which the call is cut off; 0.0 = the request's deadline alone decides.
    :ivar cut: why it was cut off, or "".
    """

    __slots__ = ("autocommit", "broken", "created", "cut", "effect", "expires", "generation", "in_transaction",
                 "inside", "last_used", "limit", "link", "raw", "reported", "request", "since", "stack", "steady",
                 "thread_id", "thread_name", "unit", "__weakref__")

    def __init__(self, steady: Any, raw: Any, link: socket.socket | None, expires: float, generation: int) -> None:
        self.steady, self.raw, self.link = steady, raw, link
        self.created = self.last_used = time.monotonic()
        self.expires, self.generation = expires, generation
        self.inside = self.limit = self.since = 0.0
        self.broken = False
        self.cut = ""
        self.effect = CLEAN
        self.in_transaction = False
        self.reported = False
        self.request: RequestRecord | None = None
        self.unit: Any = None
        self.stack: tuple[tuple[str, int, str], ...] = ()
        self.thread_id, self.thread_name = 0, ""

    def taken(self, request: RequestRecord | None) -> None:
        """Remember the borrower."""
        thread = threading.current_thread()
        self.thread_id, self.thread_name = thread.ident or 0, thread.name
        self.request, self.since, self.reported = request, time.monotonic(), False
        self.stack = _caller(sys._getframe(2))

    def deadline(self) -> float:
        """When the call that is under way has to end; 0.0 = never."""
        request = self.request
        own = request.deadline - 1.0 if request is not None and request.deadline else 0.0
        return min(own, self.limit) if own and self.limit else own or self.limit


def _caller(frame: FrameType | None) -> tuple[tuple[str, int, str], ...]:
    """File, line and function of the eight innermost frames outside of this package."""
    found: list[tuple[str, int, str]] = []
    while frame is not None and len(found) < 8:
        code = frame.f_code
        if not code.co_filename.startswith(_HERE):
            found.append((code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return tuple(found)


class PooledConnection:
    """A connection of the pool; a DB-API connection and a context manager that gives it back.

    In autocommit, each statement is final; for more than one statement use ``stability.transaction``.
    """

    def __init__(self, pool: Pool, entry: Entry) -> None:
        self._pool = pool
        self._entry: Entry | None = entry
        self._cursors: weakref.WeakSet[PooledCursor] = weakref.WeakSet()

    # -- giving back ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the connection back; more than once without harm."""
        with self._pool.handover:
            entry, self._entry = self._entry, None
        if entry is None:
            return
        for cursor in list(self._cursors):
            cursor._abandon()
        if entry.request is not None:
            entry.request.drop(self)
        self._pool.cache(entry)

    release = close

    def __enter__(self) -> PooledConnection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            entry, self._entry = self._entry, None
            if entry is not None:
                self._pool.lost(entry)  # the keeper does the I/O: a finalizer may run anywhere
        except Exception:
            pass

    # -- the DB-API ----------------------------------------------------------------------------------------------

    @property
    def _live(self) -> Entry:
        entry = self._entry
        if entry is None:
            raise self._pool.driver.dbapi.InterfaceError("this connection was given back to the pool")
        return entry

    @property
    def closed(self) -> bool:
        """It was given back."""
        return self._entry is None

    @property
    def dbapi_connection(self) -> Any:
        """The driver's own connection, for what the DB-API does not cover."""
        entry = self._live
        entry.effect = SESSION
        return entry.raw

    @property
    def in_transaction(self) -> bool:
        """A transaction of ``stability.transaction`` is open on it."""
        return self._live.in_transaction

    def cursor(self, *args: Any, **kwargs: Any) -> PooledCursor:
        """A new cursor; arguments are the driver's."""
        entry = self._live
        cursor = PooledCursor(self, entry, entry.raw.cursor(*args, **kwargs))
        self._cursors.add(cursor)
        return cursor

    def execute(self, sql: str, parameters: Any = None) -> PooledCursor:
        """A new cursor that has executed a statement."""
        cursor = self.cursor()
        cursor.execute(sql, parameters)
        return cursor

    def begin(self) -> None:
        """Begin a transaction."""
        entry = self._live
        entry.effect = max(entry.effect, TRANSACTION)
        self._pool.call(entry, _run, entry.raw, self._pool.driver.begin_sql)

    def commit(self) -> None:
        """Commit what the driver has open."""
        entry = self._live
        self._pool.call(entry, entry.raw.commit)
        if entry.effect == TRANSACTION:
            entry.effect = CLEAN

    def rollback(self) -> None:
        """Roll back what the driver has open."""
        entry = self._live
        self._pool.call(entry, entry.raw.rollback)
        if entry.effect == TRANSACTION:
            entry.effect = CLEAN

    def autocommit(self, on: bool) -> None:
        """Switch the autocommit mode until the connection is given back."""
        entry = self._live
        entry.effect = max(entry.effect, TRANSACTION)
        if self._pool.driver.kind == "mysql":
            self._pool.call(entry, entry.raw.autocommit, on)
        else:
            entry.raw.isolation_level = None if on else "IMMEDIATE"

    def ping(self) -> None:
        """One round trip; raises if the link is lost."""
        entry = self._live
        self._pool.call(entry, self._pool.driver.ping, entry.raw)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        entry = self._live
        value = getattr(entry.raw, name)
        if callable(value) and not isinstance(value, type):
            entry.effect = SESSION
        return value


def _run(raw: Any, sql: str) -> None:
    if hasattr(raw, "query"):
        raw.query(sql)
    else:
        raw.execute(sql)


class PooledCursor:
    """A cursor that ends with its connection's turn."""

    def __init__(self, connection: PooledConnection, entry: Entry, raw: Any) -> None:
        self._connection: PooledConnection | None = connection
        self._entry = entry
        self._raw = raw

    @property
    def connection(self) -> PooledConnection | None:
        """The connection it belongs to (PEP 249)."""
        return self._connection

    def _abandon(self) -> None:
        """The connection goes back: nothing more may be done through this cursor."""
        connection, self._connection = self._connection, None
        raw, self._raw = self._raw, None
        if connection is None or raw is None:
            return
        if type(raw).__name__.startswith("SS"):
            self._entry.broken = True  # closing an unbuffered cursor would fetch all that is left
            return
        try:
            raw.close()
        except Exception:
            self._entry.broken = True

    def _check(self) -> Any:
        connection = self._connection
        if connection is None:
            raise self._entry_error("this cursor is closed")
        if connection._entry is not self._entry:
            raise self._entry_error("the connection of this cursor was given back to the pool")
        return self._raw

    def _entry_error(self, text: str) -> Exception:
        kind = sys.modules[type(self._entry.raw).__module__.partition(".")[0]]
        module: Any = kind if hasattr(kind, "ProgrammingError") else sys.modules["sqlite3"]
        error: Exception = module.ProgrammingError(text)
        return error

    def execute(self, sql: str, parameters: Any = None) -> Any:
        """Execute a statement once; it is never run again."""
        raw = self._check()
        entry = self._entry
        effect = effect_of(sql)
        if effect > entry.effect:
            entry.effect = effect
        pool = self._connection._pool  # type: ignore[union-attr]
        result = pool.call(entry, raw.execute, sql, parameters) if parameters is not None else pool.call(
            entry, raw.execute, sql)
        return self if result is raw else result

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Any:
        """Execute a statement for each set of parameters; never again."""
        raw = self._check()
        entry = self._entry
        entry.effect = max(entry.effect, effect_of(sql))
        result = self._connection._pool.call(entry, raw.executemany, sql, parameters)  # type: ignore[union-attr]
        return self if result is raw else result

    def callproc(self, name: str, parameters: Iterable[Any] = ()) -> Any:
        """Call a stored procedure."""
        raw = self._check()
        self._entry.effect = SESSION
        return self._connection._pool.call(  # type: ignore[union-attr]
            self._entry, raw.callproc, name, parameters)

    def close(self) -> None:
        """Close the cursor."""
        if self._connection is not None and self._connection._entry is self._entry:
            raw = self._raw
            self._connection._cursors.discard(self)
            self._connection = self._raw = None
            if raw is not None:
                raw.close()
        self._connection = None

    def fetchone(self) -> Any:
        """The next row, or None."""
        return self._check().fetchone()

    def fetchmany(self, size: int | None = None) -> Any:
        """The next rows."""
        raw = self._check()
        return raw.fetchmany() if size is None else raw.fetchmany(size)

    def fetchall(self) -> Any:
        """All rows that are left."""
        return self._check().fetchall()

    def __iter__(self) -> Iterator[Any]:
        raw = self._check()
        while True:
            row = raw.fetchone()
            if row is None:
                return
            yield row
            raw = self._check()

    def __enter__(self) -> PooledCursor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def arraysize(self) -> int:
        """Rows that `fetchmany` fetches by default."""
        return int(self._check().arraysize)

    @arraysize.setter
    def arraysize(self, size: int) -> None:
        self._check().arraysize = size

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._check(), name)


def deadline_error(entry: Entry, error: BaseException) -> DeadlineExceeded:
    """What a caller gets whose call was cut off."""
    failure = DeadlineExceeded(f"the call to the database was cut off: {entry.cut}")
    failure.__cause__ = error
    return failure
