"""Decide what the master does next about workers that have to leave: pure, given what it sees and a clock.

::

              asked for, or a reload's old workers
    IDLE ──────────────────────────────────────────▶ SURGING ──as many others ready as the target asks──▶ CLOSING
     │ ▲                                                │                                                  │
     │ │                                                └─not in time: GIVE_UP (no good anyway: TERM)      │
     │ └──────────────── SIGTERM, all of them ◀── the kept-alive time is over, and as many others serve ───┘
     └──more than the target, or surge off──▶ CLOSING

`Replacement.pids` names the leaving workers: one, after a reload all the old ones, or all that serve nothing any more.
Each of the latter leaves as soon as a replacement is ready for it. After its SIGTERM a worker is *dying*: it counts
beside the target until it is gone, and the master kills it past its kill timeout. Each pass crosses one edge.
gunicorn itself never has to end a worker: it would take the oldest, whichever that is.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..scoreboard import Reason

READY_TIMEOUT = 30.0  #: seconds that a replacement worker has at least to become ready
BOOTS = 2.0  #: × the longest measured boot: the time that a replacement worker has
MOST_SPARES = 16  #: × the target number of workers: the maximum number of spare workers
SILENT = 5.0  #: seconds without a sign of life after which the master considers a worker's interpreter hung
NOBODY = 2.0  #: the same if all other workers are silent too: then no worker serves
COOLDOWN = 10.0  #: seconds before the next try after a failed replacement
#: Reasons to end a worker at once, without starting a replacement first.
URGENT = frozenset({Reason.MEMORY_HARD})
#: Reasons that mean a broken worker, which leaves even if no replacement becomes ready.
BROKEN = frozenset({Reason.DEADLINE, Reason.STUCK, Reason.MEMORY_HARD, Reason.MEMORY_PRESSURE, Reason.OPEN_FILES,
                    Reason.LEAKED_CONNECTIONS})
#: Reasons that mean a worker serves little or nothing. All such workers are replaced at once, as far as memory allows.
USELESS = frozenset({Reason.STUCK, Reason.LEAKED_CONNECTIONS})
#: Reasons without a closing phase: the worker cannot answer its kept-alive connections well, or must not stay that
#: long.
NO_CLOSING = USELESS | {Reason.MEMORY_PRESSURE}


class Phase(enum.Enum):
    """The phase of the replacement."""

    IDLE = 0
    SURGING = 1
    CLOSING = 2


class Action(enum.Enum):
    """The master's next action."""

    NOTHING = 0
    SURGE = 1  #: start a replacement worker
    CLOSE = 2  #: have the workers answer with ``Connection: close``
    TERM = 3  #: SIGTERM
    GIVE_UP = 4  #: no replacement became ready: change nothing for a while
    KILL = 5  #: SIGKILL


@dataclass(frozen=True)
class Seen:
    """A worker as the master sees it.

    :ivar age: gunicorn's number of it, rising from worker to worker.
    :ivar asked: the reason to replace it.
    :ivar term_at: when the master sent it SIGTERM, 0.0 = not yet.
    :ivar ready_for: seconds since it became ready.
    :ivar held: a long request occupies its only thread.
    :ivar row: it has a row on the scoreboard; without one the master cannot see its state.
    """

    pid: int
    age: int
    ready: bool
    asked: Reason = Reason.NONE
    term_at: float = 0.0
    ready_for: float = 0.0
    held: bool = False
    row: bool = True


@dataclass(frozen=True)
class Replacement:
    """The replacement under way.

    :ivar pids: the leaving workers.
    :ivar since: when the phase began.
    :ivar quiet_until: no new replacement begins before.
    :ivar covered: they leave only while as many others are ready as the target asks.
    """

    phase: Phase = Phase.IDLE
    pids: frozenset[int] = frozenset()
    reason: Reason = Reason.NONE
    since: float = 0.0
    quiet_until: float = 0.0
    covered: bool = True


@dataclass(frozen=True)
class Step:
    """One pass: the action, the workers it applies to, and the state after it.

    :ivar reason: the reason, where neither state holds it.
    """

    action: Action
    pids: tuple[int, ...]
    state: Replacement
    reason: Reason = Reason.NONE


