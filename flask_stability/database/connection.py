"""The connection and the cursor that an app holds, and the pool's record of what is behind them.

A proxy is cut off from its connection when that is given back: whatever is called on it, or on one of its cursors,
afterwards raises and never touches the next borrower's work.
"""

from __future__ import annotations

import functools
import os
import random
import select
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from ..request import RequestRecord
from .statements import CLEAN, SESSION, TRANSACTION, effect_of, stays_within

if TYPE_CHECKING:
    from .pool import Pool

IDLE, IN_USE, RESERVED, REMOVED = "idle", "in use", "reserved", "removed"

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_HARMLESS = frozenset(("affected_rows", "character_set_name", "escape", "escape_string", "fileno", "get_autocommit",
                       "get_host_info", "get_server_info", "info", "insert_id", "literal", "string_literal",
                       "thread_id", "total_changes", "warning_count"))


class Entry:
    """One connection as the pool knows it. Times are `time.monotonic` seconds, 0.0 = none.

    :ivar steady: DBUtils' connection; the driver's is ``raw``, a duplicate of its socket ``link``.
    :ivar state: IDLE, IN_USE (an app has it), RESERVED (the pool works on it) or REMOVED.
    :ivar since: when its borrower took it.
    :ivar inside: since when a thread is in a call on it.
    :ivar limit: when that call is cut off, beside the request's own deadline.
    :ivar cut: why it was cut off, or "".
    :ivar effect: what has to be cleared before the next borrower.
    :ivar unit: the transaction it is in, told of what dooms it.
    """

    __slots__ = ("broken", "checked", "cut", "effect", "expires", "fd", "generation", "in_transaction", "inside",
                 "jitter", "last_used", "limit", "link", "poll", "raw", "reported", "request", "since", "stack",
                 "state", "steady", "thread_id", "unit")

    def __init__(self, steady: Any, link: socket.socket | None, lifetime: float, generation: int) -> None:
        self.steady, self.raw, self.link = steady, steady.dbapi_connection, link
        self.fd, self.poll = -1, None
        if link is not None:
            self.fd, self.poll = self.raw.fileno(), select.poll()
            self.poll.register(link, select.POLLIN)
        self.last_used = self.checked = time.monotonic()
        self.jitter = random.random()
        self.expires = self.last_used + lifetime * (1.0 - 0.025 * self.jitter)
        self.generation = generation
        self.state = RESERVED
        self.inside = self.limit = self.since = 0.0
        self.broken = self.in_transaction = self.reported = False
        self.cut = ""
        self.effect = CLEAN
        self.request: RequestRecord | None = None
        self.stack: list[tuple[CodeType, int]] = []
        self.thread_id = 0
        self.unit: Any = None

    def taken(self, request: RequestRecord | None) -> None:
        """Remember the borrower."""
        self.thread_id = threading.get_ident()
        self.request, self.since, self.reported = request, time.monotonic(), False
        self.stack = _caller(sys._getframe(2))

    def touched(self, sql: object = None) -> None:
        """A statement, or something else that is not understood, is about to be done."""
        effect = effect_of(sql)
        if effect > self.effect:
            self.effect = effect
        if self.unit is not None and not stays_within(sql):
            self.unit.torn = True

    def thread_name(self) -> str:
        """Of the borrower."""
        return next((thread.name for thread in threading.enumerate() if thread.ident == self.thread_id), "(ended)")

    def taken_at(self) -> list[str]:
        """File, line and function of the borrower, the innermost frame first."""
        return [f"{code.co_filename}:{_line(code, offset)} {code.co_name}" for code, offset in self.stack]

    def given_back(self, now: float) -> None:
        """Forget the borrower."""
        self.request, self.stack, self.effect, self.in_transaction, self.unit = None, [], CLEAN, False, None
        self.last_used = self.checked = now

    def hung_up(self) -> bool:
        """The other end has; no round trip. An idle connection has nothing to read but the server's farewell."""
        return self.poll is not None and bool(self.poll.poll(0))

    def deadline(self) -> float:
        """When a call that is under way has to end."""
        request, own = self.request, 0.0
        if request is not None and request.timeout and not request.response_started:
            own = request.deadline - 1.0
        return min(own, self.limit) if own and self.limit else own or self.limit


def _caller(frame: FrameType | None) -> list[tuple[CodeType, int]]:
    """The eight innermost frames outside of this package; their lines are looked up if anybody asks."""
    found: list[tuple[CodeType, int]] = []
    while frame is not None and len(found) < 8:
        code = frame.f_code
        if not code.co_filename.startswith(_HERE):
            found.append((code, frame.f_lasti))
        frame = frame.f_back
    return found


def _line(code: CodeType, offset: int) -> int:
    return next((line for start, end, line in code.co_lines() if start <= offset < end and line), code.co_firstlineno)


