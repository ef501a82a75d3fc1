"""Overload: nobody works for a client that has left, some are refused at once, and the others are answered."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import Server, wait_until

APP = """
import time
from pathlib import Path
from flask import Flask, request
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)

@app.get("/work")
@stability.priority("sheddable")
def work():
    time.sleep(0.05)
    return "done"

@app.get("/pay")
@stability.priority("critical")
def pay():
    return "paid"

@app.get("/mark/<name>")
def mark(name):
    with open("ran", "a") as ran:
        ran.write(name + "\\n")
    return name

@app.get("/block")
def block():
    Path("blocks").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    return "went"
"""
CLASSES = ["gthread", "sync"]
CLIENTS = 40  #: more than a second's work of two threads waits when all of them do
MakeServer = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[MakeServer]:
    """Starts a server that is soon overloaded; ends it after the test."""
    with contextlib.ExitStack() as stack:
        def start(*, workers: int = 1, env: dict[str, str] | None = None, **options: Any) -> Server:
            settings = {"STABILITY_QUEUE_TARGET": "0.1", "STABILITY_QUEUE_LIMIT": "0.4", "STABILITY_SPARE_MAX": "0"}
            return stack.enter_context(Server(tmp_path, source=APP, workers=workers, threads=2,
                                              env={**settings, **(env or {})}, **options))
        yield start


class Crowd:
    """Clients that ask again as soon as they are answered; a context manager.

    :ivar answers: by status; what failed, by its name.
    """

    def __init__(self, server: Server, path: str, number: int = CLIENTS) -> None:
        self._port, self._path = server.port, path
        self.answers: Counter[int | str] = Counter()
        self.refusal: tuple[dict[str, str], bytes] = ({}, b"")
        self._lock, self._end = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            result: int | str
            try:
                result = self._ask()
            except (OSError, http.client.HTTPException) as error:
                result = type(error).__name__
            with self._lock:
                self.answers[result] += 1
            time.sleep(0.01)

    def _ask(self) -> int:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request("GET", self._path, headers={"Accept": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == 503:
                self.refusal = dict(answer.getheaders()), body
            return answer.status

    def until_refused(self) -> None:
        """Wait until some of them are."""
        wait_until(lambda: self.answers[503] > 20, 60, message=f"overload: {self.answers}")


def _send(server: Server, path: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    return sock


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _read(sock: socket.socket) -> bytes:
    found = b""
    while data := sock.recv(65536):
        found += data
    return found


@pytest.mark.parametrize("worker_class", CLASSES)
def test_some_are_refused_and_all_are_answered(worker_class: str, serve: MakeServer) -> None:
    """Each client gets a whole answer, a 200 or a 503 that says when to come again. Health and what is critical are
    answered as ever, and when the crowd has gone everybody is.
    """
    server = serve(worker_class=worker_class)
    with Crowd(server, "/work") as crowd:
        crowd.until_refused()
        assert server.get("/health/ready").status_code == 200
        assert {server.get("/pay").status_code for _ in range(10)} == {200}
        assert {server.get("/health/live").status_code for _ in range(3)} == {200}
    assert set(crowd.answers) == {200, 503}
    headers, body = crowd.refusal
    assert headers["Retry-After"].isdecimal()
    assert headers["Content-Type"] == "application/problem+json"
    assert int(headers["Content-Length"]) == len(body)
    assert {server.get("/work").status_code for _ in range(5)} == {200}
    wait_until(lambda: server.records("process-manager", "overload"), 60)
    begun, = server.records("process-manager", "overload")
    assert begun["limit_s"] == 0.4
    wait_until(lambda: server.records("process-manager", "overload_over"), 60)
    over, = server.records("process-manager", "overload_over")
    assert over["refused"] >= crowd.answers[503] * 0.5
    assert "GET work" in over["routes"]
    assert not server.records("process-manager", "worker_exit")


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_reload_under_overload_loses_no_request(worker_class: str, serve: MakeServer) -> None:
    """The workers that leave answer what they have accepted, each with 200 or 503."""
    server = serve(worker_class=worker_class, workers=2)
    wait_until(lambda: len(server.worker_pids()) == 2)
    before = set(server.worker_pids())
    with Crowd(server, "/work", 60) as crowd:
        crowd.until_refused()
        server.signal(signal.SIGHUP)
        wait_until(lambda: not before & set(server.worker_pids()), 60, message="new workers")
        answered = crowd.answers[200]
        wait_until(lambda: crowd.answers[200] > answered + 20, 60)
    assert set(crowd.answers) == {200, 503}


@pytest.mark.parametrize("worker_class", CLASSES)
def test_nobody_works_for_a_client_that_has_left(worker_class: str, serve: MakeServer) -> None:
    """What was reset while it waited is not run; what waits behind it is."""
    server = serve(worker_class=worker_class, config="threads = 1" if worker_class == "gthread" else "")
    with _send(server, "/block") as first:
        wait_until(lambda: (server.folder / "blocks").exists())
        for number in range(5):
            _reset(_send(server, f"/mark/gone{number}"))
        with _send(server, "/mark/there") as last:
            time.sleep(0.2)  # so that it arrives behind them
            (server.folder / "go").touch()
            assert b"went" in _read(first)
            assert b"there" in _read(last)
    assert (server.folder / "ran").read_text().split() == ["there"]


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_client_that_half_closes_is_answered(worker_class: str, serve: MakeServer) -> None:
    """Without overload one that sends no more may still read."""
    server = serve(worker_class=worker_class, config="threads = 1" if worker_class == "gthread" else "")
    with _send(server, "/block") as first:
        wait_until(lambda: (server.folder / "blocks").exists())
        with _send(server, "/mark/half") as half:
            half.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
            (server.folder / "go").touch()
            assert b"went" in _read(first)
            assert b" 200 OK" in _read(half)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_switched_off_nobody_is_refused(worker_class: str, serve: MakeServer) -> None:
    """STABILITY_QUEUE_LIMIT=0: all wait for their turn."""
    server = serve(worker_class=worker_class, env={"STABILITY_QUEUE_LIMIT": "0"})
    with Crowd(server, "/work") as crowd:
        wait_until(lambda: crowd.answers[200] > 100, 60)
    assert set(crowd.answers) == {200}
