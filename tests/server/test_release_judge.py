"""The judge of releases: it refuses what is worse, soon, and what is no worse hardly ever; counts and a clock alone."""

from __future__ import annotations

import random

import pytest

from flask_stability.server.bets import EFFECTS, Bet, Shares, block_factor
from flask_stability.server.release import Finding, Judge, Verdict
from flask_stability.server.release_counts import NOBODY, SLOW_OCTAVE, Figures, Hung, Key, Route, slow_from
from support_release import Release, Weather, good, judged, weather

PAY: Key = ("GET", "pay")
USUAL = Figures({PAY: Route(1000, 2, (0, 0, 0, 0, 900, 100), 0.01)}, resident=100 << 20, processor_s=1.0)


def _judge(**options: float) -> Judge:
    return Judge(0.0, {1: USUAL}, **options)  # type: ignore[arg-type]


def _more(before: Figures, requests: int, failed: int = 0, **options: object) -> Figures:
    route = before.routes.get(PAY, Route(times=(0,) * 6))
    return Figures({PAY: Route(route.requests + requests, route.failed + failed,
                               (*route.times[:4], route.times[4] + requests, route.times[5]), 0.01)},
                   **{"resident": before.resident, **options})  # type: ignore[arg-type]


# -- false refusals, and bad releases ----------------------------------------------------------------------------

def test_good_releases_are_hardly_ever_refused() -> None:
    """Of 150 simulated ones, in all weathers, none; 10,000 are in tests/benchmarks/bench_release_judge.py."""
    for seed in range(150):
        draw = random.Random(seed)
        found, _, _ = judged(draw, weather(draw), good(draw))
        assert found.verdict is not Verdict.WORSE, (seed, found)


@pytest.mark.parametrize(("bad", "measure"), [
    (Release(fails=frozenset()), "failed"), (Release(fails=frozenset({1})), "failed"),
    (Release(slower=5.0), "slow"), (Release(processor=0.02), "processor"), (Release(leak=4 << 20), "memory")])
def test_a_bad_release_is_refused_for_what_it_does(bad: Release, measure: str) -> None:
    """Each measure finds its fault within the time."""
    calm = Weather(120, 3, [(1.0, 0.002, 0.01, 0.3)] * 6)
    for seed in range(5):
        found, seconds, _ = judged(random.Random(seed), calm, bad)
        assert (found.verdict, found.measure) == (Verdict.WORSE, measure)
        assert seconds <= 10.0 + 1e-6


def test_the_reason_names_exception_route_and_shares() -> None:
    """As people want to read it at night."""
    judge, old, new = _judge(), USUAL, NOBODY
    found = Finding()
    for look in range(1, 40):
        old, new = _more(old, 4), _more(new, 1, 1, exceptions={("KeyError", "/pay"): look})
        found = judge.look(0.1 * look, {1: old}, {2: new})
        if found.verdict is not Verdict.UNDECIDED:
            break
    assert (found.verdict, found.text) == (Verdict.WORSE, "KeyError in /pay (5xx 100 % against 0 %)")
    assert found.requests <= 10


def test_what_fails_on_both_sides_is_nobodys_fault() -> None:
    """A database that is gone, just when the new release comes."""
    judge, old, new = _judge(), USUAL, NOBODY
    for look in range(1, 90):
        old, new = _more(old, 4, 4), _more(new, 2, 2)
        assert judge.look(0.1 * look, {1: old}, {2: new}).verdict is not Verdict.WORSE


def test_what_both_suffered_does_not_hide_what_follows() -> None:
    """An outage of both takes the bets' wealth; those that begin later find the fault all the same."""
    judge, old, new = _judge(), USUAL, NOBODY
    for look in range(1, 20):
        old, new = _more(old, 4, 4), _more(new, 2, 2)
        judge.look(0.1 * look, {1: old}, {2: new})
    found = Finding()
    for look in range(20, 60):
        old, new = _more(old, 4), _more(new, 2, 2)
        found = judge.look(0.1 * look, {1: old}, {2: new})
        if found.verdict is Verdict.WORSE:
            break
    assert found.measure == "failed"


def test_an_exception_of_an_unknown_kind_that_is_answered_well_is_found() -> None:
    """A handler of the app's makes 200 of it: no share of 5xx shows it."""
    judge, old, new = _judge(), USUAL, NOBODY
    found = Finding()
    for look in range(1, 60):
        old, new = _more(old, 4), _more(new, 1, exceptions={("app.Lost", "/pay"): look})
        found = judge.look(0.1 * look, {1: old}, {2: new})
        if found.verdict is Verdict.WORSE:
            break
    assert found.measure == "exceptions"
    assert found.text.startswith("app.Lost in /pay, never seen before")


# -- the end of the time -----------------------------------------------------------------------------------------

