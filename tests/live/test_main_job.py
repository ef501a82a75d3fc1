"""The main job: the sample app under gunicorn on a real database, and ``/health`` telling of it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import ROOT, Server, free_port, wait_until
from support_db import MariaDB

Start = Callable[..., Server]
ORDER = {"sku": "A-1", "quantity": 2, "customer": "Ada"}


def _orders_work(server: Server) -> None:
    before = {item["sku"]: item["quantity"] for item in server.get("/stock").json()["stock"]}
    placed = server.request("POST", "/orders", json=ORDER)
    assert placed.status_code == 201, placed.text
    assert server.get(placed.headers["Location"]).json()["customer"] == "Ada"
    assert placed.json()["id"] in [order["id"] for order in server.get("/orders").json()["orders"]]

    def taken() -> int:
        after = {item["sku"]: item["quantity"] for item in server.get("/stock").json()["stock"]}
        return int(before["A-1"] - after["A-1"])

    wait_until(lambda: taken() == 2, message="the stock's answer is made anew")
    assert server.request("POST", "/orders", json={**ORDER, "sku": "no-such"}).status_code == 409
    assert server.get("/orders/none").status_code == 404
    bad = server.request("POST", "/orders", json={"sku": "A-1", "quantity": 0})
    assert bad.status_code == 400
    assert "quantity: give" in bad.json()["error"]
    assert "customer: give" in bad.json()["error"]


def _health_tells(server: Server, kind: str) -> None:
    def ready() -> dict[str, Any] | None:
        assert server.get("/orders").status_code == 200  # the leader checks the database once it was asked for there
        found = server.health()
        database = found["detailed"]["database"]
        states = {worker["state"] for worker in found["detailed"]["workers"]}
        pids = sorted(worker["pid"] for worker in found["detailed"]["workers"])
        done = "latency_ms" in database and database["pool"]["requests"] and database["status"] == "pass"
        return found if done and states == {"ready"} and pids == sorted(server.worker_pids()) else None

    document = wait_until(ready, message="the database check has run")
    assert document["status"] != "fail", document["notes"]  # a busy machine may answer slowly, which warns
    detailed = document["detailed"]
    assert detailed["memory"]["rss_bytes"] > 10**7
    assert detailed["database"]["kind"] == kind
    assert detailed["database"]["pool"]["requests"] > 0
    assert server.get("/health").headers["Content-Type"] == "application/health+json"


def test_orders_on_sqlite(server: Start, worker_class: str) -> None:
    """Without a database server: written, read back, taken from the stock, told by /health."""
    one = server(app="sample_app:create_app()", worker_class=worker_class)
    _orders_work(one)
    _health_tells(one, "sqlite")


@pytest.mark.lowest
def test_orders_on_mariadb(server: Start, worker_class: str, mariadb: MariaDB) -> None:
    """The same statements on a real MariaDB."""
    one = server(app="sample_app:create_app()", worker_class=worker_class,
                 env={"STABILITY_DB_FROM_ENV": "on", **mariadb.env})
    _orders_work(one)
    _health_tells(one, "mysql")


@pytest.mark.long
def test_an_unreachable_database_is_told_and_heals(server: Start, mariadb: MariaDB) -> None:
    """The service starts without it, answers what needs none, says so, and goes on by itself once it is there."""
    mariadb.stop()
    one = server(app="sample_app:create_app()", env={"STABILITY_DB_FROM_ENV": "on", **mariadb.env})
    assert one.get("/").status_code == 200
    refused = one.get("/orders")
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    wait_until(lambda: "start the server, or correct host and port" in str(one.records("error")))
    wait_until(lambda: one.get("/health").status_code == 503, 60, message="/health says that it fails")
    assert one.get("/health/live").status_code == 200
    mariadb.start()
    wait_until(lambda: one.get("/orders").status_code == 200, 60, message="orders are served again")
    wait_until(lambda: one.get("/health").status_code == 200, 60, message="/health passes again")


@pytest.mark.parametrize(("path", "remedy"), [("file/orders.db", "let the service's user write there"),
                                              ("folder", "give the service's user write access to")])
def test_a_sqlite_file_that_cannot_be_opened_is_one_clear_error(server: Start, tmp_path: Path, path: str,
                                                                remedy: str) -> None:
    """503 for the client, the remedy in the log, a word in /health, and the rest of the service serves."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    one = server(app="sample_app:create_app()", workers=1, env={"STABILITY_DB_URL": f"sqlite:///{tmp_path}/{path}"})
    assert one.get("/orders").status_code == 503
    assert one.get("/").status_code == 200
    wait_until(lambda: remedy in str(one.records("error", "database_unavailable")))
    wait_until(lambda: one.health()["detailed"]["database"]["status"] in ("warn", "fail"), message="told by /health")


def _start_and_fail(tmp_path: Path, env: dict[str, str], *arguments: str) -> str:
    """Output of a start that has to fail."""
    folder = tmp_path / "start"
    folder.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), *arguments],
                          cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "SERVER_HOST": "127.0.0.1", **env},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_bad_settings_are_reported_together_before_the_server_listens(tmp_path: Path) -> None:
    """One line each, naming key, value and remedy."""
    output = _start_and_fail(tmp_path, {"SERVER_PORT": str(free_port()), "STABILITY_MEMORY_LIMIT": "much",
                                        "STABILITY_DB_TIMEOUT": "soon", "STABILITY_DB_MAX_SISE": "3"})
    assert "STABILITY_MEMORY_LIMIT='much': give bytes or a size such as 256M" in output
    assert "STABILITY_DB_TIMEOUT='soon': give a number" in output
    assert "STABILITY_DB_MAX_SISE is no setting: did you mean STABILITY_DB_MAX_SIZE?" in output
    assert "Traceback" not in output
    assert "Listening at" not in output


@pytest.mark.parametrize("config", [str(ROOT / "gunicorn.conf.py"), "python:flask_stability.server.conf"])
def test_a_port_that_is_none_is_one_clear_line(tmp_path: Path, config: str) -> None:
    """In the sample's configuration and in the one that comes with the package."""
    for port in ("99999", "web"):
        output = _start_and_fail(tmp_path, {"SERVER_PORT": port}, "-c", config)
        assert f"SERVER_PORT='{port}': give a port between 1 and 65535" in output
        assert "Traceback" not in output


def test_a_broken_dotenv_file_names_the_line(tmp_path: Path) -> None:
    """And nothing of it is used."""
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / ".env").write_text("SERVER_PORT=3007\n= nonsense\n")
    output = _start_and_fail(tmp_path, {})
    assert ".env, line 2: not of the form NAME=value" in output
    assert "Traceback" not in output


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """Who has it, and the setting that chooses another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        output = _start_and_fail(tmp_path, {"SERVER_PORT": str(taken.getsockname()[1])})
    lines = [line for line in output.splitlines() if "in use" in line.lower() or "Retrying" in line]
    assert len(lines) == 1, output
    assert re.search(r" is in use by \S+, process \d+: end it, or choose another port \(SERVER_PORT, ", lines[0])
