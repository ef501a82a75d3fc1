"""Passwords that change while a service runs: from files and from a function, asked for each new connection."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_stability import StabilityExt
from flask_stability.config import Settings
from flask_stability.database.pool import Pool
from flask_stability.exceptions import ConfigError, DatabaseUnavailable
from support_db import MariaDB

MakePool = Callable[..., Pool]


@pytest.fixture
def rotate(mariadb: MariaDB) -> Iterator[Callable[[str], None]]:
    """Give the app's user another password; sessions that are open stay."""
    def change(password: str) -> None:
        mariadb.admin(f"ALTER USER app@'%' IDENTIFIED BY '{password}'")

    yield change
    change(mariadb.password)


def use(pool: Pool) -> None:
    """One statement on a connection, which is cleared afterwards: that logs in again."""
    with pool.connection() as connection:
        connection.execute("SET @a = 1")


def write(path: Path, text: str) -> None:
    """As those who rotate do: the new file takes the place of the old one."""
    (path.parent / "new").write_text(text)
    os.replace(path.parent / "new", path)


@pytest.mark.parametrize("kind", ["url", "password", "parts"])
def test_a_file_is_read_again_for_each_connect(mariadb: MariaDB, tmp_path: Path, rotate: Callable[[str], None],
                                               kind: str) -> None:
    """A pool that was refused goes on as soon as the file has the new password."""
    address = f"mysql://app:{{}}@127.0.0.1:{mariadb.port}/app"
    text = address if kind == "url" else "{}"
    path = tmp_path / "secret"
    write(path, text.format("secret") + "\n")
    settings = Settings.load({}, {
        "url": {"STABILITY_DB_URL_FILE": str(path)},
        "password": {"STABILITY_DB_PASSWORD_FILE": str(path), "STABILITY_DB_URL": address.replace(":{}", "")},
        "parts": {"STABILITY_DB_FROM_ENV": "on", "DB_HOST": "127.0.0.1", "DB_PORT": str(mariadb.port),
                  "DB_USER": "app", "DB_NAME": "app", "DB_PASSWORD_FILE": str(path)}}[kind])
    assert "secret@" not in repr(settings)
    with contextlib.closing(Pool(settings)) as pool:
        use(pool)
        rotate("n/w:p@ss")
        with pytest.raises(DatabaseUnavailable, match="1045"):
            for _ in range(2):  # the session that is open may serve once more
                use(pool)
        write(path, text.format("n/w:p@ss"))
        use(pool)
        path.unlink()  # what was read last is still good
        use(pool)


@pytest.mark.parametrize("form", [lambda user, word: word, lambda user, word: (user, word),
                                  lambda user, word: {"user": user, "password": word}])
def test_a_function_gives_passwords_that_expire(mariadb: MariaDB, rotate: Callable[[str], None],
                                                form: Callable[[str, str], Any]) -> None:
    """The password alone, or with the user; one that fails leaves what it gave last."""
    words = ["secret"]

    def credentials() -> Any:
        return form("app", words[-1])

    app = Flask("shop")
    app.config["STABILITY_DB_URL"] = f"mysql://app@127.0.0.1:{mariadb.port}/app"
    stability = StabilityExt(app, credentials=credentials)
    with app.app_context(), contextlib.closing(stability.pool) as pool:
        use(pool)
        rotate("second")
        words.append("second")
        use(pool)
        use(pool)
        words.clear()
        for entry in list(pool.inventory.records):
            entry.expires = 0.0
        use(pool)


def test_a_function_that_never_gave_any_is_a_clear_error(mariadb: MariaDB) -> None:
    """Without its message, which may hold a secret."""
    def credentials() -> str:
        raise RuntimeError("hunter2")

    with contextlib.closing(Pool(Settings(db_url=f"mysql://app@127.0.0.1:{mariadb.port}/app"),
                                 credentials=credentials)) as pool:
        with pytest.raises(DatabaseUnavailable, match="RuntimeError") as caught:
            pool.connection()
        assert "hunter2" not in str(caught.value)


def test_a_function_without_an_address_is_refused_at_start() -> None:
    """SQLite takes no password."""
    with pytest.raises(ConfigError, match="STABILITY_DB_URL"):
        StabilityExt(Flask("shop"), credentials=lambda: "secret")


@pytest.mark.parametrize(("environ", "named"), [
    ({"STABILITY_DB_URL_FILE": "/nowhere/url"}, "STABILITY_DB_URL_FILE='/nowhere/url' cannot be read"),
    ({"STABILITY_HEALTH_TOKEN_FILE": "/dev/null"}, "STABILITY_HEALTH_TOKEN_FILE='/dev/null' has to hold one line"),
    ({"STABILITY_HEALTH_TOKEN_FILE": "/x", "STABILITY_HEALTH_TOKEN": "hunter2hunter2"}, "both set"),
    ({"STABILITY_DB_PASSWORD_FILE": "/x"}, "without an address"),
    ({"STABILITY_DB_PASSWORD_FILE": "/x", "STABILITY_DB_URL": "mysql://a:hunter2@h/d"}, "the address has a password")])
def test_a_bad_file_is_found_at_start(environ: dict[str, str], named: str) -> None:
    """Named with what is wrong, without what it holds."""
    with pytest.raises(ConfigError) as caught:
        Settings.load({}, environ)
    assert named in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_every_secret_may_come_from_a_file(tmp_path: Path) -> None:
    """And a bad one in it is not shown."""
    token, webhook = tmp_path / "token", tmp_path / "webhook"
    token.write_text("a-long-token\n")
    webhook.write_text("https://hooks.example/hunter2")
    settings = Settings.load({"STABILITY_HEALTH_TOKEN_FILE": str(token)},
                             {"STABILITY_ALERT_WEBHOOK_FILE": str(webhook)})
    assert (settings.health_token, settings.alert_webhook) == ("a-long-token", "https://hooks.example/hunter2")
    assert settings.health_details == "token"
    webhook.write_text("hunter2")
    with pytest.raises(ConfigError) as caught:
        Settings.load({}, {"STABILITY_ALERT_WEBHOOK_FILE": str(webhook)})
    assert "hunter2" not in str(caught.value)
