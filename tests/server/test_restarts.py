"""When dead workers are started again, and what their ends are called."""

from __future__ import annotations

import signal

import pytest

from flask_stability.config import Settings
from flask_stability.scoreboard import Reason
from flask_stability.server.exit_reasons import Known, reason_of
from flask_stability.server.restarts import Pace, Restarts
from flask_stability.server.threads import Stuck
from flask_stability.server.timeouts import breaches

STEPS = (0.0, 1.0, 2.0, 4.0)


def restarts(**options: float) -> Restarts:
    return Restarts(STEPS, **{"most": 16, "window": 60.0, "min_uptime": 10.0, **options},  # type: ignore[arg-type]
                    jitter=lambda: 1.0)


def test_each_wave_of_crashes_waits_longer_up_to_the_last_step() -> None:
    """The waits are the steps in turn, and the last one for ever."""
    policy, now, waits = restarts(), 100.0, []
    for _ in range(6):
        policy.crashed(now, 0.2)
        waits.append(policy.hold_until - now)
        now = max(policy.hold_until, now) + 1.0
    assert waits == pytest.approx([0.0, 1.0, 2.0, 4.0, 4.0, 4.0])


def test_crashes_of_one_wave_are_one_step() -> None:
    """Four workers that die together raise the wait once."""
    policy = restarts()
    for _ in range(4):
        policy.crashed(100.0, 0.2)
    assert not policy.held(100.1)
    for _ in range(4):
        policy.crashed(101.0, 0.2)
    assert policy.hold_until == 102.0


def test_calm_resets_the_steps() -> None:
    """Half a minute without a crash, and the first restart is immediate again."""
    policy = restarts()
    for now in (100.0, 101.0, 103.0):
        policy.crashed(now, 0.2)
    assert policy.held(103.5)
    policy.crashed(140.0, 0.2)
    assert not policy.held(140.0)


def test_one_newcomer_is_tried_alone_after_a_wait_only() -> None:
    """A first crash is nothing special; the second of a loop calls for a canary."""
    policy = restarts()
    assert policy.crashed(100.0, 0.2) is False
    assert policy.crashed(101.0, 0.2) is True


def test_worker_that_lived_long_enough_is_no_crash_loop() -> None:
    """It counts towards the limit, but nothing waits for it."""
    policy = restarts()
    for now in range(100, 110):
        policy.crashed(float(now), 3600.0)
    assert not policy.held(110.0)
    assert policy.recent(110.0) == 10


def test_worker_that_has_served_is_never_waited_for_long() -> None:
    """A second of service and it is started again at once; ready for less, and the longest wait is half a second."""
    policy, now = restarts(), 100.0
    for _ in range(6):
        assert policy.crashed(now, 1.5, served=1.2) is False
        assert not policy.held(now)
        now += 1.5
    waits = []
    for _ in range(6):
        policy.crashed(now, 0.8, served=0.5)
        waits.append(policy.hold_until - now)
        now = max(policy.hold_until, now) + 1.0
    assert max(waits) == pytest.approx(0.5)


def test_after_workers_that_have_answered_none_is_tried_alone() -> None:
    """It was a request that ended them, not their start: a tenth of a second at the most, and all are started."""
    policy, now, waits = restarts(), 100.0, []
    for _ in range(6):
        assert policy.crashed(now, 0.8, served=0.5, answered=True) is False
        waits.append(policy.hold_until - now)
        now = max(policy.hold_until, now) + 1.0
    assert max(waits) == pytest.approx(0.1)


def test_while_nobody_serves_the_waits_are_short() -> None:
    """Newcomers that do not start are tried again after two seconds at the most, also if others served till now."""
    policy, now = restarts(), 100.0
    for _ in range(4):
        policy.crashed(now, 0.2, others=True)
        now = max(policy.hold_until, now) + 1.0
    policy.crashed(now, 0.2, others=True)
    assert policy.hold_until == now + 4.0
    policy.crashed(now + 0.2, 3600.0, served=3600.0, others=False)  # the last one that served
    assert policy.hold_until == pytest.approx(now + 0.7)
    policy.crashed(now + 1.5, 0.2, others=False)
    assert policy.hold_until == pytest.approx(now + 3.5)


def test_limit_is_a_sliding_window() -> None:
    """Sixteen crashes in a minute are allowed, the seventeenth is too many, and old ones are forgotten."""
    policy = restarts()
    for number in range(16):
        policy.crashed(100.0 + number, 3600.0)
    assert not policy.too_many(116.0)
    policy.crashed(117.0, 3600.0)
    assert policy.too_many(117.0)
    assert not policy.too_many(162.0)