def reloaded(old: Sequence[Seen], now: float) -> Replacement:
    """Return the state after a reload: the new workers are started, and the old ones leave once those are ready."""
    return Replacement(Phase.SURGING, frozenset(seen.pid for seen in old), Reason.RELOAD, now)


def next_step(state: Replacement, workers: Sequence[Seen], now: float, *, base: int, surge: bool, close_time: float,
              kill_timeout: float, room: int = 1, patience: float = READY_TIMEOUT) -> Step:
    """Return the edge to cross now.

    :param base: the target number of workers.
    :param surge: a replacement may be started first.
    :param close_time: seconds of ``Connection: close`` before SIGTERM.
    :param kill_timeout: seconds after SIGTERM at which a worker is killed.
    :param room: how many replacement workers fit into memory; the master starts one in any case.
    :param patience: seconds that a replacement worker has to become ready.
    """
    overdue = tuple(seen.pid for seen in workers if seen.term_at and now - seen.term_at > kill_timeout)
    if overdue:
        return Step(Action.KILL, overdue, state)
    alive = [seen for seen in workers if not seen.term_at]
    urgent = tuple(seen.pid for seen in alive if seen.asked in URGENT)
    if urgent:
        return Step(Action.TERM, urgent, state)
    if state.phase is Phase.IDLE:
        return _begin(state, alive, now, base, surge, close_time, room)
    going = tuple(seen.pid for seen in alive if seen.pid in state.pids)
    if not going:
        return Step(Action.NOTHING, (), _idle(state))
    if state.phase is Phase.SURGING:
        return _surging(state, alive, going, now, base, close_time, room, patience)
    if now - state.since >= close_time and (_covered(state, alive, base) or not state.covered):
        return Step(Action.TERM, going, _idle(state))
    return Step(Action.NOTHING, (), state)


def _idle(state: Replacement) -> Replacement:
    return Replacement(quiet_until=state.quiet_until)


def _covered(state: Replacement, alive: Sequence[Seen], base: int) -> bool:
    return sum(seen.ready for seen in alive if seen.pid not in state.pids) >= base


def _begin(state: Replacement, alive: Sequence[Seen], now: float, base: int, surge: bool, close_time: float,
           room: int) -> Step:
    surplus = len(alive) - base
    if surplus > 0:
        # removal order: broken, without a row, not ready, already marked, idle, youngest: the older ones are warm, and
        # have the rows that were there first
        chosen = sorted(alive, key=lambda seen: (seen.asked not in BROKEN, seen.row, seen.ready, not seen.asked,
                                                 seen.held, -seen.age))[:surplus]
        return _close(state, tuple(seen.pid for seen in chosen), Reason.SCALE, now,
                      close_time if any(seen.ready for seen in chosen) else 0.0)
    asked = [seen for seen in alive if seen.asked]
    if not asked or now < state.quiet_until:
        return Step(Action.NOTHING, (), state)
    # the broken one first, then the oldest
    worker = min(asked, key=lambda seen: (seen.asked not in BROKEN, seen.age))
    if not surge:
        return _close(state, (worker.pid,), worker.asked, now, close_time, covered=False)
    return _join(state, (worker, *_useless(asked, worker))[:max(1, room)], worker.asked, now)


def _useless(asked: Sequence[Seen], first: Seen | None) -> list[Seen]:
    """Return the workers that leave together with `first`."""
    if first is not None and first.asked not in USELESS:
        return []
    return [seen for seen in asked if seen is not first and seen.asked in USELESS]


def _join(state: Replacement, more: Sequence[Seen], reason: Reason, now: float) -> Step:
    pids = tuple(seen.pid for seen in more)
    return Step(Action.SURGE, pids,
                Replacement(Phase.SURGING, state.pids | set(pids), reason, now, state.quiet_until))


