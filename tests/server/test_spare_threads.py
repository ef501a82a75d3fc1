"""Spare threads of a gthread worker: on a real pool of `concurrent.futures`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flask_stability.server.gunicorn import spare_threads
from flask_stability.server.gunicorn.spare_threads import SpareThreads
from support import wait_until


class Worker:
    """As much of a gthread worker as they need."""

    worker_connections = 10

    def __init__(self) -> None:
        self.tpool = ThreadPoolExecutor(1)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(spare_threads, "LOOK", 0.02)
    found = Worker()
    yield found
    found.tpool.shutdown()
    wait_until(lambda: not _alive(), message="the pool's end is theirs")


def _alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stability-spare"]


def test_they_serve_while_the_worker_s_own_are_blocked_and_end_when_nobody_needs_them(
        worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each blocked request keeps one; the worker may have a connection more for each meanwhile."""
    monkeypatch.setattr(spare_threads, "LINGER", 0.0)
    done: list[int] = []
    told, gate = [0], threading.Event()
    spares = SpareThreads(worker, lambda: 4 - len(done), lambda number: told.append(number))

    def blocked() -> str:
        gate.wait(60)
        done.append(1)
        return threading.current_thread().name

    futures = [worker.tpool.submit(blocked) for _ in range(4)]
    assert spares.add(4) == 4
    assert (spares.number, worker.worker_connections, sum(told)) == (4, 14, 4)
    assert worker.tpool.submit(lambda: threading.current_thread().name).result(60) == "stability-spare"
    assert spares.number == 4, "as many as the worker's own are free"
    gate.set()
    names = sorted(future.result(60) for future in futures)
    assert names[1:] == ["stability-spare"] * 3
    wait_until(lambda: not spares.number and not _alive(), message="they have ended")
    assert worker.worker_connections == 10
    wait_until(lambda: sum(told) == 0, message="it is told")
    assert worker.tpool.submit(lambda: 1).result(60) == 1


def test_they_linger(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """None ends soon after some were added."""
    monkeypatch.setattr(spare_threads, "LINGER", 1000.0)
    spares = SpareThreads(worker, lambda: 0, lambda number: None)
    assert spares.add(2) == 2
    assert {worker.tpool.submit(lambda: 1).result(60) for _ in range(20)} == {1}
    assert spares.number == 2


def test_a_pool_of_another_kind_gets_none(worker: Worker) -> None:
    """Nor does a worker without one."""
    worker_without: Any = object()
    assert SpareThreads(worker_without, lambda: 0, lambda number: None).add(2) == 0
