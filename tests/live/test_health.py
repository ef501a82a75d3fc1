"""Health under real gunicorn: leaders that die or freeze, receivers that hang, an app that would get in the way."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from health_service import SOURCE, receiving

from support import ROOT, Server, free_port, wait_until

Start = Callable[..., Server]
COOKIE = {"Cookie": "user=1"}


@pytest.fixture
def service(server: Start) -> Start:
    """Starts servers of the app with a login wall."""
    def start(**options: Any) -> Server:
        return server(source=SOURCE, **options)

    return start


def _runs(one: Server) -> list[int]:
    """Which process ran the check, in order."""
    with contextlib.suppress(FileNotFoundError):
        return [int(line) for line in (one.folder / "search.runs").read_text().split()]
    return []


def _leader(one: Server) -> int:
    """The worker that runs the check now."""
    seen = len(_runs(one))
    wait_until(lambda: len(_runs(one)) > seen)
    return _runs(one)[-1]


def _status(one: Server) -> str:
    return str(one.health()["detailed"]["checks"].get("search", {}).get("status"))


def test_an_apps_hooks_and_error_handlers_do_not_reach_health(service: Start, worker_class: str) -> None:
    """Neither its login wall nor its headers, before a database that is gone or on a method that is not allowed."""
    one = service(worker_class=worker_class)
    assert one.get("/", allow_redirects=False).status_code == 302
    for path in ("", "/live", "/ready", "/history", "/metrics"):
        answer = one.get("/health" + path, allow_redirects=False)
        assert answer.status_code == 200, path
        assert "X-App" not in answer.headers
        head = one.request("HEAD", "/health" + path)
        assert (head.status_code, head.content) == (200, b"")
    for method, path, status in (("POST", "", 405), ("DELETE", "/live", 405), ("GET", "/none", 404),
                                 ("GET", "//", 404)):
        answer = one.request(method, "/health" + path, allow_redirects=False)
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/health+json"
        assert "X-App" not in answer.headers
    assert one.get("/broken").text == "the app's own page"
    assert one.get("/", headers=COOKIE).headers["X-App"] == "mine"


def test_the_apps_own_route_wins_with_a_warning(server: Start) -> None:
    """Once in error.log, with what to do."""
    one = server(source='''
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
StabilityExt(app)

@app.get("/health")
@app.get("/health/live")
def mine():
    return "the app's own"
''')
    assert one.get("/health").text == "the app's own"
    records = one.records(event="health_path_taken")
    assert records
    assert records[0]["level"] == "WARNING"
    assert "STABILITY_HEALTH_PATH" in records[0]["remedy"]


def test_startup_waits_for_the_first_round_and_a_hanging_check_holds_nothing_up(service: Start,
                                                                               tmp_path: Path) -> None:
    """Until then 503 with Retry-After; the gate of readiness is closed meanwhile; the service answers."""
    folder = tmp_path / "server0"
    folder.mkdir()
    (folder / "search.hangs").touch()
    one = service(env={"STABILITY_HEALTH_READY_CHECKS": "search", "SEARCH_TIMEOUT": "120"})
    wait_until(lambda: _runs(one))
    for path in ("startup", "ready"):
        answer = one.get(f"/health/{path}")
        assert (answer.status_code, answer.json()["status"]) == (503, "fail")
        assert int(answer.headers["Retry-After"]) > 0
    assert one.get("/health").status_code == one.get("/health/live").status_code == 200
    assert one.get("/", headers=COOKIE).status_code == 200
    (folder / "search.hangs").unlink()
    wait_until(lambda: one.get("/health/startup").status_code == 200)
    wait_until(lambda: one.get("/health/ready").status_code == 200)


def test_a_process_that_calls_itself_broken_is_not_alive(service: Start) -> None:
    """503 of this worker's /health/live, and a record."""
    one = service(workers=1)
    assert one.get("/health/live").status_code == 200
    one.get("/give-up", headers=COOKIE)
    assert one.get("/health/live").status_code == 503
    assert one.records(event="declared_broken")[0]["reason"] == "on purpose"


