"""What the pool needs of a database, and which driver a URL means: that of `mysql`, `pymysql` or `sqlite`.

A driver is also the "creator" that DBUtils asks for connections.
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
    """What the pool needs of a database.

    :ivar unbuffered: cursors whose rows stay with the database until they are fetched.
    :ivar reads_on: such a cursor reads all that is left when it is let go.
    """

    threadsafety: int
    unbuffered: tuple[type, ...]
    reads_on: bool

    @property
    def kind(self) -> str:
        """Of database: "mysql", "sqlite", or another one's name."""

    @property
    def dbapi(self) -> Any:
        """The driver's module (PEP 249)."""

    def connect(self, timeout: float | None = None, query_timeout: float | None = None) -> Any:
        """A new connection within `timeout` seconds (rounded up to whole ones); default: as the settings say.

        :param timeout: given, the connection is for a short question: no answer takes longer than that.
        :param query_timeout: seconds that its statements may take, instead of what the settings say; 0 = no limit.
        """

    def backstop(self, seconds: float) -> float:
        """After how many seconds the client gives up a statement that may take `seconds`."""

    def limit(self, raw: Any, seconds: float) -> None:
        """Give the statements of a session another limit in seconds, until it is reset; 0 = none."""

    def kill(self, identity: Identity) -> bool:
        """End a session at the server; True if that was done, False if it was not certain to be the same one."""

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

    def moved(self, raw: Any) -> bool:
        """Whether its file was removed or replaced: what it writes would be lost. No round trip."""

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


def make_driver(settings: Settings, instance_path: str, name: str, source: Source | None = None) -> Driver:
    """The driver for STABILITY_DB_URL; without one, SQLite in the instance folder.

    :param source: gives user and password of a MySQL or MariaDB database, instead of those in the settings.
    :raises ConfigError: if mysqlclient or PyMySQL is needed and missing.
    """
    url = settings.db_url
    if url is None:
        return SQLiteDriver(settings, os.path.join(instance_path, f"{name.rpartition('.')[2]}.db"))
    if url.startswith("sqlite"):
        # as SQLAlchemy: three slashes a relative path, four an absolute one
        return SQLiteDriver(settings, urlsplit(url).path.removeprefix("/") or MEMORY)
    credentials = Credentials(settings, source)
    return (PyMySQLDriver if credentials.latest.driver == "pymysql" else MySQLDriver)(settings, credentials)


def connect_plainly(address: DatabaseURL, seconds: int) -> Any:
    """Connect to a MySQL or MariaDB database by the driver that its address names, without a pool."""
    if address.driver == "pymysql":
        import pymysql

        return pymysql.connect(connect_timeout=seconds, **arguments(address))
    import MySQLdb

    return MySQLdb.connect(connect_timeout=seconds, **address.arguments())
