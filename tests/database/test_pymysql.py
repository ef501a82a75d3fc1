"""What is PyMySQL's own; what holds for both drivers is tested where it stands, with the mark `pymysql_too`."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import pymysql
import pytest

from flask_stability.config import Settings
from flask_stability.database.credentials import Credentials
from flask_stability.database.drivers import connect_plainly, make_driver
from flask_stability.database.pool import Pool
from flask_stability.database.pymysql import PyMySQLDriver
from flask_stability.dburl import DatabaseURL
from flask_stability.exceptions import DatabaseUnavailable
from support_db import MariaDB


def _url(mariadb: MariaDB, query: str = "") -> str:
    return mariadb.url.replace("mysql:", "mysql+pymysql:") + query


@pytest.mark.parametrize("scheme", ["mysql+pymysql", "mariadb+pymysql", "MySQL+PyMySQL"])
def test_the_address_names_the_driver(scheme: str) -> None:
    """And mysql:// stays mysqlclient's."""
    assert DatabaseURL.parse(f"{scheme}://u:p@db/shop").driver == "pymysql"
    assert isinstance(make_driver(Settings(db_url=f"{scheme.lower()}://u:p@db/shop"), "", "app"), PyMySQLDriver)
    assert not isinstance(make_driver(Settings(db_url="mysql://u:p@db/shop"), "", "app"), PyMySQLDriver)


@pytest.mark.parametrize("option", ["auth_plugin=x", "compress=1"])
def test_an_option_that_it_lacks_is_refused_at_start(option: str) -> None:
    """With its name, instead of being dropped or failing at the first connect."""
    with pytest.raises(ValueError, match=f"option {option.partition('=')[0]} is not known to PyMySQL"):
        DatabaseURL.parse(f"mysql+pymysql://u:p@db/shop?{option}")


def test_a_password_beyond_latin_1(mariadb: MariaDB) -> None:
    """PyMySQL alone could not send it."""
    mariadb.admin("CREATE USER wide@'%' IDENTIFIED BY 'pässwört…密码'")
    mariadb.admin("GRANT ALL ON app.* TO wide@'%'")
    try:
        address = f"mysql+pymysql://wide:pässwört…密码@127.0.0.1:{mariadb.port}/app"
        with contextlib.closing(make_driver(Settings(db_url=address), "", "app").connect()) as raw:
            raw.change_user("wide", "pässwört…密码", "app")
    finally:
        mariadb.admin("DROP USER wide@'%'")


def test_a_session_begins_from_the_start_for_the_next(mariadb: MariaDB) -> None:
    """Variables, locks, temporary tables, character set, autocommit: on the same connection, none is left."""
    pool = Pool(Settings(db_url=_url(mariadb), db_reset_on_return="session"))
    ask = "SELECT CONNECTION_ID(), @kept, @@autocommit, @@character_set_client, IS_FREE_LOCK('held'), @@sql_mode"
    with contextlib.closing(pool):
        with pool.connection() as connection:
            first = connection.execute(ask).fetchone()
            for sql in ("SET @kept=1, autocommit=0, sql_mode=''", "SET NAMES latin1", "SELECT GET_LOCK('held', 1)",
                        "CREATE TEMPORARY TABLE kept (a INT)"):
                connection.execute(sql)
        with pool.connection() as connection:
            assert connection.execute(ask).fetchone() == first
            with pytest.raises(pymysql.ProgrammingError):
                connection.execute("SELECT * FROM kept")
        assert pool.stats()["returns_bad"] == 0


class _Server:
    """Answers a client's greeting by asking for the password in clear, in a protocol without TLS."""

    def __init__(self, plugin: bytes) -> None:
        self.got = b""
        self._plugin = plugin
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as link:
            link.settimeout(30)
            capabilities = (0x0008A20D).to_bytes(4, "little")  # 4.1, secure connection, plugins; no TLS
            greeting = b"\n11.0.0\0" + bytes(4) + b"saltsalt\0" + capabilities[:2] + b"\x2d" + bytes(2) + \
                capabilities[2:] + b"\x15" + bytes(10) + b"saltsaltsalt\0mysql_native_password\0"
            link.sendall(len(greeting).to_bytes(3, "little") + b"\0" + greeting)
            link.recv(65536)
            switch = b"\xfe" + self._plugin + b"\0" + b"\x05Password: "
            link.sendall(len(switch).to_bytes(3, "little") + b"\x02" + switch)
            with contextlib.suppress(OSError):
                self.got = link.recv(65536)

    def end(self) -> bytes:
        """What came in answer to the question."""
        self._thread.join(30)
        return self.got


@pytest.mark.parametrize("plugin", [b"mysql_clear_password", b"dialog"])
def test_no_server_gets_the_password_in_clear(plugin: bytes) -> None:
    """Whoever pretends to be the server may ask for it."""
    server = _Server(plugin)
    driver = make_driver(Settings(db_url=f"mysql+pymysql://app:hunter2@127.0.0.1:{server.port}/app"), "", "app")
    with pytest.raises(pymysql.OperationalError, match="password in clear") as caught:
        driver.connect()
    assert "TLS" in driver.remedy(caught.value)
    assert b"hunter2" not in server.end()


def test_a_server_that_accepts_and_says_nothing_is_left_in_time() -> None:
    """Also without a limit for statements: PyMySQL alone would wait for the handshake for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"mysql+pymysql://app:x@127.0.0.1:{listener.getsockname()[1]}/app"
        pool = Pool(Settings(db_url=address, db_query_timeout=0.0, db_connect_timeout=1.0, db_timeout=20.0))
        with contextlib.closing(pool), pytest.raises(DatabaseUnavailable):
            pool.connection()


def test_a_plain_connection_for_tools(mariadb: MariaDB) -> None:
    """As the drill uses it to end the service's connections."""
    settings = Settings(db_url=_url(mariadb))
    link: Any
    with contextlib.closing(connect_plainly(Credentials(settings)(), 30)) as link, link.cursor() as cursor:
        assert isinstance(link, pymysql.connections.Connection)
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == ((1,),)
