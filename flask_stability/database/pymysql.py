"""MySQL and MariaDB through PyMySQL: pure Python, so it needs no compiler, and greenlets switch during its calls."""

from __future__ import annotations

import ssl
import struct
from contextlib import suppress
from functools import cache
from typing import Any

from ..config_load import NO_PYMYSQL
from ..dburl import DatabaseURL
from ..exceptions import ConfigError
from .mysql import MySQLDriver, guarded

_PLUGIN, _INSECURE, _TLS_ERROR = 2059, 2061, 2026
#: Authentication plugins that send the password in clear text.
_CLEAR = (b"mysql_clear_password", b"dialog")


class PyMySQLDriver(MySQLDriver):
    """MySQL and MariaDB through PyMySQL."""

    def _load(self) -> None:
        try:
            import pymysql
            import pymysql.cursors
        except ImportError as error:
            raise ConfigError(f"{NO_PYMYSQL} ({error})") from error
        self.dbapi = pymysql
        self.unbuffered = (pymysql.cursors.SSCursor, pymysql.cursors.SSDictCursor)
        self._connection = guarded(_connection_class(pymysql), pymysql.OperationalError)

    def _open(self, address: DatabaseURL, **options: Any) -> Any:
        return self._connection(**arguments(address), **options)


def arguments(address: DatabaseURL) -> dict[str, Any]:
    """Return the arguments for PyMySQL's ``connect``.

    :raises Exception: an error of PyMySQL, if a file that the address names cannot be read or used.
    """
    import pymysql

    found = address.arguments()
    found["password"] = found["password"].encode()  # PyMySQL would encode it as Latin-1
    mode, files = found.pop("ssl_mode", "DISABLED"), found.pop("ssl", {})
    try:
        if mode == "DISABLED":
            found["ssl_disabled"] = True
        elif mode != "PREFERRED":  # PREFERRED is PyMySQL's default
            found["ssl"] = _context(mode, files)
        if path := found.pop("server_public_key_path", ""):
            with open(path, "rb") as file:
                found["server_public_key"] = file.read(65536)
    except (OSError, ValueError) as error:
        raise pymysql.OperationalError(_TLS_ERROR, f"a file of the address cannot be used: {error}") from error
    return found


def _context(mode: str, files: dict[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "VERIFY_IDENTITY"
    if not mode.startswith("VERIFY"):
        context.verify_mode = ssl.CERT_NONE
    elif "ca" in files or "capath" in files:
        context.load_verify_locations(files.get("ca"), files.get("capath"))
    else:
        context.load_default_certs()
    if "cert" in files:
        context.load_cert_chain(files["cert"], files["key"])
    if "cipher" in files:
        context.set_ciphers(files["cipher"])
    return context


class _Result:
    """The rows of a statement, with the method names of mysqlclient's result."""

    def __init__(self, rows: tuple[tuple[Any, ...], ...]) -> None:
        self._rows = rows

    def fetch_row(self, most: int = 1) -> tuple[tuple[Any, ...], ...]:
        """Return so many rows; 0 = all."""
        found = self._rows[:most or None]
        self._rows = self._rows[len(found):]
        return found


@cache
def _quiet(kind: Any) -> Any:
    """Return a cursor class whose finalizer raises nothing, since no caller could catch it."""
    def let_go(self: Any) -> None:
        with suppress(Exception):
            self.close()

    return type(kind.__name__, (kind,), {"__del__": let_go})


def _connection_class(dbapi: Any) -> Any:
    """Return PyMySQL's connection class with mysqlclient's additional methods and a time limit for the handshake."""
    from pymysql import _auth, charset
    from pymysql.constants import CLIENT, COMMAND
    from pymysql.protocol import OKPacketWrapper

    failed, unbuffered = dbapi.OperationalError, dbapi.cursors.SSCursor

    class Connection(dbapi.connections.Connection):  # type: ignore[misc]
        _read_timeout: float | None
        _write_timeout: float | None

        def connect(self, sock: Any = None) -> None:
            """Connect. Each answer of the handshake has the limit for connecting, not the one for statements."""
            timeouts = self._read_timeout, self._write_timeout
            self._read_timeout = self._write_timeout = self.connect_timeout
            try:
                super().connect(sock)
            except RuntimeError as error:  # the authentication plugin needs a package that is missing
                raise failed(_PLUGIN, str(error)) from error
            except failed as error:
                if isinstance(getattr(error, "original_exception", None), ssl.SSLError):
                    raise failed(_TLS_ERROR, f"TLS: {error.original_exception}") from error
                raise
            finally:
                self._read_timeout, self._write_timeout = timeouts

        def _force_close(self) -> None:
            """Close without reading the remaining rows, which an unbuffered result's finalizer would do."""
            result = getattr(self, "_result", None)
            if result is not None:
                result.unbuffered_active = False
            super()._force_close()

        __del__ = _force_close

        def cursor(self, cursor: type | None = None) -> Any:
            """Return a cursor; the finalizer of an unbuffered one raises nothing after its link was cut."""
            kind = cursor or self.cursorclass
            return (_quiet(kind) if issubclass(kind, unbuffered) else kind)(self)

        def _process_auth(self, plugin_name: bytes, *args: Any) -> Any:
            if plugin_name in _CLEAR and not self._secure:
                raise failed(_INSECURE, f"{plugin_name.decode()} would send the password in clear: it needs TLS")
            return super()._process_auth(plugin_name, *args)

        def fileno(self) -> int:
            """Return the descriptor of its socket; -1 without one."""
            return -1 if self._sock is None else int(self._sock.fileno())

        def store_result(self) -> _Result | None:
            """Return the latest statement's rows; None if it returns none."""
            rows = self._result.rows if self._result is not None else None
            return None if rows is None else _Result(tuple(rows))

        def set_sql_mode(self, mode: str) -> None:
            """Set the SQL mode of the session."""
            self.query(f"SET SESSION sql_mode={self.escape(mode)}")

        def change_user(self, user: str, password: str, database: str) -> None:
            """Log in again: COM_CHANGE_USER resets the session to its initial state."""
            self.user, self.password, self.db = user.encode(), password.encode(), database.encode()
            plugin, proof = str(self._auth_plugin_name or ""), b""
            if plugin == "caching_sha2_password" and password:
                proof = _auth.scramble_caching_sha2(self.password, self.salt)
            elif plugin == "mysql_native_password":
                proof = _auth.scramble_native_password(self.password, self.salt)
            self._execute_command(COMMAND.COM_CHANGE_USER, b"".join((
                self.user, b"\0", bytes([len(proof)]), proof, self.db, b"\0",
                struct.pack("<H", charset.charset_by_name(self.charset).id), plugin.encode(), b"\0",
                b"\0" if self.server_capabilities & CLIENT.CONNECT_ATTRS else b"")))  # no attributes
            packet = self._read_packet()
            if packet.is_auth_switch_request():
                packet.read_uint8()
                packet = self._process_auth(packet.read_string(), packet)
            if packet.is_extra_auth_data():
                packet = _auth.caching_sha2_password_auth(self, packet)
            self.server_status = OKPacketWrapper(packet).server_status

    return Connection
