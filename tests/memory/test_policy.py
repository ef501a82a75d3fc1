"""When memory means replacement: pure decisions on sequences of numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stability.memory.policy import (
    SETTLED,
    Action,
    Decision,
    Judge,
    Rules,
    container_needed,
    container_too_small,
    default_limit,
    group_decision,
    growth_pause,
    learned_floor,
    limit_too_low,
    scarce,
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


# -- the limit ---------------------------------------------------------------------------------------------------


def test_above_the_limit_it_reclaims_first_and_then_retires() -> None:
    """Three samples in a row, a collection, and only if that did not help, replacement."""
    found = _run(_judge(), [205, 205, 205, 205, 205, 205])
    assert [decision.action for _, decision in found[:2]] == [Action.RECLAIM, Action.RETIRE]
    assert found[0][0] == 2
    assert found[1][1].reason == "memory"


def test_a_collection_that_helps_is_the_end_of_it() -> None:
    """Nothing is replaced."""
    found = _run(_judge(), [205, 205, 205, 120, 120, 120])
    assert [decision.action for _, decision in found] == [Action.RECLAIM]


def test_it_collects_at_most_once_a_minute() -> None:
    """Whoever is above the limit again within the minute is replaced."""
    found = _run(_judge(), [205, 205, 205, 120, 205, 205, 205])
    assert [decision.action for _, decision in found] == [Action.RECLAIM, Action.RETIRE]


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
    assert found[0][1].reason == "memory_hard"


def test_about_to_be_far_above_the_limit_it_retires_now() -> None:
    """One that grows by 30 MB a second would be there before it is gone."""
    found = _run(_judge(reclaim=False, samples=100), [100 + 3 * number for number in range(60)], step=0.1)
    now, decision = found[0]
    assert decision.action is Action.RETIRE_NOW
    assert 225 < 100 + 30 * now < 250


def test_far_above_the_limit_it_collects_before_it_retires_now() -> None:
    """What is garbage is no reason."""
    assert [decision.action for _, decision in _run(_judge(), [150, 260, 260])] == [Action.RECLAIM, Action.RETIRE_NOW]


def test_without_a_limit_nothing_is_above_it() -> None:
    """However large."""
    assert not _run(_judge(limit=0), [10_000] * 50)


@given(st.lists(st.integers(1, 199), max_size=200), st.integers(1, 10), st.booleans())
def test_below_three_quarters_of_the_limit_nothing_is_done(sizes: list[int], samples: int, reclaim: bool) -> None:
    """Whatever the curve."""
    assert not _run(_judge(samples=samples, reclaim=reclaim), [size * 0.75 for size in sizes])


@given(st.lists(st.integers(0, 400), max_size=200), st.integers(1, 10))
def test_only_what_was_above_is_retired(sizes: list[int], samples: int) -> None:
    """At the limit with that many samples in a row above it, at once beyond the factor or when about to be."""
    judge = _judge(samples=samples, reclaim=False)
    judge.replacement = 0.0
    for now, decision in _run(judge, sizes):
        latest = sizes[:int(now) + 1]
        if decision.action is Action.RETIRE_NOW:
            assert latest[-1] > 250 or min(latest[-2:]) > 200
        else:
            assert min(latest[-samples:]) > 200
            assert len(latest) >= samples


@given(st.integers(0, 3000), st.integers(1, 64))
def test_the_container_is_shared_with_one_newcomer(container: int, workers: int) -> None:
    """All workers and one more at their limits stay within 0.8 of it."""
    assert default_limit(container, workers) * (workers + 1) <= 0.8 * container
    assert default_limit(1000, 3) == 200
    assert default_limit(None, workers) == 0


def test_a_derived_limit_leaves_a_warm_worker_its_room() -> None:
    """Never below 1.5 × its floor, its own or the learned one, from the first sample on; a given limit is as given."""
    derived = _judge(limit=100 * MB, derived=True)
    derived.floor = 90 * MB
    assert derived.limit() == 135 * MB
    assert not _run(derived, [120] * 50)
    derived.learned = 200 * MB
    assert derived.limit() == 300 * MB
    given_by_hand = _judge(limit=100 * MB)
    given_by_hand.floor = 90 * MB
    assert given_by_hand.limit() == 100 * MB
    assert _run(given_by_hand, [120] * 50)


@pytest.mark.parametrize(("limit", "floor", "expected"), [
    (100, 84, True), (100, 83, False), (0, 84, False), (100, 0, False)])
def test_a_limit_near_the_floor_is_too_low(limit: int, floor: int, expected: bool) -> None:
    """Below 1.2 × what a warm worker needs."""
    assert limit_too_low(limit, floor) is expected


# -- sooner than the limit ---------------------------------------------------------------------------------------


def test_the_sooner_the_limit_the_sooner_it_looks() -> None:
    """Never slower than asked for, never faster than ten times a second."""
    judge = _judge()
    _run(judge, [100] * 20)
    assert judge.interval(1.0) == 1.0
    _run(judge, [100 + 5 * number for number in range(18)], start=20)
    assert 0.1 <= judge.interval(1.0) < 0.5


def test_close_to_the_limit_it_looks_more_often() -> None:
    """Even without growth."""
    judge = _judge()
    _run(judge, [180] * 30)
    assert judge.interval(1.0) == 0.25


def test_a_fast_leak_is_retired_before_it_reaches_the_limit() -> None:
    """When the limit would be reached before a replacement is there; and the sooner, the longer that takes."""
    retired = []
    for seconds in (2.0, 6.0, 12.0):
        judge = _judge(reclaim=False)
        judge.replacement = seconds
        retired.append(_run(judge, [100 + 2 * number for number in range(60)])[0][0])
    assert retired == sorted(retired, reverse=True)
    assert retired[-1] < retired[0] < 52


@pytest.mark.parametrize("series", [
    ([100] * 20 + [400] * 3) * 10,  # a view that takes 300 MB and gives it back
    [100] * 20 + [460] * 60,  # a step, and no growth after it
    [100, 160, 220, 280, 340, 370, 340, 280, 220, 160] * 6,  # filled and emptied
    [100 + 300 * math.sin(number / 3) ** 2 for number in range(300)],
    [460 + number % 7 for number in range(200)]])
def test_what_does_not_go_on_rising_replaces_nobody(series: list[float]) -> None:
    """Under a limit of 500 MB, however often it looks."""
    for step in (0.1, 0.25, 1.0):
        assert not _run(_judge(limit=500 * MB), series, step=step)


def _simulate(rate: float, replacement: float, interval: float) -> tuple[float, float, str]:
    """A leak of `rate` MB/s under a limit of 200 MB: when it is told, peak of memory over the limit, the reason.

    Requests go on until the replacement is there; a hard retirement takes 0.2 seconds.
    """
    judge = _judge()
    judge.replacement = replacement
    now, rng = 0.0, random.Random(1)
    while now < 20_000:
        decision = judge.judge(now, int((60 + rate * now + rng.uniform(0, 2)) * MB))
        if decision.action in (Action.RETIRE, Action.RETIRE_NOW):
            gone = now + (replacement if decision.action is Action.RETIRE else 0.2)
            hard_at = (250 - 60) / rate + 0.2 + judge.interval(interval)
            return now, (60 + rate * min(gone, max(hard_at, now))) / 200, decision.reason
        now += judge.interval(interval)
    raise AssertionError("never told")


def test_no_leak_takes_a_worker_far_beyond_its_limit() -> None:
    """From 0.01 to 40 MB a second; the table is printed."""
    print(f"\n{'MB/s':>6} {'replaced in':>12} {'told after':>11} {'peak / limit':>13}  reason")
    for rate in (0.01, 0.1, 1.0, 5.0, 10.0, 20.0, 40.0):
        for replacement in (2.0, 6.0):
            told, peak, reason = _simulate(rate, replacement, 1.0)
            print(f"{rate:6g} {replacement:10.0f} s {told:9.1f} s {peak:13.2f}  {reason}")
            assert peak <= 1.33


# -- growth ------------------------------------------------------------------------------------------------------


def _warm(megabytes: int, **fields: object) -> Judge:
    """Without a limit, warm since long at that floor."""
    judge = _judge(limit=0)
    judge.floor = megabytes * MB
    for name, value in fields.items():
        setattr(judge, name, value)
    return judge


GROWING = [300 + number for number in range(120)]


def test_growth_over_the_warm_floor_is_retired() -> None:
    """2.5 × the floor, 150 MB above it, and still growing: collected, then replaced."""
    found = _run(_warm(100), GROWING, start=100)
    assert [decision.action for _, decision in found[:2]] == [Action.RECLAIM, Action.RETIRE]
    assert found[1][1].reason == "memory_growth"


@pytest.mark.parametrize("fields", [
    {"floor": 200 * MB}, {"learned": 200 * MB}, {"growth_after": 1e6}, {"patient": True}])
def test_growth_needs_all_of_its_conditions(fields: dict[str, object]) -> None:
    """Not far above the floor, its own or the learned one; not so soon after the last; not yet, where workers take
    their time to warm up.
    """
    assert not _run(_warm(100, **fields), GROWING, start=100)


def test_a_plateau_however_high_is_no_growth() -> None:
    """Nor is a small worker's, nor a young one's, nor a sawtooth's."""
    assert not _run(_warm(100), [400.0] * 200, start=100)
    assert not _run(_warm(20), [60 + number * 0.5 for number in range(200)], start=100)
    assert not _run(_warm(100), GROWING[:55], start=0)
    assert not _run(_warm(100), [150 + 300 * (number % 60) / 60 for number in range(600)], start=100)


