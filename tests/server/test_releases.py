"""What the master does about a release on trial: real rows, a fleet that only remembers, and a clock that is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.scoreboard import Reason, Scoreboard
from flask_stability.server import releases
from flask_stability.server.releases import Phase, Releases
from flask_stability.server.workers import Child

Clock = Callable[[float], None]


@dataclass(frozen=True)
class Worker:
    """As much of gunicorn's as is looked at."""

    pid: int
    age: int


class Fleet:
    """Remembers what it was asked for."""

    def __init__(self, board: Scoreboard, number: int) -> None:
        self.board, self.number = board, number
        self.children: dict[Any, Child] = {}
        self.restored, self.replaced = 0, [0][:0]
        self.memory = True

    def add(self, age: int, *, ready: bool = True) -> Child:
        worker = Worker(4_000_000 + age, age)
        row = self.board.allocate(age)
        assert row is not None
        row.words[sb.W_PID], row.words[sb.W_THREADS] = worker.pid, 4
        child = self.children[worker] = Child(worker, row, 1.0, ready_at=1.0 if ready else 0.0)
        return child

    def look_again(self, at: float) -> None:
        """Nobody waits."""

    def terminate(self, child: Child, now: float) -> None:
        child.term_at = now

    def replace_all(self, old: list[Child], now: float) -> None:
        self.replaced = [child.pid for child in old]

    def restore(self) -> None:
        self.restored += 1

    def boot_patience(self) -> float:
        return 30.0

    def base(self) -> int:
        return self.number

    def may_keep(self) -> bool:
        return self.memory


class Trial:
    """Two old workers with a past, a reload, and one new worker."""

    def __init__(self, **settings: Any) -> None:
        self.board = Scoreboard.anonymous(8)
        self.fleet = Fleet(self.board, 2)
        self.old = [self.fleet.add(1), self.fleet.add(2)]
        for child in self.old:
            self.serve(child, 200)
        self.now = 100.0
        self.releases = Releases(self.board, replace(Settings(), **settings), self.fleet)
        self.releases.before_reload(self.now)
        self.releases.prepare("")
        assert self.releases.may_start()
        assert not self.releases.may_start()
        self.new = self.fleet.add(3)
        self.releases.forking(self.new)
        assert self.releases.reloaded(2)

    def serve(self, child: Child, number: int, status: int = 200) -> None:
        assert child.row is not None
        for _ in range(number):
            child.row.observe("GET", "pay", status, 5_000_000)

    def run(self, seconds: float, status: int = 200, requests: int = 4) -> None:
        """Both sides serve, as far as they accept connections; the new workers' answers have this status."""
        for _ in range(int(seconds * 10)):
            self.now += 0.1
            for child in [*self.old, *self.newer()]:
                if child.row is not None and not child.row.words[sb.W_PARKED] and not child.term_at:
                    self.serve(child, requests, 200 if child in self.old else status)
            self.obey()
            self.releases.tick(self.now)

    def newer(self) -> list[Child]:
        return [child for child in self.fleet.children.values() if child.worker.age > 2]

    def obey(self) -> None:
        """Park and accept again, as the workers' guards do."""
        for child in self.old:
            assert child.row is not None
            child.row.words[sb.W_PARKED] = child.row.orders[sb.O_PARK]

    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = self.board.master.releases.read_json({})
        return found

    def follow(self) -> None:
        """It is accepted, and the second new worker serves."""
        self.run(6.0, requests=30)
        assert self.releases.phase is Phase.FOLLOWING
        self.fleet.add(4)
        self.run(0.2)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment of the reload is the trial's."""
    monkeypatch.setattr(releases.time, "monotonic", lambda: 100.0)


