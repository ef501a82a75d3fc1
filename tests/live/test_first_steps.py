"""What a newcomer does that a service should survive, or at least hear of."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support import Server, wait_until

Start = Callable[..., Server]
APP = """
import os, time
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__, instance_path=os.path.abspath("instance"))
stability = StabilityExt(app)
own = app.wsgi_app
app.wsgi_app = lambda environ, start_response: own(environ, start_response)  # a layer of the app's own

@app.get("/")
def index():
    return "here"

@app.get("/fails/<name>")
def fails(name):
    connection = stability.connection()  # never given back
    connection.execute("SELECT 1")
    time.sleep(0.5)
    raise ValueError(name)

@app.get("/out")
def out():
    return str(stability.pool.stats()["pool_in_use"])
"""


def test_gevent_serves_health_and_keeps_requests_apart(server: Start) -> None:
    """gevent patches `threading` after our modules took names from it; greenlets of one thread are still told apart."""
    one = server(source=APP, worker_class="gevent", workers=1)
    assert one.get("/").text == "here"
    wait_until(lambda: one.get("/health").json()["status"] == "pass")
    clients = [threading.Thread(target=one.get, args=(f"/fails/{name}",)) for name in "abc"]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    records = one.records("error", "exception")
    assert {(record["path"], record["exception"][0]["message"]) for record in records} == {
        (f"/fails/{name}", name) for name in "abc"}
    assert len({record["request_id"] for record in records}) == 3
    wait_until(lambda: one.get("/out").text == "0", message="all were given back, the last after its answer")


def test_a_database_that_nobody_can_ask_is_no_pass(server: Start, tmp_path: Path) -> None:
    """A mysqlclient whose library is missing: each request would fail, so health has to, and its checks go on."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "MySQLdb.py").write_text("raise ImportError('libmariadb.so.3: no such file')")
    one = server(source=APP, config=f"import sys; sys.path.insert(0, {str(tmp_path / 'broken')!r})",
                 env={"STABILITY_DB_URL": "mysql://u:p@127.0.0.1/shop"})
    wait_until(lambda: one.get("/health").status_code == 503, message="health fails")
    assert "libmariadb.so.3" in str(one.records("error", "check_failed"))
    rounds = len(one.records("health", "round"))
    wait_until(lambda: len(one.records("health", "round")) > rounds, message="checks go on")


def test_gunicorn_without_our_hooks_is_told_of(server: Start) -> None:
    """Nothing fails then, and half of what was installed does nothing."""
    one = server(source=APP, use_hooks=False)
    assert one.get("/").text == "here"
    wait_until(lambda: "server_hooks_missing" in one.logs(), message="the warning")
    assert "-c python:flask_stability.server.conf" in one.logs()
    with_hooks = server(source=APP)
    assert with_hooks.get("/").text == "here"
    assert not with_hooks.records("error", "server_hooks_missing")


@pytest.mark.parametrize("use_hooks", [True, False])
def test_a_hidden_server_name_changes_nothing(server: Start, use_hooks: bool) -> None:
    """Whoever hides gunicorn's name from clients has exceptions answered and told of all the same."""
    hidden = "import gunicorn, gunicorn.arbiter\ngunicorn.SERVER_SOFTWARE = gunicorn.arbiter.SERVER_SOFTWARE = ''"
    one = server(source=APP, config=hidden, use_hooks=use_hooks)
    answer = one.get("/fails/hidden", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (500, "application/problem+json")
    if use_hooks:
        assert [record["exception"][0]["message"] for record in one.records("error", "exception")] == ["hidden"]
    else:
        assert "hidden" in one.logs()
        wait_until(lambda: "server_hooks_missing" in one.logs(), message="the warning")
