"""One reload at a time, and what of the old workers it asks for."""

from __future__ import annotations

from types import SimpleNamespace

from flask_stability.scoreboard import M_RELOADS, Reason, Scoreboard
from flask_stability.server.reload import Reload, replaced_by_it
from flask_stability.server.replacement import Phase, Replacement
from flask_stability.server.workers import Child

SERVES = 1.0


def _child(age: int, ready_at: float = SERVES, term_at: float = 0.0) -> Child:
    return Child(SimpleNamespace(pid=0, age=age), Scoreboard.anonymous(1).allocate(age), 1.0, ready_at=ready_at,
                 term_at=term_at)


def test_a_reload_waits_while_the_last_ones_old_workers_say_goodbye() -> None:
    """Else ten in a row would add ten generations of workers; it is counted once it begins."""
    words = Scoreboard.anonymous(1).master.words
    reloads = Reload(words)
    assert not reloads.begin(Replacement(Phase.CLOSING, reason=Reason.RELOAD), [])
    assert (reloads.due, reloads.begun, words[M_RELOADS]) == (True, False, 0)
    for state in (Replacement(Phase.CLOSING, reason=Reason.MEMORY), Replacement(Phase.SURGING, reason=Reason.RELOAD)):
        assert reloads.begin(state, [])
    assert (reloads.due, reloads.begun, words[M_RELOADS]) == (False, True, 2)


def test_who_never_served_is_ended_only_if_others_serve() -> None:
    """A worker of the old configuration that is still booting is of no use, but all there is may yet become ready."""
    booting, alone = _child(2, ready_at=0.0), _child(2, ready_at=0.0)
    reloads = Reload(Scoreboard.anonymous(1).master.words)
    assert reloads.begin(Replacement(), [_child(1), booting])
    assert reloads.begin(Replacement(), [alone])
    assert (booting.killed, alone.killed) == (Reason.RELOAD, Reason.NONE)


def test_it_replaces_who_is_older_and_not_leaving() -> None:
    """The newcomers and who was told to go are left alone."""
    old, leaving, new = _child(3), _child(2, term_at=5.0), _child(4)
    assert replaced_by_it([old, leaving, new], 3) == [old]
    assert [child.asked for child in (old, leaving, new)] == [Reason.RELOAD, Reason.NONE, Reason.NONE]


def test_newcomers_are_awaited_until_one_does_not_boot() -> None:
    """Then the service is ready with its old workers; the next reload begins anew."""
    reloads, state = Reload(Scoreboard.anonymous(1).master.words), Replacement(Phase.SURGING, reason=Reason.RELOAD)
    reloads.begin(Replacement(), [])
    assert reloads.under_way(Replacement())
    reloads.begun = False
    assert reloads.under_way(state)
    reloads.stall()
    assert not reloads.under_way(state)
    reloads.begin(state, [])
    assert (reloads.stalled, reloads.under_way(state)) == (False, True)
