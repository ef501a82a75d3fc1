"""What differs between MySQL/MariaDB (mysqlclient) and SQLite: connecting, checking, interrupting, classifying errors.

A driver is also the "creator" that DBUtils asks for connections.
"""

from __future__ import annotations

import enum
import math
import os
import re
import socket
import sqlite3
import time
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..config import DatabaseAddress, Settings
from ..exceptions import ConfigError


class ErrorClass(enum.Enum):
    """What an error of the database means for whoever thinks of trying again."""

    CONNECT = "connecting failed for now"
    REFUSED = "credentials, schema or host are refused"
    ROLLED_BACK = "the server rolled the transaction back"
    LOCK_WAIT = "waited too long for a lock; the statement alone was rolled back"
    READ_ONLY = "the server became read-only"
    LINK_LOST = "the link was lost"
    TIMED_OUT = "the statement was ended by its time limit or by an administrator"
    STALE = "the session lost what it needs; a new connection has it"
    OTHER = "anything else"


_CODES = {
    **dict.fromkeys((2002, 2003, 1040, 1203, 1053), ErrorClass.CONNECT),
    **dict.fromkeys((1044, 1045, 1049, 1129, 1130, 1698), ErrorClass.REFUSED),
    **dict.fromkeys((1213, 3101), ErrorClass.ROLLED_BACK),
    1020: ErrorClass.ROLLED_BACK,  # "Record has changed since last read": MariaDB's innodb_snapshot_isolation
    1205: ErrorClass.LOCK_WAIT,
    **dict.fromkeys((1792, 1836), ErrorClass.READ_ONLY),
    **dict.fromkeys((2006, 2013, 2027, 2055, 1927, 4031, 1152, 1184, 1158, 1159, 1160, 1161), ErrorClass.LINK_LOST),
    **dict.fromkeys((1969, 3024, 1317), ErrorClass.TIMED_OUT),
    1046: ErrorClass.STALE,
}
_REMEDIES = {
    1044: "grant the user access to this database",
    1045: "correct user and password in STABILITY_DB_URL or DB_USER and DB_PASSWORD",
    1049: "create the database, or correct its name",
    1040: "the server has no connection left: raise its max_connections or lower STABILITY_DB_MAX_SIZE",
    1129: "the server blocked this host after failed connections: mariadb-admin flush-hosts",
    1130: "allow this host for the user on the server",
    2002: "start the server, or correct host and port",
    2003: "start the server, or correct host and port",
    2005: "correct the name of the host",
    2013: "the server accepts and does not answer: is it frozen, or is something in between?",
}
_UNAVAILABLE = {ErrorClass.CONNECT, ErrorClass.LINK_LOST, ErrorClass.READ_ONLY}


def mysql_class(error: BaseException) -> ErrorClass:
    """Class of an exception of mysqlclient (or of anything with a server's error number as first argument)."""
    code = error.args[0] if error.args else None
    if code == 1290:
        return ErrorClass.READ_ONLY if "read-only" in str(error.args[-1]) else ErrorClass.OTHER
    if code == 0 and type(error).__name__ == "InterfaceError":
        return ErrorClass.LINK_LOST  # "(0, '')": the connection is closed
    return _CODES.get(code, ErrorClass.OTHER) if isinstance(code, int) else ErrorClass.OTHER


def sqlite_class(error: BaseException) -> ErrorClass:
    """Class of an exception of sqlite3."""
    code = getattr(error, "sqlite_errorcode", None)
    base = code & 0xFF if isinstance(code, int) else None
    if base in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ErrorClass.LOCK_WAIT
    if base == sqlite3.SQLITE_INTERRUPT:
        return ErrorClass.TIMED_OUT
    if base == sqlite3.SQLITE_CANTOPEN:
        return ErrorClass.REFUSED
    return ErrorClass.OTHER


def means_unavailable(error: BaseException) -> bool:
    """Whether a driver's exception says that the database cannot be had now."""
    module = type(error).__module__
    if module.startswith("MySQLdb"):
        return mysql_class(error) in _UNAVAILABLE
    if module == "sqlite3":
        return sqlite_class(error) is ErrorClass.LOCK_WAIT
    return False


class Link(socket.socket):
    """A second handle on a connection's socket; ends quietly with its connection."""

    def __del__(self) -> None:
        self.close()


class Driver(Protocol):
    """What the pool needs of a database."""

    kind: str
    dbapi: Any
    threadsafety: int
    unbuffered: tuple[type, ...]

    def connect(self, timeout: float | None = None) -> Any:
        """A new connection within `timeout` seconds (rounded up to whole ones); default: as the settings say."""

    def begin(self, raw: Any) -> None:
        """Begin a transaction."""

    def set_autocommit(self, raw: Any, on: bool) -> None:
        """Switch the autocommit mode."""

    def link(self, raw: Any) -> socket.socket | None:
        """A second handle on the connection's socket, to interrupt it; None if there is none."""

    def ping(self, raw: Any) -> None:
        """One round trip; raises if there is no answer."""

    def interrupt(self, raw: Any, link: socket.socket | None) -> None:
        """End the statement that another thread is in; never raises, never waits."""

    def rollback(self, raw: Any) -> None:
        """Roll back what is open."""

    def reset(self, raw: Any) -> None:
        """Clear the state of the session."""

    def ended(self, raw: Any, error: BaseException) -> bool:
        """Whether the transaction that was open is over after this error of a statement; may ask the server."""

    def classify(self, error: BaseException) -> ErrorClass:
        """What an exception means."""

    def remedy(self, error: BaseException) -> str:
        """What an operator has to do about it; empty where that is not known."""

    def describe(self) -> str:
        """Where the database is, without credentials."""


