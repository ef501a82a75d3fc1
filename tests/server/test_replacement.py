"""The master's decisions, on whole sequences of events: who is ended, when, and how many are left."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_stability.scoreboard import Reason
from flask_stability.server import replacement
from flask_stability.server.replacement import Action, Phase, Replacement, Seen, next_step

CLOSE, KILL_TIMEOUT = 2.0, 35.0


@dataclass
class World:
    """gunicorn in miniature: the workers there are, and a clock that advances a second a tick."""

    base: int = 2
    surge: bool = True
    room: int = 1
    close_time: float = CLOSE
    boots: bool = True
    workers: dict[int, Seen] = field(default_factory=dict)
    state: Replacement = field(default_factory=Replacement)
    now: float = 1000.0
    age: int = 0
    killed: list[int] = field(default_factory=list)
    steps: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        for _ in range(self.base):
            self.spawn(ready=True)

    def spawn(self, *, ready: bool = False) -> None:
        self.age += 1
        self.workers[self.age] = Seen(self.age, self.age, ready)

    @property
    def serving(self) -> list[int]:
        return [pid for pid, seen in self.workers.items() if seen.ready and not seen.term_at]

    def tick(self) -> Action:
        """One pass of the master, then gunicorn's own spawning; who was told to go before is gone."""
        for pid in [pid for pid, seen in self.workers.items() if seen.term_at]:
            del self.workers[pid]
        self.now += 1.0
        step = next_step(self.state, list(self.workers.values()), self.now, base=self.base, surge=self.surge,
                         close_time=self.close_time, kill_timeout=KILL_TIMEOUT, room=self.room)
        self.state = step.state
        self.steps.append(step.action)
        before = len(self.serving)
        if step.action is Action.TERM:
            reasons = {self.workers[pid].asked for pid in step.pids}
            for pid in step.pids:
                self.workers[pid] = replace(self.workers[pid], term_at=self.now)
            if self.surge and not reasons & replacement.BROKEN:
                assert len(self.serving) >= min(before, self.base), "fewer serve than are wanted"
        wanted = replacement.target(self.base, list(self.workers.values()), self.state)
        assert wanted >= len(self.workers), "gunicorn would choose whom to end"
        while len(self.workers) < wanted:
            self.spawn()
        return step.action

    def boot(self) -> None:
        """What was started before this moment is ready now."""
        if self.boots:
            self.workers = {pid: replace(seen, ready=True, ready_for=1.0) for pid, seen in self.workers.items()}

    def ask(self, reason: Reason = Reason.MEMORY) -> None:
        pid = min(self.serving, default=None)
        if pid is not None:
            self.workers[pid] = replace(self.workers[pid], asked=reason)

    def leak(self) -> None:
        pid = max(self.serving, default=None)
        if pid is not None:
            self.workers[pid] = replace(self.workers[pid], asked=Reason.LEAKED_CONNECTIONS)

    def crash(self) -> None:
        if self.workers:
            del self.workers[max(self.workers)]

    def hup(self) -> None:
        old = [seen for seen in self.workers.values() if not seen.term_at]
        for seen in old:
            self.workers[seen.pid] = replace(seen, asked=Reason.RELOAD)
        self.state = replacement.reloaded(old, self.now)
        for _ in range(self.base):
            self.spawn()

    def ttin(self) -> None:
        self.base += 1

    def ttou(self) -> None:
        self.base = max(1, self.base - 1)

    def settle(self) -> None:
        """Let everything boot and go."""
        self.boots = True
        for _ in range(200):
            self.boot()
            self.tick()
            if (self.state.phase is Phase.IDLE and len(self.workers) == len(self.serving) == self.base
                    and not any(seen.asked for seen in self.workers.values())):
                return

    def check_settled(self) -> None:
        assert self.state.phase is Phase.IDLE
        assert len(self.workers) == len(self.serving) == self.base
        assert not any(seen.asked for seen in self.workers.values())


EVENTS = ("tick", "boot", "ask", "crash", "hup", "ttin", "ttou")
MORE = ("leak", "leak", "tick", "tick", "boot")