def test_the_isolation_worker_is_of_no_release() -> None:
    """Started during the trial it is neither judged, nor refused with the others, nor counted among them."""
    trial = Trial()
    alone = trial.fleet.children["alone"] = Child(Worker(4_000_009, 9), None, 1.0, ready_at=1.0, alone=True)
    trial.run(1.0)
    assert not trial.releases.is_new(alone)
    assert not trial.releases.on_trial(alone)
    assert trial.releases.on_trial(trial.new)
    assert trial.releases.aside([*trial.old, trial.new]) == [trial.new]
    trial.run(5.0, status=500)
    assert trial.said()["outcome"] == "refused"
    assert trial.new.term_at
    assert not alone.term_at
    assert not alone.asked


def test_only_the_new_worker_is_aside_until_it_is_accepted_then_the_old_ones() -> None:
    """The supervision replaces workers of one release only."""
    trial = Trial()
    children = list(trial.fleet.children.values())
    assert trial.releases.aside(children) == [trial.new]
    assert trial.new.row is not None
    assert trial.new.row.orders[sb.O_TRIAL] == 1
    trial.follow()
    assert trial.releases.phase is Phase.WATCHING
    assert trial.releases.aside(list(trial.fleet.children.values())) == trial.old
    assert trial.new.row.orders[sb.O_TRIAL] == 0
    assert [child.row.orders[sb.O_PARK] for child in trial.old if child.row is not None] == [1, 1]
    assert trial.said()["outcome"] == "serves"


def test_a_worse_one_leaves_and_everything_is_as_it_was() -> None:
    """Configuration and settings are put back, workers keep their code, and the board says why."""
    trial = Trial(release_id="41")
    trial.run(3.0, status=500)
    assert trial.releases.phase is Phase.QUIET
    assert (trial.new.asked, bool(trial.new.term_at)) == (Reason.RELEASE_REFUSED, True)
    assert (trial.fleet.restored, trial.releases.held) == (1, True)
    assert trial.board.master.words[sb.M_KEEP_CODE] == 1
    assert all(not child.term_at for child in trial.old)
    said = trial.said()
    assert (said["outcome"], said["verdicts"][-1]["verdict"], said["verdicts"][-1]["measure"]) == (
        "refused", "refused", "failed")
    assert "GET pay (5xx 100 % against 0 %)" in said["refused"]["text"]


def test_after_a_refusal_places_stay_empty_down_to_the_half() -> None:
    """Below that the refused code has to serve."""
    trial = Trial()
    trial.run(3.0, status=500)
    alive = trial.old[:]
    assert trial.releases.base(2, alive) == 2
    assert trial.releases.base(2, alive[:1]) == 1
    assert trial.releases.base(2, []) == 1
    assert trial.releases.base(5, alive[:1]) == 3


def test_the_watch_ends_and_the_old_workers_leave() -> None:
    """Then the next reload is compared with this release."""
    trial = Trial(release_watch=5.0)
    trial.follow()
    trial.run(6.0)
    assert trial.releases.phase is Phase.QUIET
    assert trial.fleet.replaced == [child.pid for child in trial.old]
    assert (trial.said()["serving"], trial.said()["refused"]) == ("#2", None)
    assert trial.board.master.words[sb.M_KEEP_CODE] == 0
    assert trial.said()["verdicts"][-1]["verdict"] == "accepted"


def test_what_shows_in_the_watch_is_compared_again_and_turned_back() -> None:
    """The old workers accept connections before the new ones leave."""
    trial = Trial()
    trial.follow()
    trial.run(5.0, status=500)
    assert trial.releases.phase is Phase.QUIET
    assert [child.row.orders[sb.O_PARK] for child in trial.old if child.row is not None] == [0, 0]
    assert all(child.term_at for child in trial.newer())
    assert trial.said()["verdicts"][-1]["verdict"] == "turned back"


