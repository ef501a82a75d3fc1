"""Exceptions of every kind against real gunicorn, on both kinds of worker: the matrix."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matrix
import pytest
from matrix import CASES, Case

from support import Server, wait_until

APP = (Path(__file__).parent / "matrix_app.py").read_text()
pytestmark = pytest.mark.long


@dataclass
class Answer:
    """What a client saw: `whole` is whether the answer was complete as HTTP tells it."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool


def ask(server: Server, path: str, method: str = "GET", data: bytes | None = None) -> Answer:
    """One request of a client that prefers JSON and looks whether the answer is complete."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if data is not None else {})
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        try:
            body, whole = response.read(), True
        except http.client.IncompleteRead as error:
            body, whole = error.partial, False
        return Answer(response.status, dict(response.getheaders()), body, whole)
    except ConnectionResetError:  # closed without an answer, which http.client tells so too
        return Answer(0, {}, b"", False)
    finally:
        connection.close()


@pytest.fixture(scope="module", params=["sync", "gthread"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all cases that leave the worker alive. Without helpers, which come where a machine that rests
    lets a client wait for a second.
    """
    with Server(tmp_path_factory.mktemp("matrix"), source=APP, worker_class=request.param, workers=1,
                env={"STABILITY_SURGE": "off"}) as server:
        yield server


def _records(server: Server) -> list[dict[str, Any]]:
    """All records of error.log but what a slow machine adds: a check that took long."""
    return [record for record in server.records() if record["event"] != "check_hangs"]


def _matches(record: dict[str, Any], expected: dict[str, Any]) -> bool:
    chain = record.get("exception", [])
    seen = {**record, "type": chain[0]["type"] if chain else None, "chain": len(chain)}
    return all(seen.get(name) == value for name, value in expected.items())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_client_is_answered_the_exception_told_once_and_the_worker_lives(case: Case, running: Server) -> None:
    """The last column of the matrix."""
    known, worker, output = len(_records(running)), running.worker_pids(), len(running.logs())
    answer = ask(running, case.path, case.method, case.data)

    assert (answer.status, answer.whole) == (case.status, case.whole)
    assert b"HTTP/1.1" not in answer.body
    for name, value in case.headers.items():
        assert value in answer.headers[name]
    records = wait_until(lambda: len(found := _records(running)[known:]) >= len(case.records) and (found or [{}]), 30,
                         message=f"{len(case.records)} records, not {_records(running)[known:]}")
    assert len(_records(running)[known:]) == len(case.records), records
    for record, expected in zip(records, case.records, strict=False):
        assert _matches(record, expected), record
        if not case.outside:
            assert record["request_id"]
            assert record["method"] == case.method

    if case.body is not None:
        assert case.body in answer.body.decode()
    elif case.status >= 400:
        problem = json.loads(answer.body)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert problem["status"] == case.status
        assert problem["request_id"] == answer.headers["X-Request-ID"]
        assert all(record["request_id"] == problem["request_id"] for record in records if record)

    assert running.alive()
    assert running.worker_pids() == worker
    assert ask(running, "/ok").body == b"ok"
    assert "Traceback" not in running.logs()[output:], "told a second time, raw"


def test_one_record_is_one_line(running: Server) -> None:
    """Whatever was in a path or in a message, error.log has no line that is no record."""
    for line in (running.logs_dir / "error.log").read_text().splitlines():
        assert line.isprintable()
        assert isinstance(json.loads(line), dict)


def test_a_client_that_leaves_is_no_error(running: Server) -> None:
    """It is what clients do."""
    known, worker = len(_records(running)), running.worker_pids()
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    wait_until(lambda: ask(running, "/ok").body == b"ok", 30)
    assert _records(running)[known:] == []
    assert running.worker_pids() == worker


def test_a_malformed_request_is_gunicorns(running: Server) -> None:
    """It never reaches the app."""
    known = len(_records(running))
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as client:
        client.sendall(b"GET / HTTP/9.9\r\nno header\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 400")
    assert ask(running, "/ok").body == b"ok"
    assert _records(running)[known:] == []


