"""Which request kills workers, decided from crashes and answers alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_stability.server import quarantine
from flask_stability.server.quarantine import ISOLATED, OUTSIDE, REFUSED, SERVICE, TOO_MANY, WATCHED, Quarantine, Seen


def seen(number: int, route: str = "", *, answering: bool = False) -> Seen:
    """A request."""
    return Seen(number, "GET", f"/{number}", route or f"/{number}", answering)


def events(told: list[quarantine.Told]) -> list[str]:
    """Their names."""
    return [one.event for one in told]


def suspect(found: Quarantine, number: int = 1) -> None:
    """Have a request isolated."""
    found.crashed(0.0, [seen(number)], 0)
    told, why = found.crashed(1.0, [seen(number)], 20)
    assert (events(told), why) == (["poison_suspected", "poison_isolated"], "")


def test_what_was_in_two_crashes_while_others_were_answered_is_isolated() -> None:
    """With the evidence in the record; one crash alone is none."""
    found = Quarantine()
    told, why = found.crashed(0.0, [seen(1), seen(2)], 100)
    assert (told, why) == ([], "")
    told, why = found.crashed(1.0, [seen(1), seen(3)], 120)
    assert events(told) == ["poison_suspected", "poison_isolated"]
    assert told[0].fields == {"method": "GET", "path": "/1", "route": "/1", "fingerprint": "0000000000000001",
                              "crashes": 2, "answered": 0, "others_answered": 20}
    assert found.cases[1].state is ISOLATED
    assert found.cases[2].state is found.cases[3].state is WATCHED


def test_a_popular_request_is_no_suspect_in_however_many_crashes() -> None:
    """It is answered all the time."""
    found = Quarantine()
    for crash in range(10):
        told, _ = found.crashed(float(crash), [seen(1), seen(100 + crash)], 20 * crash)
        assert told == []
        found.answered(found.cases[1].index, 15, alone=False)


def test_streams_that_have_begun_are_no_suspects() -> None:
    """They are in flight in every crash."""
    found = Quarantine()
    for crash in range(5):
        found.crashed(float(crash), [seen(1, answering=True)], 100 * crash)
    assert found.cases == {}


def test_while_nothing_is_answered_it_is_the_release() -> None:
    """Every request kills: nothing is isolated, and the line says why."""
    found = Quarantine()
    for crash in range(50):
        told, why = found.crashed(float(crash), [seen(crash % 3)], 7)
        assert told == []
    assert why == SERVICE
    assert all(case.state is WATCHED for case in found.cases.values())


def test_a_quiet_service_takes_more_crashes_for_the_same_evidence() -> None:
    """Four others answered between two crashes: the third crash suffices, not the second."""
    found = Quarantine()
    states = []
    for crash in range(3):
        found.crashed(60.0 * crash, [seen(1)], 5 * crash)
        states.append(found.cases[1].state)
    assert states == [WATCHED, WATCHED, ISOLATED]


def test_too_many_suspects_are_a_bad_release() -> None:
    """Those beyond eight stay where they are."""
    found = Quarantine()
    for number in range(12):
        found.crashed(0.0, [seen(number)], 0)
    reasons = [found.crashed(1.0, [seen(number)], 1000)[1] for number in range(12)]
    assert reasons == [""] * 8 + [TOO_MANY] * 4


def test_a_kill_from_outside_convicts_nobody() -> None:
    """Neither a suspect, nor what is served alone."""
    found = Quarantine()
    for crash in range(5):
        assert found.crashed(float(crash), [seen(1)], 100 * crash, outside=True) == ([], OUTSIDE)
    assert found.cases == {}
    suspect(found)
    assert found.crashed_alone(2.0, [seen(1)], 11, outside=True) == ([], OUTSIDE)
    assert found.cases[1].state is ISOLATED
    assert found.convicted == {}


def test_refusal_doubles_from_half_a_minute_to_an_hour() -> None:
    """After each it is isolated once more."""
    found, now = Quarantine(), 10.0
    suspect(found)
    times = []
    for _ in range(9):
        told, _ = found.crashed_alone(now, [seen(1)], 11)
        assert events(told) == ["poison_refused"]
        times.append(told[0].fields["seconds"])
        assert found.tick(now + times[-1] - 1, 100) == []
        now += times[-1]
        assert events(found.tick(now, 100)) == ["poison_isolated"]
    assert times == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_five_successes_alone_clear_and_the_doubled_time_is_remembered() -> None:
    """An attacker who alternates cannot reset it; successes elsewhere, and a sixth crash's before, do not count."""
    found = Quarantine()
    suspect(found)
    assert found.crashed_alone(2.0, [seen(1)], 11)[0][0].fields["seconds"] == 30
    found.tick(40.0, 30)
    for one in (found.cases[1], found.convicted[11]):
        assert found.answered(one.index, 4, alone=True) == []
        assert found.answered(one.index, 9, alone=False) == []
        assert one.state is ISOLATED
        assert events(found.answered(one.index, 1, alone=True)) == ["poison_cleared"]
        assert one.state is WATCHED
    assert found.tick(42.0, 30) == []
    told, _ = found.crashed(50.0, [seen(1)], 100)
    assert "poison_isolated" in events(told)
    assert found.crashed_alone(51.0, [seen(1)], 11)[0][0].fields["seconds"] == 60