def test_health_works_without_gunicorn(tmp_path: Path) -> None:
    """The development server has no guard to give signs of life: the monitor gives them."""
    (tmp_path / "app.py").write_text(SOURCE)
    port = free_port()
    url = f"http://127.0.0.1:{port}/health"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "STABILITY_HEALTH_DETAILS": "always"}
    process = subprocess.Popen([sys.executable, "-m", "flask", "--app", "app", "run", "--port", str(port)],
                               cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        def passes() -> bool:
            with contextlib.suppress(requests.RequestException):
                return requests.get(url + "/startup", timeout=30).status_code == 200
            return False

        wait_until(passes, 60)
        assert requests.get(url, timeout=30).json()["detailed"]["checks"]["search"]["status"] == "pass"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_leader_that_dies_or_freezes_is_followed_by_the_next(service: Start, worker_class: str,
                                                              number: signal.Signals) -> None:
    """One worker runs the shared checks; what is failing goes on failing, and is told of once."""
    with receiving() as receiver:
        one = service(worker_class=worker_class, workers=3, env={"STABILITY_ALERT_WEBHOOK": receiver.url})
        wait_until(lambda: [worker["state"] for worker in one.health()["detailed"]["workers"]] == ["ready"] * 3, 60)
        # until all are ready another one may have led, and whenever this machine stopped one for seconds
        known = len(_runs(one))
        wait_until(lambda: len(_runs(one)) >= known + 6 and len(set(_runs(one)[-6:])) == 1, 60, message="one leads")
        first = _runs(one)[-1]

        def told(what: str) -> list[str]:
            return [alert[what] for alert in list(receiver.got) if alert["check"] == "search"]

        (one.folder / "search.fails").touch()
        wait_until(lambda: told("new") == ["fail"])
        cursor = one.get("/health/history").json()["cursor"]
        os.kill(first, number)
        wait_until(lambda: _runs(one)[-1] != first, message="another one leads")
        # a frozen worker may hold a connection that it had accepted
        answers = [_ask(one) for _ in range(10)]
        assert {answer for answer in answers if answer is not None} <= {503}
        wait_until(lambda: _ask(one) == 503)
        wait_until(lambda: first not in one.worker_pids(), 60, message="it was replaced, frozen or dead")
        wait_until(lambda: one.get("/health/history").json()["cursor"] > cursor + 2)
        assert told("new") == ["fail"]
        (one.folder / "search.fails").unlink()
        wait_until(lambda: _status(one) == "pass")
        wait_until(lambda: told("kind") == ["alert", "recovery"])
        assert told("host")[0] == socket.gethostname()
        assert told("detail")[0] == "[Errno 111] search:9200 refused, password=***"  # in words, without secrets
        changes = [record for record in one.records("health", "transition") if record["check"] == "search"]
        assert [record["new"] for record in changes] == ["fail", "pass"]
        assert told("id")[0] == changes[0]["id"]


def _ask(one: Server) -> int | None:
    try:
        return one.get("/health", timeout=3).status_code
    except requests.RequestException:
        return None


@pytest.mark.long
def test_history_survives_a_reload_and_every_worker(service: Start) -> None:
    """The cursor goes on, and startup never says 503 again."""
    one = service()
    wait_until(lambda: one.get("/health/history").json()["cursor"] >= 2)
    before = one.get("/health/history").json()
    old = set(one.worker_pids())
    one.signal(signal.SIGHUP)
    seen = set()

    def replaced() -> bool:
        seen.add(one.get("/health/startup").status_code)
        return len(one.worker_pids()) == 2 and not old & set(one.worker_pids())

    wait_until(replaced, 90)
    for pid in one.worker_pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _leader(one) not in old, 60)
    wait_until(lambda: one.get("/health/history").json()["cursor"] > before["cursor"] + 1)
    after = one.get("/health/history").json()
    assert after["samples"][:len(before["samples"])] == before["samples"]
    assert seen == {200}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["hangs", "refuses", "answers 500"])