def test_the_time_is_bounded() -> None:
    """With enough requests it is as good then, without them nothing is known."""
    for number, verdict in ((0, Verdict.TOO_FEW), (1, Verdict.AS_GOOD)):
        judge, old, new = _judge(limit=5.0), USUAL, NOBODY
        found = Finding()
        for look in range(1, 60):
            old, new = _more(old, number), _more(new, number)
            found = judge.look(0.1 * look, {1: old}, {2: new})
            if found.verdict is not Verdict.UNDECIDED:
                break
        assert found.verdict is verdict
        assert 4.9 < 0.1 * look - 0.1 < 5.2


def test_much_traffic_ends_it_early() -> None:
    """Hundreds of good answers on all routes that matter."""
    judge, old, new = _judge(limit=60.0), USUAL, NOBODY
    for look in range(1, 100):
        old, new = _more(old, 40), _more(new, 20)
        if judge.look(0.1 * look, {1: old}, {2: new}).verdict is Verdict.AS_GOOD:
            break
    assert 5.0 <= 0.1 * look < 5.5


def test_nobody_is_judged_before_it_serves() -> None:
    """The time begins when the first new worker is there."""
    judge = _judge(limit=5.0)
    assert judge.look(100.0, {1: USUAL}, {}).verdict is Verdict.UNDECIDED
    assert judge.look(101.0, {1: USUAL}, {2: NOBODY}).verdict is Verdict.UNDECIDED


# -- rules -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("old", "new", "refused"), [
    ([], ["crash_signal"], True), ([], ["killed"], False), ([], ["killed", "killed"], True),
    ([], ["boot_failure"], False), ([], ["boot_failure", "boot_failure"], True), ([], ["shutdown"], False),
    (["crash_signal"], ["crash_signal"], False), (["crash_signal"], ["crash_signal"] * 3, True)])
def test_ends_of_workers(old: list[str], new: list[str], refused: bool) -> None:
    """One crash of the app's own is enough; what an operator or a full machine may have done has to happen twice."""
    found = _judge().look(1.0, {1: USUAL}, {2: NOBODY}, old_ends=old, new_ends=new)
    assert (found.verdict is Verdict.WORSE) is refused
    assert (found.measure == "crash") is refused


@pytest.mark.parametrize(("seconds", "number", "threads", "elsewhere", "refused"), [
    (4.0, 1, 1, False, True), (2.0, 1, 1, False, False), (4.0, 1, 4, False, False), (4.0, 2, 4, False, True),
    (4.0, 2, 4, True, False)])
def test_requests_that_hang(seconds: float, number: int, threads: int, elsewhere: bool, refused: bool) -> None:
    """Longer than anybody ever waited for that route, and only in the new release."""
    hung = tuple(Hung(PAY, "/pay", seconds) for _ in range(number))
    old = Figures(USUAL.routes, hung=hung[:1] if elsewhere else ())
    found = _judge().look(5.0, {1: old}, {2: Figures(threads=threads, hung=hung)})
    assert (found.measure == "hang") is refused


def test_a_route_without_a_past_may_take_long() -> None:
    """Nobody knows how long it usually takes."""
    hung = (Hung(("GET", "report"), "/report", 8.0),)
    assert _judge().look(9.0, {1: USUAL}, {2: Figures(hung=hung)}).verdict is not Verdict.WORSE


# -- the bets ----------------------------------------------------------------------------------------------------

def test_a_block_wins_nothing_on_average() -> None:
    """Whatever the true share is, as long as it is the same on both sides: the mean over all outcomes is at most 1."""
    from math import comb

    for true in (0.001, 0.05, 0.5, 0.9):
        for usual, worse in ((0.002, 0.3), (0.1, 0.9), (0.5, 0.6)):
            mean = sum(comb(3, one) * true ** one * (1 - true) ** (3 - one) * comb(2, other) * true ** other
                       * (1 - true) ** (2 - other) * block_factor(usual, worse, 3, one, 2, other)
                       for one in range(4) for other in range(3))
            assert mean <= 1.0 + 1e-9


def test_a_bet_begins_with_one_and_keeps_what_it_has_not_staked() -> None:
    """Its wealth is 1 at first, 1 after blocks without information, and never negative."""
    bet = Bet()
    for _ in range(5):
        assert bet.wealth == pytest.approx(1.0)
        bet.win([1.0] * len(EFFECTS))
    for _ in range(200):
        bet.win([0.0] * len(EFFECTS))
    assert 0.0 < bet.wealth < 0.01


def test_a_block_waits_for_both_sides() -> None:
    """Without requests of the old release at the same time there is nothing to compare with."""
    shares = Shares((100, 0))
    assert shares.add((0, 0), (5, 5)) is None
    assert shares.bet.wealth == 1.0
    assert shares.add((1, 0), (1, 1)) is not None
    assert shares.bet.wealth > 1.0
    assert (shares.old, shares.new) == ((1, 0), (6, 6))


def test_slow_is_more_than_twice_the_median() -> None:
    """From an octave that begins above it; never what nobody notices; unknown with few requests."""
    assert slow_from((0, 0, 0, 0, 0, 0, 0, 0, 20, 3)) == 10
    assert slow_from((20, 3)) == SLOW_OCTAVE
    assert slow_from((0, 0, 19)) is None
