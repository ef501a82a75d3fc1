"""The driver interface for a database whose connections an SQLAlchemy engine opens: by its creator and its dialect."""

from __future__ import annotations

import socket
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..dberrors import ErrorClass, mysql_class, sqlite_class
from .identity import Identity, end_session, identity_of, questions
from .sockets import descriptor, hang_up, link_to

#: Maximum of questions under way at once; more would only wait for the same answer.
MOST_OVERDUE = 3
_MYSQL = frozenset(("mysql", "mariadb"))
_OVER = frozenset((ErrorClass.ROLLED_BACK, ErrorClass.LINK_LOST, ErrorClass.CONNECT))
#: Stands in for an unknown driver: that of a pool without an engine.
_ANY = types.SimpleNamespace(Error=Exception, OperationalError=RuntimeError, InterfaceError=RuntimeError,
                             ProgrammingError=RuntimeError)


class _Plain:
    """Wraps any driver's connection in the methods of mysqlclient that `identity` uses."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._rows: list[Any] = []

    def query(self, sql: str) -> None:
        """Execute a statement."""
        cursor = self._raw.cursor()
        try:
            cursor.execute(sql)
            self._rows = list(cursor.fetchall()) if cursor.description else []
        finally:
            cursor.close()

    def store_result(self) -> _Plain:
        """Return the result."""
        return self

    def fetch_row(self, most: int = 1) -> list[Any]:
        """Return rows of the result; 0 = all."""
        return self._rows[:most or None]

    def thread_id(self) -> int:
        """Return the number that the server sent in the handshake."""
        return int(self._raw.thread_id())


class EngineDriver:
    """Opens connections as an engine does, with its events, and asks its dialect what errors mean.

    :param record: returns an open connection of SQLAlchemy's pool (a `ConnectionPoolEntry`).
    :param create: opens only a connection of the driver, without events, for a short question.
    :param dialect: returns the engine's dialect at the time of use, since the engine creates the pool first.
    """

    unbuffered: tuple[type, ...] = ()
    reads_on = False
    threadsafety = 1

    def __init__(self, record: Callable[[], Any], create: Callable[[], Any], dialect: Callable[[], Any]) -> None:
        self._record, self._create, self._dialect = record, create, dialect
        self._overdue = 0
        #: The statement that asks this server for an identity, once it is known.
        self._questions: list[str] = []
        self._lock = threading.Lock()

    @property
    def kind(self) -> str:
        """Return "mysql", "sqlite", or the dialect's name; "" without an engine."""
        name = str(getattr(self._dialect(), "name", ""))
        return "mysql" if name in _MYSQL else name

    @property
    def dbapi(self) -> Any:
        """Return the driver's module."""
        return getattr(self._dialect(), "dbapi", None) or _ANY

    def connect(self, timeout: float | None = None, query_timeout: float | None = None) -> Any:
        """Open a connection with its events; with `timeout`, a bare one for a question.

        :param timeout: maximum time for the bare connection, in seconds; beyond it, raise OperationalError.
        """
        if timeout is not None:
            return self._ask(timeout)
        record = self._record()
        # needed to end a cut-off statement on the server
        if self.kind == "mysql" and descriptor(record.dbapi_connection) >= 0:
            with suppress(Exception):
                record.dbapi_connection.identity = self._identity(record.dbapi_connection)
        return record

    def _identity(self, raw: Any) -> Identity | None:
        """Return the identity of a connection's session on the server; None if unknown."""
        mariadb = bool(getattr(self._dialect(), "is_mariadb", False))
        try:
            for asked in self._questions or questions(mariadb):
                with suppress(self.dbapi.Error):
                    found = identity_of(_Plain(raw), asked)
                    self._questions = [asked]
                    return found
            return None
        finally:
            raw.rollback()

    def _ask(self, seconds: float) -> Any:
        """Open a bare connection within `seconds`. An engine's creator has no time limit that we can set."""
        with self._lock:
            if self._overdue >= MOST_OVERDUE:
                raise self.dbapi.OperationalError(2013, "no answer to earlier questions")
            self._overdue += 1
        done, late = threading.Event(), threading.Event()
        found: list[Any] = []

        def work() -> None:
            try:
                found.append(self._create())
            except BaseException as error:
                error.__traceback__ = None
                found.append(error)
            with self._lock:
                self._overdue -= 1
                done.set()
                unwanted = late.is_set()
            if unwanted and not isinstance(found[0], BaseException):
                with suppress(Exception):
                    found[0].close()

        try:
            threading.Thread(target=work, name="stability-question", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._overdue -= 1
            raise
        done.wait(seconds)
        with self._lock:
            if not found:
                late.set()
                raise self.dbapi.OperationalError(2013, f"no answer within {seconds:g} s")
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def backstop(self, seconds: float) -> float:
        return 0.0

    def limit(self, raw: Any, seconds: float) -> None:
        """Do nothing: the engine's statements have limits of its own."""

    def kill(self, identity: Identity) -> bool:
        """End a session on the server through a separate connection; return False if it was not ended."""
        raw = self._ask(1.0)
        try:
            own = self._identity(raw)
            return own is not None and end_session(_Plain(raw), own, identity)
        finally:
            raw.close()

    def begin(self, raw: Any) -> None:
        """Do nothing: the driver begins by itself."""

    def set_autocommit(self, raw: Any, on: bool) -> None:
        """Do nothing: the engine's isolation level decides."""

    def link(self, raw: Any) -> socket.socket | None:
        return link_to(raw)

    def ping(self, raw: Any) -> None:
        """Make one round trip, as the dialect pings; raise if there is no answer."""
        dialect = self._dialect()
        if dialect is None or not hasattr(dialect, "do_ping"):
            return  # this dialect cannot ping
        if not dialect._do_ping_w_event(raw):
            raise self.dbapi.OperationalError(2006, "the connection does not answer")
        if self.kind not in ("mysql", "sqlite"):
            raw.rollback()  # the question may have begun a transaction

    def interrupt(self, raw: Any, link: socket.socket | None) -> None:
        if link is not None:
            hang_up(link)
        elif self.kind == "sqlite":
            with suppress(Exception):
                raw.interrupt()

    def moved(self, raw: Any) -> bool:
        return False

    def rollback(self, raw: Any) -> None:
        raw.rollback()

    def reset(self, raw: Any) -> None:
        raw.rollback()

    def ended(self, raw: Any, error: BaseException) -> bool:
        # after a lock wait, MySQL may have rolled back the whole transaction, depending on its configuration
        kind = self.classify(error)
        return kind in _OVER or (kind is ErrorClass.LOCK_WAIT and self.kind == "mysql")

    def classify(self, error: BaseException) -> ErrorClass:
        found = getattr(error, "orig", None)  # SQLAlchemy wraps a listener's error
        error = found if isinstance(found, BaseException) else error
        kind = self.kind
        if kind == "mysql":
            return mysql_class(error)
        if kind == "sqlite":
            return sqlite_class(error)
        dialect = self._dialect()
        with suppress(Exception):
            if isinstance(error, self.dbapi.Error) and dialect.is_disconnect(error, None, None):
                return ErrorClass.LINK_LOST
        return ErrorClass.OTHER

    def remedy(self, error: BaseException) -> str:
        return ""

    def describe(self) -> str:
        dialect = self._dialect()
        return f"{getattr(dialect, 'name', '')}+{getattr(dialect, 'driver', '')}".strip("+") or "an engine"