def _surging(state: Replacement, alive: Sequence[Seen], going: tuple[int, ...], now: float, base: int,
             close_time: float, room: int, patience: float) -> Step:
    if state.reason in USELESS:
        others = [seen for seen in alive if seen.pid not in state.pids]
        more = _useless(others, None)[:max(0, room - len(going))]
        if more:
            return _join(state, more, state.reason, now)
        ready = sum(seen.ready for seen in others)
        if 0 < ready + len(going) - base < len(going):
            gone = going[:ready + len(going) - base]
            return Step(Action.TERM, gone, replace(state, pids=state.pids - set(gone)))
    if _covered(state, alive, base):
        return _close(state, going, state.reason, now, close_time)
    if state.reason is Reason.RELOAD or now - state.since <= patience:
        return Step(Action.NOTHING, (), state)  # the old workers serve until the new ones can
    if state.reason in BROKEN:
        return Step(Action.TERM, going[:1], _idle(state))
    return Step(Action.GIVE_UP, going, Replacement(quiet_until=now + COOLDOWN))


def _close(state: Replacement, pids: tuple[int, ...], reason: Reason, now: float, close_time: float, *,
           covered: bool = True) -> Step:
    if not close_time or reason in NO_CLOSING:
        return Step(Action.TERM, pids, _idle(state), reason)
    return Step(Action.CLOSE, pids, Replacement(Phase.CLOSING, frozenset(pids), reason, now, state.quiet_until,
                                                covered and reason not in BROKEN))


def ready_timeout(boots: Sequence[float], timeout: float) -> float:
    """Return the seconds that a replacement has to become ready: twice the longest boot, capped by gunicorn's timeout.

    :param boots: seconds of the last boots, and of those that were given up.
    :param timeout: gunicorn's, after which it kills a worker that does not boot; 0 = never.
    """
    learned = max(READY_TIMEOUT, BOOTS * max(boots, default=0.0))
    return min(learned, max(READY_TIMEOUT, timeout)) if timeout else learned


def spares(before: int, base: int, held: Sequence[bool], *, clients: int = 0, overdue: int = 0, coming: int = 0,
           knocking: bool, room: int) -> int:
    """Return how many spare workers there should be while long requests occupy all serving workers.

    Sync workers have no spare threads. Spare workers stay until most of the long requests have ended.

    :param before: how many there should have been until now.
    :param base: the target number of workers.
    :param held: for each worker that serves and stays, whether a long request occupies it.
    :param clients: how many of those wait for slow clients. Further workers would wait for such clients as well, so for
        their sake alone at most half as many workers are added.
    :param overdue: how many more are held and leave for it. They need no spare workers if enough others serve.
    :param coming: how many workers exist that do not serve yet.
    :param knocking: connections wait.
    :param room: how many more workers fit into memory.
    """
    number = sum(held) + overdue
    if number and all(held) and knocking:
        # Three times the held workers: adding two at a time would take a dozen seconds for a dozen hung requests.
        wanted = max(0, 3 * (number - clients) - base) if number > clients else 0
        if clients:
            wanted = max(wanted, min(3 * number - base, wanted + max(1, base // 2)))
        return max(before, min(wanted, MOST_SPARES * base, before + room))
    others = len(held) + coming
    if overdue and others - sum(held) >= base:
        before = min(before, others - base)
    return before if 6 * sum(held) >= before else sum(held)


def patience(silent: Sequence[float]) -> float:
    """Return the seconds without a sign of life after which the master considers a worker hung.

    :param silent: for each worker that serves, the seconds since its last sign of life.
    """
    return NOBODY if silent and min(silent) > NOBODY else SILENT


def target(base: int, workers: Sequence[Seen], state: Replacement, *, canary: int | None = None) -> int:
    """Return how many workers gunicorn should hold now, dying ones included; never fewer than there are.

    :param base: what the configuration, TTIN, TTOU and gunicornc ask for.
    :param canary: after a crash loop, the age of the newest worker at that time: start one new worker at a time; None =
        no limit.
    """
    going = sum(1 for seen in workers if seen.term_at or seen.pid in state.pids)
    wanted = max(base + going, len(workers))
    if canary is None:
        return wanted
    tried = any(seen.age > canary and not seen.term_at for seen in workers)
    return min(wanted, len(workers) + (0 if tried else 1))


def canary_lives(workers: Sequence[Seen], canary: int, seconds: float) -> bool:
    """Return whether a worker started after the crashes has served for `seconds`."""
    return any(seen.age > canary and seen.ready and not seen.term_at and seen.ready_for >= seconds
               for seen in workers)
