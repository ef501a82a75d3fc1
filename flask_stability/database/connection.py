"""The connection and the cursors that an app holds.

Check-in cuts the proxy off from its connection. A later call on the proxy, or on one of its cursors, raises an error
and never touches the next borrower's work.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from .bulkhead import Bulkhead
from .drivers import Driver
from .guarded_calls import GuardedCalls
from .inventory import IN_USE
from .record import ConnectionRecord, Stream
from .statements import CLEAN, SESSION, TRANSACTION, known

_HARMLESS = frozenset(("affected_rows", "character_set_name", "escape", "escape_string", "fileno", "get_autocommit",
                       "get_host_info", "get_server_info", "info", "insert_id", "literal", "string_literal",
                       "thread_id", "total_changes", "warning_count"))


class Owner(Protocol):
    """The pool that a connection returns to.

    :ivar lost: takes connections that borrowers dropped without check-in.
    """

    driver: Driver
    calls: GuardedCalls
    bulkhead: Bulkhead
    lost: deque[ConnectionRecord]

    def take_back(self, record: ConnectionRecord) -> None:
        """Take a connection back; never raises."""


class PooledConnection:
    """A connection of the pool: a DB-API connection, and a context manager that checks it in.

    In autocommit mode, each statement is final; for more than one statement use ``stability.transaction``.
    """

    __slots__ = ("__weakref__", "_cursors", "_held", "_owner")

    def __init__(self, owner: Owner, record: ConnectionRecord) -> None:
        self._owner = owner
        self._held = [record]  # popped in one step: if two threads close it, only one gets the record
        self._cursors: list[weakref.ref[PooledCursor]] = []

    def __repr__(self) -> str:
        return f"<PooledConnection to {self._owner.driver.describe()}{' (given back)' if self.closed else ''}>"

    # -- giving back ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Check the connection in. Idempotent and thread-safe."""
        try:
            record = self._held.pop()
        except IndexError:
            return
        for reference in self._cursors:
            cursor = reference()
            if cursor is not None and cursor._raw is not None:
                cursor._abandon()
        if record.request is not None:
            record.request.drop(self)
        self._owner.take_back(record)

    release = close

    def __enter__(self) -> PooledConnection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._held:
            self._owner.lost.append(self._held.pop())  # do no more here: a finalizer may run anywhere, under any lock

    # -- the DB-API ----------------------------------------------------------------------------------------------

    @property
    def record(self) -> ConnectionRecord:
        """Return the pool's record of the connection; raise InterfaceError after check-in."""
        try:
            return self._held[0]
        except IndexError:
            raise self._owner.driver.dbapi.InterfaceError("this connection was given back to the pool") from None

    @property
    def closed(self) -> bool:
        """Return whether it was checked in."""
        return not self._held

    @property
    def usable(self) -> bool:
        """Return whether it was not checked in and does not belong to a parent process."""
        return any(record.state is IN_USE for record in self._held)

    @property
    def dbapi_connection(self) -> Any:
        """Return the driver's own connection, for calls outside the DB-API."""
        record = self.record
        record.touched()
        return record.raw

    @property
    def in_transaction(self) -> bool:
        """Return whether a transaction of ``stability.transaction`` is open on it."""
        return self.record.in_transaction

    def cursor(self, *args: Any, **kwargs: Any) -> PooledCursor:
        """Return a new cursor; the arguments are the driver's."""
        record = self._held[0] if self._held else self.record  # this raises
        raw = record.raw.cursor(*args, **kwargs)
        kind = StreamingCursor if isinstance(raw, self._owner.driver.unbuffered) else PooledCursor
        cursor = kind(self, record, raw)
        cursors = self._cursors
        if len(cursors) & 63 == 63:
            cursors[:] = [reference for reference in cursors if reference() is not None]
        cursors.append(weakref.ref(cursor))
        return cursor

    def execute(self, sql: str, parameters: Any = None) -> PooledCursor:
        """Return a new cursor that has executed a statement."""
        cursor = self.cursor()
        cursor.execute(sql, parameters)
        return cursor

    def _own(self) -> ConnectionRecord:
        """Return its record if the app itself controls the transaction on it; else raise ProgrammingError."""
        record = self.record
        if record.unit is not None:
            raise self._owner.driver.dbapi.ProgrammingError(
                "stability.transaction commits at the end of its block and rolls back after an exception: "
                "leave begin, commit, rollback and autocommit to it")
        return record

    def begin(self) -> None:
        """Begin a transaction."""
        record = self._own()
        record.effect = max(record.effect, TRANSACTION)
        self._owner.calls.run(record, self._owner.driver.begin, record.raw)

    def commit(self) -> None:
        """Commit the driver's open transaction."""
        record = self._own()
        self._owner.calls.run(record, record.raw.commit)
        if record.effect == TRANSACTION:
            record.effect = CLEAN

    def rollback(self) -> None:
        """Roll back the driver's open transaction."""
        record = self._own()
        self._owner.calls.run(record, record.raw.rollback)
        if record.effect == TRANSACTION:
            record.effect = CLEAN

    def autocommit(self, on: bool) -> None:
        """Switch the autocommit mode until check-in."""
        record = self._own()
        record.effect = SESSION
        self._owner.calls.run(record, self._owner.driver.set_autocommit, record.raw, on)

    def ping(self) -> None:
        """Make one round trip; raise if the link is lost."""
        record = self.record
        self._owner.calls.run(record, self._owner.driver.ping, record.raw)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        record = self.record
        value = getattr(record.raw, name)
        if not callable(value) or isinstance(value, type):
            return value
        if name not in _HARMLESS:
            record.touched()
        return functools.partial(self._owner.calls.run, record, value)


