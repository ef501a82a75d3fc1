"""A password that changes while the service runs: through .env and a reload, and through SIGUSR2's new master."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from support import Server, wait_until
from support_db import MariaDB

APP = """
import os
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)

@app.get("/")
def index():
    return stability.connection().execute("SELECT USER()").fetchone()[0]

@app.get("/seen/<name>")
def seen(name):
    return os.environ.get(name, "unset")
"""
#: As with ``-c python:flask_stability.server.conf``: a module, which a reload does not execute again.
MODULE = "import flask_stability.server.conf"


@pytest.fixture
def rotating(mariadb: MariaDB) -> Iterator[Callable[[str], None]]:
    """Give the app's user another password, and end what is open."""
    def change(password: str) -> None:
        mariadb.admin(f"ALTER USER app@'%' IDENTIFIED BY '{password}'")
        mariadb.kill_sessions()

    yield change
    mariadb.admin(f"ALTER USER app@'%' IDENTIFIED BY '{mariadb.password}'")


def dotenv(folder: Path, server: MariaDB, password: str, more: str = "") -> None:
    """Write the service's .env."""
    folder.mkdir(exist_ok=True)
    (folder / ".env").write_text(f"STABILITY_DB_URL=mysql://app:{password}@127.0.0.1:{server.port}/app\n{more}\n")


@pytest.mark.long
def test_a_new_password_in_dotenv_arrives(tmp_path: Path, mariadb: MariaDB, rotating: Callable[[str], None]) -> None:
    """After SIGHUP, also where the configuration is a module; what left the file is gone; a slip changes nothing."""
    folder = tmp_path / "service"
    dotenv(folder, mariadb, "secret", "FS_GONE=1")
    with Server(folder, source=APP, config=MODULE) as one:
        assert one.get("/").text.startswith("app@")
        assert one.get("/seen/FS_GONE").text == "1"
        rotating("second")
        assert one.get("/").status_code == 503
        (folder / ".env").write_text("= a slip\n")
        before = {worker.pid for worker in one.workers()}
        os.kill(one.pid, signal.SIGHUP)
        wait_until(lambda: before.isdisjoint(worker.pid for worker in one.workers()), 60)
        assert "line 1" in one.logs()
        dotenv(folder, mariadb, "second")
        os.kill(one.pid, signal.SIGHUP)
        wait_until(lambda: one.get("/").text.startswith("app@"), 60, message="the new password is used")
        wait_until(lambda: one.get("/seen/FS_GONE").text == "unset", 60)


@pytest.mark.long
def test_the_new_master_of_an_upgrade_reads_dotenv_anew(tmp_path: Path, mariadb: MariaDB,
                                                        rotating: Callable[[str], None]) -> None:
    """SIGUSR2, after a reload has put the old value into what gunicorn hands on."""
    folder = tmp_path / "service"
    dotenv(folder, mariadb, "secret")
    with Server(folder, source=APP, config=MODULE) as one:
        before = {worker.pid for worker in one.workers()}
        os.kill(one.pid, signal.SIGHUP)
        wait_until(lambda: before.isdisjoint(worker.pid for worker in one.workers()), 60)
        rotating("third")
        dotenv(folder, mariadb, "third")
        os.kill(one.pid, signal.SIGUSR2)

        def successor() -> psutil.Process | None:
            return next((child for child in psutil.Process(one.pid).children() if child.children()), None)

        new = wait_until(successor, 60, message="the new master has workers")
        try:
            wait_until(lambda: any(one.get("/").text.startswith("app@") for _ in range(5)), 60)
        finally:
            new.terminate()
            new.wait(30)