class PooledConnection:
    """A connection of the pool; a DB-API connection and a context manager that gives it back.

    In autocommit, each statement is final; for more than one statement use ``stability.transaction``.
    """

    def __init__(self, pool: Pool, entry: Entry) -> None:
        self._pool = pool
        self._entry: Entry | None = entry
        self._cursors: list[weakref.ref[PooledCursor]] = []

    def __repr__(self) -> str:
        return f"<PooledConnection to {self._pool.driver.describe()}{' (given back)' if self.closed else ''}>"

    # -- giving back ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the connection back; more than once, or by several threads, without harm."""
        entry = self.__dict__.pop("_entry", None)  # one step: of two threads, one gets it
        if entry is None:
            return
        for reference in self._cursors:
            cursor = reference()
            if cursor is not None:
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
        entry = self.__dict__.pop("_entry", None)
        if entry is not None:
            self._pool.lost.append(entry)  # the keeper does the rest: a finalizer may run anywhere, in any lock

    # -- the DB-API ----------------------------------------------------------------------------------------------

    @property
    def _live(self) -> Entry:
        entry: Entry | None = self.__dict__.get("_entry")
        if entry is None:
            raise self._pool.driver.dbapi.InterfaceError("this connection was given back to the pool")
        return entry

    @property
    def closed(self) -> bool:
        """It was given back."""
        return "_entry" not in self.__dict__

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
        entry = self._live
        cursor = PooledCursor(self, entry, entry.raw.cursor(*args, **kwargs))
        cursors = self._cursors
        if len(cursors) > 64:
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
        self._pool.call(entry, self._pool.driver.begin, entry.raw)

    def commit(self) -> None:
        """Commit what the driver has open."""
        entry = self._own()
        self._pool.call(entry, entry.raw.commit)
        if entry.effect == TRANSACTION:
            entry.effect = CLEAN

    def rollback(self) -> None:
        """Roll back what the driver has open."""
        entry = self._own()
        self._pool.call(entry, entry.raw.rollback)
        if entry.effect == TRANSACTION:
            entry.effect = CLEAN

    def autocommit(self, on: bool) -> None:
        """Switch the autocommit mode until the connection is given back."""
        entry = self._own()
        entry.effect = SESSION
        self._pool.call(entry, self._pool.driver.set_autocommit, entry.raw, on)

    def ping(self) -> None:
        """One round trip; raises if the link is lost."""
        entry = self._live
        self._pool.call(entry, self._pool.driver.ping, entry.raw)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        entry = self._live
        value = getattr(entry.raw, name)
        if not callable(value) or isinstance(value, type):
            return value
        if name not in _HARMLESS:
            entry.touched()
        return functools.partial(self._pool.call, entry, value)


class PooledCursor:
    """A cursor that ends with its connection's turn."""

    __slots__ = ("__weakref__", "_connection", "_entry", "_pool", "_raw", "_unbuffered")

    def __init__(self, connection: PooledConnection, entry: Entry, raw: Any) -> None:
        self._connection, self._entry, self._raw = connection, entry, raw
        self._pool = connection._pool
        self._unbuffered = isinstance(raw, self._pool.driver.unbuffered)

    @property
    def connection(self) -> PooledConnection:
        """The connection it belongs to (PEP 249)."""
        return self._connection

    def _abandon(self) -> None:
        """The connection goes back: nothing more may be done through this cursor."""
        raw, self._raw = self._raw, None
        if raw is None:
            return
        if self._unbuffered and self._pool.driver.kind == "mysql":
            self._entry.broken = True  # closing it would fetch all that is left
            return
        try:
            raw.close()
        except Exception:
            self._entry.broken = True

    def _check(self) -> Any:
        if self._connection.__dict__.get("_entry") is not self._entry:
            raise self._pool.driver.dbapi.ProgrammingError(
                "the connection of this cursor was given back to the pool")
        raw = self._raw
        if raw is None:
            raise self._pool.driver.dbapi.ProgrammingError("this cursor is closed")
        return raw

    def execute(self, sql: str, parameters: Any = None) -> Any:
        """Execute a statement once; it is never run again."""
        raw, entry = self._check(), self._entry
        self._pool.admit(entry)
        entry.touched(sql)
        result = self._pool.call(entry, raw.execute, sql, parameters)
        return self if result is raw else result  # sqlite3 returns the cursor, mysqlclient a number

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Any:
        """Execute a statement for each set of parameters; never again."""
        raw, entry = self._check(), self._entry
        self._pool.admit(entry)
        entry.touched(sql)
        result = self._pool.call(entry, raw.executemany, sql, parameters)
        return self if result is raw else result

    def callproc(self, name: str, parameters: Iterable[Any] = ()) -> Any:
        """Call a stored procedure."""
        raw, entry = self._check(), self._entry
        self._pool.admit(entry)
        entry.touched()
        return self._pool.call(entry, raw.callproc, name, parameters)

    def close(self) -> None:
        """Close the cursor; more than once without harm."""
        raw, self._raw = self._raw, None
        if raw is not None and self._connection.__dict__.get("_entry") is self._entry:
            self._fetch(raw.close)

    def _fetch(self, function: Any, *args: Any) -> Any:
        """Buffered rows are there already; others are asked of the database."""
        return self._pool.call(self._entry, function, *args) if self._unbuffered else function(*args)

    def fetchone(self) -> Any:
        """The next row, or None."""
        return self._fetch(self._check().fetchone)

    def fetchmany(self, size: int | None = None) -> Any:
        """The next rows."""
        raw = self._check()
        return self._fetch(raw.fetchmany, *(() if size is None else (size,)))

    def fetchall(self) -> Any:
        """All rows that are left."""
        return self._fetch(self._check().fetchall)

    def nextset(self) -> Any:
        """On to the next result; None if there is none."""
        return self._pool.call(self._entry, self._check().nextset)

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