def test_a_forked_child_that_raises_leaves_the_worker_alone(running: Server) -> None:
    """The child's exception is recorded as the child's; the worker goes on."""
    worker, known = running.worker_pids(), len(_records(running))
    answer = ask(running, "/fork")
    assert answer.status in (200, 500)
    # Python 3.12 and later warn of the fork itself, as a worker has threads
    record = wait_until(lambda: [one for one in _records(running)[known:] if one["event"] != "warning"], 30)[0]
    assert _matches(record, {"event": "exception", "type": "ValueError"})
    assert record["pid"] not in worker
    wait_until(lambda: not os.path.exists(f"/proc/{record['pid']}/cmdline")
               or not Path(f"/proc/{record['pid']}/cmdline").read_bytes(), 30, message="the child has gone")
    assert ask(running, "/ok").body == b"ok"
    assert running.worker_pids() == worker


def test_a_signal_handler_that_raises(running: Server) -> None:
    """On sync it raises in the view and is answered; on gthread in gunicorn's loop, and the worker is replaced."""
    worker = running.worker_pids()
    answer = ask(running, "/signal")
    wait_until(lambda: ask_ok(running), 30)
    assert running.alive()
    if answer.status == 500:
        assert running.worker_pids() == worker
    else:
        wait_until(lambda: (pids := running.worker_pids()) and pids != worker, 30, message="another worker")
        wait_until(lambda: ask_ok(running), 30)


def ask_ok(server: Server) -> bool:
    """Whether it serves."""
    try:
        return ask(server, "/ok").body == b"ok"
    except OSError:
        return False


def test_an_atexit_function_that_fails_is_recorded(running: Server) -> None:
    """At the worker's end."""
    known = len(_records(running))
    worker = int(ask(running, "/atexit").body)
    os.kill(worker, signal.SIGTERM)
    record = wait_until(lambda: [item for item in _records(running)[known:] if item["pid"] == worker], 30)[0]
    assert _matches(record, {"event": "unraisable", "type": "ValueError"})
    wait_until(lambda: ask_ok(running), 30)


@pytest.mark.parametrize("path", ["/die/1", "/die/3", "/die/4", "/kill/SIGSEGV", "/kill/SIGKILL"])
def test_a_worker_that_dies_is_replaced_and_the_master_lives(path: str, running: Server) -> None:
    """What cannot be caught is told by the master; a crash by faulthandler as well."""
    worker, known = running.worker_pids(), len(running.records("process-manager"))
    assert ask(running, path).status == 0
    wait_until(lambda: (pids := running.worker_pids()) and pids != worker and ask_ok(running), 30,
               message="another worker serves")
    assert running.alive()
    told = [record for record in running.records("process-manager")[known:] if str(worker[0]) in json.dumps(record)]
    assert told
    if path.endswith("SIGSEGV"):
        assert "Fatal Python error: Segmentation fault" in (running.logs_dir / "error.log").read_text()


# -- rows that need a server of their own ---------------------------------------------------------------------------


