"""The document, built from the board alone."""

from __future__ import annotations

import datetime
import gc
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.health import report
from flask_stability.health.history import History, Sample
from flask_stability.scoreboard import Row, Scoreboard

SETTINGS = replace(Settings(), service_id="orders@here", release_id="1.4.2")
SECOND = 10**9


def _result(status: str = "pass", **more: Any) -> dict[str, Any]:
    return {"status": status, "settled": status, "down": False, "ok": status == "pass", "at_ns": time.monotonic_ns(),
            "took_ms": 1.5, "failures": 0, "critical": True, "shared": True, "interval": 30.0, "timeout": 2.0,
            "error": None, "note": None, "detail": {}, **more}


def _worker(board: Scoreboard, pid: int, **checks: dict[str, Any]) -> Row:
    row = board.allocate(pid)
    assert row is not None
    row.words[sb.W_PID], row.words[sb.W_STATE] = pid, sb.STATE_READY
    row.words[sb.W_STARTED_NS] = row.words[sb.W_HEARTBEAT_NS] = time.monotonic_ns() - 90 * SECOND
    row.words[sb.W_RSS] = row.words[sb.W_OWN_MEMORY] = 50_000_000
    row.words[sb.W_MEMORY_LIMIT] = 200_000_000
    row.checks.write_json(checks)
    return row


def _service() -> Scoreboard:
    """Two workers of four rows, a database that is slow, one worker that crashed."""
    board = Scoreboard.anonymous(4)
    disk = {"/": {"free_bytes": 25, "total_bytes": 100}}
    crashed = _worker(board, 10)
    crashed.observe("GET", "orders", 500, 3_000_000)
    board.release(crashed)
    board.add_restart(sb.Reason.CRASH_SIGNAL, 10, 12.5, 0, "SIGSEGV")
    first = _worker(board, 11, memory=_result(shared=False, critical=False),
                    database=_result("warn", note="slow", detail={"latency_ms": 410.0}),
                    disk=_result(critical=False, detail=disk), response_time=_result(critical=False),
                    search=_result(critical=False))
    first.words[sb.W_DB_MAX], first.words[sb.W_DB_IN_USE] = 10, 3
    first.floats[sb.F_MEMORY_TREND], first.floats[sb.F_SECONDS_TO_LIMIT] = 1000.0, float("nan")
    second = _worker(board, 12, memory=_result("warn", shared=False, critical=False, note="close to the limit"))
    second.floats[sb.F_MEMORY_TREND], second.floats[sb.F_SECONDS_TO_LIMIT] = 0.0, 120.0
    for _ in range(9):
        second.observe("GET", "orders", 200, 2_000_000)
    history = History(board.master.history)
    history.append(Sample(time.time() - 1000.0, status=0))
    history.append(Sample(time.time() - 10.0, requests=8, errors=1, status=0))
    return board


def test_the_document_has_the_promised_form() -> None:
    """Keys, types and units as specified, and it is JSON."""
    document = json.loads(json.dumps(report.build(_service(), SETTINGS)))
    assert list(document) == ["status", "version", "releaseId", "serviceId", "time", "notes", "checks", "detailed"]
    assert (document["status"], document["version"], document["releaseId"]) == ("warn", "1", "1.4.2")
    assert document["serviceId"] == "orders@here"
    assert document["time"].endswith("Z")
    assert datetime.datetime.fromisoformat(document["time"])
    assert sorted(document["notes"]) == ["database: slow", "memory: close to the limit"]
    memory, = (one for one in document["checks"]["memory:utilization"] if one["componentId"] == "worker-1")
    assert (memory["observedValue"], memory["observedUnit"], memory["status"]) == (25.0, "percent", "warn")
    statuses = [one["status"] for one in document["checks"]["memory:utilization"]]
    assert statuses == ["pass", "warn"]
    assert document["checks"]["database:responseTime"][0]["observedValue"] == 410.0
    assert document["checks"]["database:responseTime"][0]["status"] == "warn"
    assert document["checks"]["database:connections"][0]["observedValue"] == 3
    assert document["checks"]["disk:utilization"][0]["observedValue"] == 75.0
    assert document["checks"]["search:responseTime"][0]["observedUnit"] == "ms"
    assert document["checks"]["uptime"][0]["observedValue"] >= 90
    detailed = document["detailed"]
    assert detailed["memory"]["rss_bytes"] == 100_000_000
    assert detailed["memory"]["trend_bytes_per_min"] == 1000.0
    assert detailed["memory"]["seconds_to_limit"] == 120.0
    assert detailed["memory"]["workers"][0]["seconds_to_limit"] is None
    assert detailed["database"]["critical"] is True
    assert detailed["database"]["pool"]["in_use"] == 3
    assert detailed["response_time"]["p50_ms"] == pytest.approx(2.0, rel=0.2)
    assert detailed["response_time"]["mean_ms"] == pytest.approx(2.1)
    assert detailed["availability"]["ratio"] == 0.9
    assert detailed["availability"]["window_s"] == 86400.0
    assert detailed["availability"]["5m"]["probes"] == detailed["availability"]["1h"]["probes"] == 1.0
    assert [(worker["pid"], worker["state"], worker["requests"]) for worker in detailed["workers"]] == [
        (11, "ready", 0), (12, "ready", 9)]
    assert detailed["restarts"]["by_reason"] == {"crash_signal": 1}
    assert detailed["restarts"]["latest"][0]["detail"] == "SIGSEGV"
    assert (detailed["requests"]["total"], detailed["requests"]["errors"]) == (10, 1)


