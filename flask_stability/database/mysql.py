"""MySQL and MariaDB through mysqlclient."""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

from ..config import Settings
from ..config_load import NO_MYSQLCLIENT
from ..dberrors import CONSEQUENCES, KEPT, ErrorClass, mysql_class
from ..dburl import DatabaseURL
from ..exceptions import ConfigError
from .credentials import Credentials
from .identity import Identity, demand_ready, end_session, identity_of, one_row, questions
from .sockets import hang_up, link_to

_READ_ONLY = "the server is read-only: point the service at the primary, or end the read-only mode"
_LOCAL_INFILE = "to let statements read local files, add local_infile=1 to the database's address"
_TLS = "the server wants TLS: add ssl_mode=REQUIRED, or VERIFY_IDENTITY with ssl_ca, to the database's address"
_REMEDIES = {
    1044: "grant the user access to this database",
    1045: "correct user and password in STABILITY_DB_URL or DB_USER and DB_PASSWORD",
    1049: "create the database, or correct its name",
    1021: "make room on the server's disk",
    1114: "make room on the server's disk, or raise the limit of the table",
    1290: _READ_ONLY,
    1836: _READ_ONLY,
    1874: _READ_ONLY,
    3989: "end the read-only mode of this schema",
    1040: "the server has no connection left: raise its max_connections or lower STABILITY_DB_MAX_SIZE",
    1203: "the user has no connection left: raise max_user_connections or lower STABILITY_DB_MAX_SIZE",
    1226: "raise this limit of the user: ALTER USER … WITH …",
    1129: "the server blocked this host after failed connections: mariadb-admin flush-hosts",
    1130: "allow this host for the user on the server",
    1148: _LOCAL_INFILE, 3948: _LOCAL_INFILE, 4166: _LOCAL_INFILE,
    1153: "send less in one statement, or raise max_allowed_packet on the server",
    1047: "this node of the cluster does not serve: is it cut off from the others?",
    1820: "set a new password for the user", 1862: "set a new password for the user",
    3032: "end the server's offline mode",
    3118: "unlock the account: ALTER USER … ACCOUNT UNLOCK",
    4151: "unlock the account: ALTER USER … ACCOUNT UNLOCK",
    3159: _TLS, 4167: "set up TLS on the server, or allow connections without it",
    2002: "start the server, or correct host and port",
    2003: "start the server, or correct host and port",
    2005: "correct the name of the host",
    2013: "the server accepts and does not answer: is it frozen, or is something in between?",
    2026: "the server's certificate or TLS settings do not fit ssl_mode, ssl_ca, ssl_cert and ssl_key in the "
          "database's address",
    2059: "install the plugin that the user's authentication needs, or change it on the server",
    2061: "the user's authentication needs TLS or the server's public key: add ssl_mode=REQUIRED to the database's "
          "address",
}
_UNKNOWN_VARIABLE, _TOO_LARGE, _TLS_ERROR = 1193, 1153, 2026
#: After these errors nothing was executed, so the transaction is unchanged.
_STILL_OPEN = frozenset({ErrorClass.TOO_LARGE, ErrorClass.OUT_OF_STEP, ErrorClass.FULL, ErrorClass.QUOTA})


class _Dialect(NamedTuple):
    """How to talk to this server.

    :ivar limit: returns the statement that limits a session's statements and lock waits to so many seconds.
    :ivar question: statement that asks for a session's identity; "" if the server cannot tell.
    """

    limit: Callable[[float], str]
    question: str


def _locks(seconds: float) -> str:
    """Return assignments that cap lock waits at a statement's limit; a lower limit of the server stays in force."""
    whole = max(1, math.ceil(seconds)) if seconds else 31536000
    return ", ".join(f"{name}=CAST(LEAST(@@GLOBAL.{name}, {whole}) AS UNSIGNED)"
                     for name in ("lock_wait_timeout", "innodb_lock_wait_timeout"))


def _limits(mariadb: bool) -> list[Callable[[float], str]]:
    """Return functions that make the limiting statement, the fullest first; later ones suit servers that know less.

    MariaDB counts in seconds, MySQL in milliseconds (SELECT only).
    """
    def own(seconds: float) -> str:
        return f"max_statement_time={seconds:g}" if mariadb else f"max_execution_time={int(seconds * 1000)}"

    return [lambda seconds: f"SET SESSION {own(seconds)}, {_locks(seconds)}",
            lambda seconds: f"SET SESSION {_locks(seconds)}",
            lambda seconds: f"SET SESSION {own(seconds)}",
            lambda seconds: ""]