@pytest.mark.parametrize("base", [1, 2])
@pytest.mark.parametrize("close_time", [0.0, CLOSE])
def test_every_sequence_of_events_ends_with_the_right_number_of_workers(base: int, close_time: float) -> None:
    """Whatever five events come in whatever order, afterwards as many serve as are wanted, and nobody waits to go."""
    for events in itertools.product(EVENTS, repeat=4):
        world = World(base=base, close_time=close_time)
        world.ask()
        world.tick()
        for event in events:
            getattr(world, event)()
        world.settle()
        world.check_settled()


@settings(max_examples=300)
@given(st.lists(st.sampled_from((*EVENTS, *MORE)), max_size=60), st.integers(1, 4), st.booleans(), st.integers(0, 4))
def test_long_sequences_end_well_too(events: list[str], base: int, surge: bool, room: int) -> None:
    """Sixty events in any order, with surge and without: the service never ends a good worker for nothing."""
    world = World(base=base, surge=surge, room=room)
    for event in events:
        getattr(world, event)()
    world.settle()
    world.check_settled()


def test_replacement_goes_through_its_phases_one_edge_a_pass() -> None:
    """A newcomer, its readiness, the kept-alive time, SIGTERM: in that order."""
    world = World()
    world.ask()
    assert world.tick() is Action.SURGE
    assert len(world.workers) == 3
    assert world.tick() is Action.NOTHING
    world.boot()
    assert world.tick() is Action.CLOSE
    assert [world.tick(), world.tick()] == [Action.NOTHING, Action.TERM]
    world.tick()
    world.check_settled()


def test_one_surge_at_a_time() -> None:
    """Four workers that ask at once are replaced one after the other."""
    world = World(base=4)
    for pid in list(world.workers):
        world.workers[pid] = replace(world.workers[pid], asked=Reason.MEMORY)
    most = 0
    for _ in range(60):
        world.boot()
        world.tick()
        most = max(most, sum(not seen.term_at for seen in world.workers.values()))
    assert most == 5
    world.check_settled()


@pytest.mark.parametrize(("room", "together"), [(0, 1), (1, 1), (3, 3), (10, 4)])
def test_workers_that_serve_nothing_are_replaced_together_as_far_as_there_is_room(room: int, together: int) -> None:
    """Four whose pools are gone: each goes as soon as a newcomer is ready for it, and no sooner."""
    world = World(base=4, room=room)
    world.workers = {pid: replace(seen, asked=Reason.LEAKED_CONNECTIONS) for pid, seen in world.workers.items()}
    assert world.tick() is Action.SURGE
    assert len(world.workers) == 4 + together
    newest = max(world.workers)
    world.workers[newest] = replace(world.workers[newest], ready=True)
    assert world.tick() is Action.TERM
    assert len(world.serving) == 4
    world.settle()
    world.check_settled()


def test_a_worker_that_serves_nothing_joins_those_that_are_being_replaced() -> None:
    """Its pool is gone a moment later; one that is asked for another reason waits."""
    world = World(base=4, room=2)
    world.ask(Reason.STUCK)
    world.tick()
    world.workers[2] = replace(world.workers[2], asked=Reason.MEMORY_GROWTH)
    world.workers[3] = replace(world.workers[3], asked=Reason.LEAKED_CONNECTIONS)
    assert world.tick() is Action.SURGE
    assert world.state.pids == {1, 3}
    assert world.tick() is Action.NOTHING
    world.settle()
    world.check_settled()


def test_workers_that_serve_nothing_go_one_by_one_if_no_newcomer_boots() -> None:
    """What little they serve is better than nothing at all."""
    world = World(base=4, room=4, boots=False)
    world.workers = {pid: replace(seen, asked=Reason.STUCK) for pid, seen in world.workers.items()}
    while Action.TERM not in world.steps:
        world.tick()
    assert len(world.serving) == 3
    world.settle()
    world.check_settled()


def test_newcomer_that_does_not_boot_is_given_up_and_the_old_worker_stays() -> None:
    """After the ready timeout the newcomer goes, the worker serves on, and it is tried again later."""
    world = World(boots=False)
    world.ask(Reason.MEMORY_GROWTH)
    for _ in range(40):
        world.tick()
    assert world.serving == [1, 2]
    assert Action.GIVE_UP in world.steps
    assert world.steps.count(Action.SURGE) == 1
    world.settle()
    world.check_settled()