class MySQLDriver:
    """MySQL and MariaDB by mysqlclient."""

    kind = "mysql"
    threadsafety = 1

    def __init__(self, settings: Settings, url: str) -> None:
        try:
            import MySQLdb
            import MySQLdb.cursors
        except ImportError as error:
            raise ConfigError("STABILITY_DB_URL is a MySQL or MariaDB address, but mysqlclient is not installed: "
                              "pip install 'flask_stability[mysql]'") from error
        self.dbapi: Any = MySQLdb
        self.unbuffered: tuple[type, ...] = (MySQLdb.cursors.SSCursor, MySQLdb.cursors.SSDictCursor)
        self._settings = settings
        self._address = DatabaseAddress.from_url(url)
        #: The statement that limits statements; None until the first connection tells whose dialect it is.
        self._limit: str | None = None

    def connect(self, timeout: float | None = None) -> Any:
        settings, address = self._settings, self._address
        options: dict[str, Any] = {}
        if settings.db_query_timeout:
            # the server's own limit comes first; these end a wait for a server that is gone
            backstop = math.ceil(settings.db_query_timeout) + 5
            options.update(read_timeout=backstop, write_timeout=backstop)
        limit = self._limit
        if limit:
            options["init_command"] = limit
        try:
            raw = self.dbapi.connect(
                host=address.host, port=address.port, user=address.user, password=address.password,
                database=address.name, connect_timeout=max(1, math.ceil(timeout or settings.db_connect_timeout)),
                charset="utf8mb4", multi_statements=False, autocommit=settings.db_autocommit, **options)
        except self.dbapi.Error:
            self._limit = None  # the server behind the address may be another one by now
            raise
        if limit is None:
            try:
                self._limit = self._dialect(raw)
                self._prepare(raw, self._limit)
            except BaseException:
                raw.close()
                raise
        return raw

    def _dialect(self, raw: Any) -> str:
        """MariaDB counts seconds, MySQL milliseconds (SELECT only)."""
        seconds = self._settings.db_query_timeout
        if not seconds:
            return ""
        if "MariaDB" in raw.get_server_info():
            return f"SET SESSION max_statement_time={seconds:g}"
        return f"SET SESSION max_execution_time={int(seconds * 1000)}"

    def _prepare(self, raw: Any, limit: str) -> None:
        if limit:
            raw.query(limit)

    def begin(self, raw: Any) -> None:
        raw.query("BEGIN")

    def set_autocommit(self, raw: Any, on: bool) -> None:
        raw.autocommit(on)

    def link(self, raw: Any) -> socket.socket | None:
        try:
            link = Link(fileno=os.dup(raw.fileno()))
        except OSError:
            return None
        try:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if link.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_KEEPIDLE"):
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        except OSError:
            pass
        return link

    def ping(self, raw: Any) -> None:
        raw.ping()

    def interrupt(self, raw: Any, link: socket.socket | None) -> None:
        if link is not None:
            try:
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def rollback(self, raw: Any) -> None:
        raw.rollback()

    def reset(self, raw: Any) -> None:
        address = self._address
        raw.change_user(address.user, address.password, address.name)
        raw.set_character_set("utf8mb4")
        raw.autocommit(self._settings.db_autocommit)
        self._prepare(raw, self._limit or self._dialect(raw))

    def ended(self, raw: Any, error: BaseException) -> bool:
        kind = mysql_class(error)
        if kind in (ErrorClass.ROLLED_BACK, ErrorClass.LINK_LOST, ErrorClass.CONNECT):
            return True
        if not isinstance(error, self.dbapi.OperationalError):
            return False
        try:
            return not self._variable(raw, "in_transaction")
        except self.dbapi.Error as unknown:
            if unknown.args[0] != 1193:
                return True
        # MySQL has no such variable; there, only a lock wait may have ended it
        try:
            return kind is ErrorClass.LOCK_WAIT and bool(self._variable(raw, "innodb_rollback_on_timeout"))
        except self.dbapi.Error:
            return True

    def _variable(self, raw: Any, name: str) -> Any:
        raw.query(f"SELECT @@{name}")
        return raw.store_result().fetch_row()[0][0]

    def classify(self, error: BaseException) -> ErrorClass:
        return mysql_class(error)

    def remedy(self, error: BaseException) -> str:
        code = error.args[0] if error.args else None
        return _REMEDIES.get(code, "") if isinstance(code, int) else ""

    def describe(self) -> str:
        return f"{self._address.host}:{self._address.port}/{self._address.name}"


