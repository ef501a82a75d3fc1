"""A guard's looks, without a server around it: a real pool of threads, all of them busy."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from flask_stability import scoreboard
from flask_stability.config import Settings
from flask_stability.memory.sampler import Action, Decision
from flask_stability.request import RequestRecord, held, inflight
from flask_stability.scoreboard import Scoreboard
from flask_stability.server import guard as module
from flask_stability.server.guard import Guard
from flask_stability.server.gunicorn import spare_threads
from support import wait_until

THREADS = 2
AGO = 10.0  #: seconds that the requests have taken


@pytest.fixture
def guard() -> Iterator[Guard]:
    """Of a worker whose threads have all been busy for ten seconds, with one more request queued."""
    release, pool = threading.Event(), ThreadPoolExecutor(THREADS)
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    worker = SimpleNamespace(cfg=SimpleNamespace(threads=THREADS, keepalive=2, graceful_timeout=10), tpool=pool, nr=0,
                             alive=True, ppid=0)
    for _ in range(THREADS + 1):
        pool.submit(release.wait, 60)
    for number in range(THREADS):
        inflight[-1 - number] = RequestRecord({}, time.monotonic_ns() - int(AGO * 1e9))
    try:
        yield Guard(worker, board, row, Settings(), 1, supervised=True)
    finally:
        for number in range(THREADS):
            inflight.pop(-1 - number, None)
        release.set()
        pool.shutdown()


def _stuck(guard: Guard, now: float) -> int:
    guard._threads_stuck(now)
    return int(guard._row.words[scoreboard.W_STUCK])


def test_threads_that_are_busy_for_long_with_work_queued_are_stuck(guard: Guard) -> None:
    """By when the last of their requests began."""
    assert _stuck(guard, time.monotonic()) == 1


def test_spare_threads_for_a_slow_database_come_up_to_a_limit(guard: Guard) -> None:
    """As many again as there are threads each time; what was queued is taken, and they count as the worker's."""
    tpool = guard._worker.tpool
    given = [guard.give_threads(5) for _ in range(4)]
    assert given == [True, True, True, False]
    assert THREADS + guard._spares.number == guard._row.words[scoreboard.W_THREADS] == THREADS + 5
    wait_until(lambda: tpool._work_queue.qsize() == 0, message="what was queued is taken")
    assert _stuck(guard, time.monotonic()) == 0
    guard._worker.alive = False
    assert not guard.give_threads(9)  # it is ending


