"""The schedule of the checks, with real threads and the document they end in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from support import wait_until

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.health import report
from flask_stability.health.checks import Check, Worry
from flask_stability.health.history import History
from flask_stability.health.monitor import Monitor
from flask_stability.scoreboard import Row, Scoreboard

SETTINGS = replace(Settings(), health_interval=0.2, health_timeout=0.3, service_id="orders@here")


def _worker(board: Scoreboard, pid: int) -> Row:
    row = board.allocate(pid)
    assert row is not None
    row.words[sb.W_PID], row.words[sb.W_STATE] = pid, sb.STATE_READY
    row.words[sb.W_STARTED_NS] = row.words[sb.W_HEARTBEAT_NS] = time.monotonic_ns()
    return row


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """A board of two, whose heartbeats a thread keeps fresh."""
    board = Scoreboard.anonymous(2)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            for row in board.live():
                if row.words[sb.W_STATE] == sb.STATE_READY:
                    row.words[sb.W_HEARTBEAT_NS] = time.monotonic_ns()

    thread = threading.Thread(target=beat)
    thread.start()
    yield board
    stop.set()
    thread.join()


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
    assert document["status"] == report.summary(board) == "fail"
    assert document["detailed"]["checks"]["search"]["error"] == "OSError 5"
    assert "hunter2" not in str(document)
    broken[0] = False
    wait_until(lambda: _checks(board)["search"]["status"] == "pass")
    assert _checks(board)["search"]["answer"] == 42
    changes = [(entry["old"], entry["new"]) for entry in History(board.master.history).transitions()
               if entry["check"] == "search"]
    assert changes[0] == ("fail", "pass")
    assert changes[-1][0] == "pass"


def test_a_check_that_hangs_is_reported_and_not_started_again(
        board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """However often it is due."""
    release, started = threading.Event(), []

    def hang() -> None:
        started.append(1)
        release.wait(60)

    monitor(_worker(board, 11), Check("search", hang, interval=0.1))
    wait_until(lambda: _checks(board).get("search", {}).get("error") == "timeout")
    assert "running_s" in _checks(board)["search"]
    wait_until(lambda: len(History(board.master.history).samples()) >= 2)
    assert len(started) == 1
    release.set()
    wait_until(lambda: len(started) > 1, message="started again once it came back")


def test_shared_checks_run_in_the_leader_alone_and_the_next_takes_over(
        board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """Local ones run in both; a leader whose heartbeat stops is followed."""
    ran: dict[int, int] = {1: 0, 2: 0}

    def counting(number: int) -> Check:
        def check() -> None:
            ran[number] += 1
        return Check("shared", check, interval=0.1)

    first, second = _worker(board, 11), _worker(board, 12)
    monitor(first, counting(1))
    monitor(second, counting(2))
    wait_until(lambda: ran[1] > 2)
    assert ran[2] == 0
    assert "memory" in second.checks.read_json({})
    first.words[sb.W_STATE] = sb.STATE_STOPPING
    wait_until(lambda: ran[2] > 1)
    stopped = ran[1]
    wait_until(lambda: ran[2] > 4)
    assert ran[1] <= stopped + 1


def test_a_worry_warns_and_details_are_shown(board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """It is a success with a note."""
    def check() -> None:
        raise Worry("queue is long", length=7)

    monitor(_worker(board, 11), Check("queue", check, interval=0.1))
    found = wait_until(lambda: _checks(board).get("queue"))
    assert found["status"] == "warn"
    assert found["note"] == "queue is long"
    assert found["length"] == 7
    assert report.summary(board) == "warn"


def test_old_results_are_judged_when_they_are_read(board: Scoreboard) -> None:
    """A checker that is stuck is no good news."""
    row = _worker(board, 11)
    result = {"status": "pass", "ok": True, "at_ns": time.monotonic_ns(), "took_ms": 1.0, "failures": 0,
              "critical": True,
              "shared": True, "interval": 30.0, "timeout": 2.0, "error": None, "note": None, "detail": {}}
    row.checks.write_json({"database": result})
    now = int(result["at_ns"])  # type: ignore[call-overload]
    assert report.summary(board, now + 10 * 10**9) == "pass"
    assert report.summary(board, now + 70 * 10**9) == "warn"
    assert report.summary(board, now + 120 * 10**9) == "fail"


def test_startup_passes_after_the_first_round(board: Scoreboard, monitor: Callable[..., Monitor]) -> None:
    """And not before."""
    row = _worker(board, 11)
    assert not report.started(board)
    monitor(row)
    wait_until(lambda: report.started(board))
