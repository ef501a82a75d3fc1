"""The end of a service, seen by its clients: what was accepted is answered, the rest is refused at once."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from supervised import Supervised, starting

from flask_stability import processes
from flask_stability.scoreboard import STATE_STOPPING, W_STATE
from support import Load, runs, wait_until

Start = Callable[..., Supervised]
#: A connection that completes between a worker's last accept and its letting go is reset: microseconds, not seconds.
UNLUCKY = 1
SLOW_SUBMIT = """
def post_worker_init(worker):
    import pathlib, time
    submit = worker.tpool._adjust_thread_count  # is called by it, under its lock
    def slow():
        if pathlib.Path("armed").exists():
            pathlib.Path("submitting").touch()
            time.sleep(5)
        submit()
    worker.tpool._adjust_thread_count = slow
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that end with the test."""
    with starting(tmp_path) as start:
        yield start


@pytest.mark.long
def test_while_the_last_request_ends_new_connections_are_refused(supervised: Start, worker_class: str) -> None:
    """Not taken in by the kernel and reset seconds later: a proxy then takes the next instance, whatever the method."""
    server = supervised(worker_class=worker_class, workers=4, config="graceful_timeout = 25")
    server.full(4)
    load = Load(server.url, ["/"], 20, timeout=20).start()
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(server.get("/until-told", timeout=60).status_code))
    slow.start()
    server.busy()
    wait_until(lambda: load.result.ok > 20)
    server.signal(signal.SIGTERM)
    wait_until(lambda: load.result.errors().get("ConnectionRefusedError", 0) > 40)
    assert slow.is_alive(), "refused while the last request is still served"
    (server.folder / "told").touch()
    slow.join(60)
    assert answers == [200]
    server.process.wait(30)
    errors = load.stop().errors()
    refused = errors.pop("ConnectionRefusedError")
    assert refused > 40
    assert sum(errors.values()) <= UNLUCKY, errors


@pytest.mark.parametrize(("worker_class", "end"), [
    ("sync", "sigterm"), ("gthread", "sigterm"), ("gthread", "the master is killed")])
def test_what_waits_in_the_queue_is_answered(supervised: Start, worker_class: str, end: str) -> None:
    """Requests that reached the socket before the end, behind one that takes its time."""
    server = supervised(worker_class=worker_class, workers=1, threads=1,
                        config="worker_connections = 2\ngraceful_timeout = 30")
    slow = threading.Thread(target=lambda: server.get("/until-told", timeout=60))
    slow.start()
    server.busy()
    board = server.board()
    clients = [server.connect(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n") for _ in range(6)]
    worker = psutil.Process(server.worker_pids()[0])
    server.process.send_signal(signal.SIGTERM if end == "sigterm" else signal.SIGKILL)
    wait_until(lambda: any(row.words[W_STATE] >= STATE_STOPPING for row in board.live()), message="it has noticed")
    (server.folder / "told").touch()
    for client in clients:
        assert client.recv(100).startswith(b"HTTP/1.1 200"), "answered"
        client.close()
    slow.join(60)
    server.process.wait(60)
    wait_until(lambda: not runs(worker))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_thread_worker_quits_while_it_hands_a_request_to_its_threads(supervised: Start, number: int) -> None:
    """The signal interrupts its main thread where that holds the pool's lock; it need not be killed for it."""
    server = supervised(worker_class="gthread", workers=1, config=SLOW_SUBMIT)
    server.full(1)
    (server.folder / "armed").touch()
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        wait_until((server.folder / "submitting").exists)
        server.signal(number)
        server.process.wait(60)
    last = server.records("process-manager", "worker_exit")[-1]
    assert (last["reason"], last["detail"]) == ("shutdown", "exit 0")


@pytest.mark.long
def test_a_worker_that_retires_slowly_holds_no_socket(supervised: Start, worker_class: str) -> None:
    """It is replaced with a request in flight; when the service ends meanwhile, nothing waits for it in vain."""
    server = supervised(worker_class=worker_class, workers=1, config="graceful_timeout = 90\nkeepalive = 1")
    server.full(1)
    slow = threading.Thread(target=lambda: server.get("/until-told", timeout=100))
    slow.start()
    server.busy()
    old = server.worker_pids()[0]
    server.retire(old)
    wait_until(lambda: any(record["action"] == "term" for record in server.records("process-manager", "replacement")))
    wait_until(lambda: server.get("/").json()["pid"] != old)
    wait_until(lambda: any(row.pid == old and row.words[W_STATE] >= STATE_STOPPING for row in server.board().live()),
               message="the old worker has noticed")
    server.signal(signal.SIGTERM)

    def refused() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", server.port)) != 0

    wait_until(refused)
    assert processes.look(old) is not None
    assert slow.is_alive()
    (server.folder / "told").touch()
    slow.join(60)


def test_a_drain_closes_kept_connections_in_good_order(supervised: Start) -> None:
    """An answer during the drain says so; before it the connection is kept."""
    server = supervised(env={"STABILITY_DRAIN_DELAY": "600"})
    server.full(2)

    def keeps() -> bool:
        with socket.create_connection(("127.0.0.1", server.port), 30) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
            answer = client.recv(4096).lower()
        assert answer.startswith(b"http/1.1 200")
        return b"connection: close" not in answer

    assert keeps()
    server.signal(signal.SIGTERM)
    wait_until(lambda: not keeps())
    server.signal(signal.SIGTERM)
    server.process.wait(60)
