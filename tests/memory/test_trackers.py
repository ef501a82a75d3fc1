"""What leaks besides memory: counted, with a trend and a warning."""

from __future__ import annotations

import gc
import itertools
import math
import random
import socket
import threading
from collections.abc import Callable, Iterator

import blinker
import pytest

from flask_stability import scoreboard as sb
from flask_stability.memory import trackers
from flask_stability.memory.trackers import Trackers, growing
from flask_stability.scoreboard import Row, Scoreboard

own_signal = blinker.Namespace().signal("own-signal")


@pytest.fixture
def row() -> Row:
    """A worker's."""
    row = Scoreboard.anonymous(1).allocate(1)
    assert row is not None
    return row


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Nobody's garbage is there, and none is collected in between: else what earlier tests left would count too."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(("curve", "minutes", "expected"), [
    (lambda minute: 10 + minute, 70, True),
    (lambda minute: 10 + minute // 6, 200, True),
    (lambda minute: 10 + minute // 60, 1300, True),
    (lambda minute: 10 + minute, 39, False),  # too short
    (lambda minute: 10 + minute // 10, 40, False),  # too little
    (lambda minute: 50, 730, False),
    (lambda minute: min(60, 10 + 2 * minute), 730, False),  # a pool that fills up
    (lambda minute: int(10 + 1000 * (1 - math.exp(-minute / 10))), 730, False),
    (lambda minute: 10 + 30 * (minute > 100), 730, False),
    (lambda minute: 10 + minute % 30, 730, False),
    (lambda minute: int(50 + 30 * math.sin(minute / 20)), 730, False)])
def test_steady_growth_is_told_from_what_is_not(row: Row, curve: Callable[[int], int], minutes: int,
                                                expected: bool) -> None:
    """At no minute of the life for what is none."""
    rng = random.Random(1)
    tracker = trackers.Tracker("threads", sb.W_N_THREADS, sb.F_THREADS_TREND, 10)
    told = []
    for minute in range(minutes):
        tracker.add(row, curve(minute) + rng.randrange(2))
        told.append(tracker.end_minute(row, ()))
    found = [one for one in told if one is not None]
    assert len(found) == int(expected)
    if expected:
        assert found[0]["kind"] == "threads"
        assert found[0]["growth"] >= 9
        assert tracker.growing


@pytest.mark.usefixtures("no_collection")
def test_a_leak_of_timers_is_counted_trended_and_told_once(row: Row) -> None:
    """Threads and timers both; the warning says how fast."""
    watch, started, told = Trackers(row), list[threading.Timer](), list[dict[str, object]]()
    try:
        for minute in range(70):
            timer = threading.Timer(3600, print)
            timer.daemon = True
            timer.start()
            started.append(timer)
            watch.look(60.0 * minute)
            told += watch.end_minute(60.0 * minute)
    finally:
        for timer in started:
            timer.cancel()
        for timer in started:
            timer.join(60)
    assert row.words[sb.W_N_TIMERS] == 70
    assert row.words[sb.W_N_THREADS] >= 71
    assert row.floats[sb.F_TIMERS_TREND] == pytest.approx(60)
    assert {"threads", "timers"} <= {str(one["kind"]) for one in told}
    assert len(told) == len({str(one["kind"]) for one in told})
    assert "timers" in growing(row.words[sb.W_GROWING])
    assert next(one for one in told if one["kind"] == "timers")["growth"] >= 20  # type: ignore[operator]


@pytest.mark.usefixtures("no_collection")
def test_what_stops_growing_is_no_longer_growing(row: Row) -> None:
    """The warning in /health goes."""
    watch = Trackers(row)
    kept: list[socket.socket] = []
    try:
        for minute in range(70):
            kept.append(socket.socket())
            watch.look(60.0 * minute)
            watch.end_minute(60.0 * minute)
        assert growing(row.words[sb.W_GROWING]) == ["open_files"]
        for minute in range(70, 140):
            watch.look(60.0 * minute)
            watch.end_minute(60.0 * minute)
    finally:
        for one in kept:
            one.close()
    assert growing(row.words[sb.W_GROWING]) == []
    assert row.words[sb.W_N_FDS] > 70


@pytest.mark.usefixtures("no_collection")
def test_receivers_of_anyones_signals_are_counted() -> None:
    """Flask's, blinker's own, and those of a namespace in some module."""
    before = trackers.receivers()
    def first(sender: object) -> None: ...
    def second(sender: object) -> None: ...
    own_signal.connect(first)
    blinker.signal("tests-trackers").connect(second)
    assert trackers.receivers() == before + 2
    assert {"tests-trackers", f"{__name__}.own_signal"} <= {name for name, _ in trackers.signals()}


@pytest.mark.usefixtures("no_collection")
def test_objects_of_the_collector_are_counted(row: Row) -> None:
    """All of them, not those since its latest run."""
    watch = Trackers(row)
    watch.look(0.0)
    before = row.words[sb.W_N_GC_OBJECTS]
    kept: list[list[int]] = [[number] for number in range(30_000)]
    watch.end_minute(1e9)  # the longer the count took, the later the next one: due, however slow the machine is
    assert row.words[sb.W_N_GC_OBJECTS] >= before + 25_000
    assert row.words[sb.W_N_GC_OBJECTS] <= len(gc.get_objects()) + 5000
    assert len(kept) == 30_000


def test_every_bit_has_a_name(row: Row) -> None:
    """In the order in which they are set."""
    watch = Trackers(row)
    assert tuple(tracker.name for tracker in watch._every()) == trackers.KINDS
    assert [growing(1 << bit) for bit in range(len(trackers.KINDS))] == [[name] for name in trackers.KINDS]
    words = [(tracker.word, tracker.trend_word) for tracker in watch._every()]
    assert len(set(itertools.chain(*words))) == 2 * len(words)
