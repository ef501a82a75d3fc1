"""The circuit breaker."""

from __future__ import annotations

import time

from flask_stability.database.breaker import Breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    """A success between two failures begins the count again."""
    breaker = Breaker(threshold=2)
    assert not breaker.failure("error 1", time.monotonic())
    breaker.success()
    assert not breaker.failure("error 2", time.monotonic())
    assert breaker.state == "closed"
    assert breaker.failure("error 3", time.monotonic())
    assert breaker.state == "open"
    assert breaker.reason == "error 3"


def test_each_change_is_told_once() -> None:
    """Of many reports exactly one says that it opened the breaker, and one that it closed it."""
    breaker = Breaker(threshold=1)
    assert [breaker.failure("gone", time.monotonic()) for _ in range(3)] == [True, False, False]
    assert not breaker.trip("gone", time.monotonic())
    assert [breaker.success(), breaker.success()] == [True, False]


def test_what_began_before_the_latest_success_does_not_count() -> None:
    """Connects that hung in an outage fail after its end, and must not open the breaker again."""
    breaker = Breaker(threshold=1)
    started = time.monotonic()
    breaker.success()
    assert not breaker.failure("old news", started)
    assert not breaker.trip("old news", started)
    assert not breaker.open


def test_links_lost_at_once_in_their_set_up_are_one_failure() -> None:
    """A KILL of all sessions meets several: the server lives. One that is lost again and again is gone after all."""
    breaker = Breaker(threshold=2)
    started = time.monotonic()
    assert not any(breaker.failure("error 2013", started, lost=True) for _ in range(9))
    assert breaker.state == "closed"
    assert breaker.failure("error 2013", time.monotonic(), lost=True)
    assert breaker.state == "open"


def test_connects_that_reach_no_server_count_each_also_at_once() -> None:
    """Five requests that meet a closed port need not try it one after the other."""
    breaker = Breaker(threshold=2)
    started = time.monotonic()
    assert [breaker.failure("error 2003", started) for _ in range(2)] == [False, True]