def test_a_patient_worker_is_judged_when_it_has_settled() -> None:
    """If it still grows then, it is a leak."""
    assert _run(_warm(100, patient=True), GROWING, start=SETTLED + 1)


def _live(judge: Judge, curve: Callable[[float], float], seconds: int) -> list[tuple[float, Decision]]:
    """A sample a second, and the end of each minute."""
    found, low = [], math.inf
    for now in range(seconds):
        rss = int(curve(now) * MB)
        low = min(low, rss)
        if now and now % 60 == 0:
            judge.end_minute(now, int(low))
            low = math.inf
        decision = judge.judge(now, rss)
        if decision.action is not Action.NONE:
            found.append((now, decision))
    return found


def test_what_is_loaded_in_the_warm_up_and_held_becomes_the_floor() -> None:
    """A model of 300 MB after three minutes: what grows from there on is judged by that."""
    judge = _judge(limit=0)
    assert not _live(judge, lambda now: 100 if now < 180 else 400, 1200)
    assert judge.floor == 400 * MB


def test_what_comes_after_the_warm_up_is_not_the_floor() -> None:
    """Or a leak in steps would never be seen."""
    judge = _judge(limit=0)
    _live(judge, lambda now: 100 if now < SETTLED + 200 else 400, 2400)
    assert judge.floor == 100 * MB


