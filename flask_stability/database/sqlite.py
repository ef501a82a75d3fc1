"""SQLite, the embedded default, through Python's sqlite3. Its cursors take mysqlclient's parameter style."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import time
from typing import Any

from ..config import Settings
from ..dberrors import ErrorClass, sqlite_class
from .identity import Identity

_TOKENS = re.compile(r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | --[^\n]* | /\*.*?(?:\*/|\Z)
                         | %s | %% | %\((\w+)\)s""", re.DOTALL | re.VERBOSE)
_translated: dict[str, str] = {}
_MOST, _LONGEST = 1000, 2000  # maximum of cached statements, and of characters in one
MEMORY = ":memory:"


def translate(sql: str) -> str:
    """Turn ``%s`` into ``?`` and ``%(name)s`` into ``:name`` outside literals, names and comments; ``%%`` is ``%``."""
    found = _translated.get(sql)
    if found is None:
        found = _TOKENS.sub(_translate_token, sql)
        if len(sql) <= _LONGEST:
            if len(_translated) >= _MOST:
                _translated.clear()
            _translated[sql] = found
    return found


def _translate_token(match: re.Match[str]) -> str:
    if match[1]:
        return ":" + match[1]
    return "?" if match[0] == "%s" else match[0].replace("%%", "%")


class _SQLiteCursor(sqlite3.Cursor):
    """A cursor with mysqlclient's parameter style, so that one statement runs on both databases."""

    def execute(self, sql: str, parameters: Any = None) -> _SQLiteCursor:
        return super().execute(sql) if parameters is None else super().execute(translate(sql), parameters)

    def executemany(self, sql: str, parameters: Any) -> _SQLiteCursor:
        return super().executemany(translate(sql), parameters)


class _SQLiteConnection(sqlite3.Connection):
    """A connection whose cursors take ``%s``.

    :ivar file: device and inode of its file; None without a file.
    """

    file: tuple[int, int] | None = None

    def cursor(self, factory: Any = _SQLiteCursor) -> Any:
        return super().cursor(factory)


def _identity(path: str) -> tuple[int, int] | None:
    """Return device and inode; None without a file. No new file gets them while a connection holds the old one."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class SQLiteDriver:
    """The embedded default, through Python's sqlite3."""

    kind = "sqlite"
    reads_on = False
    dbapi: Any = sqlite3
    threadsafety = 1
    unbuffered: tuple[type, ...] = (sqlite3.Cursor,)  # each fetch steps the statement

    def __init__(self, settings: Settings, path: str) -> None:
        self._settings = settings
        self.path = path if path == MEMORY else os.path.abspath(path)  # the app may change its working directory

    def connect(self, timeout: float | None = None, query_timeout: float | None = None) -> Any:
        limit = timeout or self._settings.db_connect_timeout
        folder = os.path.dirname(self.path)
        if folder:
            os.makedirs(folder, mode=0o755, exist_ok=True)  # no other user may put a file there, whatever the umask
        raw = sqlite3.connect(self.path, timeout=limit, isolation_level=None, check_same_thread=False,
                              factory=_SQLiteConnection)
        try:
            self._wal(raw, time.monotonic() + limit)
            raw.execute("PRAGMA synchronous=NORMAL")
            raw.execute("PRAGMA foreign_keys=ON")
            raw.execute(f"PRAGMA busy_timeout={int(self._settings.db_timeout * 1000)}")
            self.set_autocommit(raw, self._settings.db_autocommit)
            raw.file = _identity(self.path)
        except BaseException:
            raw.close()
            raise
        return raw

    def _wal(self, raw: Any, deadline: float) -> None:
        """Switch to the write-ahead log. Processes that switch at the same time get BUSY despite the busy timeout."""
        while True:
            try:
                raw.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
                    return  # the file can be read; a write will report the error
                if sqlite_class(error) is not ErrorClass.LOCK_WAIT or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def begin(self, raw: Any) -> None:
        raw.execute("BEGIN IMMEDIATE")

    def set_autocommit(self, raw: Any, on: bool) -> None:
        raw.isolation_level = None if on else "IMMEDIATE"

    def link(self, raw: Any) -> socket.socket | None:
        return None

    def backstop(self, seconds: float) -> float:
        return 0.0

    def limit(self, raw: Any, seconds: float) -> None:
        """Do nothing: the housekeeper ends SQLite's statements."""

    def kill(self, identity: Identity) -> bool:
        return False

    def ping(self, raw: Any) -> None:
        raw.execute("SELECT 1").fetchone()

    def interrupt(self, raw: Any, link: socket.socket | None) -> None:
        try:
            raw.interrupt()
        except sqlite3.Error:
            pass

    def moved(self, raw: Any) -> bool:
        return bool(raw.file != _identity(self.path))

    def rollback(self, raw: Any) -> None:
        raw.rollback()

    def reset(self, raw: Any) -> None:
        """Have the pool close the connection: SQLite cannot clear a session's state in place."""
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
