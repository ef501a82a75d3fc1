"""A guard's looks, without a server around it: a real pool of threads, all of them busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from flask_stability import scoreboard
from flask_stability.config import Settings
from flask_stability.request import RequestRecord, inflight
from flask_stability.scoreboard import Row, Scoreboard
from flask_stability.server.guard import Guard, one_thread
from flask_stability.server.guard import guard as module
from flask_stability.server.guard.one_thread import SOON, OneThread
from support import wait_until

THREADS = 2
AGO = 10.0  #: seconds that the requests have taken


@pytest.fixture
def worker() -> SimpleNamespace:
    """Whose threads are all busy, once the guard is made."""
    return SimpleNamespace(cfg=SimpleNamespace(threads=THREADS, keepalive=2, graceful_timeout=10), nr=0, alive=True,
                           ppid=0, sockets=[], tpool=ThreadPoolExecutor(THREADS))


@pytest.fixture
def row() -> Row:
    """The worker's row of the board."""
    found = Scoreboard.anonymous(1).allocate(1)
    assert found is not None
    return found


@pytest.fixture
def guard(worker: SimpleNamespace, row: Row) -> Iterator[Guard]:
    """Of a worker whose threads have all been busy for ten seconds, with one more request queued."""
    release, pool = threading.Event(), worker.tpool
    for _ in range(THREADS + 1):
        pool.submit(release.wait, 60)
    for number in range(THREADS):
        inflight[-1 - number] = RequestRecord({}, time.monotonic_ns() - int(AGO * 1e9))
    try:
        yield Guard(worker, Scoreboard.anonymous(1), row, Settings(), 1, supervised=True)
    finally:
        for number in range(THREADS):
            inflight.pop(-1 - number, None)
        release.set()
        pool.shutdown()


def _stuck(guard: Guard, row: Row, now: float) -> int:
    guard.threads.threads_stuck(now)
    return int(row.words[scoreboard.W_STUCK])


def test_threads_that_are_busy_for_long_with_work_queued_are_stuck(guard: Guard, row: Row) -> None:
    """By when the last of their requests began."""
    assert _stuck(guard, row, time.monotonic()) == 1


def test_spare_threads_for_a_slow_database_come_up_to_a_limit(guard: Guard, worker: SimpleNamespace, row: Row) -> None:
    """As many again as there are threads each time; what was queued is taken, and they count as the worker's."""
    tpool = worker.tpool
    row.words[scoreboard.W_THREADS] = THREADS
    given = [guard.threads.give(5) for _ in range(4)]
    assert given == [True, True, True, False]
    assert tpool._max_workers == row.words[scoreboard.W_THREADS] == THREADS + 5
    wait_until(lambda: tpool._work_queue.qsize() == 0, message="what was queued is taken")
    assert _stuck(guard, row, time.monotonic()) == 0
    worker.alive = False
    assert not guard.threads.give(9)  # it is ending


def test_spare_threads_of_a_stuck_worker_count_as_its_own(guard: Guard, worker: SimpleNamespace, row: Row) -> None:
    """The bulkhead and the status must know of them."""
    row.words[scoreboard.W_THREADS] = THREADS
    assert _stuck(guard, row, time.monotonic()) == 1
    assert row.words[scoreboard.W_THREADS] == worker.tpool._max_workers > THREADS


def test_no_more_threads_to_be_had_is_told_and_no_error(guard: Guard, worker: SimpleNamespace,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's RuntimeError when the system refuses another thread."""
    def refuse() -> None:
        raise RuntimeError("can't start new thread")

    told: list[str] = []
    monkeypatch.setattr(worker.tpool, "_adjust_thread_count", refuse)
    monkeypatch.setattr(module.logs, "error", lambda event, **fields: told.append(event))
    assert not guard.threads.give(5)
    assert told == ["guard_failed"]


def _sleep(now: float) -> None:
    time.sleep(0.2)


class _Enough(Exception):
    """Ends the guard's loop."""


def test_a_pause_that_the_guard_made_itself_is_no_sign_of_being_stuck(guard: Guard, row: Row,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long collection the threads get their time again."""
    waits = iter([False])

    def wait(seconds: float) -> bool:
        for once in waits:
            return once
        raise _Enough

    monkeypatch.setattr(module, "PAUSE", 0.1)
    monkeypatch.setattr(guard, "looks", (_sleep,))
    before = time.monotonic()
    with pytest.raises(_Enough):
        guard.run(wait)
    assert guard.threads.back >= before + 0.2
    assert _stuck(guard, row, guard.threads.back + 0.9) == 0
    assert _stuck(guard, row, guard.threads.back + 1.1) == 1


@pytest.mark.parametrize(("ending", "told", "seconds"), [(0.0, False, 1.0), (1.0, False, SOON),
                                                         (1.0, True, 1.0)])
def test_a_worker_that_ends_is_looked_at_more_often_until_what_is_cut_was_told(
        ending: float, told: bool, seconds: float, guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between two looks may be the last one that it has."""
    waits: list[float] = []

    def wait(interval: float) -> bool:
        waits.append(interval)
        if len(waits) > 1:
            raise _Enough
        return False

    monkeypatch.setattr(guard, "looks", ())
    guard.closing.since, guard.closing.cut_told = ending, told
    with pytest.raises(_Enough):
        guard.run(wait)
    assert waits == [1.0, seconds]


def test_a_sync_worker_that_lets_others_wait_without_a_request_is_deaf(worker: SimpleNamespace, guard: Guard,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends slowly keeps it; not once a request came through, and not while it leaves."""
    waits = [True]
    monkeypatch.setattr(one_thread, "knocking", lambda sockets: waits[0])
    thread: OneThread = guard.one_thread
    assert [thread.deaf_for(100.0), thread.deaf_for(100.5), thread.deaf_for(101.5)] == [0.0, 0.5, 1.5]
    worker.nr += 1
    assert [thread.deaf_for(102.0), thread.deaf_for(103.0)] == [0.0, 1.0]
    waits[0] = False
    assert thread.deaf_for(104.0) == 0.0
    waits[0] = True
    assert [thread.deaf_for(105.0), thread.deaf_for(106.0)] == [0.0, 1.0]
    worker.alive = False
    assert thread.deaf_for(107.0) == 0.0
