"""``flask stability check-db``: each finding with its remedy."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from flask_stability.config import Settings
from flask_stability.operate.cli import stability
from flask_stability.operate.database_checks import check_db
from flask_stability.operate.finding import status_of
from support import ROOT, free_port
from support_db import MariaDB


def _statuses(settings: Settings, **options: int) -> dict[str, str]:
    return {finding.name: finding.status for finding in check_db(settings, **options)}


def test_a_good_mariadb(mariadb: MariaDB) -> None:
    """Everything is looked at, and nothing fails."""
    found = _statuses(replace(Settings(), db_url=mariadb.url, db_max_size=5), workers=2)
    assert set(found) == {"reachable", "version", "latency", "max_connections", "wait_timeout", "character set",
                          "privileges"}
    assert found["reachable"] == found["max_connections"] == found["wait_timeout"] == "ok"


def test_more_workers_than_the_server_has_connections_for(mariadb: MariaDB) -> None:
    """With the size that would fit."""
    found = check_db(replace(Settings(), db_url=mariadb.url, db_max_size=100), workers=20)
    finding = next(finding for finding in found if finding.name == "max_connections")
    assert finding.status == "warn"
    assert "STABILITY_DB_MAX_SIZE" in finding.remedy
    assert status_of(found) == 1


@pytest.mark.parametrize("what", ["password", "name", "port"])
def test_what_refuses_is_named_with_its_remedy_and_without_the_password(what: str, mariadb: MariaDB) -> None:
    """Credentials, schema, port."""
    url = {"password": mariadb.url.replace("secret", "hunter2"), "name": mariadb.url.replace("/app", "/none"),
           "port": mariadb.url.replace(f":{mariadb.port}", f":{free_port()}")}[what]
    found = check_db(replace(Settings(), db_url=url, db_connect_timeout=30.0))
    assert [finding.status for finding in found] == ["fail"]
    assert found[0].remedy
    assert "hunter2" not in str(found)
    assert status_of(found) == 2


def _command(monkeypatch: pytest.MonkeyPatch, url: str, **env: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit status and findings by name of ``flask stability check-db --json``."""
    for name, value in {"STABILITY_DB_URL": url, "STABILITY_DB_CONNECT_TIMEOUT": "30", **env}.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(stability, ["check-db", "--json", "--workers", "2"])
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert all(finding["remedy"] for finding in found.values() if finding["status"] != "ok")
    assert "secret" not in done.output
    return done.exit_code, found


