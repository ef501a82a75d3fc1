"""Who stops a service sends what it sends, and waits as long as it waits: nothing that reached the service is lost.

The table in docs/deploying.rst, line by line: the exact signals, to the processes that they are sent to.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from supervised import Supervised, starting

from flask_stability.scoreboard import STATE_STOPPING, W_STATE
from support import runs, wait_until

Start = Callable[..., Supervised]
QUEUED = 8
PID_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
namespaces = pytest.mark.skipif(subprocess.run([*PID_1, "true"], capture_output=True).returncode != 0,
                                reason="no PID namespaces here")


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that end with the test."""
    with starting(tmp_path) as start:
        yield start


def queue(server: Supervised, first: str) -> list[socket.socket]:
    """Connections of one long request and of several behind it, sent."""
    return [server.connect(f"GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n".encode())
            for path in (first, *["/slow/0.1"] * QUEUED)]


def answered(clients: list[socket.socket]) -> list[bool]:
    """Which of them were."""
    found = []
    for client in clients:
        try:
            found.append(client.recv(100).startswith(b"HTTP/1.1 200"))
        except OSError:
            found.append(False)
        client.close()  # a sync worker that leaves waits for that
    return found


def to_the_master(server: Supervised) -> None:
    """kill, supervisord, systemd with KillMode=mixed."""
    server.signal(signal.SIGTERM)


def to_the_group(server: Supervised) -> None:
    """supervisord with stopasgroup=true."""
    os.killpg(server.pid, signal.SIGTERM)


def workers_first(server: Supervised) -> None:
    """systemd with its default KillMode=control-group, in its worst order: the master hears of it last."""
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGTERM)
    server.signal(signal.SIGTERM)


@pytest.mark.parametrize("send", [to_the_master, to_the_group, workers_first])
@pytest.mark.parametrize("workers", [1, 2])
def test_what_waits_is_answered_whoever_gets_the_sigterm(supervised: Start, worker_class: str, workers: int,
                                                         send: Callable[[Supervised], None]) -> None:
    """Requests in flight and in the queue."""
    server = supervised(worker_class=worker_class, workers=workers, threads=1, config="worker_connections = 2")
    server.full(workers)
    clients = queue(server, "/until-told")
    server.busy()
    board = server.board()
    send(server)
    wait_until(lambda: any(row.words[W_STATE] >= STATE_STOPPING for row in board.live()), message="it has noticed")
    (server.folder / "told").touch()
    assert answered(clients) == [True] * (1 + QUEUED)
    assert server.process.wait(30) == 0


def test_an_idle_worker_lets_go_only_when_it_knows_what_ends(supervised: Start, worker_class: str) -> None:
    """One that is told to leave alone leaves, and the others, or the next, serve."""
    server = supervised(worker_class=worker_class, workers=1)
    server.full(1)
    old = server.worker_pids()[0]
    os.kill(old, signal.SIGTERM)
    server.retired(old)
    server.full(1)
    assert server.get("/").ok
    assert server.exits() == ["asked"]


@namespaces
@pytest.mark.long
def test_as_the_first_process_of_a_container(supervised: Start, worker_class: str) -> None:
    """docker stop and kubectl delete: SIGTERM to PID 1, SIGKILL to all after 10 and 30 s."""
    server = supervised(worker_class=worker_class, workers=1, threads=1, config="worker_connections = 2",
                        prefix=PID_1)
    master = psutil.Process(server.pid).children()[0]
    clients = queue(server, "/slow/1.5")
    master.terminate()
    assert answered(clients) == [True] * (1 + QUEUED)
    assert server.process.wait(30) == 0
    assert not runs(master)
