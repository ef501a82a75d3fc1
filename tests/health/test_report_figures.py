"""The document's figures, against what was counted: of living workers and of those that are gone."""

from __future__ import annotations

import time

import pytest

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.health import report
from flask_stability.scoreboard import Row, Scoreboard


def _worker(board: Scoreboard, pid: int, uptime: float) -> Row:
    row = board.allocate(pid)
    assert row is not None
    row.words[sb.W_PID], row.words[sb.W_STATE], row.words[sb.W_RSS] = pid, sb.STATE_READY, pid * 1_000_000
    row.words[sb.W_STARTED_NS] = time.monotonic_ns() - int(uptime * 1e9)
    return row


def test_each_worker_has_its_pid_uptime_state_memory_requests_and_errors() -> None:
    """Its own, not the service's; an answer that was cut is an error too."""
    board = Scoreboard.anonymous(4)
    first, second = _worker(board, 11, 100.0), _worker(board, 12, 5.0)
    second.words[sb.W_STATE] = sb.STATE_RETIRING
    for status in (200, 200, 404, 500, 503, 0):
        first.observe("GET", "orders", status, 1_000_000)
    second.observe("GET", "orders", 302, 1_000_000)
    now = time.monotonic_ns()
    workers = report.build(board, Settings(), now)["detailed"]["workers"]
    assert [(one["pid"], one["state"], one["rss_bytes"], one["requests"], one["errors"]) for one in workers] == [
        (11, "ready", 11_000_000, 6, 3), (12, "retiring", 12_000_000, 1, 0)]
    assert [one["uptime_s"] for one in workers] == [
        round((now - row.words[sb.W_STARTED_NS]) / 1e9, 1) for row in (first, second)]
    assert workers[0]["uptime_s"] >= 100.0


def test_restarts_by_reason_classes_and_percentiles_are_of_all_workers() -> None:
    """Also of those that are gone: releasing a row changes no figure, and it is in the document no more."""
    board = Scoreboard.anonymous(4)
    first, second = _worker(board, 11, 100.0), _worker(board, 12, 5.0)
    for number in range(100):
        (first, second)[number % 2].observe("GET", "orders", (200, 302, 404, 500, 0)[number % 5],
                                            (number + 1) * 10_000_000)
    before = report.build(board, Settings())["detailed"]
    for reason in (sb.Reason.CRASH_SIGNAL, sb.Reason.MEMORY, sb.Reason.CRASH_SIGNAL):
        board.add_restart(reason, 11, 100.0, first.slot)
    board.release(first)
    after = report.build(board, Settings())["detailed"]
    for document in (before, after):
        assert document["requests"]["by_class"] == {"1xx": 0, "2xx": 20, "3xx": 20, "4xx": 20, "5xx": 20}
        assert (document["requests"]["total"], document["requests"]["cut"]) == (100, 20)
        assert document["requests"]["errors"] == 40
        times = document["response_time"]
        assert times["mean_ms"] == pytest.approx(505.0)
        assert [times[f"p{share}_ms"] for share in (50, 95, 99)] == pytest.approx([500, 950, 990], rel=0.13)
    assert before["restarts"]["by_reason"] == {}
    assert after["restarts"]["by_reason"] == {"crash_signal": 2, "memory": 1}
    assert [one["pid"] for one in after["workers"]] == [12]