def test_exit_status_0_when_all_is_well(mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against a server that is set up for it."""
    monkeypatch.chdir(tmp_path)
    mariadb.admin("ALTER DATABASE app CHARACTER SET utf8mb4")
    status, found = _command(monkeypatch, mariadb.url)
    assert status == 0, found
    assert "20 round trips" in found["latency"]["detail"]
    assert "MariaDB" in found["version"]["detail"]


@pytest.mark.parametrize(("change", "undo", "finding", "remedy"), [
    ("SET GLOBAL wait_timeout = 60", "SET GLOBAL wait_timeout = 28800", "wait_timeout", "STABILITY_DB_IDLE_TIMEOUT"),
    ("SET GLOBAL max_connections = 20", "SET GLOBAL max_connections = 300", "max_connections",
     "STABILITY_DB_MAX_SIZE to 4"),
    ("ALTER DATABASE app CHARACTER SET latin1", "ALTER DATABASE app CHARACTER SET utf8mb4", "character set",
     "CHARACTER SET utf8mb4")])
def test_exit_status_1_for_what_will_hurt_later(mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                change: str, undo: str, finding: str, remedy: str) -> None:
    """One setting of the server that does not fit the pool's: that finding alone, with what to do."""
    monkeypatch.chdir(tmp_path)
    mariadb.admin("ALTER DATABASE app CHARACTER SET utf8mb4")
    mariadb.admin(change)
    try:
        status, found = _command(monkeypatch, mariadb.url)
    finally:
        mariadb.admin(undo)
    assert status == 1
    assert [name for name, one in found.items() if one["status"] != "ok"] == [finding]
    assert remedy in found[finding]["remedy"]


@pytest.mark.parametrize("what", ["wrong password", "missing schema", "foreign schema", "stopped server"])
def test_exit_status_2_for_what_does_not_work(mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                              what: str) -> None:
    """A server that refuses, or is not there."""
    monkeypatch.chdir(tmp_path)
    url = mariadb.url
    if what == "wrong password":
        url = url.replace("secret", "wrong")
    elif what == "missing schema":
        mariadb.admin("GRANT ALL ON missing.* TO app@'%'")
        url = url.replace("/app", "/missing").replace("//missing", "//app")
    elif what == "foreign schema":
        url = url.replace("/app", "/mysql").replace("//mysql", "//app")
    else:
        mariadb.stop()
    status, found = _command(monkeypatch, url)
    assert status == 2
    assert list(found) == ["reachable" if what == "stopped server" else "credentials"]


def test_whom_the_user_may_kill(mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a privilege his own connections, which is enough; with one everybody's."""
    monkeypatch.chdir(tmp_path)
    assert "its own" in _command(monkeypatch, mariadb.url)[1]["privileges"]["detail"]
    mariadb.admin("GRANT CONNECTION ADMIN ON *.* TO app@'%'")
    try:
        assert "all users" in _command(monkeypatch, mariadb.url)[1]["privileges"]["detail"]
    finally:
        mariadb.admin("REVOKE CONNECTION ADMIN ON *.* FROM app@'%'")


def test_a_frozen_server_is_told_within_the_connect_timeout(mariadb: MariaDB) -> None:
    """It accepts and does not answer; nobody waits for ever."""
    mariadb.freeze()
    found = check_db(replace(Settings(), db_url=mariadb.url, db_connect_timeout=1.0))
    assert [finding.status for finding in found] == ["fail"]
    assert "frozen" in found[0].remedy


def _make_sqlite(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def test_sqlite_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server, in JSON, with an exit status."""
    monkeypatch.chdir(tmp_path)
    for name in ("DB_HOST", "STABILITY_DB_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STABILITY_DB_URL", f"sqlite:///{tmp_path}/x.db")
    done = CliRunner().invoke(stability, ["check-db"])
    assert done.exit_code == 0, done.output
    assert "not there yet" in done.output
    assert list(tmp_path.iterdir()) == []  # looking makes nothing
    done = CliRunner().invoke(stability, ["check-db", "--json"])
    assert (done.exit_code, [finding["name"] for finding in json.loads(done.output)]) == (0, ["reachable"])
    assert not (tmp_path / "x.db").exists(), "it would belong to who checks, not to the service"
    _make_sqlite(tmp_path / "x.db")
    done = CliRunner().invoke(stability, ["check-db", "--json"])
    assert done.exit_code == 0, done.output
    assert {finding["name"] for finding in json.loads(done.output)} >= {"reachable", "latency", "journal mode"}
    monkeypatch.setenv("STABILITY_DB_URL", f"sqlite:///{tmp_path}/x.db/below/x.db")
    assert CliRunner().invoke(stability, ["check-db"]).exit_code == 2
    monkeypatch.setenv("STABILITY_DB_URL", "oracle://x")
    assert CliRunner().invoke(stability, ["check-db"]).exit_code == 2


def test_the_command_looks_at_the_app_s_own_database(tmp_path: Path) -> None:
    """The one that its configuration names; a broken app is told of, and the environment's is looked at."""
    (tmp_path / "good.py").write_text(
        "from flask import Flask\nfrom flask_stability import StabilityExt\napp = Flask('good')\n"
        f"app.config['STABILITY_DB_URL'] = 'sqlite:///{tmp_path}/of-the-app.db'\nStabilityExt(app)\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')\n")

    def run(app: str, **env: str) -> tuple[int, list[dict[str, str]]]:
        done = subprocess.run([sys.executable, "-m", "flask", "--app", app, "stability", "check-db", "--json"],
                              cwd=tmp_path, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env},
                              capture_output=True, text=True, timeout=60)
        return done.returncode, json.loads(done.stdout)

    _make_sqlite(tmp_path / "of-the-app.db")
    status, findings = run("good")
    assert status == 0
    assert findings[0]["detail"].endswith("of-the-app.db")
    assert run("none")[0] == 1
    _make_sqlite(tmp_path / "x.db")
    status, findings = run("broken", STABILITY_DB_URL=f"sqlite:///{tmp_path}/x.db")
    assert status == 1
    assert [finding["name"] for finding in findings[:2]] == ["app", "reachable"]


ENGINES = """
from flask import Flask
from flask_stability import StabilityExt
from sqlalchemy import create_engine
app = Flask("engines")
stability = StabilityExt(app)
stability.register_engine(create_engine("sqlite:////proc/none/x.db"), "reports")
stability.register_engine(create_engine("sqlite://"), "cache")
"""

UNCUT = """
import types
from flask import Flask
from flask_stability import StabilityExt
from flask_stability.sqlalchemy import StabilityPool
from sqlalchemy import create_engine
app = Flask("uncut")
stability = StabilityExt(app)
silent = types.ModuleType("pg8000")
silent.paramstyle, silent.version, silent.Error = "format", "1.31.2", Exception
address = "postgresql+pg8000://app:hunter2@127.0.0.1:1/app"
stability.register_engine(create_engine(address, module=silent, poolclass=StabilityPool), "orders")
stability.register_engine(create_engine(address, module=silent), "queue")
stability.register_engine(create_engine("mysql+pymysql://app@127.0.0.1:1/app", poolclass=StabilityPool), "stock")
stability.register_engine(create_engine("sqlite:///notes.db", poolclass=StabilityPool), "notes")
"""


def test_it_names_drivers_whose_calls_cannot_be_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of engines whose pool would do it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uncut.py").write_text(UNCUT)
    done = CliRunner().invoke(stability, ["check-db", "--json", "uncut:app"])
    uncut = [finding for finding in json.loads(done.stdout) if "deadlines" in finding["name"]]
    assert [(finding["name"], finding["status"]) for finding in uncut] == [("engine orders: deadlines", "warn")]
    assert "pg8000 does not tell its socket" in uncut[0]["detail"]
    assert "pymysql" in uncut[0]["remedy"]


def test_it_sees_what_the_service_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database that gunicorn.conf.py sets, registered engines; nothing is made for an app that has none."""
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.py").write_text("from flask import Flask\nfrom flask_stability import StabilityExt\n"
                                       "app = Flask('plain')\nStabilityExt(app)\n")
    (tmp_path / "engines.py").write_text(ENGINES)
    (tmp_path / "gunicorn.conf.py").write_text(
        f"import os\nos.environ['STABILITY_DB_URL'] = 'mysql://app:hunter2@127.0.0.1:{free_port()}/app'\n"
        "workers = 3\nwsgi_app = 'plain:app'\n")
    (tmp_path / "other.py").write_text("wsgi_app = 'plain:app'\n")

    def run(*arguments: str) -> tuple[int, dict[str, dict[str, str]], str]:
        done = CliRunner().invoke(stability, ["check-db", "--json", *arguments])
        return done.exit_code, {finding["name"]: finding for finding in json.loads(done.stdout)}, done.output

    status, found, said = run()
    assert (status, found["reachable"]["status"]) == (2, "fail"), said
    assert "hunter2" not in said
    status, found, said = run("-c", "other.py")
    assert (status, list(found)) == (0, ["database"]), said
    status, found, said = run("-c", "other.py", "engines:app")
    assert status == 2
    assert {name: finding["status"] for name, finding in found.items()} == {"engine reports": "fail",
                                                                           "engine cache": "ok"}
    assert not (tmp_path / "instance").exists()