def test_the_first_minutes_imports_are_not_the_floor() -> None:
    """It is what the worker holds at the end of that minute."""
    judge = _judge(limit=0)
    _live(judge, lambda now: 40 + min(60, 2 * now), 125)
    assert judge.floor == 100 * MB


def test_a_slow_warm_up_is_chased_once_and_then_learned() -> None:
    """Caches that fill for eight minutes: the first worker goes, the next is given time, holds, and stays."""
    def curve(now: float) -> float:
        return 100 + 400 * min(1.0, now / 480)

    first, second = _judge(limit=0), _warm(0, patient=True)
    assert any(decision.action is Action.RETIRE for _, decision in _live(first, curve, 600))
    assert not any(decision.action is Action.RETIRE for _, decision in _live(second, curve, 3000))
    assert second.floor > 450 * MB


@pytest.mark.parametrize(("known", "floors", "expected"), [
    (0, [], 0), (0, [100], 0), (0, [100, 110], 100), (0, [100, 110, 120], 110), (50, [100, 400], 100),
    (200, [0, 0], 200), (300, [100, 400, 400], 300), (400, [100, 100], 100)])
def test_the_learned_floor_needs_two_that_agree(known: int, floors: list[int], expected: int) -> None:
    """One large worker alone teaches nothing; new code with a lower floor is learned as well."""
    assert learned_floor(known, floors) == expected


@given(st.integers(0, 1000), st.lists(st.integers(0, 1000), max_size=20))
def test_the_learned_floor_is_one_that_was_there(known: int, floors: list[int]) -> None:
    """Nothing is invented."""
    assert learned_floor(known, floors) in {known, *floors}


def test_pauses_between_retirements_for_growth_double() -> None:
    """Up to an hour."""
    assert [growth_pause(60, early) for early in (0, 1, 2, 9, 10**6)] == [60, 120, 240, 3600, 3600]