def test_others_of_the_same_fingerprint_are_never_refused_and_do_not_clear_the_culprit() -> None:
    """Their five answers end the isolation of what only resembles it; what crashed alone stays alone, or refused."""
    found = Quarantine()
    suspect(found)
    found.crashed_alone(2.0, [seen(1)], 11)
    assert found.cases[1].state is ISOLATED
    assert events(found.answered(found.cases[1].index, 5, alone=True)) == ["poison_cleared"]
    assert found.cases[1].state is WATCHED
    assert found.convicted[11].state is REFUSED
    assert events(found.tick(40.0, 50)) == ["poison_isolated"]
    assert found.convicted[11].state is ISOLATED


def test_a_flood_of_different_requests_that_crash_alone_fills_no_table() -> None:
    """A hostile client may send as many as it wants: places stay different, and the tables as large as they are."""
    found = Quarantine()
    for number in range(2000):
        found.crashed(float(number), [seen(number, "/search")], 100 * number)
        found.crashed_alone(float(number), [seen(number, "/search")], 10_000 + number)
        indices = [one.index for one in (*found.cases.values(), *found.convicted.values())]
        assert len(indices) == len(set(indices)) <= quarantine.INDICES
    assert len(found.convicted) == quarantine.MOST_CONVICTED
    assert len(found.cases) == quarantine.MOST
    assert len(found.routes["/search"].crashed) <= quarantine.INDICES


def test_changing_requests_of_one_route_have_it_isolated_and_never_refused() -> None:
    """Until there was no crash for some minutes; one that is answered often is not touched."""
    found = Quarantine()
    told = []
    for crash in range(3):
        told += found.crashed(float(crash), [seen(crash, "/search")], 100 * crash)[0]
    assert events(told) == ["poison_isolated"]
    assert told[0].fields["route"] == "/search"
    assert found.routes["/search"].isolated
    assert all(case.state is WATCHED for case in found.cases.values())
    found.crashed_alone(4.0, [seen(77, "/search")], 11)
    assert [one.seen.fingerprint for one in found.convicted.values() if one.state is REFUSED] == [77]
    assert "poison_cleared" in events(found.tick(700.0, 500))

    popular = Quarantine()
    for crash in range(9):
        popular.crashed(float(crash), [seen(crash, "/search")], 100 * crash,
                        good_of=lambda route, crash=crash: 90 * crash)
    assert not popular.routes["/search"].isolated


