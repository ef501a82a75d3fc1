"""What the master does next about a worker that is to be replaced: pure, given what is seen and a clock.

::

    IDLE ──asked──▶ SURGING ──newcomer ready──▶ CLOSING ──kept-alive time──▶ (SIGTERM) ──▶ IDLE
      │                │ newcomer dead, or not ready in time: given up, unless the worker is no good anyway
      └──no room, no time, surge off──▶ (SIGTERM)

After its SIGTERM a worker is *dying*: it counts as one more than the target until it is gone, and past its mercy it
is killed. One surge at a time; each pass crosses one edge.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

READY_TIMEOUT = 30.0  #: seconds a newcomer has to become ready
COOLDOWN = 10.0  #: seconds before the next try after a newcomer failed
URGENT = frozenset({"memory_hard", "frozen"})
BROKEN = frozenset({"deadline", "stuck", "memory_hard", "memory_pressure"})


class Phase(enum.Enum):
    """Where the replacement of one worker is."""

    IDLE = 0
    SURGING = 1
    CLOSING = 2


class Action(enum.Enum):
    """What is to be done now."""

    NOTHING = 0
    SURGE = 1  #: start a newcomer for `pid`
    CLOSE = 2  #: have `pid` answer with ``Connection: close``
    TERM = 3  #: SIGTERM to `pid`
    GIVE_UP = 4  #: no newcomer: leave `pid` as it is for a while
    KILL = 5  #: SIGKILL to `pid`


@dataclass(frozen=True)
class Seen:
    """A worker as the master sees it.

    :ivar asked: the reason to replace it, "" for none.
    :ivar term_at: when it was sent SIGTERM, 0.0 = not yet.
    """

    pid: int
    age: int
    ready: bool
    asked: str = ""
    term_at: float = 0.0


@dataclass(frozen=True)
class Replacement:
    """The replacement under way.

    :ivar newest: age of the newest worker when it began: who is younger is the newcomer.
    """

    phase: Phase = Phase.IDLE
    pid: int = 0
    reason: str = ""
    since: float = 0.0
    newest: int = 0
    quiet_until: float = 0.0


@dataclass(frozen=True)
class Step:
    """One pass: what to do, and what is under way after it."""

    action: Action
    pid: int
    state: Replacement


def next_step(state: Replacement, workers: Sequence[Seen], now: float, *, surge: bool, close_time: float,
              mercy: float) -> Step:
    """The edge to cross now.

    :param surge: a newcomer may be started first.
    :param close_time: seconds of ``Connection: close`` before SIGTERM.
    :param mercy: seconds after SIGTERM at which a worker is killed.
    """
    overdue = next((seen for seen in workers if seen.term_at and now - seen.term_at > mercy), None)
    if overdue is not None:
        return Step(Action.KILL, overdue.pid, state)
    by_pid = {seen.pid: seen for seen in workers}
    if state.phase is Phase.IDLE:
        return _begin(state, workers, now, surge)
    worker = by_pid.get(state.pid)
    if worker is None or worker.term_at:
        return Step(Action.NOTHING, 0, Replacement(quiet_until=state.quiet_until))
    if state.phase is Phase.SURGING:
        return _surging(state, worker, workers, now, close_time)
    if now - state.since >= close_time:
        return Step(Action.TERM, state.pid, Replacement())
    return Step(Action.NOTHING, 0, state)


def _begin(state: Replacement, workers: Sequence[Seen], now: float, surge: bool) -> Step:
    urgent = next((seen for seen in workers if seen.asked in URGENT and not seen.term_at), None)
    if urgent is not None:
        return Step(Action.TERM, urgent.pid, state)
    asked = [seen for seen in workers if seen.asked and not seen.term_at]
    if not asked or now < state.quiet_until:
        return Step(Action.NOTHING, 0, state)
    # who is no good goes first, then the oldest
    worker = min(asked, key=lambda seen: (seen.asked not in BROKEN, seen.age))
    if not surge:
        return Step(Action.TERM, worker.pid, state)
    newest = max(seen.age for seen in workers)
    return Step(Action.SURGE, worker.pid, Replacement(Phase.SURGING, worker.pid, worker.asked, now, newest))


def _surging(state: Replacement, worker: Seen, workers: Sequence[Seen], now: float, close_time: float) -> Step:
    newcomers = [seen for seen in workers if seen.age > state.newest]
    if any(seen.ready for seen in newcomers):
        if close_time and state.reason not in BROKEN:
            return Step(Action.CLOSE, worker.pid, Replacement(Phase.CLOSING, worker.pid, state.reason, now,
                                                              state.newest))
        return Step(Action.TERM, worker.pid, Replacement())
    if now - state.since > READY_TIMEOUT:
        if state.reason in BROKEN:
            return Step(Action.TERM, worker.pid, Replacement())
        return Step(Action.GIVE_UP, worker.pid, Replacement(quiet_until=now + COOLDOWN))
    return Step(Action.NOTHING, 0, state)


def target(base: int, workers: Sequence[Seen], state: Replacement, *, canary: bool) -> int:
    """How many workers there are to be now, the dying ones included.

    :param base: what the configuration, TTIN and TTOU ask for.
    :param canary: after a crash loop: one at a time.
    """
    dying = sum(1 for seen in workers if seen.term_at)
    wanted = base + dying + (1 if state.phase is not Phase.IDLE else 0)
    if canary:
        booting = sum(1 for seen in workers if not seen.ready and not seen.term_at)
        return min(wanted, len(workers) + (0 if booting else 1))
    return wanted
