"""The connection and the cursors that an app holds.

A proxy is cut off from its connection when that is given back: whatever is called on it, or on one of its cursors,
afterwards raises and never touches the next borrower's work.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .calls import PATIENCE, call, within
from .entry import Entry, Stream
from .statements import CLEAN, SESSION, TRANSACTION, effect_of

if TYPE_CHECKING:
    from .pool import Pool

_HARMLESS = frozenset(("affected_rows", "character_set_name", "escape", "escape_string", "fileno", "get_autocommit",
                       "get_host_info", "get_server_info", "info", "insert_id", "literal", "string_literal",
                       "thread_id", "total_changes", "warning_count"))


class PooledConnection:
    """A connection of the pool; a DB-API connection and a context manager that gives it back.

    In autocommit, each statement is final; for more than one statement use ``stability.transaction``.
    """

    __slots__ = ("__weakref__", "_cursors", "_held", "_pool")

    def __init__(self, pool: Pool, entry: Entry) -> None:
        self._pool = pool
        self._held = [entry]  # taken out in one step: of two threads that close it, one gets it
        self._cursors: list[weakref.ref[PooledCursor]] = []

    def __repr__(self) -> str:
        return f"<PooledConnection to {self._pool.driver.describe()}{' (given back)' if self.closed else ''}>"

    # -- giving back ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the connection back; more than once, or by several threads, without harm."""
        try:
            entry = self._held.pop()
        except IndexError:
            return
        for reference in self._cursors:
            cursor = reference()
            if cursor is not None and cursor._raw is not None:
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
        if self._held:
            self._pool.lost.append(self._held.pop())  # no more here: a finalizer may run anywhere, in any lock

    # -- the DB-API ----------------------------------------------------------------------------------------------

    @property
    def _live(self) -> Entry:
        try:
            return self._held[0]
        except IndexError:
            raise self._pool.driver.dbapi.InterfaceError("this connection was given back to the pool") from None

    @property
    def closed(self) -> bool:
        """It was given back."""
        return not self._held

    @property
    def dbapi_connection(self) -> Any:
        """The driver's own connection, for what the DB-API does not cover."""
        entry = self._live
        entry.touched()
        return entry.raw

    @property
    def in_transaction(self) -> bool:
        """A transaction of ``stability.transaction`` is open on it."""
        return self._live.in_transaction

    def cursor(self, *args: Any, **kwargs: Any) -> PooledCursor:
        """A new cursor; arguments are the driver's."""
        entry = self._held[0] if self._held else self._live  # which raises
        raw = entry.raw.cursor(*args, **kwargs)
        kind = StreamingCursor if isinstance(raw, self._pool.driver.unbuffered) else PooledCursor
        cursor = kind(self, entry, raw)
        cursors = self._cursors
        if len(cursors) & 63 == 63:
            cursors[:] = [reference for reference in cursors if reference() is not None]
        cursors.append(weakref.ref(cursor))
        return cursor

    def execute(self, sql: str, parameters: Any = None) -> PooledCursor:
        """A new cursor that has executed a statement."""
        cursor = self.cursor()
        cursor.execute(sql, parameters)
        return cursor

    def _own(self) -> Entry:
        """Its entry, if the transaction on it is the app's own."""
        entry = self._live
        if entry.unit is not None:
            raise self._pool.driver.dbapi.ProgrammingError(
                "stability.transaction commits at the end of its block and rolls back after an exception: "
                "leave begin, commit, rollback and autocommit to it")
        return entry

    def begin(self) -> None:
        """Begin a transaction."""
        entry = self._own()
        entry.effect = max(entry.effect, TRANSACTION)
        call(self._pool, entry, self._pool.driver.begin, entry.raw)

    def commit(self) -> None:
        """Commit what the driver has open."""
        entry = self._own()
        call(self._pool, entry, entry.raw.commit)
        if entry.effect == TRANSACTION:
            entry.effect = CLEAN

    def rollback(self) -> None:
        """Roll back what the driver has open."""
        entry = self._own()
        call(self._pool, entry, entry.raw.rollback)
        if entry.effect == TRANSACTION:
            entry.effect = CLEAN

    def autocommit(self, on: bool) -> None:
        """Switch the autocommit mode until the connection is given back."""
        entry = self._own()
        entry.effect = SESSION
        call(self._pool, entry, self._pool.driver.set_autocommit, entry.raw, on)

    def ping(self) -> None:
        """One round trip; raises if the link is lost."""
        entry = self._live
        call(self._pool, entry, self._pool.driver.ping, entry.raw)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        entry = self._live
        value = getattr(entry.raw, name)
        if not callable(value) or isinstance(value, type):
            return value
        if name not in _HARMLESS:
            entry.touched()
        return functools.partial(call, self._pool, entry, value)