def test_what_is_old_is_forgotten_and_there_is_room_for_the_new() -> None:
    """However many different requests were in flight in crashes."""
    found = Quarantine()
    suspect(found, 5000)
    for number in range(1000):
        found.crashed(2.0, [seen(number)], 30)
        indices = [case.index for case in found.cases.values()]
        assert len(indices) == len(set(indices)) <= quarantine.MOST
    assert found.cases[5000].state is ISOLATED
    found.tick(2.0 + quarantine.REMEMBER + 1, 30)
    assert found.cases == {}
    assert found.routes == {}


def test_new_code_is_given_a_chance_alone() -> None:
    """A reload ends refusals; what still crashes is refused for the doubled time."""
    found = Quarantine()
    suspect(found)
    found.crashed_alone(2.0, [seen(1)], 11)
    assert events(found.reloaded()) == ["poison_isolated"]
    assert found.crashed_alone(3.0, [seen(1)], 11)[0][0].fields["seconds"] == 60


def test_a_release_that_is_refused_takes_its_suspects_along() -> None:
    """Those of before stay."""
    found = Quarantine()
    suspect(found, 1)
    found.crashed(50.0, [seen(2)], 100)
    found.crashed(51.0, [seen(2)], 200)
    found.crashed_alone(52.0, [seen(2)], 22)
    found.forget(since=40.0)
    assert list(found.cases) == [1]
    assert found.convicted == {}
    found.forget()
    assert found.cases == {}


def test_an_operator_clears_one_or_all() -> None:
    """Their times are forgotten as well."""
    found = Quarantine()
    for number in (1, 2):
        suspect(found, number)
        found.crashed_alone(2.0, [seen(number)], 10 + number)
    assert found.clear(1) == 2
    assert list(found.cases) == [2]
    assert found.clear(12) == 1
    assert found.clear() == 1
    assert found.clear() == 0


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 8), st.floats(0.5, 20.0))
def test_in_random_schedules_the_poison_is_caught_and_nobody_else_is_refused(chance: random.Random, threads: int,
                                                                            rate: float) -> None:
    """A service of some popular and many rare requests, a client that retries, and unrelated kills among it all."""
    found, now, goods, ordinary = Quarantine(), 0.0, 0, 0
    poison = seen(-1)
    refused = 0
    for _ in range(60):
        for _ in range(max(1, round(rate * 1.0))):
            one = seen(chance.choice((1, 2, 3, 4)) if chance.random() < 0.8 else chance.randrange(10, 10000))
            goods += 1
            case = found.cases.get(one.fingerprint)
            if case is not None:
                found.answered(case.index, 1, alone=case.state is ISOLATED)
        beside = [seen(chance.choice((1, 2, 3, 4, chance.randrange(10, 10000)))) for _ in range(threads - 1)]
        now += 1.0
        found.tick(now, goods)
        if chance.random() < 0.05:
            found.crashed(now, beside, goods, outside=True)
        case, convicted = found.cases.get(-1), found.convicted.get(-11)
        if convicted is not None and convicted.state is REFUSED:
            refused += 1
        elif (case is not None and case.state is ISOLATED) or convicted is not None:
            found.crashed_alone(now, [poison], -11)
        else:
            ordinary += 1
            found.crashed(now, [poison, *beside], goods)
        assert set(found.convicted) <= {-11}
    assert refused > 0
    assert ordinary <= 6


@pytest.mark.parametrize("kills", [3, 30])
def test_unrelated_kills_among_ten_thousand_good_requests_have_nobody_refused(kills: int) -> None:
    """Crashes of the same kind, not from outside: whatever was in flight is at most served alone."""
    chance, found = random.Random(7), Quarantine()
    for goods, request in enumerate(range(10_000), 1):
        case = found.cases.get(request % 50)
        if case is not None:
            found.answered(case.index, 1, alone=case.state is ISOLATED)
        if request % (10_000 // kills) == 0:
            found.crashed(request / 20, [seen(chance.randrange(50)) for _ in range(4)], goods)
    assert found.convicted == {}