def test_broken_worker_goes_even_without_a_newcomer() -> None:
    """Who does not answer any more is no loss."""
    world = World(boots=False)
    world.ask(Reason.STUCK)
    for _ in range(40):
        world.tick()
    assert world.serving == [2]


def test_hard_memory_limit_is_immediate_even_in_the_middle_of_another_replacement() -> None:
    """Above the hard limit nothing says no."""
    world = World()
    world.ask()
    world.tick()
    world.workers[2] = replace(world.workers[2], asked=Reason.MEMORY_HARD)
    assert world.tick() is Action.TERM
    assert world.workers[2].term_at


def test_reload_keeps_the_old_workers_until_all_new_ones_serve() -> None:
    """A reload to code that does not boot ends nobody, however long it takes."""
    world = World(boots=False)
    world.hup()
    for _ in range(300):
        world.tick()
    assert world.serving == [1, 2]
    world.settle()
    world.check_settled()
    assert min(world.workers) > 2


def test_ttou_in_mid_surge_ends_the_worker_that_was_to_go() -> None:
    """gunicorn alone would have ended the oldest, and left the one that asked to go."""
    world = World(base=2)
    world.workers[2] = replace(world.workers[2], asked=Reason.MEMORY)
    world.tick()
    world.ttou()
    world.settle()
    world.check_settled()
    assert 2 not in world.workers


def test_a_worker_that_closes_its_connections_stays_while_others_die() -> None:
    """Between "Connection: close" and SIGTERM another worker died: the SIGTERM waits for its successor."""
    world = World(base=2)
    world.ask()
    world.tick()
    world.boot()
    assert world.tick() is Action.CLOSE
    world.crash()
    world.boots = False
    for _ in range(10):
        world.tick()
    assert 1 in world.serving
    world.settle()
    world.check_settled()


def test_worker_that_does_not_end_is_killed_after_its_kill_timeout() -> None:
    """SIGTERM, then nothing for that time: SIGKILL."""
    seen = Seen(1, 1, True, "memory", term_at=100.0)
    step = next_step(Replacement(), [seen], 134.0, base=0, surge=True, close_time=0, kill_timeout=KILL_TIMEOUT)
    assert step.pids == ()
    step = next_step(Replacement(), [seen], 135.5, base=0, surge=True, close_time=0, kill_timeout=KILL_TIMEOUT)
    assert (step.action, step.pids) == (Action.KILL, (1,))


def test_canary_limits_newcomers_to_one_until_it_lives() -> None:
    """After a crash loop one newcomer is tried; the rest follow when it has served a while."""
    workers = [Seen(7, 7, True, ready_for=100.0)]
    assert replacement.target(4, workers, Replacement(), canary=9) == 2
    workers.append(Seen(10, 10, False))
    assert replacement.target(4, workers, Replacement(), canary=9) == 2
    assert not replacement.canary_lives(workers, 9, 1.0)
    workers[1] = replace(workers[1], ready=True, ready_for=0.5)
    assert not replacement.canary_lives(workers, 9, 1.0)
    workers[1] = replace(workers[1], ready_for=1.5)
    assert replacement.canary_lives(workers, 9, 1.0)
    assert replacement.target(4, workers, Replacement()) == 4


def test_spare_workers_come_only_when_all_are_kept_and_leave_when_they_are_not_needed() -> None:
    """Three times as many workers as are kept, up to a limit and as far as there is room; gone once the long requests
    have ended."""
    long, free = True, False
    assert replacement.spares(0, 2, [long, free], knocking=True, room=99) == 0
    assert replacement.spares(0, 2, [long, long], knocking=False, room=99) == 0
    assert replacement.spares(0, 2, [long, long], knocking=True, room=0) == 0
    assert replacement.spares(0, 2, [long, long], knocking=True, room=99) == 4
    assert replacement.spares(4, 2, [long, long, free, free], knocking=False, room=99) == 4
    assert replacement.spares(4, 2, [long] * 6, knocking=True, room=99) == 16
    assert replacement.spares(4, 2, [long] * 6, knocking=True, room=3) == 7
    assert replacement.spares(16, 2, [long] * 18, knocking=True, room=99) == 32
    assert replacement.spares(32, 2, [long] * 34, knocking=True, room=99) == 32
    assert replacement.spares(5, 2, [long, long], knocking=True, room=99) == 5
    assert replacement.spares(16, 2, [long] * 3 + [free] * 15, knocking=False, room=99) == 16
    assert replacement.spares(16, 2, [long] * 2 + [free] * 16, knocking=False, room=99) == 2
    assert replacement.spares(1, 2, [free, free, free], knocking=False, room=99) == 0


