"""Three hundred workers over time, really forked and ended: the board stays as large as it was, and nothing is lost."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from supervised import Supervised, starting

from flask_stability.scoreboard import M_BOOTS, O_ALLOCATED
from support import wait_until

#: Of each class: more than twice as many as the board has rows. What goes wrong with one worker in a hundred is found
#: 19 times of 20.
WORKERS = 150
Start = Callable[..., Supervised]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that end with the test."""
    with starting(tmp_path) as start:
        yield start


@pytest.mark.long
@pytest.mark.timeout(600)
def test_hundreds_of_workers_leave_the_service_as_it_was(supervised: Start, worker_class: str) -> None:
    """Each ends after a few requests: all answered, each counted once, each exit recorded, no row and no file left."""
    server = supervised(worker_class=worker_class, workers=4,
                        config="preload_app = True\nmax_requests = 3\nkeepalive = 1",
                        env={"STABILITY_SURGE": "off"})  # no helpers for sync workers that a slow machine holds up
    server.full(4)
    board = server.board()
    size, files = os.path.getsize(str(board.path)), len(os.listdir(f"/proc/{server.pid}/fd"))
    sent = 0
    with ThreadPoolExecutor(4) as pool:
        while (ended := sum(board.totals().restarts.values())) < WORKERS:
            assert all(answer.ok for answer in pool.map(lambda _: server.get("/"), range(100)))
            sent += 100
            wait_until(lambda ended=ended: sum(board.totals().restarts.values()) > ended,  # type: ignore[misc]
                       message="more of them have ended")
    wait_until(lambda: board.totals().requests == sent, message="all are counted")
    wait_until(lambda: all(row.requests < 3 for row in board.live()), message="who has had enough is gone")
    server.full(4)
    totals = board.totals()
    assert totals.requests == sent == sum(totals.histogram)
    assert set(totals.restarts) == {"max_requests"}
    assert board.master.words[M_BOOTS] == totals.restarts["max_requests"] + 4
    assert sum(bool(row.orders[O_ALLOCATED]) for row in board.rows) == 4
    assert max(row.slot for row in board.live()) < 16
    assert len(server.exits()) == totals.restarts["max_requests"]
    # each once: a process id may have come again, but not more often than it booted
    booted, ended = (Counter(record["worker_pid"] for record in server.records("process-manager", event))
                     for event in ("worker_boot", "worker_exit"))
    assert booted - ended == Counter(server.worker_pids())
    assert booted.total() - ended.total() == 4
    assert os.path.getsize(str(board.path)) == size
    wait_until(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) <= files, message="the master has no more files open")
    assert server.health()["detailed"]["requests"]["total"] == sent

    def told() -> bool:  # the question itself may be a worker's last request
        workers = server.health()["detailed"]["workers"]
        return {worker["pid"] for worker in workers} == set(server.worker_pids())

    wait_until(told, message="/health knows the workers that are there")
