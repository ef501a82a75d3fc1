"""Clients that leave while their request waits: nobody works for them, and those behind them are served sooner."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

import psutil
import pytest

from support import Server, wait_until

APP = """
import time
from pathlib import Path
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)

@app.get("/block")
def block():
    Path("blocks").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    return "went"

@app.get("/mark/<name>")
def mark(name):
    with open("ran", "a") as ran:
        ran.write(name + "\\n")
    return name

@app.get("/stream")
def stream():
    def parts():
        try:
            while True:
                yield b"x" * 100
                time.sleep(0.02)
        finally:
            Path("ended").touch()
    return app.response_class(parts(), mimetype="text/plain")
"""
CLASSES = ["gthread", "sync"]


def _server(folder: Path, worker_class: str) -> Server:
    """One that serves one request at a time."""
    return Server(folder, source=APP, worker_class=worker_class, workers=1, threads=1,
                  env={"STABILITY_SPARE_MAX": "0"})


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


def _blocked(server: Server) -> socket.socket:
    """The client of a request that keeps the only thread until `_go`."""
    sock = _send(server, "/block")
    wait_until(lambda: (server.folder / "blocks").exists(), 60)
    return sock


def _go(server: Server) -> None:
    (server.folder / "go").touch()


def _ran(server: Server) -> list[str]:
    path = server.folder / "ran"
    return path.read_text().split() if path.exists() else []


def _accepted(server: Server, port: int) -> bool:
    """Whether the worker holds the connection from that port of the client's."""
    return any(one.raddr and one.raddr[1] == port
               for one in psutil.Process(server.worker_pids()[0]).net_connections("tcp"))


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_request_whose_client_reset_its_connection_is_not_begun(worker_class: str, tmp_path: Path) -> None:
    """The one behind them is served, and ``/health`` counts them."""
    with _server(tmp_path, worker_class) as server, _blocked(server) as first:
        for number in range(5):
            _reset(_send(server, f"/mark/gone{number}"))
        with _send(server, "/mark/there") as last:
            time.sleep(0.2)  # what waits for less than 10 ms is not asked
            _go(server)
            assert b"went" in _read(first)
            assert b"there" in _read(last)
        assert _ran(server) == ["there"]
        assert server.get("/mark/again").text == "again"
        wait_until(lambda: server.health()["detailed"]["requests"]["abandoned"] > 0, 60)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_request_whose_client_closed_long_ago_is_not_begun(worker_class: str, tmp_path: Path) -> None:
    """As a browser does whose user went on to another page, or a client at the end of its patience."""
    with _server(tmp_path, worker_class) as server, _blocked(server) as first:
        with _send(server, "/mark/gone") as sock:
            port = sock.getsockname()[1]
        with _send(server, "/mark/there") as last:
            if worker_class == "gthread":
                wait_until(lambda: _accepted(server, port), 60, message="the worker has accepted it")
            time.sleep(1.5)  # a client that only sends no more is waited for, for a second
            _go(server)
            assert b"went" in _read(first)
            assert b"there" in _read(last)
        assert _ran(server) == ["there"]


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_client_that_half_closes_is_answered(worker_class: str, tmp_path: Path) -> None:
    """One that sends no more may still read: as long as its request waits for less than a second it counts as there.

    Most likely it has not waited for as long here; if the machine stood still it may have.
    """
    with _server(tmp_path, worker_class) as server, _blocked(server) as first:
        begun = time.monotonic()
        with _send(server, "/mark/half") as half:
            half.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
            _go(server)
            assert b"went" in _read(first)
            answer = _read(half)
        assert answer.startswith(b"HTTP/1.1 200 ") or time.monotonic() - begun > 1.0


@pytest.mark.parametrize("worker_class", CLASSES)
def test_the_rest_of_a_stream_is_not_computed(worker_class: str, tmp_path: Path) -> None:
    """Its generator is closed when its client has left, so it ends whatever it holds."""
    with _server(tmp_path, worker_class) as server:
        with _send(server, "/stream") as client:
            assert client.recv(1000)
            _reset(client)
        wait_until(lambda: (server.folder / "ended").exists(), 60)
        assert server.get("/mark/again").text == "again"