def test_a_receiver_that_takes_nothing_loses_that_alert_alone(service: Start, kind: str) -> None:
    """It is counted and logged; the service answers all the while, and the next receiver gets the next alert."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        if kind == "hangs":
            listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        if kind == "answers 500":
            url = stack.enter_context(receiving(*[500] * 100)).url
        one = service(env={"STABILITY_ALERT_WEBHOOK": url})
        (one.folder / "search.fails").touch()
        wait_until(lambda: one.get("/health").status_code == 503, 60)

        def lost() -> bool:
            assert one.get("/health/live").status_code == 200
            assert one.get("/", headers=COOKIE).status_code == 200
            return bool(one.records("health", "alert_lost"))

        wait_until(lost, 90)
        wait_until(lambda: f"flask_stability_alerts_lost_total {len(one.records('health', 'alert_lost'))}.0"
                   in one.get("/health/metrics").text, message="it is counted")
        (one.folder / "search.fails").unlink()
        wait_until(lambda: one.get("/health").status_code == 200, message="checks go on")


@pytest.mark.long
def test_a_receiver_that_is_ill_for_a_moment_gets_the_alert_later(service: Start) -> None:
    """After two answers of 500."""
    with receiving(500, 500) as receiver:
        one = service(env={"STABILITY_ALERT_WEBHOOK": receiver.url})
        (one.folder / "search.fails").touch()
        wait_until(lambda: receiver.got, 60)
        assert receiver.asked >= 3  # more if this machine was so slow that it did not wait for the answer
        assert not one.records("health", "alert_lost")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


def _admin(bind: str) -> bytes | None:
    """What the second listener shows; None while nobody listens."""
    connection = (_UnixConnection(Path(bind.removeprefix("unix:"))) if bind.startswith("unix:")
                  else http.client.HTTPConnection(bind, timeout=30))
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health", headers={"Connection": "close"})
        return connection.getresponse().read()
    return None


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_admin_listener_shows_details_and_outlives_its_worker(service: Start, tmp_path: Path, kind: str) -> None:
    """Strangers on the service's own address see none; when the leader is gone the next one listens."""
    bind = f"127.0.0.1:{free_port()}" if kind == "tcp" else f"unix:{tmp_path}/admin.sock"
    one = service(workers=3, env={"STABILITY_ADMIN_BIND": bind, "STABILITY_HEALTH_DETAILS": "never"},
                  # whoever held it gives it up within two seconds, but not if this machine stops it
                  config="from flask_stability.health import admin; admin.PATIENCE = 25.0")
    wait_until(lambda: b"detailed" in (_admin(bind) or b""))
    assert set(one.health()) == {"status"}
    leader = _leader(one)
    os.kill(leader, signal.SIGKILL)
    wait_until(lambda: b"detailed" in (_admin(bind) or b""))
    assert _leader(one) != leader
    if kind == "unix":
        path = bind.removeprefix("unix:")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        # frozen, and replaced: the socket's path is the leader's each time
        leader = _leader(one)
        os.kill(leader, signal.SIGSTOP)
        wait_until(lambda: leader not in one.worker_pids(), 60)
        wait_until(lambda: b"detailed" in (_admin(bind) or b""))
    assert not one.records(event="admin_bind_failed")


@pytest.mark.long
def test_an_admin_address_that_is_taken_is_told_of_and_hurts_nobody(service: Start) -> None:
    """And it is tried again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        one = service(workers=1, env={"STABILITY_ADMIN_BIND": bind})  # each that leads would tell of it
        wait_until(lambda: one.records(event="admin_bind_failed"))
        assert one.get("/health").status_code == 200
        taken.close()
        wait_until(lambda: b"detailed" in (_admin(bind) or b""))
    assert len(one.records(event="admin_bind_failed")) == 1
