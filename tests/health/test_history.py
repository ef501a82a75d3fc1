"""The rings of samples and transitions, read by one process while another writes."""

from __future__ import annotations

import os
import signal
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_stability.health.history import (
    CHECKS,
    FEWEST,
    SAMPLES,
    TRANSITIONS,
    WORKERS,
    History,
    Memory,
    Sample,
    trends,
)
from flask_stability.scoreboard import HISTORY_BYTES, Scoreboard
from support import wait_until


def _history() -> History:
    return History(Scoreboard.anonymous(1).master.history)


def test_samples_are_a_ring_with_a_cursor() -> None:
    """The oldest fall out; a cursor gives what is new."""
    history = _history()
    for number in range(SAMPLES + 10):
        history.append(Sample(time=1000.0 + number, requests=number))
    samples = history.samples()
    assert [sample.requests for sample in samples] == list(range(10, SAMPLES + 10))
    assert [sample.requests for sample in history.samples(since=SAMPLES + 8)] == [SAMPLES + 8, SAMPLES + 9]
    assert history.samples(since=history.count) == []
    assert history.last() == samples[-1]


def test_a_reader_never_sees_half_a_sample() -> None:
    """While another process writes as fast as it can, and when it is killed at it."""
    history = _history()
    for _ in range(3):
        begin = history.count
        writer = os.fork()
        if writer == 0:
            while True:
                number = float(history.count)
                history.append(Sample(number, *[number] * 18, 0.0))
        wait_until(lambda begin=begin: history.count > begin)  # type: ignore[misc]
        looks = 0
        while looks < 100:
            count = history.count
            found = history.samples(since=count - 50)
            if history.count - count < SAMPLES - 60:  # else this process rested, and the writer came round to these
                looks += 1
                assert all(len(set(sample[:-3])) == 1 for sample in found)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        assert all(len(set(sample[:-3])) == 1 for sample in history.samples())
        assert [sample.time for sample in history.samples()] == [
            float(number) for number in range(max(0, history.count - SAMPLES), history.count)]


def test_transitions_are_the_latest_first_whatever_they_say() -> None:
    """What is too long is shortened, never lost."""
    history = _history()
    for number in range(TRANSITIONS + 50):
        history.transition({"id": str(number), "time": number, "check": "é" * 400, "old": "pass", "new": "warn",
                            "detail": "ü" * 400})
    found = history.transitions()
    assert [entry["time"] for entry in found] == list(range(TRANSITIONS + 49, 49, -1))
    assert {(entry["check"][:3], entry["new"]) for entry in found} == {("ééé", "warn")}


def test_transitions_have_a_cursor() -> None:
    """Whoever knows some is told of the others."""
    history = _history()
    for number in range(5):
        history.transition({"id": str(number)})
    assert history.changes == 5
    assert [entry["id"] for entry in history.transitions(since=3)] == ["4", "3"]
    assert history.transitions(since=history.changes) == []


def test_a_round_tells_what_each_worker_held() -> None:
    """To a KiB; of more workers than there is room for those in the lowest slots; one that holds nothing is none."""
    history = _history()
    history.append(Sample(1.0), [Memory(0, 65536 + 7, 50_000_001), Memory(1, 8, 0), Memory(4, 9, 1 << 40)])
    history.append(Sample(2.0), [Memory(slot, slot, 1 << 20) for slot in range(WORKERS + 5)])
    history.append(Sample(3.0))
    assert history.memory(0) == [Memory(0, 7, 48829 << 10), Memory(4, 9, 1 << 40)]
    assert [one.slot for one in history.memory(1)] == list(range(WORKERS))
    assert history.memory(2) == []


def test_a_round_tells_how_each_check_was() -> None:
    """By a place for each name, in the order in which they were met; 0 where a check was not known."""
    history = _history()
    history.append(Sample(1.0), beats={"disk": 0, "search": 2})
    history.append(Sample(2.0), beats={"search": 0, "é" * 40: 1})
    assert history.check_names() == ["disk", "search", "é" * 32]
    assert [history.beats(number) for number in range(2)] == ["130", "012"]


def test_names_of_checks_have_a_bound() -> None:
    """What is beyond it has no beats, and harms no others."""
    history = _history()
    for number in range(CHECKS + 20):
        history.append(Sample(float(number)), beats={f"check{number}": 1, "check0": 2})
    assert history.check_names() == [f"check{number}" for number in range(CHECKS)]
    assert history.beats(CHECKS + 5) == "3" + "0" * (CHECKS - 1)
    assert history.beats(CHECKS - 1) == "3" + "0" * (CHECKS - 2) + "2"