def guarded(base: Any, failed: Any, send: Callable[..., Any] | None = None) -> Any:
    """Return a connection class that knows its server's maximum statement size and when the latest statement began.

    :param base: the driver's connection class.
    :param failed: the driver's OperationalError.
    :param send: sends a statement; default: `query` of `base`.
    """
    sending: Callable[..., Any] = send or base.query

    class Connection(base):  # type: ignore[misc]
        identity: Identity | None = None
        max_packet = sys.maxsize
        began = 0.0

        def query(self, query: Any, *args: Any, **options: Any) -> Any:
            """Send a statement, unless it is so large that the server would hang up; then raise `failed`."""
            if isinstance(query, str):
                query = query.encode(self.encoding)
            if len(query) >= self.max_packet:
                error = failed(_TOO_LARGE, f"the statement has {len(query)} bytes and was not sent: the server takes "
                               f"less than max_allowed_packet ({self.max_packet} bytes)")
                error.unsent = True
                raise error
            self.began = monotonic()
            # another thread might change a bytearray while the driver reads it without the GIL
            return sending(self, bytes(query) if isinstance(query, bytearray) else query, *args, **options)

    return Connection


class MySQLDriver:
    """MySQL and MariaDB through mysqlclient."""

    kind = "mysql"
    reads_on = True
    threadsafety = 1

    dbapi: Any
    unbuffered: tuple[type, ...]
    _connection: Any

    def __init__(self, settings: Settings, credentials: Credentials) -> None:
        self._load()
        self._settings = settings
        self._credentials = credentials
        self._address = credentials.latest
        #: None until the first connection shows which dialect the server speaks.
        self._dialect: _Dialect | None = None

    def _load(self) -> None:
        """Import the driver's module.

        :raises ConfigError: if it is not installed.
        """
        try:
            import MySQLdb
            import MySQLdb.connections
            import MySQLdb.cursors
        except ImportError as error:
            raise ConfigError(f"{NO_MYSQLCLIENT} ({error})") from error
        self.dbapi = MySQLdb
        self.unbuffered = (MySQLdb.cursors.SSCursor, MySQLdb.cursors.SSDictCursor)
        self._connection = guarded(MySQLdb.connections.Connection, MySQLdb.OperationalError,
                                   MySQLdb._mysql.connection.query)

    def _open(self, address: DatabaseURL, **options: Any) -> Any:
        return self._connection(**address.arguments(), multi_statements=False, **options)

    def connect(self, timeout: float | None = None, query_timeout: float | None = None) -> Any:
        settings, seconds = self._settings, self._settings.db_query_timeout if query_timeout is None else query_timeout
        address = self._address = self._credentials()
        options: dict[str, Any] = {}
        if seconds:
            # the server's own limit comes first; these end a wait for a server that is gone
            options["read_timeout"] = options["write_timeout"] = self.backstop(seconds)
        if timeout is not None:  # a short-lived connection, for a question
            options["read_timeout"] = options["write_timeout"] = max(1, math.ceil(timeout))
        dialect = self._dialect
        limit = dialect.limit(seconds) if dialect is not None and seconds else ""
        if limit:
            options["init_command"] = limit
        try:
            raw = self._open(
                address, connect_timeout=max(1, math.ceil(timeout or settings.db_connect_timeout)),
                autocommit=settings.db_autocommit, **options)
        except self.dbapi.Error:
            self._dialect = None  # another server may be behind the address by now
            raise
        try:
            if dialect is None:
                dialect = self._dialect = self._learn(raw, seconds)
            self._prepare(raw, address, dialect)
        except BaseException:
            self._dialect = None
            raw.close()
            raise
        return raw

    @staticmethod
    def backstop(seconds: float) -> int:
        """Return after how many seconds the client itself gives up a statement that may take `seconds`."""
        return math.ceil(seconds) + 5

    def _prepare(self, raw: Any, address: DatabaseURL, dialect: _Dialect) -> None:
        """Check TLS if it is required, learn the session's identity, and apply the app's own set-up."""
        if address.secure and not one_row(raw, "SHOW STATUS LIKE 'Ssl_cipher'")[1]:
            # the client library continues in clear text if the server offers no TLS
            raise self.dbapi.OperationalError(_TLS_ERROR, "TLS is required and the server does not support it")
        if dialect.question:
            raw.identity = found = identity_of(raw, dialect.question)
            raw.max_packet = found.max_packet or sys.maxsize
            if found.clustered:
                demand_ready(raw)
        if address.init_command:
            raw.query(address.init_command)

    def _learn(self, raw: Any, seconds: float) -> _Dialect:
        """Limit the statements of a connection; return the dialect that this server understands."""
        mariadb = "MariaDB" in raw.get_server_info()
        limit = next(make for make in _limits(mariadb) if self._knows(raw, make(seconds) if seconds else ""))
        return _Dialect(limit, next((asked for asked in questions(mariadb) if self._knows(raw, asked)), ""))

    def _knows(self, raw: Any, sql: str) -> bool:
        """Execute a statement; return False if the server lacks one of its variables or does not allow setting it."""
        try:
            if sql:
                raw.query(sql)
                raw.store_result()
            return True
        except self.dbapi.Error as error:
            if CONSEQUENCES[mysql_class(error)].connection != KEPT:
                raise
            return False

    def limit(self, raw: Any, seconds: float) -> None:
        """Set another limit in seconds for the statements of a session, until its reset; 0 = none."""
        if self._dialect is not None and (sql := self._dialect.limit(seconds)):
            raw.query(sql)

    def kill(self, identity: Identity) -> bool:
        """End a session through a separate connection, within about a second; return False if it was not ended."""
        raw = self.connect(1.0)
        try:
            own = raw.identity
            return own is not None and end_session(raw, own, identity)
        finally:
            raw.close()

    def begin(self, raw: Any) -> None:
        raw.query("BEGIN")

    def set_autocommit(self, raw: Any, on: bool) -> None:
        raw.autocommit(on)

    def link(self, raw: Any) -> socket.socket | None:
        return link_to(raw)

    def ping(self, raw: Any) -> None:
        raw.ping()

    def interrupt(self, raw: Any, link: socket.socket | None) -> None:
        hang_up(link)

    def moved(self, raw: Any) -> bool:
        return False

    def rollback(self, raw: Any) -> None:
        raw.rollback()

    def reset(self, raw: Any) -> None:
        address, settings, dialect = self._address, self._settings, self._dialect
        raw.change_user(address.user, address.password, address.name)
        raw.set_character_set(address.options.get("charset", "utf8mb4"), address.options.get("collation", ""))
        raw.autocommit(settings.db_autocommit)
        if address.options.get("sql_mode"):
            raw.set_sql_mode(address.options["sql_mode"])
        if dialect is None:
            self._dialect = self._learn(raw, settings.db_query_timeout)
        elif settings.db_query_timeout and (limit := dialect.limit(settings.db_query_timeout)):
            raw.query(limit)
        if address.init_command:
            raw.query(address.init_command)

    def ended(self, raw: Any, error: BaseException) -> bool:
        kind = mysql_class(error)
        if kind is ErrorClass.ROLLED_BACK or (CONSEQUENCES[kind].connection != KEPT and kind not in _STILL_OPEN):
            return True
        if not isinstance(error, self.dbapi.OperationalError) or kind in _STILL_OPEN:
            return False
        try:
            return not one_row(raw, "SELECT @@in_transaction")[0]
        except self.dbapi.Error as unknown:
            if unknown.args[0] != _UNKNOWN_VARIABLE:
                return True
        # MySQL has no such variable; there, only a lock wait may have ended the transaction
        try:
            return kind is ErrorClass.LOCK_WAIT and bool(one_row(raw, "SELECT @@innodb_rollback_on_timeout")[0])
        except self.dbapi.Error:
            return True

    def classify(self, error: BaseException) -> ErrorClass:
        return mysql_class(error)

    def remedy(self, error: BaseException) -> str:
        code = error.args[0] if error.args else None
        found = _REMEDIES.get(code, "") if isinstance(code, int) else ""
        if code == 1045 and not self._address.secure:
            return f"{found}; a user who must use TLS (REQUIRE SSL, X509) is refused so too, and this link has none: " \
                   "add ssl_mode=REQUIRED, with ssl_cert and ssl_key where a certificate is asked for, to the address"
        return found

    def describe(self) -> str:
        return self._address.describe()
