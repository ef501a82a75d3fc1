"""The address of a database: taken right, or refused with a remedy; no part of it is lost, and no secret is shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stability.config import Settings
from flask_stability.config_types import database_url
from flask_stability.dburl import DatabaseURL
from flask_stability.exceptions import ConfigError

_LETTERS = "aZ0-._~!$&'()*+,;= /:@?#%：／＠\\\"<>é密"


@pytest.mark.parametrize("password", ["p/w", "p:w", "p@w", "p@@:w", "a%2Fb%25", "密码", "a&b=c", "", "[x]"])
def test_a_password_is_taken_whole(password: str) -> None:
    """Whatever of these characters stands in it, host and database are the ones meant."""
    found = DatabaseURL.parse(f"mysql://app:{password}@db:3307/shop")
    assert (found.user, found.host, found.port, found.name) == ("app", "db", 3307, "shop")
    assert found.password == password.replace("%2F", "/").replace("%25", "%")


@pytest.mark.parametrize(("password", "remedy"), [
    ("p#w", "%23"), ("50%", "%25"), ("50%zz", "%25"), ("p?w", "%3F"), ("p@x/y", "%40"), ("p w", "%20"), ("p\tw", "%20"),
    ("p：w", "full-width"), ("p／w", "full-width")])
def test_what_can_be_read_in_two_ways_is_refused(password: str, remedy: str) -> None:
    """With what to write instead, and without the password."""
    with pytest.raises(ValueError, match=remedy) as caught:
        database_url(f"mysql://app:hunter2{password}@db/shop")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", [
    "mysql://app:hunter2@db", "mysql://app:hunter2@db/", "mysql://app:hunter2@/shop", "mysql://app:hunter2@db:0/shop",
    "mysql://app:hunter2@db:65536/shop", "mysql://app:hunter2@db/shop/more", "mysql://app:hunter2@db：3306/shop",
    "mysql://app：hunter2@db/shop", "mysql:/app:hunter2@db/shop", "postgres://app:hunter2@db/shop", "hunter2",
    "mysql+oursql://app:hunter2@db/shop", "mysql://app:hunter2@db/shop?ssl_mode", "mysql://app:hunter2@db/%ff",
    "mysql://app:hunter2@[::1/shop", "mysql://app:hunter2@db/shop?ssl_mode=hunter2", "sqlite:///a?password=hunter2",
    "mysql://app:hunter2/3@db@x/y/z", "sqlite:///a#b"])
def test_no_secret_is_in_an_error(url: str) -> None:
    """Nor is anything silently dropped."""
    with pytest.raises(ConfigError) as caught:
        Settings.load({}, {"STABILITY_DB_URL": url})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.__cause__) + repr(caught.value.__context__)


@given(st.text(_LETTERS, max_size=12), st.text(_LETTERS, max_size=12))
def test_a_mutated_address_is_whole_or_refused(password: str, rest: str) -> None:
    """Property: the password is what stood there, or there is an error without it."""
    secret = "hunter2" + password
    refused = ""
    try:
        found = DatabaseURL.parse(f"mysql://app:{secret}@db/shop{rest}")
    except ValueError as error:
        refused = str(error)
    assert "hunter2" not in refused
    if refused:
        return
    assert "hunter2" not in found.describe() + repr(found)
    assert found.password.startswith("hunter2")
    assert "hunter2" not in found.user + found.host + found.name


@pytest.mark.parametrize(("query", "mode"), [
    ("", ""), ("ssl_mode=REQUIRED", "REQUIRED"), ("ssl-mode=verify_identity", "VERIFY_IDENTITY"),
    ("ssl=true", "REQUIRED"), ("ssl=0", "DISABLED"), ("ssl_ca=/ca.pem", "VERIFY_CA"),
    ("ssl_cert=/c.pem&ssl_key=/k.pem", "REQUIRED"), ("ssl_mode=REQUIRED&ssl_ca=/ca.pem", "REQUIRED"),
    ("ssl_ca=/ca.pem&ssl_verify_identity=1", "VERIFY_IDENTITY")])
def test_tls_as_the_field_writes_it(query: str, mode: str) -> None:
    """Under the names of mysqlclient, SQLAlchemy and MySQL's own addresses; a file that was named is used."""
    found = DatabaseURL.parse(f"mysql://app@db/shop?{query}").arguments()
    assert found.get("ssl_mode", "") == mode
    assert ("ca" in found.get("ssl", {})) == ("ssl_ca" in query)


