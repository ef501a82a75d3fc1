"""When a queue is overload, and which request goes next: numbers and a clock."""

from __future__ import annotations

import random

import pytest

from flask_stability.server.queue_delay import (
    CHEAP,
    CRITICAL,
    ENOUGH,
    HEALTH,
    INTERVAL,
    KINDS,
    NORMAL,
    SHEDDABLE,
    TURNS,
    Line,
    QueueDelay,
)

TARGET, LIMIT = 0.5, 1.0


def _overloaded() -> QueueDelay:
    delay = QueueDelay(TARGET, LIMIT)
    delay.note(0.0, TARGET, 9)
    assert delay.note(INTERVAL, TARGET, 9)
    return delay


def test_a_queue_that_stands_for_an_interval_is_overload() -> None:
    """Not before the interval is over."""
    delay = QueueDelay(TARGET, LIMIT)
    assert not any(delay.note(step / 10, 0.8, 9) for step in range(10))
    assert delay.watchful
    assert delay.note(1.01, 0.8, 9)


def test_a_burst_that_drains_is_none() -> None:
    """One look at a short queue within the interval, and it begins anew."""
    delay = QueueDelay(TARGET, LIMIT)
    for step in range(100):
        assert not delay.note(step / 10, 0.1 if step % 9 == 0 else 3.0, 9)


def test_a_long_burst_is_none() -> None:
    """A hundred requests at once, half a second each: all wait for long, but fewer and fewer of them."""
    delay = QueueDelay(TARGET, LIMIT)
    delay.took(0.5)
    assert not any(delay.note(0.5 * step, 0.5 * step, 100 - step) for step in range(100))


def test_it_is_over_when_the_queue_is_short() -> None:
    """Not as soon as it falls below the target: refusing keeps it there."""
    delay = _overloaded()
    assert delay.note(2.0, 0.3, 1)
    assert not delay.note(2.1, 0.05, 1)
    assert not delay.watchful


def test_slow_services_have_longer_queues() -> None:
    """Where a request takes five seconds, twenty have to pass with all of them waiting longer than that."""
    delay = QueueDelay(TARGET, LIMIT)
    delay.took(5.0)
    assert not any(delay.note(float(second), 4.9, 9) for second in range(100))
    assert not any(delay.note(100.0 + second, 6.0, 9) for second in range(20))
    assert delay.note(120.0, 6.0, 9)
    assert delay.limit == 5.0


def test_clients_that_leave_early_shorten_the_wait() -> None:
    """It is of no use to answer later; but a hostile client cannot push it below the target."""
    delay = QueueDelay(0.5, 4.0)
    for _ in range(ENOUGH - 1):
        delay.left(2.0)
    assert delay.limit == 4.0
    delay.left(2.0)
    assert delay.limit == 1.0
    for _ in range(100):
        delay.left(0.001)
    assert delay.limit == 0.5


def test_switched_off_it_never_finds_overload() -> None:
    """STABILITY_QUEUE_LIMIT=0."""
    delay = QueueDelay(TARGET, 0.0)
    assert not any(delay.note(float(second), 10.0, 9) for second in range(100))


def test_classes_wait_differently() -> None:
    """Health endpoints are never refused, critical requests late, sheddable ones early; without overload nobody is."""
    delay = _overloaded()
    waits = [delay.may_wait(kind) for kind in range(KINDS)]
    assert waits == [float("inf"), 4.0, 1.0, 1.0, 0.25]
    in_order = [delay.may_have_waited(kind) for kind in (HEALTH, CHEAP, NORMAL, SHEDDABLE)]
    assert in_order == [float("inf"), float("inf"), 0.25, 0.125]
    assert {QueueDelay(TARGET, LIMIT).may_wait(kind) for kind in range(KINDS)} == {float("inf")}


def _line(*entries: tuple[int, float]) -> Line[str]:
    line: Line[str] = Line()
    for kind, arrived in entries:
        line.add(kind, arrived, f"{kind}@{arrived:g}")
    return line


def _order(line: Line[str], *, newest: bool) -> list[str]:
    found = []
    while (one := line.next(newest=newest)) is not None:
        found.append(one[1])
    return found


def test_the_first_class_goes_first() -> None:
    """In the order of arrival within one, and each is taken once."""
    line = _line((NORMAL, 1), (SHEDDABLE, 0), (HEALTH, 3), (CHEAP, 2))
    assert line.oldest(4.0) == 4.0
    assert _order(line, newest=False)[:3] == [f"{HEALTH}@3", f"{CHEAP}@2", f"{NORMAL}@1"]
    assert line.next(newest=False) is None
    assert line.oldest(9.0) == 0.0


def test_the_newest_goes_first_under_overload() -> None:
    """Its client is the most likely to be there still."""
    assert _order(_line((NORMAL, 1), (NORMAL, 2), (NORMAL, 3)), newest=True) == [
        f"{NORMAL}@3", f"{NORMAL}@2", f"{NORMAL}@1"]


def test_no_class_starves_another() -> None:
    """A flood of requests for health leaves every fourth thread to the others."""
    line = _line(*((HEALTH, number) for number in range(40)), *((NORMAL, 100 + number) for number in range(5)))
    first = [line.next(newest=False) for _ in range(5 * TURNS)]
    assert sum(one is not None and one[1].startswith(f"{NORMAL}@") for one in first) == 5


def test_what_waited_too_long_is_taken_out() -> None:
    """Of each class what is above its limit, the sheddable first; but not the last one that waits."""
    line = _line((NORMAL, 0), (NORMAL, 5), (SHEDDABLE, 4), (CRITICAL, 0))
    assert [one for _, one in line.overdue(6.0, [9, 9, 2, 2, 1])] == [f"{SHEDDABLE}@4", f"{NORMAL}@0"]
    assert line.number == 2
    assert [one for _, one in _line((NORMAL, 0), (NORMAL, 1)).overdue(60.0, [1] * KINDS)] == [f"{NORMAL}@0"]


@pytest.mark.parametrize(("load", "seed"), [(0.9, 1), (0.9, 2), (0.9, 3), (3.0, 1), (10.0, 1)])
def test_a_simulated_service(load: float, seed: int) -> None:
    """Two threads of 40 ms, clients that arrive at random and wait for 2 s: at 0.9 of the capacity nothing is refused
    in five minutes; above it nearly all of the capacity goes to clients that are there.
    """
    chance, delay, line = random.Random(seed), QueueDelay(TARGET, LIMIT), Line[int]()
    served = refused = 0
    free, arrival, seconds = [0.0, 0.0], 0.0, 300.0
    while min(free) < seconds:
        free.sort()
        now = free[0] if line.number else max(free[0], arrival)
        while arrival <= now:
            line.add(NORMAL, arrival, 0)
            arrival += chance.expovariate(load * 2 / 0.04)
        if delay.note(now, line.oldest(now), line.number):
            refused += len(line.overdue(now, [delay.may_wait(kind) for kind in range(KINDS)]))
        found = line.next(newest=delay.overloaded)
        assert found is not None
        free[0] = now + 0.04
        served += free[0] - found[0] < 2.0
    if load < 1:
        assert not refused
    else:
        assert served > 0.98 * seconds * 2 / 0.04