def test_replacements_for_growth_are_spaced_further_apart_while_they_follow_each_other() -> None:
    """The pause doubles for each that comes as soon as it may, and is the first one again after a calm time."""
    pace, now, pauses = Pace(lambda early: 60.0 * 2 ** early), 1000.0, []
    for _ in range(4):
        assert pace.allowed(now)
        pace.replaced(now)
        pause = next(seconds for seconds in range(10_000) if pace.allowed(now + seconds))
        pauses.append(pause)
        now += pause
    assert pauses == [60, 120, 240, 480]
    now += 10_000
    pace.replaced(now)
    assert not pace.allowed(now + 59)
    assert pace.allowed(now + 60)


KILLED, SEGV, TERMED = int(signal.SIGKILL), int(signal.SIGSEGV), int(signal.SIGTERM)


@pytest.mark.parametrize(("status", "known", "reason"), [
    (SEGV, Known(ready=True), "crash_signal"),
    (SEGV | 0x80, Known(ready=True), "crash_signal"),
    (SEGV, Known(ready=True, asked=Reason.MEMORY), "crash_signal"),
    (KILLED, Known(ready=True), "crash_signal"),
    (KILLED, Known(ready=True, oom_kills=1), "out_of_memory"),
    (KILLED, Known(ready=True, killed=Reason.FROZEN), "frozen"),
    (KILLED, Known(ready=True, aborted=True), "timeout"),
    (1 << 8, Known(ready=True, aborted=True), "timeout"),
    (TERMED, Known(ready=True), "asked"),
    (0, Known(ready=True), "asked"),
    (0, Known(ready=True, max_requests=True), "max_requests"),
    (0, Known(ready=True, asked=Reason.MEMORY, terminated=True), "memory"),
    (1 << 8, Known(ready=True, asked=Reason.DEADLINE, terminated=True), "deadline"),
    (1 << 8, Known(ready=True, asked=Reason.DEADLINE), "exit_code"),
    (3 << 8, Known(), "boot_failure"),
    (4 << 8, Known(), "boot_failure"),
    (3 << 8, Known(ready=True), "exit_code"),
    (0, Known(), "boot_failure"),
    (1 << 8, Known(ready=True), "exit_code"),
    (0, Known(ready=True, stopping=True), "shutdown"),
    (KILLED, Known(ready=True, stopping=True), "shutdown"),
    (None, Known(ready=True), "unknown"),
    (None, Known(ready=True, stopping=True), "shutdown"),
    (None, Known(asked=Reason.MEMORY, ready=True), "memory"),
    (63, Known(ready=True), "crash_signal"),
])
def test_exit_has_its_reason(status: int | None, known: Known, reason: str) -> None:
    """The reason follows from the status and from what the master did."""
    assert reason_of(status, known)[0] == reason
    assert isinstance(reason_of(status, known).reason, Reason)


def test_stuck_threads_get_spare_ones_after_a_second_and_more_while_work_waits() -> None:
    """Once at first, then, as long as the spare ones are stuck as well, twice as many, up to a limit; that it lasts is
    known two seconds after the first ones.
    """
    stuck, wanted, lasting, now = Stuck(4), [], [], 100.0
    for _ in range(100):
        wanted.append(stuck.look(now, 5, "same", []))
        lasting.append(stuck.times > 0 and stuck.lasting(now))
        now += 0.25
    assert wanted[:11] == [0] * 4 + [4, 0, 8, 0, 16, 0, 4]
    assert sum(wanted) == 8 * 4
    assert lasting.index(True) == 12
    assert stuck.times > 40


def test_threads_that_make_progress_are_not_stuck() -> None:
    """A full queue alone is load, not a hang."""
    stuck = Stuck(4)
    assert not any(stuck.look(100.0 + number, 50, number, [100.0 + number] * 4) for number in range(60))


def test_threads_without_work_queued_are_not_stuck() -> None:
    """Slow requests that keep nobody waiting are nobody's business."""
    stuck = Stuck(4)
    assert not any(stuck.look(100.0 + number, 0, "same", [100.0] * 4) for number in range(60))
    assert not stuck.look(200.0, 1, "same", [199.5] * 4)


def test_stuck_time_counts_from_when_the_last_thread_was_taken() -> None:
    """Not from when the guard happened to look."""
    stuck = Stuck(4)
    assert stuck.look(100.9, 1, "same", [90.0, 95.0, 99.0, 100.0]) == 0
    assert stuck.look(101.0, 1, "same", [90.0, 95.0, 99.0, 100.0]) == 4


def test_order_of_timeouts_has_one_line_per_breach() -> None:
    """Each breach is one line that names what to change; the defaults have none."""
    assert breaches(Settings(), graceful=30, app=True) == []
    found = breaches(Settings(retire_mercy=5.0, request_timeout=8.0), graceful=30, app=True)
    assert len(found) == 3
    assert all("STABILITY_" in line and "\n" not in line for line in found)