def test_a_log_that_cannot_be_written_costs_no_request(worker_class: str, tmp_path: Path) -> None:
    """A full disk under error.log, then a full disk under stderr as well: answered, and the lost records counted."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "error.log").symlink_to("/dev/full")
    with Server(tmp_path, source=APP, worker_class=worker_class, workers=1) as server:
        assert ask(server, "/at/view/value").status == 500
        assert '"event": "exception"' in server.logs()
        assert ask(server, "/stderr-full").body == b"ok"
        for _ in range(3):
            assert ask(server, "/at/view/oserror").status == 500
        assert "disk" not in server.logs()
        dropped = wait_until(lambda: _find(server.health(), "dropped"), 30, message="the drops are in /health")
        assert dropped >= 3


def _find(document: Any, name: str) -> Any:
    """The value of a key anywhere in a document."""
    if isinstance(document, dict):
        return document.get(name) or next(filter(None, (_find(value, name) for value in document.values())), None)
    if isinstance(document, list):
        return next(filter(None, (_find(value, name) for value in document)), None)
    return None


@pytest.mark.parametrize(("source", "told"), [
    ("raise ValueError('never worked')", "never worked"), ("import does_not_exist", "does_not_exist"),
    ("app = None", "")])
@pytest.mark.parametrize("preload", [False, True])
def test_an_app_that_never_worked_fails_fast(source: str, told: str, preload: bool, tmp_path: Path) -> None:
    """No server that restarts its workers for ever; the cause is told."""
    server = Server(tmp_path, source=source, workers=1, config=f"preload_app = {preload}")
    server.start(wait=False)
    try:
        assert server.process.wait(60) != 0
        assert told in server.logs()
    finally:
        server.stop()


EXITS = pytest.mark.parametrize("source", ["raise SystemExit(7)", "class Odd(BaseException): pass\nraise Odd"])


@EXITS
def test_system_exit_at_import_ends_a_start_that_never_worked(source: str, worker_class: str, tmp_path: Path) -> None:
    """Bare gunicorn boots seven workers a second, for ever."""
    server = Server(tmp_path, source=source, worker_class=worker_class, workers=1)
    server.start(wait=False)
    try:
        assert server.process.wait(60) == 3
        assert "no worker ever became ready, 3 ended before: boot_failure" in server.logs()
        assert _boots(server) == 3
    finally:
        server.stop()


@EXITS
def test_system_exit_at_import_is_retried_with_backoff(source: str, tmp_path: Path) -> None:
    """Once a worker has served the service stays, and serves again when the app can be imported."""
    exits = f"import os\nif os.path.exists('exits'):\n{textwrap.indent(source, '    ')}\n"
    first = "from __future__ import annotations\n"
    with Server(tmp_path, source=APP.replace(first, first + exits), workers=1) as server:
        (tmp_path / "exits").touch()
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: _boots(server) >= 6, 120)
        start, before = time.monotonic(), _boots(server)
        wait_until(lambda: time.monotonic() - start > 5, 60)
        assert _boots(server) - before <= 1 + (time.monotonic() - start) / 2  # waits of 4 s and more, less 20 %
        assert server.alive()
        assert "boot_failure" in {record["reason"] for record in server.records("process-manager", "worker_exit")}
        (tmp_path / "exits").unlink()
        wait_until(lambda: ask_ok(server), 60, message="it serves again")


def _boots(server: Server) -> int:
    """Workers that were started so far."""
    return server.logs().count("Booting worker")


def test_a_worker_that_fails_to_boot_leaves_the_others_serving(worker_class: str, tmp_path: Path) -> None:
    """It is tried again until it can."""
    with Server(tmp_path, source=APP, worker_class=worker_class, workers=2) as server:
        wait_until(lambda: _states(server) == ["ready"] * 2, 60)  # else the break would meet both
        stays, goes = server.worker_pids()
        (tmp_path / "broken").touch()
        os.kill(goes, signal.SIGKILL)
        wait_until(lambda: "ImportError: broken" in server.logs(), 30, message="the newcomer has failed")
        for _ in range(20):
            assert ask(server, "/ok").body == b"ok"
        assert stays in server.worker_pids()
        assert server.alive()
        (tmp_path / "broken").unlink()
        wait_until(lambda: len(server.worker_pids()) == 2 and goes not in server.worker_pids(), 60)
        wait_until(lambda: _states(server) == ["ready"] * 2, 60)


def _states(server: Server) -> list[str]:
    """Of the workers."""
    return [one["state"] for one in server.health()["detailed"]["workers"]]


@pytest.mark.parametrize("path", ["/slow/20.0", "/swallow", "/gil"])
def test_a_hang_is_ended_and_told(path: str, worker_class: str, tmp_path: Path) -> None:
    """Also one that swallows SystemExit, and one that holds the GIL: its stack is logged, another worker serves."""
    with Server(tmp_path, source=APP, worker_class=worker_class, workers=1, config="timeout = 3\ngraceful_timeout = 1",
                env={"STABILITY_REQUEST_TIMEOUT": "2", "STABILITY_GUARD_INTERVAL": "0.2",
                     "STABILITY_RETIRE_MERCY": "2"}) as server:
        worker, = server.worker_pids()
        thread = threading.Thread(target=ask_ignoring, args=(server, path))
        thread.start()
        wait_until(lambda: worker not in server.worker_pids(), 80, message="the worker has ended")
        wait_until(lambda: ask_ok(server), 30)
        function = {"/slow/20.0": "slow", "/swallow": "swallow", "/gil": "hold_the_gil"}[path]
        assert f" {function}" in (server.logs_dir / "error.log").read_text()
        assert server.alive()
        thread.join(60)


def test_a_body_that_never_ends_holds_no_thread_for_ever(worker_class: str, tmp_path: Path) -> None:
    """The request's deadline ends that connection alone; the worker, the only one, stays and serves."""
    with Server(tmp_path, source=APP, worker_class=worker_class, workers=1, config="timeout = 3\ngraceful_timeout = 1",
                env={"STABILITY_REQUEST_TIMEOUT": "2", "STABILITY_GUARD_INTERVAL": "0.2",
                     "STABILITY_RETIRE_MERCY": "2", "STABILITY_SURGE": "off"}) as server:
        worker = server.worker_pids()
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            client.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
            assert client.recv(65536).startswith(b"HTTP/1.1 408 ")
        wait_until(lambda: ask_ok(server), 30)
        told, = server.records("error", "upload_overdue")
        assert told["path"] == "/body"
        assert server.worker_pids() == worker
        assert not server.records("process-manager", "worker_exit")


