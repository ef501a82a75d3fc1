"""The schedule of the checks, with real threads and the document they end in."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.database import Pool
from flask_stability.health import checks, report, results
from flask_stability.health.checks import Check, CheckWarning, database_check
from flask_stability.health.history import History, Sample
from flask_stability.health.monitor import Monitor
from flask_stability.scoreboard import Row, Scoreboard
from flask_stability.signals import health_changed
from support import free_port, wait_until

#: No check is late or hangs because the machine was slow: those that are to hang have a timeout of their own.
SETTINGS = replace(Settings(), health_interval=0.2, health_timeout=60.0, service_id="orders@here")
HOUR = 3600 * 10**9


def _worker(board: Scoreboard, pid: int) -> Row:
    row = board.allocate(pid)
    assert row is not None
    row.words[sb.W_PID], row.words[sb.W_STATE] = pid, sb.STATE_READY
    row.words[sb.W_STARTED_NS] = time.monotonic_ns()
    row.words[sb.W_HEARTBEAT_NS] = time.monotonic_ns() + HOUR  # fresh, however long this machine stops
    return row


@pytest.fixture
def board() -> Scoreboard:
    """A board of two."""
    return Scoreboard.anonymous(2)


@pytest.fixture
def monitor(board: Scoreboard) -> Iterator[Callable[..., Monitor]]:
    """Makes monitors that end with the test."""
    made: list[Monitor] = []

    def make(row: Row, *checks: Check, settings: Settings = SETTINGS) -> Monitor:
        one = Monitor(settings, board, row, list(checks))
        made.append(one)
        one.start()
        return one

    yield make
    for one in made:
        one.stop()


def _checks(board: Scoreboard) -> dict[str, Any]:
    found: dict[str, Any] = report.build(board, SETTINGS)["detailed"]["checks"]
    return found


def _changes(board: Scoreboard, check: str) -> list[tuple[str, str]]:
    """What was told of a check, the oldest first."""
    return [(entry["old"], entry["new"]) for entry in reversed(History(board.master.history).transitions())
            if entry["check"] == check]


def test_a_check_that_fails_three_times_fails_the_service_and_two_successes_heal_it(
        board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """With its class and number, never its text."""
    broken = [True]

    def check() -> dict[str, Any]:
        if broken[0]:
            raise OSError(5, "password is hunter2")
        return {"answer": 42}

    monitor(_worker(board, 11), Check("search", check, critical=True, interval=0.1))
    wait_until(lambda: _checks(board).get("search", {}).get("status") == "fail")
    document = report.build(board, SETTINGS)
    assert document["status"] == results.summary(board) == "fail"
    assert document["detailed"]["checks"]["search"]["error"] == "OSError 5"
    assert "hunter2" not in str(document)
    broken[0] = False
    wait_until(lambda: _checks(board)["search"]["status"] == "pass")
    assert _checks(board)["search"]["answer"] == 42
    wait_until(lambda: _changes(board, "search") == [("pass", "fail"), ("fail", "pass")])


def test_a_check_that_hangs_is_reported_and_not_started_again(
        board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """However often it is due."""
    release, started = threading.Event(), []

    def hang() -> None:
        started.append(1)
        release.wait(60)

    monitor(_worker(board, 11), Check("search", hang, critical=True, interval=0.1, timeout=0.3))
    found = wait_until(lambda: _checks(board).get("search"))
    assert found["error"].startswith("timeout, running ")
    assert found["running_s"] >= 0.3
    first = found["running_s"]
    wait_until(lambda: _checks(board)["search"]["running_s"] > first)
    wait_until(lambda: _checks(board)["search"]["status"] == "fail")
    assert len(started) == 1
    release.set()
    wait_until(lambda: len(started) > 1, message="started again once it came back")


def test_shared_checks_run_in_the_leader_alone_and_the_next_takes_over(
        board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """Local ones run in both; a leader that stops is followed."""
    ran: dict[int, int] = {1: 0, 2: 0}

    def counting(number: int) -> Check:
        def check() -> None:
            ran[number] += 1
        return Check("shared", check, interval=0.1)

    first, second = _worker(board, 11), _worker(board, 12)
    monitor(first, counting(1))
    monitor(second, counting(2))
    wait_until(lambda: ran[1] > 2)
    wait_until(lambda: "memory" in second.checks.read_json({}))
    assert ran[2] == 0
    first.words[sb.W_STATE] = sb.STATE_STOPPING
    wait_until(lambda: ran[2] > 1)
    stopped = ran[1]
    wait_until(lambda: ran[2] > 4)
    assert ran[1] <= stopped + 1


def test_a_sign_of_change_brings_a_check_forward(board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """It is not due for ten minutes; it runs because what it watches is new, and not because it was looked at."""
    runs: list[object] = []
    seen: list[object] = [0]
    looks: list[object] = []

    def look() -> object:
        looks.append(seen[0])
        return seen[0]

    check = Check("database", lambda: runs.append(seen[0]), interval=600, sign=look)
    monitor(_worker(board, 1), check)
    wait_until(lambda: runs and len(looks) > 2)
    assert runs == [0]
    seen[0] = 1
    wait_until(lambda: runs == [0, 1])
    known = len(looks)
    wait_until(lambda: len(looks) > known + 2)
    assert runs == [0, 1]


def test_a_change_right_after_the_first_run_is_a_sign_too(board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """A database that dies within a second of its first check is checked again, not after ten minutes."""
    runs: list[int] = []
    seen = [0]

    def ask() -> None:
        runs.append(seen[0])
        seen[0] = 1

    monitor(_worker(board, 1), Check("database", ask, interval=600, sign=lambda: seen[0]))
    wait_until(lambda: runs == [0, 1])


def test_a_worry_warns_at_once_and_is_told_of_when_it_lasts(board: Scoreboard,
                                                            monitor: Callable[..., Monitor]) -> None:
    """It is a success with a note, critical or not."""
    def check() -> None:
        raise CheckWarning("queue is long", length=7)

    monitor(_worker(board, 11), Check("queue", check, critical=True, interval=0.1))
    found = wait_until(lambda: _checks(board).get("queue"))
    assert found["status"] == "warn"
    assert found["note"] == "queue is long"
    assert found["length"] == 7
    assert results.summary(board) == "warn"
    wait_until(lambda: _changes(board, "queue") == [("pass", "warn")])


def test_one_bad_result_is_shown_but_not_told_of(board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """A check that fails now and then warns while it does, and alerts nobody."""
    ran: list[bool] = []

    def check() -> None:
        ran.append(len(ran) % 3 == 0)
        if ran[-1]:
            raise ConnectionError

    monitor(_worker(board, 11), Check("search", check, critical=True, interval=0.05))
    wait_until(lambda: _checks(board).get("search", {}).get("status") == "warn")
    wait_until(lambda: ran.count(True) > 5)
    assert _changes(board, "search") == []


def test_a_check_slower_than_its_timeout_fails_however_it_ends(board: Scoreboard,
                                                               monitor: Callable[..., Monitor]) -> None:
    """Its late success is no success."""
    slow = threading.Event()
    monitor(_worker(board, 11), Check("search", lambda: slow.wait(0.2) and None, critical=True, interval=0.05,
                                      timeout=0.05))
    wait_until(lambda: _checks(board).get("search", {}).get("status") == "fail")
    slow.set()
    wait_until(lambda: _checks(board)["search"]["status"] == "pass")


def test_a_process_that_was_stopped_does_not_call_its_checks_slow(board: Scoreboard) -> None:
    """A minute that nothing ran in is not counted, the seconds after it are."""
    release = threading.Event()
    one = Monitor(replace(SETTINGS, health_timeout=5.0), board, _worker(board, 11),
                  [Check("search", lambda: release.wait(60) and None)])
    begin = time.monotonic()
    one._step(begin)
    one._expected = begin + 1
    one._step(begin + 60)
    assert "search" not in _checks(board)
    one._expected = begin + 66
    one._step(begin + 66.5)
    assert _checks(board)["search"]["error"].startswith("timeout")
    release.set()


@pytest.mark.parametrize("failure", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_check_can_raise_anything(failure: BaseException, board: Scoreboard,
                                    monitor: Callable[..., Monitor]) -> None:
    """It is a failure like any other, and the next run comes in its time."""
    def check() -> None:
        raise failure

    monitor(_worker(board, 11), Check("search", check, critical=True, interval=0.1))
    found = wait_until(lambda: (lambda one: one.get("status") == "fail" and one)(_checks(board).get("search", {})))
    assert found["error"].startswith(type(failure).__name__)


@pytest.mark.parametrize("detail", [
    {"status": "fine", "at_ns": 0}, {"value": float("nan")}, {"value": object()}, {("a", 1): 2}, {"value": "x" * 10**6},
    ["a", "list"], 42])
def test_whatever_a_check_returns_the_document_stays_whole(detail: Any, board: Scoreboard,
                                                           monitor: Callable[..., Monitor]) -> None:
    """Details that are no JSON or too long are left out."""
    monitor(_worker(board, 11), Check("search", lambda: detail, interval=0.1))
    found = wait_until(lambda: _checks(board).get("search"))
    assert found["status"] == "pass"
    assert found["critical"] is False
    text = json.dumps(report.build(board, SETTINGS), allow_nan=False)
    assert len(text) < 100_000


def test_the_leader_tells_of_what_a_local_check_finds_in_another_worker(
        board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """Once, however many workers there are."""
    def broken() -> None:
        raise OSError

    first, second = _worker(board, 11), _worker(board, 12)
    monitor(first, Check("cache", lambda: None, interval=0.1, shared=False))
    monitor(second, Check("cache", broken, interval=0.1, shared=False))
    wait_until(lambda: _changes(board, "cache"))
    assert results.summary(board) == "warn"
    wait_until(lambda: len(History(board.master.history).samples()) >= 3)
    assert _changes(board, "cache") == [("pass", "warn")]


def test_the_next_leader_goes_on_where_the_last_one_stopped(board: Scoreboard,
                                                            monitor: Callable[..., Monitor]) -> None:
    """What is failing is not told of again, what the last one found is shown meanwhile, and one success is not two."""
    def broken() -> None:
        raise OSError

    release = threading.Event()
    first, second = _worker(board, 11), _worker(board, 12)
    monitor(first, Check("search", broken, critical=True, interval=0.1))
    wait_until(lambda: _changes(board, "search"))
    wait_until(lambda: results.started(board), message="all is handed on once each check has a result")
    board.release(first)  # it is gone, and its row with it
    assert results.summary(board) == "fail"
    monitor(second, Check("search", lambda: release.wait(60) and None, critical=True, interval=0.1, timeout=30.0))
    wait_until(lambda: second.checks.read_json({}).get("disk"))
    assert results.summary(board) == "fail"
    release.set()
    wait_until(lambda: _changes(board, "search") == [("pass", "fail"), ("fail", "pass")])


def test_a_clock_that_is_set_back_while_the_leader_dies_does_not_stop_the_history(
        board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """Its last sample is of tomorrow: the next comes after one interval all the same."""
    history = History(board.master.history)
    history.append(Sample(time=time.time() + 86400))
    monitor(_worker(board, 1), Check("x", lambda: None))
    wait_until(lambda: history.count > 1)
    found = history.availability(time.time(), 0, 0, 3600.0)
    assert found["observed_s"] >= 0


def test_a_worker_without_a_server_leads(board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """The development server has nobody else to give signs of life."""
    row = _worker(board, 11)
    row.words[sb.W_HEARTBEAT_NS] = 0
    assert board.leader() is None
    monitor(row)
    wait_until(lambda: results.started(board))


def test_a_round_shows_the_worst_of_each_check_since_the_last_one(
        board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """A failure that healed before the round is in it all the same; memory is told by slot."""
    row, failing = _worker(board, 11), threading.Event()
    row.words[sb.W_RSS] = 50 << 20

    def search() -> None:
        if failing.is_set():
            raise LookupError("gone")

    monitor(row, Check("search", search, interval=0.05), settings=replace(SETTINGS, health_interval=2.0))
    history = History(board.master.history)
    wait_until(lambda: history.count)
    failing.set()
    wait_until(lambda: _checks(board)["search"]["status"] != "pass")
    failing.clear()
    wait_until(lambda: _checks(board)["search"]["status"] == "pass")
    healed = history.count
    wait_until(lambda: history.count >= healed + 2)
    place = history.check_names().index("search")
    beats = [history.beats(number)[place] for number in range(history.count)]
    assert {"2", "3"} & set(beats[1:healed + 1])  # a slow machine lets it fail three times
    assert beats[-1] == "1"
    assert history.memory(0)[0][::2] == (row.slot, 50 << 20)


def test_the_first_round_begins_at_once_and_startup_waits_for_all_of_it(
        board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """A check that hangs is waited for no longer than its timeout."""
    release = threading.Event()
    row = _worker(board, 11)
    assert not results.started(board)
    monitor(row, Check("search", lambda: release.wait(60) and None, timeout=1.0),
            settings=replace(SETTINGS, health_interval=3600.0))
    wait_until(lambda: row.checks.read_json({}).get("disk"))
    assert not results.started(board) or "search" in _checks(board)
    wait_until(lambda: results.started(board))
    assert _checks(board)["search"]["error"].startswith("timeout")
    wait_until(lambda: History(board.master.history).samples())
    release.set()


def test_a_monitor_at_rest_costs_next_to_nothing(board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """Below half a percent of a core beside its checks, which are rare."""
    one = monitor(_worker(board, 11), settings=replace(SETTINGS, health_interval=3600.0))
    wait_until(lambda: results.started(board))
    wait_until(lambda: History(board.master.history).samples())
    one.stop()
    step, runs = one._step, 2000
    before = time.thread_time()
    for _ in range(runs):
        step(time.monotonic())
    assert (time.thread_time() - before) / runs < 0.005




def test_a_database_that_is_away_is_told_in_words(board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """What to do about it, where error.log says it too; in the document, its notes and the alert, without secrets."""
    settings = replace(SETTINGS, db_url=f"mysql://shop:hunter2@127.0.0.1:{free_port()}/shop", health_timeout=10.0)
    pool = Pool(settings)
    alerts: list[str] = []

    def listen(sender: str, **kwargs: Any) -> None:
        alerts.append(kwargs["detail"])

    try:
        with health_changed.connected_to(listen):
            monitor(_worker(board, 11), database_check(pool, settings, shared=True), settings=settings)
            wait_until(lambda: _checks(board).get("database", {}).get("status") == "fail", 60)
            wait_until(lambda: alerts, 60)
    finally:
        pool.close()
    document = report.build(board, settings)
    cause = document["detailed"]["database"]["cause"]
    assert "error 200" in cause
    assert "start the server, or correct host and port" in cause
    assert document["notes"][0] == f"database: {cause}"
    assert any("start the server" in text for text in alerts)
    assert "hunter2" not in str(document) + str(alerts)
    assert document["detailed"]["database"]["error"].startswith("OperationalError")


def test_the_old_name_of_a_warning_still_works() -> None:
    """With a word on the new one; another name is none."""
    with pytest.warns(DeprecationWarning, match="CheckWarning"):
        assert checks.Worry is CheckWarning
    with pytest.raises(AttributeError, match="Sorrow"):
        _ = checks.Sorrow