def test_no_more_threads_to_be_had_is_told_and_no_error(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's RuntimeError when the system refuses another thread."""
    def refuse(**options: object) -> None:
        raise RuntimeError("can't start new thread")

    told: list[str] = []
    monkeypatch.setattr(spare_threads, "threading", SimpleNamespace(Thread=refuse))
    monkeypatch.setattr(module.logs, "error", lambda event, **fields: told.append(event))
    assert not guard.give_threads(5)
    assert told == ["guard_failed"]


def _sleep(now: float) -> None:
    time.sleep(0.2)


class _Enough(Exception):
    """Ends the guard's loop."""


def test_a_pause_that_the_guard_made_itself_is_no_sign_of_being_stuck(guard: Guard,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long collection the threads get their time again."""
    waits = iter([False])

    def wait(seconds: float) -> bool:
        for once in waits:
            return once
        raise _Enough

    monkeypatch.setattr(module, "PAUSE", 0.1)
    monkeypatch.setattr(guard, "_wake", SimpleNamespace(wait=wait))
    monkeypatch.setattr(guard, "_looks", (_sleep,))
    before = time.monotonic()
    with pytest.raises(_Enough):
        guard._run()
    assert guard._back >= before + 0.2
    assert _stuck(guard, guard._back + 0.9) == 0
    assert _stuck(guard, guard._back + 1.1) == 1


@pytest.mark.parametrize(("ending", "told", "seconds"), [(0.0, False, 1.0), (1.0, False, module.SOON),
                                                         (1.0, True, 1.0)])
def test_a_worker_that_ends_is_looked_at_more_often_until_what_is_cut_was_told(
        ending: float, told: bool, seconds: float, guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between two looks may be the last one that it has."""
    waits: list[float] = []

    def wait(interval: float) -> None:
        waits.append(interval)
        if len(waits) > 1:
            raise _Enough

    monkeypatch.setattr(guard, "_wake", SimpleNamespace(wait=wait))
    monkeypatch.setattr(guard, "_looks", ())
    guard._ending_since, guard._cut_told = ending, told
    with pytest.raises(_Enough):
        guard._run()
    assert waits == [1.0, seconds]


def test_a_sync_worker_that_lets_others_wait_without_a_request_is_deaf(guard: Guard,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends slowly keeps it; not once a request came through, and not while it leaves."""
    waits = [True]
    monkeypatch.setattr(module, "knocking", lambda sockets: waits[0])
    worker = guard._worker
    worker.sockets = []
    assert [guard._deaf_for(100.0), guard._deaf_for(100.5), guard._deaf_for(101.5)] == [0.0, 0.5, 1.5]
    worker.nr += 1
    assert [guard._deaf_for(102.0), guard._deaf_for(103.0)] == [0.0, 1.0]
    waits[0] = False
    assert guard._deaf_for(104.0) == 0.0
    waits[0] = True
    assert [guard._deaf_for(105.0), guard._deaf_for(106.0)] == [0.0, 1.0]
    worker.alive = False
    assert guard._deaf_for(107.0) == 0.0


def test_requests_that_are_held_are_neither_stuck_nor_hung(guard: Guard) -> None:
    """Nor is the worker replaced for its memory meanwhile; on gthread it may hold as many as there is room for."""
    held[-1] = time.monotonic() - AGO
    try:
        assert _stuck(guard, time.monotonic()) == 0
        guard._show_hung(time.monotonic())
        assert guard._hung == 1, "the other one"
        assert guard.may_hold()
        guard._memory = SimpleNamespace(  # type: ignore[assignment]
            tick=lambda now: Decision(Action.RETIRE, "memory", "too much"))
        guard._look_at_memory(time.monotonic())
        assert not guard._row.words[scoreboard.W_RETIRE_REASON]
        guard._memory = SimpleNamespace(  # type: ignore[assignment]
            tick=lambda now: Decision(Action.RETIRE_NOW, "memory_hard", "far too much"))
        guard._look_at_memory(time.monotonic())
        assert guard._row.words[scoreboard.W_RETIRE_REASON] == scoreboard.CODE["memory_hard"]
    finally:
        held.pop(-1)


def test_a_sync_worker_holds_a_request_while_another_is_idle() -> None:
    """Not while that one holds one itself, or is kept by a long request, or is not ready; nor while clients wait."""
    board = Scoreboard.anonymous(2)
    rows = [board.allocate(age) for age in (1, 2)]
    mine, other = (row for row in rows if row is not None)
    mine.words[scoreboard.W_PID] = os.getpid()
    other.words[scoreboard.W_PID] = os.getpid() + 1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = SimpleNamespace(cfg=SimpleNamespace(threads=1, keepalive=2, graceful_timeout=10), nr=0, alive=True,
                                 ppid=0, sockets=[SimpleNamespace(sock=listener, fileno=listener.fileno)])
        guard = Guard(worker, board, mine, Settings(), 2, supervised=True)
        assert not guard.may_hold()
        other.words[scoreboard.W_STATE] = scoreboard.STATE_READY
        assert guard.may_hold()
        for word in (scoreboard.W_DB_HELD, scoreboard.W_STUCK):
            other.words[word] = 1
            assert not guard.may_hold()
            other.words[word] = 0
        with socket.create_connection(listener.getsockname()):
            assert wait_until(lambda: not guard.may_hold(), message="a client waits")