def test_a_full_history_stays_in_its_area() -> None:
    """Rings, transitions and names do not run into each other or beyond the area."""
    area = memoryview(bytearray(HISTORY_BYTES + 64))
    area[HISTORY_BYTES:] = b"x" * 64
    history = History(area[:HISTORY_BYTES])
    beats = {f"check{number}": 2 for number in range(CHECKS)}
    for number in range(2 * SAMPLES):
        history.append(Sample(*[float(number)] * 21), [Memory(slot, 1, 1 << 30) for slot in range(WORKERS)], beats)
    for number in range(2 * TRANSITIONS):
        history.transition({"id": str(number), "detail": "y" * 400})
    assert bytes(area[HISTORY_BYTES:]) == b"x" * 64
    assert len(history.transitions()) == TRANSITIONS
    assert {history.beats(number) for number in range(SAMPLES, 2 * SAMPLES)} == {"3" * CHECKS}
    assert all(len(history.memory(number)) == WORKERS for number in range(SAMPLES, 2 * SAMPLES))
    assert history.samples()[0].time == SAMPLES


def test_availability_is_of_the_requests_and_rounds_in_the_window() -> None:
    """Errors of yesterday are yesterday's; a service younger than the window began with nothing."""
    history = _history()
    history.append(Sample(time=1000.0, requests=100, errors=50, status=2))
    history.append(Sample(time=1300.0, requests=200, errors=50))
    history.append(Sample(time=1400.0, requests=250, errors=51, status=2))
    lately = history.availability(1601.0, 300, 51, 300.0)
    assert (lately["ratio"], lately["requests"], lately["probes"]) == (0.99, 100, 0.0)
    ever = history.availability(1600.0, 300, 51, 10_000.0)
    assert (ever["ratio"], ever["requests"], ever["observed_s"]) == (0.83, 300, 600.0)
    assert ever["probes"] == pytest.approx(1 / 3, abs=1e-6)


def test_availability_without_requests_or_rounds_is_unknown() -> None:
    """Not perfect: nobody asked."""
    history = _history()
    assert history.availability(1000.0, 0, 0, 300.0) == {
        "ratio": None, "requests": 0, "probes": None, "window_s": 300.0, "observed_s": 0.0}
    history.append(Sample(time=1000.0, requests=7, errors=1))
    quiet = history.availability(5000.0, 7, 1, 300.0)
    assert (quiet["ratio"], quiet["probes"]) == (None, None)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40),
       st.integers(1, 500))
def test_availability_agrees_with_counting(rounds: list[tuple[int, int, int]], window: int) -> None:
    """Whatever the rounds were: (requests, errors among them, status), 10 s apart."""
    history = _history()
    requests = errors = 0
    for number, (asked, failed, status) in enumerate(rounds):
        requests, errors = requests + asked, errors + min(asked, failed)
        history.append(Sample(10.0 * number, requests=requests, errors=errors, status=status))
    now = 10.0 * len(rounds)
    found = history.availability(now, requests, errors, window)
    inside = [one for number, one in enumerate(rounds) if 10.0 * number >= now - window]
    assert found["requests"] == sum(asked for asked, _, _ in inside)
    if inside:
        assert found["probes"] == pytest.approx(sum(status < 2 for _, _, status in inside) / len(inside), abs=1e-6)
    if found["requests"]:
        assert found["ratio"] == pytest.approx(1 - sum(min(one[:2]) for one in inside) / found["requests"], abs=1e-6)


def test_a_full_ring_tells_of_what_it_still_knows() -> None:
    """The oldest round is the beginning, not nothing."""
    history = _history()
    for number in range(SAMPLES + 100):
        history.append(Sample(30.0 * number, requests=1000 + number))
    found = history.availability(30.0 * (SAMPLES + 100), 1000 + SAMPLES + 100, 0, 10.0 ** 9)
    assert found["requests"] == SAMPLES
    assert found["observed_s"] == 30.0 * SAMPLES


def test_a_trend_is_told_of_a_leak_and_not_of_noise_with_a_late_spike() -> None:
    """By rank statistics, and only from enough points."""
    random = Random(1)
    flat = [Sample(30.0 * number, rss=100e6 + random.gauss(0, 1e6), mean_ms=5.0) for number in range(120)]
    flat[-5:] = [sample._replace(rss=400e6) for sample in flat[-5:]]
    leak = [sample._replace(rss=100e6 + 0.5e6 * number) for number, sample in enumerate(flat)]
    assert trends(flat) == {"rss": 0.0, "mean_ms": 0.0, "p95_ms": 0.0, "db_latency_ms": 0.0}
    found = trends(leak)
    assert found is not None
    assert found["rss"] == pytest.approx(1e6)
    assert trends(leak[:FEWEST - 1]) is None