def test_held_workers_past_their_deadline_go_without_newcomers_as_soon_as_enough_others_serve_or_come() -> None:
    """The spare ones that are there, or about to be, take their place; until then more are wanted, and none leaves."""
    long, free = True, False
    assert replacement.spares(0, 2, [], overdue=2, knocking=True, room=99) == 4
    assert replacement.spares(16, 2, [long, long], overdue=6, coming=10, knocking=False, room=99) == 10
    assert replacement.spares(16, 2, [free] * 10, overdue=8, knocking=False, room=99) == 0
    assert replacement.spares(16, 2, [long] * 9 + [free], overdue=8, knocking=False, room=99) == 16
    assert replacement.spares(0, 2, [free, free], overdue=1, knocking=False, room=99) == 0


def test_who_is_no_good_is_let_go_before_a_newcomer_and_who_is_kept_by_a_request_last() -> None:
    """Of too many workers."""
    workers = [Seen(1, 1, True, held=True), Seen(2, 2, True, "deadline", held=True), Seen(3, 3, True),
               Seen(4, 4, False)]
    for gone in ((2,), (2, 4), (2, 4, 3)):
        step = next_step(Replacement(), workers, 0.0, base=4 - len(gone), surge=True, close_time=0.0, kill_timeout=10.0)
        assert (step.action, step.pids) == (Action.TERM, gone)


def test_workers_that_are_all_silent_are_given_less_time() -> None:
    """Then nobody serves."""
    assert replacement.patience([]) == replacement.patience([0.5, 9.0]) == replacement.SILENT
    assert replacement.patience([2.5, 9.0]) == replacement.NOBODY


def test_a_newcomer_has_the_time_that_boots_take() -> None:
    """Twice the longest that was seen, half a minute at least, and no more than gunicorn gives a boot."""
    assert replacement.ready_timeout([], 120.0) == replacement.ready_timeout([3.0], 120.0) == 30.0
    assert replacement.ready_timeout([3.0, 36.0], 120.0) == 72.0
    assert replacement.ready_timeout([36.0], 40.0) == 40.0
    assert replacement.ready_timeout([36.0], 20.0) == 30.0
    assert replacement.ready_timeout([100.0], 0.0) == 200.0


def test_of_surplus_workers_those_without_a_row_and_the_youngest_go_first() -> None:
    """The older ones are warm, and what nobody can see into is to go before what is known."""
    workers = [Seen(number, number, True, row=number != 2) for number in range(1, 6)]
    step = next_step(Replacement(), workers, 0.0, base=3, surge=True, close_time=0.0, kill_timeout=35.0)
    assert (step.action, step.pids) == (replacement.Action.TERM, (2, 5))


@pytest.mark.parametrize("close_time", [0.0, CLOSE])
def test_surplus_workers_leave_for_that_reason(close_time: float) -> None:
    """Also where they go at once: one that has to be ended by force then is no crash."""
    workers = [Seen(number, number, True) for number in range(1, 6)]
    step = next_step(Replacement(), workers, 0.0, base=3, surge=True, close_time=close_time, kill_timeout=35.0)
    assert (step.reason or step.state.reason) is Reason.SCALE


def test_slow_clients_bring_half_as_many_spare_workers_as_there_are_workers_and_no_more() -> None:
    """Others would be kept by the next ones; where the app hangs as well it counts as ever."""
    held = [True] * 4
    assert replacement.spares(0, 4, held, clients=4, knocking=True, room=99) == 2
    assert replacement.spares(2, 4, [True] * 6, clients=6, knocking=True, room=99) == 2
    assert replacement.spares(0, 4, held, clients=1, knocking=True, room=99) == 7
    assert replacement.spares(0, 4, held, clients=0, knocking=True, room=99) == 8
    assert replacement.spares(0, 4, held, clients=4, knocking=True, room=1) == 1
