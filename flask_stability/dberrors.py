"""What the errors of databases mean: one list, for the retry, the breaker and whoever answers 503.

It stands below the rooms, since the database room may not know how errors are answered, nor the other way round, and
an app may use its driver without the pool.
"""

from __future__ import annotations

import enum
import re
import sqlite3


class ErrorClass(enum.Enum):
    """What an error of the database means for whoever thinks of trying again."""

    CONNECT = "connecting failed for now"
    REFUSED = "credentials, schema or host are refused"
    ROLLED_BACK = "the server rolled the transaction back"
    LOCK_WAIT = "waited too long for a lock; the statement alone was rolled back"
    READ_ONLY = "the server became read-only"
    DISK = "the disk is full or fails"
    LINK_LOST = "the link was lost"
    TIMED_OUT = "the statement was ended by its time limit or by an administrator"
    STALE = "the session lost what it needs; a new connection has it"
    OTHER = "anything else"


_CODES = {
    **dict.fromkeys((2002, 2003, 2005, 1040, 1203, 1053), ErrorClass.CONNECT),
    **dict.fromkeys((1044, 1045, 1049, 1129, 1130, 1698), ErrorClass.REFUSED),
    **dict.fromkeys((1213, 3101), ErrorClass.ROLLED_BACK),
    1020: ErrorClass.ROLLED_BACK,  # "Record has changed since last read": MariaDB's innodb_snapshot_isolation
    1205: ErrorClass.LOCK_WAIT,
    **dict.fromkeys((1792, 1836), ErrorClass.READ_ONLY),
    **dict.fromkeys((1021, 1114), ErrorClass.DISK),
    **dict.fromkeys((2006, 2013, 2027, 2055, 1927, 4031, 1152, 1184, 1158, 1159, 1160, 1161), ErrorClass.LINK_LOST),
    **dict.fromkeys((1969, 3024, 1317), ErrorClass.TIMED_OUT),
    1046: ErrorClass.STALE,
}
_UNAVAILABLE = frozenset({ErrorClass.CONNECT, ErrorClass.REFUSED, ErrorClass.LINK_LOST, ErrorClass.READ_ONLY,
                          ErrorClass.DISK, ErrorClass.STALE})
_ENGINE_FAILED = 1030  # with the number of the operating system's error in its text


def mysql_class(error: BaseException) -> ErrorClass:
    """Class of an exception of mysqlclient (or of anything with a server's error number as first argument)."""
    code = error.args[0] if error.args else None
    if code == 1290:
        return ErrorClass.READ_ONLY if "read-only" in str(error.args[-1]) else ErrorClass.OTHER
    if code == _ENGINE_FAILED:
        full = re.search(r"\b(28|122|135|136)\b", str(error.args[-1]))  # ENOSPC, EDQUOT, table full, index full
        return ErrorClass.DISK if full else ErrorClass.OTHER
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
    if base == sqlite3.SQLITE_READONLY:
        return ErrorClass.READ_ONLY
    if base in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return ErrorClass.DISK
    return ErrorClass.OTHER


def means_unavailable(error: BaseException | None) -> bool:
    """Whether an exception of mysqlclient, PyMySQL or sqlite3 says that the database cannot be had now."""
    driver = type(error).__module__.partition(".")[0]
    if error is None or driver not in ("MySQLdb", "pymysql", "sqlite3"):
        return False
    if driver == "sqlite3":
        kind = sqlite_class(error)
        return kind is ErrorClass.LOCK_WAIT or kind in _UNAVAILABLE
    return mysql_class(error) in _UNAVAILABLE
