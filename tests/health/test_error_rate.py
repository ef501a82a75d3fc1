"""The share of failed requests, over one and five minutes, per route and in all."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.exceptions import ConfigError
from flask_stability.health import history as history_module
from flask_stability.health.checks import CheckWarning
from flask_stability.health.error_rate import ErrorRate, TooManyErrors
from flask_stability.health.history import History, Sample
from flask_stability.health.slo import BurnRate
from flask_stability.scoreboard import REFUSED, Row, Scoreboard


def _board() -> tuple[Scoreboard, Row]:
    board = Scoreboard.anonymous(2)
    row = board.allocate(1)
    assert row is not None
    row.words[sb.W_PID] = 1
    return board, row


def _answer(row: Row, endpoint: str, **numbers: int) -> None:
    for status, number in numbers.items():
        for _ in range(number):
            row.observe("GET", endpoint, {"ok": 200, "bad": 500, "cut": 0, "refused": REFUSED}[status], 1000)


def test_shares_are_told_per_route_and_in_all_and_forgotten_after_their_window() -> None:
    """A burst is in the minute's share for a minute, in the five minutes' for five."""
    board, row = _board()
    check = ErrorRate(replace(Settings(), health_error_rate=1.0), board)
    check.at(0.0)
    _answer(row, "orders", ok=60, bad=20)
    _answer(row, "index", ok=19, cut=1)
    found = check.at(5.0)
    assert found["1m"] == found["5m"] == {"requests": 100, "errors": 21, "refused": 0, "rate": 0.21}
    assert [(one["endpoint"], one["1m"]["rate"]) for one in found["routes"]] == [("orders", 0.25), ("index", 0.05)]
    for now in range(10, 300, 5):
        _answer(row, "index", ok=1)
        found = check.at(float(now))
        assert found["1m"]["errors"] == (21 if now < 65 else 0), now
        assert found["5m"]["errors"] == 21, now
    for now in range(300, 360, 5):
        found = check.at(float(now))
    assert found["5m"]["errors"] == 0
    assert found["routes"] == []
    assert len(check._looks) < 30  # of 72


def test_what_is_refused_on_purpose_is_counted_apart() -> None:
    """A database that is away is no fault of the routes: the share is of the others."""
    board, row = _board()
    check = ErrorRate(Settings(), board)
    check.at(0.0)
    _answer(row, "orders", ok=30, refused=500)
    assert check.at(5.0)["1m"] == {"requests": 530, "errors": 0, "refused": 500, "rate": 0.0}
    totals = board.totals()
    assert (totals.by_class[5], totals.errors, totals.refused) == (500, 500, 500)
    board.release(row)
    assert (board.totals().by_class[5], board.totals().refused) == (500, 500)


def test_a_share_above_the_limit_warns_and_fails_only_where_that_is_set() -> None:
    """Below twenty requests nothing is told; what is over is no longer told of."""
    board, row = _board()
    check = ErrorRate(Settings(), board)
    check.at(0.0)
    _answer(row, "orders", bad=19)
    check.at(5.0)
    _answer(row, "orders", bad=1)
    with pytest.raises(CheckWarning, match="100% of 20 requests failed in the last minute, most of them GET orders"):
        check.at(10.0)
    with pytest.raises(CheckWarning, match="five minutes"):  # a trickle: few in the minute, many in the five
        for now in range(400, 700, 5):
            _answer(row, "orders", ok=now % 10 == 0, bad=now % 30 == 0)
            check.at(float(now))
    strict = ErrorRate(replace(Settings(), health_fail_error_rate=0.5), board)
    strict.at(0.0)
    _answer(row, "orders", bad=40, ok=10)
    with pytest.raises(TooManyErrors) as caught:
        strict.at(5.0)
    assert caught.value.details["1m"]["rate"] == 0.8


def test_a_young_service_is_looked_at_from_its_beginning() -> None:
    """The first look already knows what was answered before it."""
    board, row = _board()
    board.master.words[sb.M_STARTED_NS] = time.monotonic_ns() - 2 * 10**9
    _answer(row, "orders", bad=30)
    with pytest.raises(CheckWarning):
        ErrorRate(Settings(), board)()


def test_errors_cannot_gate_readiness() -> None:
    """Twenty hits on one broken URL must not take instances out."""
    with pytest.raises(ConfigError, match="HEALTH_FAIL_ERROR_RATE"):
        Settings.from_environ({"STABILITY_HEALTH_READY_CHECKS": "database,errors"})


def _history(board: Scoreboard, errors_of: Any, minutes: int = 420) -> None:
    history = History(board.master.history)
    now = time.time()
    for minute in range(minutes):
        history.append(Sample(time=now - 60 * (minutes - minute), requests=100.0 * minute,
                              errors=float(errors_of(minute))), [], {})


@pytest.mark.parametrize(("name", "errors_of", "alerts"), [
    ("calm", lambda minute: minute * 0.05, False),
    ("all at once", lambda minute: max(0, minute - 410) * 100, True),
    ("slow, for hours", lambda minute: minute, True),
    ("over", lambda minute: min(minute, 300) * 2.0, False),
])
def test_the_error_budget_is_watched_over_two_windows(name: str, errors_of: Any, alerts: bool) -> None:
    """Fast or slow; not once it is over."""
    board, row = _board()
    assert history_module.SAMPLES > 420
    _history(board, errors_of)
    total, failed = 42000, int(errors_of(420))
    entry = row.endpoints.find(("GET", "x"))
    row.entries[entry + 2 + 2], row.entries[entry + 2 + 5] = total - failed, failed
    check = BurnRate(99.9, board)
    if alerts:
        with pytest.raises(CheckWarning, match=r"error budget of 99\.9 %"):
            check()
    else:
        assert check()["1h"]["burn_rate"] < 14.4
