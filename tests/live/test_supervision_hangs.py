"""Hung requests: told, outlived, and answered around."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from supervised import Supervised, starting

from flask_stability.scoreboard import STATE_STOPPING, W_BUSY, W_STATE
from support import Load, runs, wait_until

Start = Callable[..., Supervised]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that end with the test."""
    with starting(tmp_path) as start:
        yield start


def send(server: Supervised, path: str, number: int = 1) -> None:
    """Requests whose answers nobody waits for."""
    for _ in range(number):
        server.connect(f"GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n".encode())


@pytest.mark.long
@pytest.mark.lowest
def test_hung_request_is_told_and_its_worker_replaced_while_others_finish(supervised: Start) -> None:
    """At its own deadline: the request and the stack of its thread are logged, a slow one of the same worker ends."""
    server = supervised(workers=1, config="graceful_timeout = 10\nkeepalive = 1")
    server.full(1)
    old = server.worker_pids()[0]
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(server.get("/until-told", timeout=60).json()))
    thread.start()
    server.busy()
    send(server, "/own-deadline")
    record = wait_until(lambda: server.records("error", "request_overdue"))[0]
    assert record["path"] == "/own-deadline"
    assert any("own_deadline" in line for line in record["stack"])
    wait_until(lambda: [record for record in server.records("process-manager", "replacement")
                        if record["action"] == "term"], message="its worker is told to end")
    (server.folder / "told").touch()
    thread.join(60)
    assert answers == [{"pid": old}]
    server.retired(old)
    server.full(1)
    assert server.exits() == ["deadline"]
    assert server.records("error", "request_cut")


@pytest.mark.long
def test_sixteen_hung_requests_leave_the_service_answering(supervised: Start) -> None:
    """Every thread of 2 workers with 4 each is stuck under 60 requests a second: the service is back before their
    deadline could have ended any of them, and all is answered.
    """
    server = supervised(env={"STABILITY_REQUEST_TIMEOUT": "20"}, config="keepalive = 5")
    server.full(2)
    load = Load(server.url, ["/"], 60, timeout=60).start()
    wait_until(lambda: server.board().totals().requests > 100)
    began = time.monotonic()
    send(server, "/hang", 16)
    wait_until(lambda: server.records("error", "worker_stuck"), 40)
    health = server.get("/health", timeout=30)
    wait_until(lambda: time.monotonic() - began > 24, 40)
    result = load.stop()
    assert health.status_code in (200, 503)
    assert result.failed == 0, result.errors()
    came = result.between(began + 1, began + 8).outcomes
    done = sorted(outcome.due + outcome.latency - began for outcome in came)
    print(f"half of what came meanwhile was answered {done[len(done) // 2]:.1f} s after the hung requests came")
    assert done[len(done) // 2] < 20
    server.full(2)


@pytest.mark.long
def test_hung_threads_beside_idle_clients_leave_the_service_answering(supervised: Start) -> None:
    """All connections of the only worker are taken, most by clients that keep theirs and say nothing: it accepts."""
    server = supervised(workers=1, config="keepalive = 100\nworker_connections = 12")
    server.full(1)
    idle = [requests.Session() for _ in range(8)]
    for session in idle:
        assert session.get(server.url + "/", timeout=30).ok
    send(server, "/hang", 4)
    wait_until(lambda: any(row.words[W_BUSY] == 4 for row in server.board().live()))
    assert server.get("/", timeout=40).ok
    assert server.records("error", "worker_stuck")
    for client in idle:
        client.close()


@pytest.mark.long
def test_worker_whose_interpreter_hangs_is_replaced_before_gunicorn_notices(supervised: Start,
                                                                            worker_class: str) -> None:
    """No thread of the only worker runs: a newcomer serves long before the timeout, and where it hung is told."""
    server = supervised(worker_class=worker_class, workers=1, config="timeout = 100",
                        env={"STABILITY_REQUEST_TIMEOUT": "90"})
    server.full(1)
    send(server, "/hang-gil")
    wait_until(lambda: server.records("process-manager", "worker_silent"), 60)
    assert server.get("/", timeout=40).ok
    # told before SIGTERM, which ends this very call: no deadline and no timeout had come
    wait_until(lambda: "in hang_gil" in (server.logs_dir / "error.log").read_text(), message="its stack is told")
    assert not server.records("error", "request_overdue")


@pytest.mark.long
def test_hang_that_holds_the_interpreter_leaves_all_stacks(supervised: Start, worker_class: str) -> None:
    """Nothing of Python runs any more: gunicorn's timeout, with the stacks of all threads in error.log."""
    server = supervised(worker_class=worker_class, config="timeout = 4", env={"STABILITY_REQUEST_TIMEOUT": "0"})
    server.full(2)
    send(server, "/hang-gil")
    wait_until(lambda: "timeout" in server.exits(), 40)
    server.full(2)
    text = (server.logs_dir / "error.log").read_text()
    assert "in hang_gil" in text


@pytest.mark.long
def test_worker_that_will_not_go_is_ended_by_the_dead_mans_switch(supervised: Start, worker_class: str) -> None:
    """A view that swallows everything: past its mercy the worker ends, its stacks in error.log."""
    server = supervised(worker_class=worker_class, config="timeout = 60\ngraceful_timeout = 30",
                        env={"STABILITY_REQUEST_TIMEOUT": "2", "STABILITY_RETIRE_MERCY": "3"})
    server.full(2)
    workers, before = server.workers(), server.worker_pids()
    send(server, "/hang-stubborn")
    wait_until(lambda: [record for record in server.records("process-manager", "replacement")
                        if record["action"] == "term"], 40, message="it is told to end")
    server.signal(signal.SIGSTOP)  # two seconds after the switch the master would end it without a word
    wait_until(lambda: sum(map(runs, workers)) == 1, message="the switch has ended it")
    server.signal(signal.SIGCONT)
    wait_until(lambda: server.exits() == ["deadline"], 40)
    server.full(2)
    assert len(set(before) & set(server.worker_pids())) == 1
    text = (server.logs_dir / "error.log").read_text()
    assert "Timeout (0:00:03)!" in text
    assert "in hang_stubborn" in text


@pytest.mark.long
@pytest.mark.lowest
def test_sync_worker_with_a_hung_request_is_replaced_by_a_newcomer_first(supervised: Start) -> None:
    """One sync worker, hung: a newcomer serves long before gunicorn's own timeout."""
    server = supervised(worker_class="sync", workers=1, env={"STABILITY_REQUEST_TIMEOUT": "2"},
                        config="graceful_timeout = 3\ntimeout = 150")
    server.full(1)
    send(server, "/hang")
    assert server.get("/", timeout=60).ok
    wait_until(lambda: "deadline" in server.exits(), 60)
    assert set(server.exits()) <= {"deadline", "asked", "scale"}  # the spare ones that came to help have gone as well


@pytest.mark.long
def test_sync_workers_that_all_hang_get_helpers(supervised: Start) -> None:
    """Six long requests on two workers: the rest is served meanwhile, all six are answered, then the helpers go."""
    server = supervised(worker_class="sync", env={"STABILITY_REQUEST_TIMEOUT": "150"})
    server.full(2)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(server.get("/until-told", timeout=100).status_code))
               for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.records("process-manager", "spare_workers"))
    assert server.get("/", timeout=60).ok
    (server.folder / "told").touch()
    for thread in threads:
        thread.join(100)
    assert answers == [200] * 6
    server.full(2, 60)
    assert set(server.exits()) <= {"asked", "scale"}