# -- the group ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "available", "expected"), [
    ({0: 900 * MB, 1: 100 * MB}, 50 * MB, 0),
    ({0: 900 * MB, 1: 100 * MB}, 500 * MB, None),
    ({0: 100 * MB, 1: 100 * MB}, 50 * MB, None),
    ({0: 100 * MB, 1: 120 * MB, 2: 700 * MB}, 0, 2),
    ({0: 900 * MB}, 50 * MB, 0),
    ({}, 0, None),
    ({0: 900 * MB}, None, None)])
def test_under_pressure_the_largest_goes_if_that_helps(rows: dict[int, int], available: int | None,
                                                       expected: int | None) -> None:
    """Workers of one size are not to blame."""
    assert group_decision(rows, available=available, total=2000 * MB) == expected


def test_a_worker_as_large_as_a_fresh_one_stays() -> None:
    """In a container that is too small nothing is won by replacing the one worker over and over."""
    rows = {0: 900 * MB}
    assert group_decision(rows, available=0, total=2000 * MB, floors={0: 800 * MB}) is None
    assert group_decision(rows, available=0, total=2000 * MB, floors={0: 700 * MB}) == 0


@pytest.mark.parametrize(("container", "workers", "floor", "expected"), [
    (1000, 3, 166, False), (1000, 3, 167, True), (None, 3, 10**9, False), (1000, 1, 334, True), (1000, 3, 0, False)])
def test_a_container_may_be_too_small(container: int | None, workers: int, floor: int, expected: bool) -> None:
    """Where the limit that each worker would get is too near to what a warm one needs."""
    assert container_too_small(container, workers, floor) is expected


def test_pressure_makes_it_go_sooner() -> None:
    """When tasks wait for memory, less has to be missing."""
    rows = {0: 900 * MB, 1: 100 * MB}
    assert group_decision(rows, available=300 * MB, total=2000 * MB) is None
    assert group_decision(rows, available=300 * MB, total=2000 * MB, pressure=60.0) == 0


@given(st.dictionaries(st.integers(0, 63), st.integers(0, 10**10)), st.none() | st.integers(0, 10**10),
       st.integers(1, 10**10), st.floats(0, 100))
def test_only_the_largest_goes_and_only_when_memory_is_scarce(rows: dict[int, int], available: int | None, total: int,
                                                              pressure: float) -> None:
    """For any numbers."""
    slot = group_decision(rows, available=available, total=total, pressure=pressure)
    if slot is not None:
        assert rows[slot] == max(rows.values())
        assert scarce(available, total, pressure)


def test_a_limit_set_by_hand_below_the_floor_is_not_enforced() -> None:
    """1.5 × the floor is in force instead, whoever learned it; one above the floor stays what it is."""
    for judge in (Judge(Rules(limit=30 * MB), 0.0, floor=45 * MB), Judge(Rules(limit=30 * MB), 0.0, learned=45 * MB)):
        assert judge.limit() == int(67.5 * MB)
    assert Judge(Rules(limit=50 * MB), 0.0, floor=45 * MB).limit() == 50 * MB


def test_what_workers_have_in_common_is_not_shared_out() -> None:
    """A container of 1000 MB, 500 of them a preloaded model."""
    assert default_limit(1000 * MB, 4, 500 * MB) == 80 * MB
    assert default_limit(1000 * MB, 4) == 160 * MB


@given(st.integers(1, 64), st.integers(MB, 10**10), st.integers(0, 10**11))
def test_the_container_that_is_asked_for_is_large_enough_and_hardly_larger(workers: int, floor: int,
                                                                          common: int) -> None:
    """With what all workers of a preloaded app have together counted once."""
    needed = container_needed(workers, floor, common)
    assert not container_too_small(needed, workers, floor, common)
    assert default_limit(needed, workers, common) <= 1.5 * floor + 1 or needed // 10 > needed - common


def test_a_preloaded_model_is_asked_for_once() -> None:
    """400 MB in four workers of 20 MB each; counted in each it would have been 3.3 GB."""
    assert container_needed(4, 20 * MB, 400 * MB) == int(587.5 * MB)
    assert not container_too_small(600 * MB, 4, 20 * MB, 400 * MB)
    assert container_too_small(500 * MB, 4, 20 * MB, 400 * MB)
