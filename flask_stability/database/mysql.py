"""MySQL and MariaDB by mysqlclient."""

from __future__ import annotations

import math
import os
import socket
import struct
from typing import Any

from ..config import NO_MYSQLCLIENT, DatabaseAddress, Settings
from ..dberrors import ErrorClass, mysql_class
from ..exceptions import ConfigError

_REMEDIES = {
    1044: "grant the user access to this database",
    1045: "correct user and password in STABILITY_DB_URL or DB_USER and DB_PASSWORD",
    1049: "create the database, or correct its name",
    1021: "make room on the server's disk",
    1114: "make room on the server's disk, or raise the limit of the table",
    1290: "the server is read-only: point the service at the primary, or end the read-only mode",
    1836: "the server is read-only: point the service at the primary, or end the read-only mode",
    1040: "the server has no connection left: raise its max_connections or lower STABILITY_DB_MAX_SIZE",
    1129: "the server blocked this host after failed connections: mariadb-admin flush-hosts",
    1130: "allow this host for the user on the server",
    2002: "start the server, or correct host and port",
    2003: "start the server, or correct host and port",
    2005: "correct the name of the host",
    2013: "the server accepts and does not answer: is it frozen, or is something in between?",
}
_UNKNOWN_VARIABLE = 1193
_RESET = struct.pack("ii", 1, 0)


class Link(socket.socket):
    """A second handle on a connection's socket; ends quietly with its connection."""

    def __del__(self) -> None:
        self.close()


class MySQLDriver:
    """MySQL and MariaDB by mysqlclient."""

    kind = "mysql"
    reads_on = True
    threadsafety = 1

    def __init__(self, settings: Settings, url: str) -> None:
        try:
            import MySQLdb
            import MySQLdb.cursors
        except ImportError as error:
            raise ConfigError(f"{NO_MYSQLCLIENT} ({error})") from error
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
                self._limit = self._learn(raw)
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

    def _learn(self, raw: Any) -> str:
        """Limit the statements of a connection; how that is said to this server, "" if it knows no limit."""
        limit = self._dialect(raw)
        try:
            if limit:
                raw.query(limit)
        except self.dbapi.OperationalError as error:
            if error.args[0] != _UNKNOWN_VARIABLE:
                raise
            limit = ""  # the client's own limit holds
        return limit

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
                # closed with a reset: a server that waits for room at our end would not hear of a mere end
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def moved(self, raw: Any) -> bool:
        return False

    def rollback(self, raw: Any) -> None:
        raw.rollback()

    def reset(self, raw: Any) -> None:
        address = self._address
        raw.change_user(address.user, address.password, address.name)
        raw.set_character_set("utf8mb4")
        raw.autocommit(self._settings.db_autocommit)
        if self._limit is None:
            self._limit = self._learn(raw)
        elif self._limit:
            raw.query(self._limit)

    def ended(self, raw: Any, error: BaseException) -> bool:
        kind = mysql_class(error)
        if kind in (ErrorClass.ROLLED_BACK, ErrorClass.LINK_LOST, ErrorClass.CONNECT):
            return True
        if not isinstance(error, self.dbapi.OperationalError):
            return False
        try:
            return not self._variable(raw, "in_transaction")
        except self.dbapi.Error as unknown:
            if unknown.args[0] != _UNKNOWN_VARIABLE:
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