@pytest.mark.long
def test_many_hung_requests_on_sync_workers_past_their_deadline_are_outlived(supervised: Start) -> None:
    """Twelve on two workers, one after the other, the first past their deadline while the last arrive: the rest is
    served, and in the end there are two workers, none of which hangs.
    """
    server = supervised(worker_class="sync", env={"STABILITY_REQUEST_TIMEOUT": "3"}, config="graceful_timeout = 2")
    server.full(2)
    for _ in range(12):
        send(server, "/hang")
        time.sleep(0.4)
    wait_until(lambda: len(server.records("error", "request_overdue")) == 12, 120)
    assert server.get("/", timeout=60).ok
    server.full(2, 60)
    assert server.get("/", timeout=60).ok
    assert set(server.exits()) <= {"asked", "scale", "deadline", "timeout"}


@pytest.mark.long
def test_what_sigterm_cuts_is_logged(supervised: Start) -> None:
    """A request longer than graceful_timeout: its record says that it was cut."""
    server = supervised(config="graceful_timeout = 3")
    send(server, "/hang")
    server.busy()
    board = server.board()
    server.signal(signal.SIGTERM)
    wait_until(lambda: any(row.words[W_STATE] >= STATE_STOPPING and row.words[W_BUSY] for row in board.live()),
               message="its worker has noticed")
    server.signal(signal.SIGSTOP)  # else the master might end a worker that a slow machine holds up before it tells
    wait_until(lambda: server.records("error", "request_cut"))
    server.signal(signal.SIGCONT)
    server.process.wait(30)
    assert [record["path"] for record in server.records("error", "request_cut")][:1] == ["/hang"]
