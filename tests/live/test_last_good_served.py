"""The last good answer on a real gunicorn: while its database is away, hundreds ask at once, and workers are killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from supervised import Supervised, starting

from flask_stability.operate.loadgen import Load
from support import wait_until
from support_db import MariaDB

pytestmark = pytest.mark.long

SOURCE = '''
import os, time
from pathlib import Path
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)

@app.get("/")
def index():
    return {"pid": os.getpid()}

@app.get("/kept")
@stability.keep(fresh=0.5, stale=300)
def kept():
    with stability.connection() as connection:
        return {"at": str(connection.execute("SELECT NOW(6)").fetchone()[0]), "pid": os.getpid()}

@app.get("/slow")
@stability.keep(fresh=60, stale=300)
def slow():
    with open("runs", "a") as file:
        file.write(f"{os.getpid()}\\n")
    while not Path("told").exists():
        time.sleep(0.02)
    return {"pid": os.getpid()}

@app.get("/stale")
@stability.keep(fresh=0, stale=300)
def stale():
    if Path("hold").exists():
        with open("runs", "a") as file:
            file.write(f"{os.getpid()}\\n")
        while Path("hold").exists():
            time.sleep(0.02)
    return {"pid": os.getpid()}
'''

Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers with that app, every worker ready; they end with the test."""
    with starting(tmp_path) as begin:
        def ready(worker_class: str, **env: str) -> Supervised:
            number = 2 if worker_class == "gthread" else 4
            server = begin(source=SOURCE, worker_class=worker_class, workers=number, env=env)
            server.full(number)
            return server

        yield ready


def ask(server: Supervised, path: str) -> tuple[int, dict[str, str], bytes]:
    """A request with the headers of the load's, which are part of the key: status, headers, body."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.putrequest("GET", path, skip_accept_encoding=True)
        connection.putheader("Connection", "close")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def made_at(server: Supervised) -> str:
    """When the database made the answer that is given now."""
    return str(json.loads(ask(server, "/kept")[2])["at"])


def runs(server: Supervised) -> list[int]:
    """The workers that ran the slow view, in their order."""
    path = server.folder / "runs"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_all_get_the_last_answer_while_the_database_is_away(start: Start, mariadb: MariaDB, worker_class: str,
                                                            fault: str) -> None:
    """And a new one as soon as it is back; workers that are replaced meanwhile lose nothing."""
    server = start(worker_class, STABILITY_DB_URL=mariadb.url)
    before = made_at(server)
    load = Load(server.url, ["/kept"], 60, timeout=40).start()
    try:
        wait_until(lambda: made_at(server) > before, message="it is refreshed")
        (mariadb.kill9 if fault == "killed" else mariadb.freeze)()
        away = time.monotonic()
        held = server.kill_holding(server.worker_pids()[0])
        killed = time.monotonic()
        wait_until(lambda: time.monotonic() - away > 8, 20)
        last = made_at(server)
        _, headers, _ = ask(server, "/kept")
        assert int(headers["Age"]) >= 6
        assert "hit; ttl=-" in headers["Cache-Status"]
        (mariadb.start if fault == "killed" else mariadb.thaw)()
        wait_until(lambda: made_at(server) > last, 30, message="it is refreshed again")
    finally:
        result = load.stop()
    lost = [outcome for outcome in result.outcomes if not outcome.ok]
    # what the killed worker had in its hands is cut off
    assert len(lost) <= held, result.errors()
    assert all(not outcome.status and outcome.due < killed and outcome.due + outcome.latency > away
               for outcome in lost), result.errors()
    assert result.total > 400


def test_hundreds_that_meet_no_answer_run_the_view_once(start: Start, worker_class: str) -> None:
    """Those that wait are answered with it, in all workers."""
    server = start(worker_class)
    load = Load(server.url, ["/slow"], 100, timeout=60).start()
    try:
        wait_until(lambda: runs(server))
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 3)
        assert not load.result.outcomes, load.result.errors()
        (server.folder / "told").touch()
        wait_until(lambda: len(load.result.outcomes) > 300)
    finally:
        result = load.stop()
    assert result.failed == 0, result.errors()
    assert len(runs(server)) == 1


@pytest.mark.parametrize("path", ["/slow", "/stale"])
def test_another_worker_goes_on_when_the_one_that_makes_the_answer_is_killed(start: Start, worker_class: str, path: str
                                                                            ) -> None:
    """Its lock ends with it, whether somebody waits for the answer or it was made behind a stale one."""
    server = start(worker_class)
    if path == "/stale":
        assert ask(server, path)[0] == 200
        (server.folder / "hold").touch()
    load = Load(server.url, [path], 20, timeout=60).start()
    try:
        first = wait_until(lambda: runs(server))[0]
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1)
        assert runs(server) == [first]
        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: len(runs(server)) == 2)
        print(f"\n{path}, {worker_class}: taken over after {time.monotonic() - killed:.2f} s")
        assert runs(server)[1] != first
        (server.folder / "told").touch()
        (server.folder / "hold").unlink(missing_ok=True)
        wait_until(lambda: ask(server, path)[0] == 200)
    finally:
        result = load.stop()
    assert all(not outcome.status for outcome in result.outcomes if not outcome.ok), result.errors()
    assert len(runs(server)) == 2
    if path == "/stale":  # nobody waited for it
        assert sum(outcome.latency > 0.9 for outcome in result.outcomes) < result.total // 4
