"""A leak is found, and what only looks like one is not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stability.memory.trend import Verdict, gated_slope, mann_kendall, seconds_to, theil_sen

MB = 1e6


def test_theil_sen_is_not_moved_by_a_spike() -> None:
    """A late outlier leaves the slope of a line alone."""
    times = list(range(60))
    values = [2.0 * time for time in times]
    values[-1] = 10_000
    assert theil_sen(times, values) == pytest.approx(2.0, rel=0.05)


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=40))
def test_mann_kendall_changes_its_sign_with_the_series(values: list[float]) -> None:
    """Backwards is the opposite trend."""
    assert mann_kendall(values) == pytest.approx(-mann_kendall(values[::-1]))


def test_flat_data_with_a_late_spike_has_no_slope() -> None:
    """In none of a hundred trials."""
    alarms = 0
    for seed in range(100):
        rng = random.Random(seed)
        values = [100 + rng.gauss(0, 1) for _ in range(80)]
        values[-3:] = [130, 140, 150]
        alarms += gated_slope(list(range(80)), values) > 0
    assert alarms <= 5


@pytest.mark.parametrize(("limit", "current", "slope", "expected"),
                         [(100, 40, 2, 30), (100, 120, 2, 0), (100, 40, 0, None), (0, 40, 2, None),
                          (100, 40, -1, None)])
def test_time_to_the_limit(limit: float, current: float, slope: float, expected: float | None) -> None:
    """Never negative, and None where it is never reached."""
    assert seconds_to(limit, current, slope) == expected


def _warm_up(rng: random.Random, t: int) -> float:
    return 60 + 80 * (1 - math.exp(-t / 20)) + rng.gauss(0, 0.5)


TRACES: dict[str, Callable[[random.Random, int], float]] = {
    "flat": lambda rng, t: 100 + rng.gauss(0, 1),
    "slow waves of load": lambda rng, t: 100 + 15 * math.sin(t / 15) + rng.gauss(0, 1),
    "warm-up": _warm_up,
    "allocator decay": lambda rng, t: 180 - 40 * (1 - math.exp(-t / 60)) + rng.gauss(0, 1),
    "sawtooth": lambda rng, t: 100 + (t % 30) + rng.gauss(0, 1),
    "one step": lambda rng, t: (100 if t < 110 else 150) + rng.gauss(0, 1),
    "two steps": lambda rng, t: 100 + 30 * (t > 60) + 30 * (t > 150) + rng.gauss(0, 1),
}


def _minutes_to_verdict(trace: Callable[[random.Random, int], float], seed: int, minutes: int = 240) -> int | None:
    """When the verdict is a leak."""
    rng = random.Random(seed)
    phase = rng.randrange(240)
    floors: list[float] = []
    verdict = Verdict()
    for minute in range(minutes):
        floors.append(trace(rng, minute + (phase if trace is TRACES["slow waves of load"] else 0)) * MB)
        if verdict.look(floors):
            return minute
    return None


def test_false_alarms_are_rare_on_traces_without_a_leak() -> None:
    """At most one in a hundred; the table is printed."""
    alarms = {name: [_minutes_to_verdict(trace, seed) for seed in range(30)] for name, trace in TRACES.items()}
    for name, found in alarms.items():
        print(f"{name:20} false alarms {sum(one is not None for one in found)} of {len(found)}")
    every = [one for found in alarms.values() for one in found]
    assert sum(one is not None for one in every) <= 0.01 * len(every), alarms


@pytest.mark.parametrize("rate", [0.2, 1.0, 5.0, 50.0])
def test_every_leak_is_found(rate: float) -> None:
    """From 0.2 to 50 MB a minute, each time; when is printed."""
    found = [_minutes_to_verdict(lambda rng, t: 100 + rate * t + rng.gauss(0, 0.5), seed) for seed in range(5)]
    print(f"leak of {rate} MB/min: told after {found} min")
    assert None not in found