def test_what_fails_everywhere_in_the_watch_turns_nothing_back() -> None:
    """The old workers fail as well once they are asked: they are parked again."""
    trial = Trial(release_time=2.0, release_watch=1000.0)
    trial.follow()
    seen = set()
    for _ in range(80):
        trial.now += 0.1
        for child in [*trial.old, *trial.newer()]:
            if child.row is not None and not child.row.words[sb.W_PARKED]:
                trial.serve(child, 4, 500)
        trial.obey()
        trial.releases.tick(trial.now)
        seen.add(trial.releases.phase)
    assert seen == {Phase.WATCHING, Phase.CONFIRMING}
    assert trial.releases.phase is Phase.WATCHING
    assert not any(child.term_at for child in trial.newer())


@pytest.mark.parametrize(("undecided", "phase"), [("accept", Phase.FOLLOWING), ("refuse", Phase.QUIET)])
def test_without_requests_the_setting_says(undecided: str, phase: Phase) -> None:
    """The time is over, and nothing is known."""
    trial = Trial(release_undecided=undecided, release_time=2.0)
    trial.run(2.5, requests=0)
    assert trial.releases.phase is phase


def test_a_crash_of_the_new_worker_is_this_trials_alone() -> None:
    """It is no crash loop of the service; an operator's SIGKILL is forgiven once."""
    trial = Trial()
    assert trial.releases.exited(trial.new, Reason.CRASH_SIGNAL, "SIGKILL")
    trial.releases.tick(trial.now)
    assert trial.releases.phase is Phase.JUDGING
    assert trial.releases.wanted(0) == 1
    assert not trial.releases.exited(trial.old[0], Reason.CRASH_SIGNAL, "SIGSEGV")


def test_a_segmentation_fault_refuses_at_once() -> None:
    """One is enough."""
    trial = Trial()
    trial.releases.exited(trial.new, Reason.CRASH_SIGNAL, "SIGSEGV")
    trial.releases.tick(trial.now)
    assert trial.said()["verdicts"][-1]["measure"] == "crash"


def test_a_probe_that_fails_refuses() -> None:
    """The worker says so and leaves."""
    trial = Trial()
    assert trial.new.row is not None
    trial.new.row.release.write_json({"id": "42", "failed": "probe GET /: 500"})
    trial.releases.exited(trial.new, Reason.BOOT_FAILURE, "exit 0")
    trial.releases.tick(trial.now)
    assert trial.said()["refused"]["text"] == "release 42 refused after 0 requests: probe GET /: 500; #1 serves on"


def test_a_further_reload_gives_the_one_on_trial_up() -> None:
    """The configuration of before comes back first, for gunicorn to read the newest one."""
    trial = Trial()
    trial.releases.before_reload(trial.now)
    assert trial.new.term_at
    assert trial.fleet.restored == 1
    assert trial.said()["verdicts"][-1]["verdict"] == "superseded"


def test_too_few_old_workers_end_the_trial() -> None:
    """With less than half of them there is nothing to turn back to."""
    trial = Trial()
    for child in trial.old:
        child.killed = Reason.STUCK
    trial.releases.tick(trial.now)
    assert trial.releases.phase is Phase.FOLLOWING
    assert trial.releases.base(2, []) == 2


def test_without_memory_for_both_nobody_is_kept() -> None:
    """The old workers leave as soon as the new ones serve."""
    trial = Trial()
    trial.fleet.memory = False
    trial.follow()
    assert trial.releases.phase is Phase.QUIET
    assert len(trial.fleet.replaced) == 2


@pytest.mark.parametrize(("settings", "force"), [({"release_judge": False}, False), ({}, True)])
def test_what_is_not_judged_is_the_reload_of_before(settings: dict[str, Any], force: bool) -> None:
    """Switched off, or forced: once."""
    board = Scoreboard.anonymous(4)
    found = Releases(board, replace(Settings(), **settings), Fleet(board, 2))
    found.before_reload(1.0)
    found.force = force
    found.prepare("")
    assert found.may_start()
    assert found.may_start()
    assert not found.reloaded(2)
    assert board.master.releases.read_json({})["outcome"] == "under way"
    found.arrived()
    assert board.master.releases.read_json({})["outcome"] == "serves"
    assert not found.force
