"""Slow clients: they cost a descriptor or a thread, never a worker, nor the requests of others."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import Server, wait_until

APP = """
import os, time
from flask import Flask, request
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)

@app.get("/")
def index():
    return str(os.getpid())

@app.get("/sleep/<float:seconds>")
@stability.request_timeout(60)
def sleep(seconds):
    time.sleep(seconds)
    return str(os.getpid())

@app.get("/busy")
def busy():
    open(request.args["mark"], "x").close()
    time.sleep(5)
    return "done"

@app.post("/upload")
def upload():
    return str(len(request.get_data()))

@app.post("/patient")
@stability.client_min_rate(0)
@stability.request_timeout(120)
def patient():
    return str(len(request.get_data()))
"""
HALF = b"GET / HTTP/1.1\r\nHost: a\r\n"
CLASSES = ["gthread", "sync"]
MakeServer = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[MakeServer]:
    """Starts a server; ends it after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(Server(tmp_path, source=APP, **options))


def _all(sock: socket.socket) -> bytes:
    """Everything until the server ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            found += data
    return found


def _exits(server: Server) -> set[str]:
    """Reasons of the exits so far."""
    return {record["reason"] for record in server.records("process-manager", "worker_exit")}


def _body(path: str, length: int = 1_000_000) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode()


def _nobody_was_replaced(server: Server, before: list[int]) -> None:
    assert server.worker_pids() == before
    assert not server.records("process-manager", "worker_exit")
    assert server.get("/health/ready").status_code == 200


@pytest.mark.parametrize("worker_class", CLASSES)
def test_clients_that_send_half_a_head_keep_nobody_waiting(worker_class: str, serve: MakeServer) -> None:
    """Ten times as many as there are threads, silent ones among them: all others are answered, and the workers stay."""
    # their own deadline is far away: whoever waited for them would wait for longer than the others' patience
    server = serve(worker_class=worker_class, env={"STABILITY_HEADER_TIMEOUT": "600"})
    wait_until(lambda: len(server.worker_pids()) == 2)
    before = server.worker_pids()
    with contextlib.ExitStack() as stack:
        for number in range(80):
            stack.enter_context(server.connect(HALF if number % 2 else b""))
        for _ in range(40):
            assert server.get("/", timeout=60).status_code == 200
        late = stack.enter_context(server.connect(HALF))
        late.sendall(b"Connection: close\r\n\r\n")  # a slow one that comes to an end is served like any other
        assert b" 200 OK" in _all(late)
        _nobody_was_replaced(server, before)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_head_has_to_arrive_in_time(worker_class: str, serve: MakeServer) -> None:
    """Half of one is answered with 408, silence with nothing; the second head of a connection counts as well."""
    server = serve(worker_class=worker_class, env={"STABILITY_HEADER_TIMEOUT": "1"})
    wait_until(lambda: len(server.worker_pids()) == 2)  # it answers when the first is ready
    before = server.worker_pids()
    with server.connect() as silent, server.connect(HALF) as half, server.connect(HALF + b"\r\n") as again:
        again.recv(65536)
        with contextlib.suppress(OSError):
            again.sendall(HALF)
        assert _all(silent) == b""
        assert _all(half).startswith(b"HTTP/1.1 408 ")
        _all(again)
    wait_until(lambda: server.records("error", "slow_clients_cut"))
    _nobody_was_replaced(server, before)


def test_a_head_that_arrived_while_the_worker_was_busy_is_in_time(serve: MakeServer, tmp_path: Path) -> None:
    """A sync worker sees it only after its request: by then the time for heads is over, and the client was not late."""
    server = serve(worker_class="sync", workers=1, env={"STABILITY_HEADER_TIMEOUT": "2", "STABILITY_SPARE_MAX": "0"})
    mark = tmp_path / "mark"
    with server.connect(HALF) as half:
        assert server.get("/").status_code == 200  # so the half was seen before
        with server.connect(f"GET /busy?mark={mark} HTTP/1.1\r\nHost: a\r\n\r\n".encode()) as long:
            wait_until(mark.exists, message="the worker is busy")
            half.sendall(b"Connection: close\r\n\r\n")
            assert b" 200 OK" in _all(long)
        assert b" 200 OK" in _all(half)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_head_on_its_way_is_served_by_a_worker_that_leaves(worker_class: str, serve: MakeServer) -> None:
    """At a reload no request is lost that a worker had half of."""
    server = serve(worker_class=worker_class, workers=1, config="keepalive = 0")
    with server.connect(HALF) as half:
        assert server.get("/").status_code == 200  # so the half was seen before
        server.signal(signal.SIGTERM)
        wait_until(lambda: server.records("process-manager", "stopping"))
        half.sendall(b"\r\n")
        assert b" 200 OK" in _all(half)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_an_answered_client_that_does_not_close_keeps_nobody_waiting(worker_class: str, serve: MakeServer) -> None:
    """gunicorn waits two seconds for each, on gthread in the loop that accepts."""
    server = serve(worker_class=worker_class, workers=1)
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        for _ in range(40):
            sock = stack.enter_context(server.connect(HALF + b"Connection: close\r\n\r\n"))
            assert b" 200 OK" in _all(sock)
        assert server.get("/", timeout=100).status_code == 200
        assert time.monotonic() - began < 60  # gunicorn's own: 80


def _drip(sock: socket.socket, until: Callable[[], bool]) -> None:
    """A byte now and then."""
    def once() -> bool:
        with contextlib.suppress(OSError):
            sock.send(b"x")
        return until()

    wait_until(once, 90, interval=0.2)


@pytest.mark.long
@pytest.mark.parametrize("worker_class", CLASSES)
def test_the_deadline_of_a_slow_upload_ends_that_connection_alone(worker_class: str, serve: MakeServer) -> None:
    """The worker's other requests, which may take longer, go on, and it stays."""
    server = serve(worker_class=worker_class, workers=1 if worker_class == "gthread" else 2,
                   env={"STABILITY_REQUEST_TIMEOUT": "2"})
    wait_until(lambda: len(server.worker_pids()) == (1 if worker_class == "gthread" else 2))
    before = server.worker_pids()
    with server.connect(_body("/upload")) as slow, ThreadPoolExecutor(1) as pool:
        other = pool.submit(server.get, "/sleep/5.0")
        _drip(slow, lambda: bool(server.records("error", "upload_overdue")))
        assert _all(slow).startswith(b"HTTP/1.1 408 ")
        assert other.result().text in map(str, before)
    assert not server.records("error", "request_overdue")
    wait_until(lambda: server.worker_pids() == before)  # a spare one may have helped
    assert _exits(server) <= {"scale", "asked"}