def test_an_empty_board_is_reported_too() -> None:
    """Before any worker, any check, any request."""
    document = report.build(Scoreboard.anonymous(2), Settings())
    json.dumps(document)
    assert document["status"] == "pass"
    assert "releaseId" not in document
    assert document["detailed"]["availability"]["ratio"] is None
    assert not report.started(Scoreboard.anonymous(1))


def test_shared_results_outlive_the_leader_that_found_them() -> None:
    """Between one leader and the next nothing is forgotten, and the newest result wins."""
    board = Scoreboard.anonymous(2)
    board.master.shared.write_json({"database": _result("fail"), "disk": _result(), "response_time": _result()})
    assert report.summary(board) == "fail"
    assert report.started(board)
    _worker(board, 11, database=_result("pass"))
    assert report.summary(board) == "pass"


@pytest.mark.parametrize(("age", "critical", "status"), [
    (10, True, "pass"), (67, True, "pass"), (69, True, "warn"), (100, True, "warn"), (102, True, "fail"),
    (102, False, "warn"), (10_000, False, "warn")])
def test_age_is_judged_when_the_result_is_read(age: int, critical: bool, status: str) -> None:
    """Two periods and the timeout make it late, three make the checker stuck; periods are up to a tenth longer."""
    board = Scoreboard.anonymous(1)
    result = _result(critical=critical)
    _worker(board, 11, database=result)
    now = int(result["at_ns"]) + age * SECOND
    assert report.summary(board, now) == status
    assert report.build(board, SETTINGS, now)["detailed"]["checks"]["database"]["age_s"] == age


def test_a_check_cannot_hide_its_status_behind_its_details() -> None:
    """Details of a user's check never replace what the monitor found."""
    board = Scoreboard.anonymous(1)
    _worker(board, 11, search=_result("fail", detail={"status": "pass", "critical": False, "hits": 3}))
    part = report.build(board, SETTINGS)["detailed"]["checks"]["search"]
    assert (part["status"], part["critical"], part["hits"]) == ("fail", True, 3)


@trials(max_examples=80)
@given(st.lists(st.tuples(st.sampled_from(["database", "disk", "memory", "own:check"]), st.integers(0, 2),
                          st.sampled_from(["pass", "warn", "fail"]), st.booleans(), st.booleans(),
                          st.integers(0, 300)), max_size=8))
def test_the_summary_and_the_document_always_agree(found: list[tuple[str, int, str, bool, bool, int]]) -> None:
    """Whatever is on the board, a stranger is told the same status as a friend, and it is the worst of the checks."""
    board = Scoreboard.anonymous(3)
    now = time.monotonic_ns()
    blobs: list[dict[str, Any]] = [{}, {}, {}]
    for name, slot, status, shared, critical, age in found:
        blobs[slot][name] = _result(status, shared=shared, critical=critical, at_ns=now - age * SECOND)
    for number, blob in enumerate(blobs):
        _worker(board, 11 + number, **blob)
    document = report.build(board, SETTINGS, now)
    assert document["status"] == report.summary(board, now)
    statuses = {part["status"] for part in document["detailed"]["checks"].values()}
    worst = next((status for status in ("fail", "warn") if status in statuses), "pass")
    assert document["status"] == worst


@contextmanager
def _system_calls() -> Iterator[list[str]]:
    """What the interpreter opens, connects or starts in this thread meanwhile."""
    seen: list[str] = []
    watching, here = True, threading.get_ident()
    kinds = ("open", "socket", "subprocess", "os", "sqlite3", "import", "fcntl")
    gc.collect()  # else finalizers of other tests' garbage may run in it

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if watching and threading.get_ident() == here and event.split(".")[0] in kinds:
            seen.append(event)

    sys.addaudithook(audit)  # cannot be taken away again; it can be silenced
    try:
        yield seen
    finally:
        watching = False


def test_the_document_needs_no_input_or_output() -> None:
    """Nothing is opened, asked or started for it: it answers while disk and database hang."""
    board = _service()
    with _system_calls() as seen:
        report.build(board, SETTINGS)
        report.summary(board)
        report.started(board)
    assert seen == []


def test_a_worker_that_was_sent_away_is_not_judged_by() -> None:
    """It hangs, its results get old; those of the others are the service's, and if there are none its own are."""
    board = Scoreboard.anonymous(2)
    old = _result(shared=False, at_ns=time.monotonic_ns() - 200 * SECOND)
    hung, other = _worker(board, 11, database=old), _worker(board, 12, database=_result(shared=False))
    assert report.summary(board) == "fail"
    hung.orders[sb.O_RETIRE_SINCE_NS] = time.monotonic_ns()
    assert report.summary(board) == report.build(board, SETTINGS)["status"] == "pass"
    assert len(report.build(board, SETTINGS)["detailed"]["workers"]) == 2
    board.release(other)
    assert report.summary(board) == "fail"


def test_requests_that_hang_are_shown_the_longest_first() -> None:
    """Of all workers, with the line that their thread is at; what a row says of none is none."""
    board = Scoreboard.anonymous(2)
    now = time.monotonic_ns()
    for pid, ages in ((11, (7, 30)), (12, (12,))):
        _worker(board, pid).hung.write_json([
            {"method": "GET", "route": "/slow", "path": "/slow", "started_ns": now - age * SECOND,
             "request_id": f"r{age}", "where": "app.py:7 slow"} for age in ages])
    found = report.build(board, SETTINGS, now)["detailed"]["hung"]
    assert [(one["seconds"], one["pid"], one["request_id"]) for one in found] == [
        (30.0, 11, "r30"), (12.0, 12, "r12"), (7.0, 11, "r7")]
    assert {one["where"] for one in found} == {"app.py:7 slow"}
    assert "started_ns" not in found[0]
