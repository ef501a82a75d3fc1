"""The exposition, read by Prometheus' own tools and by its client's parsers."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as classic

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.health import metrics, results
from flask_stability.scoreboard import Scoreboard
from support import check_result

SETTINGS = replace(Settings(), release_id='1.4 "beta"\\')
OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"
NAMES = {"http_requests", "http_request_duration_seconds", "http_requests_in_progress",
         "worker_resident_memory_bytes", "worker_restarts", "check_status", "check_duration_seconds",
         "db_pool_connections", "db_requests_held", "kept_answers", "db_retries", "disk_free_bytes", "build_info"}


def _board() -> Scoreboard:
    board = Scoreboard.anonymous(3)
    for age in range(2):
        row = board.allocate(age)
        assert row is not None
        row.words[sb.W_PID], row.words[sb.W_RSS], row.words[sb.W_BUSY] = 10 + age, 1000, 2
        row.observe("GET", 'say "hi"\\', 200, 5_000_000)
        row.observe("GET", "orders", 0, 200 * 10**9)
        row.add(sb.W_DB_RETRIES, 4)
        results.publish(row.checks, {"disk": check_result(
            "warn", at_ns=2**62, took_ms=250, critical=False, detail={"/srv": {"free_bytes": 7, "total_bytes": 70}})})
    return board


def _samples(board: Scoreboard, accept: str = "") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, _ = metrics.exposition(board, SETTINGS, accept)
    parse: Any = open_metrics if accept else classic
    return {(sample.name.removeprefix("flask_stability_"), tuple(sorted(sample.labels.items()))): sample.value
            for family in parse(body.decode()) for sample in family.samples}


@pytest.mark.parametrize("accept", ["", OPEN])
def test_both_formats_say_the_same_and_what_is_on_the_board(accept: str) -> None:
    """Names, labels and units as promised; odd names are escaped."""
    found = _samples(_board(), accept)
    assert found["http_requests_total", (("endpoint", 'say "hi"\\'), ("method", "GET"), ("status_class", "2xx"))] == 2
    assert found["http_requests_total", (("endpoint", "orders"), ("method", "GET"), ("status_class", "cut"))] == 2
    assert found["http_request_duration_seconds_count", ()] == 4
    assert found["http_request_duration_seconds_sum", ()] == pytest.approx(400.01)
    assert found["http_request_duration_seconds_bucket", (("le", "+Inf"),)] == 4
    assert found["http_request_duration_seconds_bucket", (("le", "0.008388608"),)] == 2
    assert found["http_requests_in_progress", ()] == 4
    assert found["worker_resident_memory_bytes", (("slot", "1"),)] == 1000
    assert found["worker_restarts_total", (("reason", "memory"),)] == 0
    assert found["check_status", (("check", "disk"),)] == 1
    assert found["check_duration_seconds", (("check", "disk"),)] == 0.25
    assert found["disk_free_bytes", (("mount", "/srv"),)] == 7
    assert found["db_retries_total", ()] == 8
    assert any(name == "build_info" and ("release", SETTINGS.release_id) in labels for name, labels in found)
    families = {family.name for family in (open_metrics if accept else classic)(
        metrics.exposition(_board(), SETTINGS, accept)[0].decode())}
    assert {f"flask_stability_{name}" for name in NAMES} <= families


def test_the_scraper_chooses_the_format() -> None:
    """By its Accept header; without one it is the classic text."""
    assert metrics.exposition(_board(), SETTINGS, OPEN)[1].startswith("application/openmetrics-text")
    for accept in ("", "*/*", "text/html", "application/json;q=x"):
        assert metrics.exposition(_board(), SETTINGS, accept)[1].startswith("text/plain")
    assert metrics.exposition(_board(), SETTINGS, OPEN)[0].endswith(b"# EOF\n")


def test_buckets_are_cumulative_and_counters_never_fall_when_workers_end() -> None:
    """Neither when a row is folded nor when it is used again."""
    board = _board()
    before = _samples(board)
    for row in list(board.live()):
        board.release(row)
        board.add_restart(sb.Reason.MEMORY, 10, 1.0, row.slot)
        assert board.allocate(9) is not None
        after = _samples(board)
        for key, value in before.items():
            if key[0].endswith(("_total", "_count", "_sum", "_bucket")):
                assert after[key] >= value, key
        before = after
    assert before["worker_restarts_total", (("reason", "memory"),)] == 2
    buckets = [value for (name, _), value in before.items() if name.endswith("_bucket")]
    assert buckets == sorted(buckets)


@pytest.mark.needs("promtool")
def test_promtool_finds_nothing_to_say() -> None:
    """Neither an error nor a matter of style."""
    body, _ = metrics.exposition(_board(), SETTINGS, "")
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("accept", ["text/plain;version=:", "text/plain;version=",
                                    "application/openmetrics-text;version=x",
                                    "application/openmetrics-text; version=1.0.0; escaping=:", ";;=,", "\0", "a" * 9999,
                                    "application/openmetrics-text;version=1.0.0;escaping=no-such"])
def test_whatever_a_client_accepts_is_answered(accept: str) -> None:
    """With a format; prometheus_client reads versions and escapings out of it and raises for some."""
    body, kind = metrics.exposition(_board(), SETTINGS, accept)
    assert b"flask_stability_" in body
    assert kind.startswith(("text/plain", "application/openmetrics-text"))