@pytest.mark.long
@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_body_below_the_rate_is_cut_unless_the_view_has_time(worker_class: str, serve: MakeServer) -> None:
    """500 bytes a second over 20 s. Clients end no service: they are no crashes, however short gunicorn's timeout."""
    server = serve(worker_class=worker_class, config="timeout = 4", env={
        "STABILITY_RESTART_ACTION": "halt", "STABILITY_MAX_RESTARTS": "1", "STABILITY_REQUEST_TIMEOUT": "0"})
    with contextlib.ExitStack() as stack:
        patient = stack.enter_context(server.connect(_body("/patient", 500)))
        slow = [stack.enter_context(server.connect(_body("/upload"))) for _ in range(6)]
        for sock in (patient, *slow):
            sock.setblocking(False)

        def cut() -> bool:
            with contextlib.suppress(OSError):
                patient.send(b"x")
            for sock in slow:
                with contextlib.suppress(OSError):
                    sock.send(b"x")
            return bool(server.records("error", "slow_clients_cut"))

        wait_until(cut, 90, interval=0.5)
        patient.setblocking(True)
        patient.settimeout(30)
        patient.sendall(b"x" * 500)
        answer = b""
        while b"\r\n\r\n500" not in answer:
            data = patient.recv(65536)
            assert data, answer
            answer += data
    assert server.alive()
    assert server.records("error", "slow_clients_cut")[0]["bodies"] >= 1
    assert not {"timeout", "stuck", "deadline"} & _exits(server)


@pytest.mark.long
@pytest.mark.parametrize("worker_class", CLASSES)
def test_more_slow_bodies_than_there_may_be_threads_leave_the_service_whole(
        worker_class: str, serve: MakeServer) -> None:
    """Spare workers and threads have a cap, each worker has a row, and a few seconds after the clients all is as it
    was.
    """
    server = serve(worker_class=worker_class, env={"STABILITY_SPARE_MAX": "6"}, config="worker_connections = 12")
    wait_until(lambda: len(server.worker_pids()) == 2)
    before = server.worker_pids()
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(server.connect(_body("/upload")))
        event = "spare_threads" if worker_class == "gthread" else "spare_workers"
        wait_until(lambda: server.records("process-manager", event))
        if worker_class == "gthread":
            wait_until(lambda: server.records("error", "slow_clients_cut"))  # no more are to be had
            assert server.get("/", timeout=30).status_code == 200
            assert server.worker_pids() == before
            assert all(worker.num_threads() < 20 for worker in server.workers())
        assert len(server.worker_pids()) <= 3  # for slow clients half as many more, whatever the cap
    wait_until(lambda: server.worker_pids() == before, 60)
    wait_until(lambda: server.get("/health/ready").status_code == 200, 60)
    assert not server.records("process-manager", "no_row")
    assert _exits(server) <= {"scale", "asked"}
