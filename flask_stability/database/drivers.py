"""The interface between pool and database, and the choice of a driver by URL: `mysql`, `pymysql` or `sqlite`.

A driver is also the "creator" that opens connections for DBUtils.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..config import Settings
from ..dberrors import ErrorClass
from ..dburl import DatabaseURL
from .credentials import Credentials, Source
from .identity import Identity
from .mysql import MySQLDriver
from .pymysql import PyMySQLDriver, arguments
from .sqlite import MEMORY, SQLiteDriver


class Driver(Protocol):
    """The interface that the pool needs from a database.

    :ivar unbuffered: classes of cursors whose rows stay with the database until the app fetches them.
    :ivar reads_on: such a cursor reads all remaining rows when it is closed.
    """

    threadsafety: int
    unbuffered: tuple[type, ...]
    reads_on: bool

    @property
    def kind(self) -> str:
        """Return the kind of database: "mysql", "sqlite", or another name."""

    @property
    def dbapi(self) -> Any:
        """Return the driver's module (PEP 249)."""

    def connect(self, timeout: float | None = None, query_timeout: float | None = None) -> Any:
        """Open a connection.

        :param timeout: maximum time to connect in seconds (rounded up to whole ones), instead of the settings'. With
            it, the connection is for a short question, and each answer has the same limit.
        :param query_timeout: limit in seconds for its statements, instead of the settings'; 0 = none.
        """

    def backstop(self, seconds: float) -> float:
        """Return after how many seconds the client itself gives up a statement that may take `seconds`; 0 = never."""

    def limit(self, raw: Any, seconds: float) -> None:
        """Set another limit in seconds for the statements of a session, until its reset; 0 = none."""

    def kill(self, identity: Identity) -> bool:
        """End a session on the server; return False if the session there was not certainly the same one."""

    def begin(self, raw: Any) -> None:
        """Begin a transaction."""

    def set_autocommit(self, raw: Any, on: bool) -> None:
        """Switch the autocommit mode."""

    def link(self, raw: Any) -> socket.socket | None:
        """Return a second handle on the connection's socket, to interrupt it; None without one."""

    def ping(self, raw: Any) -> None:
        """Make one round trip; raise if there is no answer."""

    def interrupt(self, raw: Any, link: socket.socket | None) -> None:
        """End the statement that another thread executes. Never raises, never blocks."""

    def moved(self, raw: Any) -> bool:
        """Return whether the database's file was removed or replaced, so that writes would be lost. No round trip."""

    def rollback(self, raw: Any) -> None:
        """Roll back the open transaction."""

    def reset(self, raw: Any) -> None:
        """Clear the state of the session."""

    def ended(self, raw: Any, error: BaseException) -> bool:
        """Return whether a statement's error ended the open transaction. May ask the server."""

    def classify(self, error: BaseException) -> ErrorClass:
        """Return the class of an exception."""

    def remedy(self, error: BaseException) -> str:
        """Return what an operator should do about an exception; "" if unknown."""

    def describe(self) -> str:
        """Return where the database is, without credentials."""


def make_driver(settings: Settings, instance_path: str, name: str, source: Source | None = None) -> Driver:
    """Return the driver for STABILITY_DB_URL; without that, SQLite in the instance folder.

    :param source: returns the password, or user and password, of a MySQL or MariaDB database, instead of the settings'.
    :raises ConfigError: if the URL needs mysqlclient or PyMySQL and it is not installed.
    """
    url = settings.db_url
    if url is None:
        return SQLiteDriver(settings, os.path.join(instance_path, f"{name.rpartition('.')[2]}.db"))
    if url.startswith("sqlite"):
        # as in SQLAlchemy: three slashes start a relative path, four an absolute one
        return SQLiteDriver(settings, urlsplit(url).path.removeprefix("/") or MEMORY)
    credentials = Credentials(settings, source)
    return (PyMySQLDriver if credentials.latest.driver == "pymysql" else MySQLDriver)(settings, credentials)


def connect_plainly(address: DatabaseURL, seconds: int) -> Any:
    """Connect to a MySQL or MariaDB database without a pool, with the driver that its address names.

    :param seconds: maximum time to connect.
    """
    if address.driver == "pymysql":
        import pymysql

        return pymysql.connect(connect_timeout=seconds, **arguments(address))
    import MySQLdb

    return MySQLdb.connect(connect_timeout=seconds, **address.arguments())
