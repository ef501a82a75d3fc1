"""The queue that gthread's threads take their work from, with the pool of Python itself."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn import util

from flask_stability.server.gunicorn.turns import NoSocket
from flask_stability.server.gunicorn.work_queue import WorkQueue, connection_of
from flask_stability.server.queue_delay import NORMAL, Line
from support import wait_until


class _Judge:
    """Takes the class from the item's first argument; gives up what says so."""

    def __init__(self) -> None:
        self.newest, self.alert = False, False
        self.told = 0
        self.told_of: list[Exception] = []

    def arrival(self, item: Any) -> tuple[int, float]:
        return getattr(connection_of(item), "kind", NORMAL), item.since

    def next(self, line: Line[Any]) -> tuple[float, Any] | None:
        return line.next(newest=self.newest)

    def overdue(self, line: Line[Any]) -> list[Any]:
        return [one for _, one in line.overdue(time.monotonic(), [0.0] * 5)]

    def admit(self, item: Any, arrived: float) -> bool:
        if connection_of(item) == "gone":
            item.future.cancel()
            return False
        return True

    def alone(self, item: Any) -> bool:
        return self.admit(item, item.since)

    def nobody_waits(self) -> None:
        self.told += 1

    def watchful(self) -> bool:
        return self.alert


def _pool(judge: _Judge, threads: int = 1) -> tuple[ThreadPoolExecutor, WorkQueue]:
    pool = ThreadPoolExecutor(threads)
    work = pool._work_queue = WorkQueue(judge, judge.told_of.append)  # type: ignore[assignment]
    return pool, work


def _blocked(pool: ThreadPoolExecutor) -> threading.Event:
    """Keep the pool's thread until the event is set."""
    go, begun = threading.Event(), threading.Event()

    def wait(_: str) -> None:
        begun.set()
        go.wait(60)

    pool.submit(wait, "first")
    assert begun.wait(60)
    return go


@pytest.mark.parametrize("newest", [False, True])
def test_a_free_thread_takes_the_one_that_is_chosen_then(newest: bool) -> None:
    """Not the one that came first."""
    judge, done = _Judge(), list[int]()
    judge.newest = newest
    pool, work = _pool(judge)
    with pool:
        go = _blocked(pool)
        for number in range(6):
            pool.submit(done.append, number)
        assert work.qsize() == 6
        go.set()
    assert done == sorted(range(6), reverse=newest)


def test_who_has_left_is_not_served() -> None:
    """Its future is cancelled, and the thread goes on to the next."""
    judge, done = _Judge(), list[str]()
    pool, work = _pool(judge)
    with pool:
        go = _blocked(pool)
        futures: list[Future[None]] = [pool.submit(done.append, name) for name in ("a", "gone", "b", "gone")]
        time.sleep(0.05)
        go.set()
        wait_until(lambda: done == ["a", "b"])
        assert work.empty()
    assert [future.cancelled() for future in futures] == [False, True, False, True]


def test_what_is_taken_out_leaves_the_rest_to_be_served() -> None:
    """And a queue that is empty, with turns left in it, blocks as any."""
    judge, done = _Judge(), list[int]()
    pool, work = _pool(judge)
    with pool:
        go = _blocked(pool)
        for number in range(5):
            pool.submit(done.append, number)
        time.sleep(0.01)
        late = work.overdue()
        assert [connection_of(item) for item in late] == [0, 1, 2, 3]
        assert work.qsize() == 1
        go.set()
        wait_until(lambda: done == [4])
        pool.submit(done.append, 7)
        wait_until(lambda: done == [4, 7])
    with pytest.raises(queue.Empty):
        WorkQueue(judge, judge.told_of.append).get(timeout=0.01)
    with pytest.raises(queue.Empty):
        WorkQueue(judge, judge.told_of.append).get_nowait()


def test_the_judge_hears_when_nobody_waits_any_more() -> None:
    """Only as long as it wants to know."""
    judge, done = _Judge(), list[int]()
    pool, work = _pool(judge)
    with pool:
        pool.submit(done.append, 0)
        wait_until(lambda: done == [0])
        assert not judge.told
        work.watchful = True
        pool.submit(done.append, 1)
        wait_until(lambda: judge.told == 1)
        assert not work.watchful


def test_nothing_is_lost_or_run_twice() -> None:
    """Threads that take and one that gives, as fast as they can."""
    judge, done = _Judge(), list[int]()
    pool, work = _pool(judge, threads=8)
    with pool:
        for number in range(20_000):
            pool.submit(done.append, number)
            if number % 1000 == 0:
                time.sleep(0.001)
    assert sorted(done) == list(range(20_000))
    assert not work.line.number


def test_the_pool_can_be_emptied() -> None:
    """As Python's own does at its end."""
    judge = _Judge()
    pool, _ = _pool(judge)
    go = _blocked(pool)
    futures = [pool.submit(time.sleep, 60) for _ in range(3)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    go.set()


def test_a_work_item_of_python_3_14_is_known() -> None:
    """It has a task where earlier ones have arguments."""
    assert connection_of(SimpleNamespace(task=(print, ("connection",), {}))) == "connection"
    assert connection_of(SimpleNamespace(fn=print, args=("connection",), kwargs={})) == "connection"


def test_a_judge_that_fails_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are served, in their order, and the exceptions are told."""
    judge, done = _Judge(), list[int]()

    def fail(*_: Any) -> Any:
        raise MemoryError

    for name in ("arrival", "next", "admit", "alone", "overdue"):
        monkeypatch.setattr(judge, name, fail)
    pool, work = _pool(judge)
    with pool:
        go = _blocked(pool)
        for number in range(5):
            pool.submit(done.append, number)
        assert work.overdue() == []
        time.sleep(0.05)
        go.set()
    assert done == [0, 1, 2, 3, 4]
    assert {type(error) for error in judge.told_of} == {MemoryError}


def test_gunicorn_closes_the_stand_in_of_a_refused_connections_socket() -> None:
    """Whatever it raised would be counted as one more connection that ended, and a worker that leaves would cut one."""
    util.close(NoSocket())
    if hasattr(util, "close_graceful"):
        util.close_graceful(NoSocket())
