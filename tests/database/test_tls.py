"""TLS against a real server, with certificates made here; `localhost`, sockets, and the other options of an address."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_stability.config import Settings
from flask_stability.database.drivers import make_driver
from flask_stability.database.pool import Pool
from flask_stability.dberrors import ErrorClass
from flask_stability.exceptions import DatabaseUnavailable
from flask_stability.operate.database_checks import check_db
from support_db import MariaDB, dbapi

pytestmark = [pytest.mark.long, pytest.mark.pymysql_too]


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


def _authority(folder: Path, name: str) -> None:
    _openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={name}",
             "-keyout", f"{name}.key", "-out", f"{name}.pem")


def _certificate(folder: Path, name: str, names: str) -> None:
    _openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
             "-out", f"{name}.csr")
    (folder / "names").write_text(f"subjectAltName={names}\n")
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
             "-days", "30", "-extfile", "names", "-out", f"{name}.pem")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities; a server's certificate for localhost alone, and a client's."""
    folder = tmp_path_factory.mktemp("certificates")
    _authority(folder, "ca")
    _authority(folder, "stranger")
    _certificate(folder, "server", "DNS:localhost")
    _certificate(folder, "client", "DNS:client")
    return folder


@pytest.fixture(scope="module")
def tls_server(certificates: Path) -> Iterator[MariaDB]:
    """A server with TLS; `strict` must use it, `known` has to show a certificate."""
    found = MariaDB(f"--ssl-ca={certificates}/ca.pem", f"--ssl-cert={certificates}/server.pem",
                    f"--ssl-key={certificates}/server.key")
    for user, demand in (("strict", "SSL"), ("known", "X509")):
        found.admin(f"CREATE USER {user}@'%' IDENTIFIED BY 'secret' REQUIRE {demand}")
        found.admin(f"GRANT ALL ON app.* TO {user}@'%'")
    try:
        yield found
    finally:
        found.destroy()


@pytest.fixture(params=["mysql", "mysql+pymysql"])
def server(tls_server: MariaDB, request: pytest.FixtureRequest) -> MariaDB:
    """That server, with addresses for each driver."""
    tls_server.scheme = request.param
    return tls_server


def url(server: MariaDB, query: str, user: str = "app", host: str = "127.0.0.1") -> str:
    """An address of this server."""
    return f"{server.scheme}://{user}:secret@{host}:{server.port}/app?{query}".removesuffix("?")


def cipher(address: str) -> str:
    """Of the link that this address leads to; "" in clear."""
    driver = make_driver(Settings(db_url=address), "", "app")
    with contextlib.closing(driver.connect()) as raw, contextlib.closing(raw.cursor()) as cursor:
        cursor.execute("SHOW STATUS LIKE 'Ssl_cipher'")
        found: str = cursor.fetchall()[0][1]
        driver.reset(raw)  # logs in again over the same link
        return found


def test_what_the_address_asks_for_is_what_the_link_has(server: MariaDB, certificates: Path) -> None:
    """In clear without a word; encrypted with REQUIRED; the authority checked, and the host's name."""
    assert cipher(url(server, "ssl_mode=DISABLED")) == ""
    assert cipher(url(server, "ssl_mode=REQUIRED"))
    assert cipher(url(server, f"ssl_mode=VERIFY_IDENTITY&ssl_ca={certificates}/ca.pem", host="localhost"))
    assert cipher(url(server, "ssl=true", "strict"))
    both = f"ssl_cert={certificates}/client.pem&ssl_key={certificates}/client.key"
    assert cipher(url(server, both, "known"))


@pytest.mark.parametrize(("host", "query"), [
    ("localhost", "ssl_mode=VERIFY_IDENTITY&ssl_ca={}/stranger.pem"), ("localhost", "ssl_ca={}/stranger.pem"),
    ("127.0.0.1", "ssl_mode=VERIFY_IDENTITY&ssl_ca={}/ca.pem")])
