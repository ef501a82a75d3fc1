"""When memory means replacement: pure decisions on sequences of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from flask_stability.memory.policy import (
    Action,
    Decision,
    Judge,
    Rules,
    default_limit,
    group_decision,
    growth_pause,
    learned_floor,
)

MB = 1 << 20


def _run(judge: Judge, series: Iterable[float], start: float = 0.0, step: float = 1.0) -> list[tuple[float, Decision]]:
    """Every decision that is not "nothing"."""
    found = []
    for number, megabytes in enumerate(series):
        now = start + number * step
        decision = judge.judge(now, int(megabytes * MB))
        if decision.action is not Action.NONE:
            found.append((now, decision))
    return found


def _judge(**rules: object) -> Judge:
    return Judge(Rules(**{"limit": 200 * MB, **rules}), 0.0)  # type: ignore[arg-type]


def test_above_the_limit_it_reclaims_first_and_then_retires() -> None:
    """Three samples in a row, a collection, and only if that did not help, replacement."""
    found = _run(_judge(), [150, 205, 205, 205, 205, 205])
    assert [decision.action for _, decision in found[:2]] == [Action.RECLAIM, Action.RETIRE]
    assert found[0][0] == 3
    assert found[1][1].reason == "memory"


def test_a_collection_that_helps_is_the_end_of_it() -> None:
    """Nothing is replaced."""
    found = _run(_judge(), [205, 205, 205, 120, 120, 120])
    assert [decision.action for _, decision in found] == [Action.RECLAIM]


def test_two_samples_above_the_limit_are_none() -> None:
    """A moment above it is no reason."""
    assert not _run(_judge(), [150, 205, 205, 150, 205, 205, 150])


def test_without_reclaiming_it_retires_at_once() -> None:
    """STABILITY_MEMORY_RECLAIM=off."""
    found = _run(_judge(reclaim=False), [205, 205, 205])
    assert [decision.action for _, decision in found] == [Action.RETIRE]


def test_far_above_the_limit_it_retires_now() -> None:
    """The hard factor does not wait for samples."""
    found = _run(_judge(reclaim=False), [150, 260])
    assert [(now, decision.action) for now, decision in found] == [(1, Action.RETIRE_NOW)]


def test_without_a_limit_nothing_is_above_it() -> None:
    """However large."""
    assert not _run(_judge(limit=0), [10_000] * 50)


def test_a_large_view_that_gives_its_memory_back_recycles_nobody() -> None:
    """300 MB for a moment under a limit of 500 MB."""
    assert not _run(_judge(limit=500 * MB), ([100] * 20 + [400] * 3) * 10)


def test_growth_over_the_warm_floor_needs_factor_size_time_and_growing() -> None:
    """All four; a plateau, a small worker, a young worker are left alone."""
    def judge(floor: int) -> Judge:
        one = _judge(limit=0)
        one.floor = floor * MB
        return one

    growing = [300 + number for number in range(120)]
    assert _run(judge(100), growing, start=100)
    assert not _run(judge(100), growing, start=0.0)[:1] or _run(judge(100), growing)[0][0] >= 60
    assert not _run(judge(100), [300.0] * 120, start=100)
    assert not _run(judge(300), growing, start=100)
    assert not _run(judge(20), [60 + number * 0.5 for number in range(120)], start=100)


def test_what_all_fresh_workers_reach_is_learned() -> None:
    """A model that everyone loads is no leak."""
    judge = _judge(limit=0)
    judge.floor, judge.learned = 100 * MB, 400 * MB
    assert not _run(judge, [300 + number for number in range(120)], start=100)


def test_the_sooner_the_limit_the_sooner_it_looks() -> None:
    """Never slower than asked for, never faster than ten times a second."""
    judge = _judge()
    _run(judge, [100] * 20)
    assert judge.interval(1.0) == 1.0
    _run(judge, [100 + 5 * number for number in range(18)], start=20)
    assert 0.1 <= judge.interval(1.0) < 1.0


def test_a_fast_leak_is_retired_before_it_reaches_the_limit() -> None:
    """When the limit would be reached before a replacement is there."""
    found = _run(_judge(reclaim=False), [100 + 2 * number for number in range(60)])
    assert found[0][1].action is Action.RETIRE
    assert found[0][0] < 50


@pytest.mark.parametrize(("known", "floors", "expected"), [
    (0, [], 0), (0, [100], 0), (0, [100, 110], 100), (0, [100, 110, 120], 110), (50, [100, 400], 100),
    (200, [0, 0], 200)])
def test_the_learned_floor_needs_two_that_agree(known: int, floors: list[int], expected: int) -> None:
    """One large worker alone teaches nothing."""
    assert learned_floor(known, floors) == expected


@pytest.mark.parametrize(("rows", "available", "expected"), [
    ({0: 900 * MB, 1: 100 * MB}, 50 * MB, 0),
    ({0: 900 * MB, 1: 100 * MB}, 500 * MB, None),
    ({0: 100 * MB, 1: 100 * MB}, 50 * MB, None),
    ({}, 0, None),
    ({0: 900 * MB}, None, None)])
def test_under_pressure_the_largest_goes_if_that_helps(rows: dict[int, int], available: int | None,
                                                       expected: int | None) -> None:
    """Workers of one size are not to blame."""
    assert group_decision(rows, available=available, total=2000 * MB) == expected


def test_pressure_makes_it_go_sooner() -> None:
    """When tasks wait for memory, less has to be missing."""
    rows = {0: 900 * MB, 1: 100 * MB}
    assert group_decision(rows, available=300 * MB, total=2000 * MB) is None
    assert group_decision(rows, available=300 * MB, total=2000 * MB, pressure=60.0) == 0


def test_the_container_is_shared_with_one_newcomer() -> None:
    """And without a container there is no limit."""
    assert default_limit(1000, 3) == 200
    assert default_limit(None, 3) == 0


def test_pauses_between_retirements_for_growth_double() -> None:
    """Up to an hour."""
    pause: Callable[[float, int], float] = growth_pause
    assert [pause(60, early) for early in (0, 1, 2, 9)] == [60, 120, 240, 3600]