@pytest.mark.parametrize(("query", "named"), [
    ("ssl_mod=REQUIRED", "ssl_mod is unknown: did you mean ssl_mode"), ("useSSL=true", "ssl_mode=REQUIRED"),
    ("connect_timeout=3", "STABILITY_DB_CONNECT_TIMEOUT"), ("multi_statements=1", "multi_statements"),
    ("local_infile=perhaps", "local_infile: give 1 or 0"), ("ssl_mode=ON", "ssl_mode: give one of"),
    ("ssl_cert=/c.pem", "belong together"), ("ssl_mode=DISABLED&ssl_ca=/x", "switched off"),
    ("ssl_mode=REQUIRED&ssl_verify_identity=1", "contradicts"), ("charset=latin1&charset=utf8", "charset stands")])
def test_an_option_that_cannot_be_followed_is_named(query: str, named: str) -> None:
    """Unknown, contradictory or bad ones: with what to do."""
    with pytest.raises(ConfigError) as caught:
        Settings.load({}, {"STABILITY_DB_URL": f"mysql://app@db/shop?{query}"})
    assert named in str(caught.value)


def test_a_certificate_that_cannot_be_read_is_found_at_start() -> None:
    """Not by the first request."""
    with pytest.raises(ConfigError, match="ssl_ca: /nowhere/ca"):
        Settings.load({}, {"STABILITY_DB_URL": "mysql://app@db/shop?ssl_ca=/nowhere/ca.pem"})


def test_arguments_for_the_driver() -> None:
    """Options reach it; local files are not read unless that is asked for."""
    found = DatabaseURL.parse("mariadb://app@/shop?unix_socket=/run/s.sock&charset=utf8mb3&sql_mode=ANSI&local_infile=1"
                              "&init_command=SET%20time_zone='%2B00:00'")
    given: dict[str, Any] = found.arguments()
    assert not {"host", "port", "init_command"} & set(given)
    assert found.init_command == "SET time_zone='+00:00'"
    assert (given["unix_socket"], given["charset"], given["local_infile"]) == ("/run/s.sock", "utf8mb3", 1)
    assert DatabaseURL.parse("mysql://app@db/shop").arguments()["local_infile"] == 0


def test_localhost_with_a_port_is_tcp() -> None:
    """The client library takes the name for its default socket, which may be another server's."""
    def host(url: str) -> str:
        return str(DatabaseURL.parse(url).arguments()["host"])

    assert host("mysql://app@localhost:3307/shop") == "127.0.0.1"
    assert host("mysql://app@localhost/shop") == "localhost"
    assert host("mysql://app@localhost:3307/shop?ssl_mode=VERIFY_IDENTITY") == "LOCALHOST"


def test_options_beside_separate_variables() -> None:
    """DB_OPTIONS; a bad one is named."""
    parts = {"STABILITY_DB_FROM_ENV": "on", "DB_HOST": "localhost", "DB_NAME": "shop",
             "DB_OPTIONS": "ssl_mode=REQUIRED"}
    assert Settings.load({}, parts).db_url == "mysql://@localhost/shop?ssl_mode=REQUIRED"
    assert Settings.load({}, {**parts, "DB_PORT": "3307"}).db_url == "mysql://@localhost:3307/shop?ssl_mode=REQUIRED"
    with pytest.raises(ConfigError, match="DB_OPTIONS: option sslmod is unknown"):
        Settings.load({}, {**parts, "DB_OPTIONS": "sslmod=1"})