_TOKENS = re.compile(r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | --[^\n]* | /\*.*?\*/
                         | %s | %% | %\((\w+)\)s""", re.DOTALL | re.VERBOSE)
_translated: dict[str, str] = {}


def translate(sql: str) -> str:
    """``%s`` to ``?`` and ``%(name)s`` to ``:name`` outside of literals, quoted names and comments; ``%%`` to ``%``."""
    found = _translated.get(sql)
    if found is None:
        if len(_translated) >= 1000:
            _translated.clear()
        found = _translated[sql] = _TOKENS.sub(_translate_token, sql)
    return found


def _translate_token(match: re.Match[str]) -> str:
    if match[1]:
        return ":" + match[1]
    return "?" if match[0] == "%s" else match[0].replace("%%", "%")


class _SQLiteCursor(sqlite3.Cursor):
    """Takes the parameter style of mysqlclient, so that one statement runs on both."""

    def execute(self, sql: str, parameters: Any = None) -> _SQLiteCursor:
        return super().execute(sql) if parameters is None else super().execute(translate(sql), parameters)

    def executemany(self, sql: str, parameters: Any) -> _SQLiteCursor:
        return super().executemany(translate(sql), parameters)


class _SQLiteConnection(sqlite3.Connection):
    """Gives cursors that take ``%s``."""

    def cursor(self, factory: Any = _SQLiteCursor) -> Any:
        return super().cursor(factory)


class SQLiteDriver:
    """The embedded default, by Python's sqlite3."""

    kind = "sqlite"
    dbapi: Any = sqlite3
    threadsafety = 1
    unbuffered: tuple[type, ...] = (sqlite3.Cursor,)  # each fetch steps the statement

    def __init__(self, settings: Settings, path: str) -> None:
        self._settings, self.path = settings, path

    def connect(self, timeout: float | None = None) -> Any:
        limit = timeout or self._settings.db_connect_timeout
        folder = os.path.dirname(self.path)
        if folder:
            os.makedirs(folder, exist_ok=True)
        raw = sqlite3.connect(self.path, timeout=limit, isolation_level=None, check_same_thread=False,
                              factory=_SQLiteConnection)
        try:
            self._wal(raw, time.monotonic() + limit)
            raw.execute("PRAGMA synchronous=NORMAL")
            raw.execute("PRAGMA foreign_keys=ON")
            raw.execute(f"PRAGMA busy_timeout={int(self._settings.db_timeout * 1000)}")
            self.set_autocommit(raw, self._settings.db_autocommit)
        except BaseException:
            raw.close()
            raise
        return raw

    def _wal(self, raw: Any, deadline: float) -> None:
        """Write-ahead log. Several processes that switch a new file at once get BUSY despite the busy timeout."""
        while True:
            try:
                raw.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
                    return  # it can be read; a write will say what is wrong
                if sqlite_class(error) is not ErrorClass.LOCK_WAIT or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def begin(self, raw: Any) -> None:
        raw.execute("BEGIN IMMEDIATE")

    def set_autocommit(self, raw: Any, on: bool) -> None:
        raw.isolation_level = None if on else "IMMEDIATE"

    def link(self, raw: Any) -> socket.socket | None:
        return None

    def ping(self, raw: Any) -> None:
        raw.execute("SELECT 1").fetchone()

    def interrupt(self, raw: Any, link: socket.socket | None) -> None:
        try:
            raw.interrupt()
        except sqlite3.Error:
            pass

    def rollback(self, raw: Any) -> None:
        raw.rollback()

    def reset(self, raw: Any) -> None:
        """A session's state cannot be cleared in place: tell the pool to close it."""
        raw.rollback()
        raise sqlite3.OperationalError("a changed session is not used again")

    def ended(self, raw: Any, error: BaseException) -> bool:
        return not raw.in_transaction

    def classify(self, error: BaseException) -> ErrorClass:
        return sqlite_class(error)

    def remedy(self, error: BaseException) -> str:
        if isinstance(error, OSError):
            return f"make the directory {os.path.dirname(self.path)} and let the service's user write there"
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return f"give the service's user write access to {self.path} and its directory"
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return f"restore {self.path} from a backup, or move it away"
        return f"make room on the file system of {self.path}" if code == sqlite3.SQLITE_FULL else ""

    def describe(self) -> str:
        return self.path


def make_driver(settings: Settings, instance_path: str, name: str) -> Driver:
    """The driver for STABILITY_DB_URL; without one, SQLite in the instance folder.

    :raises ConfigError: if mysqlclient is needed and missing.
    """
    url = settings.db_url
    if url is None:
        return SQLiteDriver(settings, os.path.join(instance_path, f"{name.rpartition('.')[2]}.db"))
    if url.startswith("sqlite"):
        # as SQLAlchemy: three slashes a relative path, four an absolute one
        return SQLiteDriver(settings, urlsplit(url).path.removeprefix("/") or ":memory:")
    return MySQLDriver(settings, url)