class PooledCursor:
    """A cursor that ends at its connection's check-in. Its `execute` fetches all rows."""

    __slots__ = ("__weakref__", "_calls", "_connection", "_owner", "_raw", "_record")

    def __init__(self, connection: PooledConnection, record: ConnectionRecord, raw: Any) -> None:
        self._connection, self._record, self._raw = connection, record, raw
        self._owner = connection._owner
        self._calls = self._owner.calls

    @property
    def connection(self) -> PooledConnection:
        """Return the cursor's connection (PEP 249)."""
        return self._connection

    def _abandon(self) -> None:
        """Cut the cursor off at its connection's check-in."""
        raw, self._raw = self._raw, None
        try:
            if self._record.effect == SESSION:
                self._calls.run_bounded(self._record, raw.close)
            else:
                raw.close()
        except Exception:
            self._record.broken = True

    def _check(self) -> Any:
        raw = self._raw
        if raw is None or not self._connection._held:
            raise self._over()
        return raw

    def _over(self) -> Exception:
        error: Exception = self._owner.driver.dbapi.ProgrammingError(
            "this cursor is closed" if self._connection._held
            else "the connection of this cursor was given back to the pool")
        return error

    def execute(self, sql: str, parameters: Any = None) -> Any:
        """Execute a statement once; never retry it."""
        raw, record = self._raw, self._record
        if raw is None or not self._connection._held:
            raise self._over()
        if record.request is not None and self._calls.inside:
            self._owner.bulkhead.admit(time.monotonic())
        try:
            effect = known[sql]
        except TypeError:  # not hashable, so not a string
            effect = SESSION
        if effect > record.effect or record.unit is not None:
            record.touched(sql)
        result = self._calls.run(record, raw.execute, sql, parameters)
        return self if result is raw else result  # sqlite3 returns the cursor, mysqlclient a number

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Any:
        """Execute a statement for each set of parameters; never retry it."""
        raw = self._begin(sql)
        result = self._calls.run(self._record, raw.executemany, sql, parameters)
        return self if result is raw else result

    def callproc(self, name: str, parameters: Iterable[Any] = ()) -> Any:
        """Call a stored procedure."""
        return self._calls.run(self._record, self._begin(None).callproc, name, parameters)

    def _begin(self, sql: str | None) -> Any:
        raw, record = self._check(), self._record
        if record.request is not None and self._calls.inside:
            self._owner.bulkhead.admit(time.monotonic())
        record.touched(sql)
        return raw

    def close(self) -> None:
        """Close the cursor. Idempotent."""
        raw, self._raw = self._raw, None
        record = self._record
        if raw is None or not self._connection._held or record.cut or record.broken:
            return
        if record.effect == SESSION and not record.doomed:  # a procedure may have left more results
            self._calls.run(record, raw.close)
        else:
            raw.close()

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        raw = self._raw
        if raw is None:
            raise self._over()
        return raw.fetchone()

    def fetchmany(self, size: int | None = None) -> Any:
        """Return the next rows."""
        raw = self._check()
        return raw.fetchmany() if size is None else raw.fetchmany(size)

    def fetchall(self) -> Any:
        """Return all remaining rows."""
        raw = self._raw
        if raw is None:
            raise self._over()
        return raw.fetchall()

    def nextset(self) -> Any:
        """Move on to the next result; return None if there is none."""
        return self._calls.run(self._record, self._check().nextset)

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def __enter__(self) -> PooledCursor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def arraysize(self) -> int:
        """Return how many rows `fetchmany` fetches by default."""
        return int(self._check().arraysize)

    @arraysize.setter
    def arraysize(self, size: int) -> None:
        self._check().arraysize = size

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._check(), name)


class StreamingCursor(PooledCursor):
    """A cursor that leaves its rows with the database until the app fetches them: each fetch calls the driver."""

    __slots__ = ("_stream",)

    def __init__(self, connection: PooledConnection, record: ConnectionRecord, raw: Any) -> None:
        super().__init__(connection, record, raw)
        self._stream = Stream(raw, self)
        if self._owner.driver.reads_on:
            record.streams = [*(stream for stream in record.streams or ()
                                if stream.unread or stream.owner() is not None), self._stream]

    def execute(self, sql: str, parameters: Any = None) -> Any:
        """Execute a statement once; never retry it."""
        result = super().execute(sql, parameters)
        self._stream.unread = True
        return result

    def callproc(self, name: str, parameters: Iterable[Any] = ()) -> Any:
        """Call a stored procedure."""
        result = super().callproc(name, parameters)
        self._stream.unread = True
        return result

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        row = self._calls.run(self._record, self._check().fetchone)
        self._stream.unread = row is not None
        return row

    def fetchmany(self, size: int | None = None) -> Any:
        """Return the next rows."""
        rows = self._calls.run(self._record, self._check().fetchmany, *(() if size is None else (size,)))
        self._stream.unread = bool(rows)
        return rows

    def fetchall(self) -> Any:
        """Return all remaining rows."""
        rows = self._calls.run(self._record, self._check().fetchall)
        self._stream.unread = False
        return rows

    def nextset(self) -> Any:
        """Move on to the next result; return None if there is none."""
        found = super().nextset()
        self._stream.unread = bool(found)
        return found

    def close(self) -> None:
        """Close the cursor. Idempotent."""
        raw, self._raw = self._raw, None
        record = self._record
        if raw is None or not self._connection._held or record.cut or record.broken or record.doomed:
            return  # it ends with its connection
        self._calls.run(record, raw.close)
        self._stream.unread = False

    def _abandon(self) -> None:
        raw, self._raw = self._raw, None
        if not self._owner.driver.reads_on:
            with suppress(Exception):
                raw.close()