def test_a_server_that_cannot_prove_who_it_is_gets_no_password(server: MariaDB, certificates: Path, host: str,
                                                               query: str) -> None:
    """Another authority, another name: refused at once, with the remedy; it is no database that does not answer."""
    pool = Pool(Settings(db_url=url(server, query.format(certificates), host=host)))
    for _ in range(6):
        with pytest.raises(DatabaseUnavailable, match="certificate or TLS settings") as caught:
            pool.connection()
        assert pool.driver.classify(caught.value.__cause__ or caught.value) is ErrorClass.REFUSED
    assert pool.availability.breaker.state == "closed"
    pool.close()


def test_a_server_without_tls_is_refused_where_tls_is_asked_for(mariadb: MariaDB) -> None:
    """Nothing is sent in clear instead."""
    with pytest.raises(dbapi.OperationalError) as caught:
        cipher(url(mariadb, "ssl_mode=REQUIRED"))
    assert caught.value.args[0] == 2026


@pytest.mark.parametrize("user", ["strict", "known"])
def test_a_user_who_must_use_tls_is_told_so(server: MariaDB, user: str) -> None:
    """The server's words are those of a wrong password."""
    pool = Pool(Settings(db_url=url(server, "", user)))
    with pytest.raises(DatabaseUnavailable, match="ssl_mode=REQUIRED"):
        pool.connection()
    pool.close()


def test_check_db_finds_out_that_tls_is_what_is_missing(server: MariaDB) -> None:
    """It tries; a wrong password stays one."""
    def remedy(address: str) -> str:
        return check_db(Settings(db_url=address))[0].remedy

    assert remedy(url(server, "", "strict")).startswith("this user must use TLS")
    assert remedy(url(server, "", "strict").replace("secret", "wrong")).startswith("correct user and password")


def one(address: str, sql: str) -> Any:
    """What a statement gives on a new session, and again once it was cleared."""
    driver = make_driver(Settings(db_url=address), "", "app")
    found = []
    with contextlib.closing(driver.connect()) as raw, contextlib.closing(raw.cursor()) as cursor:
        for _ in range(2):  # a cleared session is set up again
            cursor.execute(sql)
            found.append(cursor.fetchall()[0])
            driver.reset(raw)
    assert found[0] == found[1]
    return found[0][0]


def test_localhost_with_a_port_is_the_server_on_that_port(mariadb: MariaDB) -> None:
    """And not whoever listens on the client library's default socket."""
    assert one(url(mariadb, "", host="localhost"), "SELECT @@port") == mariadb.port


def test_a_socket_and_the_set_up_of_a_session(mariadb: MariaDB) -> None:
    """unix_socket, charset, sql_mode, init_command."""
    address = (f"mysql://root@/app?unix_socket={mariadb.socket}&charset=latin1&sql_mode=ANSI"
               "&init_command=SET%20time_zone='%2B03:00'")
    asked = "SELECT CONCAT_WS(' ', @@character_set_client, @@time_zone, @@sql_mode LIKE '%%ANSI%%', USER())"
    assert one(address, asked % ()) == "latin1 +03:00 1 root@localhost"


def test_local_files_are_read_only_if_that_is_asked_for(mariadb: MariaDB, tmp_path: Path) -> None:
    """A hostile server could ask for any file."""
    mariadb.admin("CREATE TABLE app.t (a INT)")
    (tmp_path / "rows").write_text("7\n")

    def load(query: str) -> None:
        pool = Pool(Settings(db_url=url(mariadb, query)))
        with contextlib.closing(pool), pool.connection() as connection:
            connection.execute(f"LOAD DATA LOCAL INFILE '{tmp_path}/rows' INTO TABLE t")

    with pytest.raises(dbapi.Error) as caught:
        load("")
    assert "local_infile=1" in " ".join(caught.value.__notes__)
    load("local_infile=1")
    assert mariadb.admin("SELECT a FROM app.t") == [(7,)]