@pytest.mark.parametrize("hook", ["child_exit(server, worker)", "pre_fork(server, worker)",
                                  "nworkers_changed(server, new, old)", "post_request(worker, request, environ, r)"])
def test_a_hook_that_raises_leaves_the_master_alive(hook: str, tmp_path: Path) -> None:
    """The user's own, chained to ours; ours never do."""
    raising = f"def {hook}:\n    if os.path.exists('broken-hook'):\n        raise RuntimeError('hook')"
    with Server(tmp_path, source=APP, workers=1, config=raising) as server:
        (tmp_path / "broken-hook").touch()
        worker, = server.worker_pids()
        if hook.startswith("nworkers_changed"):
            server.signal(signal.SIGTTIN)
            wait_until(lambda: len(server.worker_pids()) == 2, 30)
        else:
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: (pids := server.worker_pids()) and worker not in pids, 30)
        wait_until(lambda: ask_ok(server), 30)
        assert server.alive()


def ask_ignoring(server: Server, path: str) -> None:
    """Ask, whatever becomes of it."""
    try:
        ask(server, path)
    except OSError:
        pass


def test_what_sigterm_cuts_is_told(worker_class: str, tmp_path: Path) -> None:
    """A request longer than graceful_timeout is logged with its stack before it is cut."""
    with Server(tmp_path, source=APP, worker_class=worker_class, workers=1, config="graceful_timeout = 2",
                env={"STABILITY_GUARD_INTERVAL": "0.2"}) as server:
        thread = threading.Thread(target=ask_ignoring, args=(server, "/slow/25.0"))
        thread.start()
        wait_until((tmp_path / "slow-began").exists, 30, message="the request is being served")
        server.signal(signal.SIGTERM)
        server.process.wait(40)
        cut = [record for record in server.records() if record["event"] == "request_cut"]
        assert cut
        assert any("slow" in line for line in cut[0]["stack"])
    thread.join(60)


def test_every_row_that_a_process_can_observe_has_a_test() -> None:
    """And each name in the list of those elsewhere is a test."""
    here = globals()
    assert all(name in here for name in matrix.ELSEWHERE.values() if "/" not in name)
    assert set(matrix.observed()) <= set(matrix.ROWS)