class PooledCursor:
    """A cursor that ends with its connection's turn; its rows were fetched when it was executed."""

    __slots__ = ("__weakref__", "_connection", "_entry", "_pool", "_raw")

    def __init__(self, connection: PooledConnection, entry: Entry, raw: Any) -> None:
        self._connection, self._entry, self._raw = connection, entry, raw
        self._pool = connection._pool

    @property
    def connection(self) -> PooledConnection:
        """The connection it belongs to (PEP 249)."""
        return self._connection

    def _abandon(self) -> None:
        """The connection goes back: nothing more may be done through this cursor."""
        raw, self._raw = self._raw, None
        try:
            if self._entry.effect == SESSION:
                within(self._pool, self._entry, time.monotonic() + PATIENCE, raw.close)
            else:
                raw.close()
        except Exception:
            self._entry.broken = True

    def _check(self) -> Any:
        raw = self._raw
        if raw is None or not self._connection._held:
            raise self._over()
        return raw

    def _over(self) -> Exception:
        error: Exception = self._pool.driver.dbapi.ProgrammingError(
            "this cursor is closed" if self._connection._held
            else "the connection of this cursor was given back to the pool")
        return error

    def execute(self, sql: str, parameters: Any = None) -> Any:
        """Execute a statement once; it is never run again."""
        raw, entry, pool = self._raw, self._entry, self._pool
        if raw is None or not self._connection._held:
            raise self._over()
        if pool.inside and entry.request is not None:
            pool.bulkhead.admit(time.monotonic())
        if entry.unit is not None or effect_of(sql) > entry.effect:
            entry.touched(sql)
        result = call(pool, entry, raw.execute, sql, parameters)
        return self if result is raw else result  # sqlite3 returns the cursor, mysqlclient a number

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Any:
        """Execute a statement for each set of parameters; never again."""
        raw = self._begin(sql)
        result = call(self._pool, self._entry, raw.executemany, sql, parameters)
        return self if result is raw else result

    def callproc(self, name: str, parameters: Iterable[Any] = ()) -> Any:
        """Call a stored procedure."""
        return call(self._pool, self._entry, self._begin(None).callproc, name, parameters)

    def _begin(self, sql: str | None) -> Any:
        raw, entry = self._check(), self._entry
        if self._pool.inside and entry.request is not None:
            self._pool.bulkhead.admit(time.monotonic())
        entry.touched(sql)
        return raw

    def close(self) -> None:
        """Close the cursor; more than once without harm."""
        raw, self._raw = self._raw, None
        entry = self._entry
        if raw is None or not self._connection._held or entry.cut or entry.broken:
            return
        if entry.effect == SESSION and not entry.doomed:  # a procedure may have more results to give
            call(self._pool, entry, raw.close)
        else:
            raw.close()

    def fetchone(self) -> Any:
        """The next row, or None."""
        raw = self._raw
        if raw is None:
            raise self._over()
        return raw.fetchone()

    def fetchmany(self, size: int | None = None) -> Any:
        """The next rows."""
        raw = self._check()
        return raw.fetchmany() if size is None else raw.fetchmany(size)

    def fetchall(self) -> Any:
        """All rows that are left."""
        raw = self._raw
        if raw is None:
            raise self._over()
        return raw.fetchall()

    def nextset(self) -> Any:
        """On to the next result; None if there is none."""
        return call(self._pool, self._entry, self._check().nextset)

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

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


class StreamingCursor(PooledCursor):
    """A cursor whose rows are asked of the database when they are fetched: each fetch is a call into the driver."""

    __slots__ = ("_stream",)

    def __init__(self, connection: PooledConnection, entry: Entry, raw: Any) -> None:
        super().__init__(connection, entry, raw)
        self._stream = Stream(raw, self)
        if self._pool.driver.reads_on:
            entry.streams = [*(stream for stream in entry.streams or () if stream.unread or stream.owner() is not None),
                             self._stream]

    def execute(self, sql: str, parameters: Any = None) -> Any:
        """Execute a statement once; it is never run again."""
        result = super().execute(sql, parameters)
        self._stream.unread = True
        return result

    def callproc(self, name: str, parameters: Iterable[Any] = ()) -> Any:
        """Call a stored procedure."""
        result = super().callproc(name, parameters)
        self._stream.unread = True
        return result

    def fetchone(self) -> Any:
        """The next row, or None."""
        row = call(self._pool, self._entry, self._check().fetchone)
        self._stream.unread = row is not None
        return row

    def fetchmany(self, size: int | None = None) -> Any:
        """The next rows."""
        rows = call(self._pool, self._entry, self._check().fetchmany, *(() if size is None else (size,)))
        self._stream.unread = bool(rows)
        return rows

    def fetchall(self) -> Any:
        """All rows that are left."""
        rows = call(self._pool, self._entry, self._check().fetchall)
        self._stream.unread = False
        return rows

    def nextset(self) -> Any:
        """On to the next result; None if there is none."""
        found = super().nextset()
        self._stream.unread = bool(found)
        return found

    def close(self) -> None:
        """Close the cursor; more than once without harm."""
        raw, self._raw = self._raw, None
        entry = self._entry
        if raw is None or not self._connection._held or entry.cut or entry.broken or entry.doomed:
            return  # it is let go with its connection
        call(self._pool, entry, raw.close)
        self._stream.unread = False

    def _abandon(self) -> None:
        raw, self._raw = self._raw, None
        if not self._pool.driver.reads_on:
            with suppress(Exception):
                raw.close()
