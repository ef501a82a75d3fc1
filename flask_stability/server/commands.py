"""Carry out an operator's orders: reload, retire, gc, stacks, mute, unmute. The master runs them in its tick."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from .. import logs
from ..health import report
from ..health.results import results
from ..scoreboard import W_THREADS, Reason, Scoreboard
from . import stacks
from .control import ControlError
from .workers import Child

LONGEST_MUTE = 30 * 86400.0  #: seconds
MOST_MUTES = 32


def carry_out(order: dict[str, Any], uid: int, board: Scoreboard, children: Iterable[Child],
              doing: Callable[[Child], list[dict[str, Any]]] = lambda child: [],
              reload: Callable[[bool], dict[str, Any]] | None = None,
              quarantine: Callable[[dict[str, Any], int], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Carry out one order.

    :param order: ``command``, and its arguments: ``pid`` (retire, gc; all workers without it), ``check`` and
        ``seconds``.
    :param uid: the user that gives the order, for the log.
    :param reload: begins a reload; its argument forces it, without a judgement of the release.
    :param doing: returns the requests that a worker serves.
    :param quarantine: carries out the orders about the quarantine.
    :returns: a description of the result.
    :raises ControlError: if the master cannot carry out the order.
    """
    command = order.get("command")
    if command in ("retire", "gc"):
        found = _serving(children, order.get("pid"))
        for child in found:
            if command == "gc":
                if child.row is None or not child.row.words[W_THREADS]:
                    raise ControlError("workers of this class do not collect on demand: the guard is off there")
                child.send(signal.SIGUSR2)
            elif not child.asked:
                child.ask(Reason.ASKED)
        done: dict[str, Any] = {"pids": [child.pid for child in found]}
    elif command == "reload" and reload is not None:
        done = reload(bool(order.get("force")))
    elif command == "stacks":
        pid = order.get("pid")
        found = [child for child in children if pid in (None, child.pid)]
        if not found:
            raise ControlError(f"there is no worker {pid}" if pid is not None else "there is no worker")
        return stacks.answer(found, doing)  # stacks change nothing: no record in the log
    elif command == "quarantine" and quarantine is not None:
        done = quarantine(order, uid)
        if order.get("what") == "list":
            return done
        done = {"what": order.get("what"), **done}
    elif command == "mute":
        done = _mute(board, order, uid)
    elif command == "unmute":
        done = _unmute(board, order)
    else:
        raise ControlError(f"{str(command)[:50]!r} is no order: reload, retire, gc, stacks, quarantine, mute or unmute")
    logs.process("order", command=command, uid=uid, **done)
    return done


def _serving(children: Iterable[Child], pid: Any) -> list[Child]:
    """Return the workers that the order means, that serve, and that have a handler for SIGUSR2."""
    found = [child for child in children if child.pid and child.serves() and not child.alone
             and pid in (None, child.pid)]
    if not found:
        raise ControlError(f"no worker {pid} is serving" if pid is not None else "no worker is serving")
    return found


def _mute(board: Scoreboard, order: dict[str, Any], uid: int) -> dict[str, Any]:
    check, seconds, now = order.get("check"), order.get("seconds"), time.time()
    known = sorted(results(board))
    if check not in known:
        raise ControlError(f"there is no check {str(check)[:50]!r}: there are {', '.join(known) or 'none yet'}")
    if not isinstance(seconds, (int, float)) or not 0 < seconds <= LONGEST_MUTE:
        raise ControlError("give a time of at most 30 days, such as --for 2h")
    kept = [one for one in report.mutes(board, now) if one.get("check") != check]
    if len(kept) >= MOST_MUTES:
        raise ControlError(f"{MOST_MUTES} checks are muted already: unmute one")
    until = round(now + seconds, 3)
    kept.append({"check": check, "since": round(now, 3), "until": until, "by": uid})
    if not board.master.mutes.write_json(kept):
        raise ControlError("there is no room for more mutes: unmute one")
    return {"check": check, "until": until}


def _unmute(board: Scoreboard, order: dict[str, Any]) -> dict[str, Any]:
    check, muted = order.get("check"), report.mutes(board)
    kept = [one for one in muted if one.get("check") != check]
    if len(kept) == len(muted):
        names = ", ".join(str(one.get("check")) for one in muted)
        raise ControlError(f"{str(check)[:50]!r} is not muted" + (f": {names} is" if names else ""))
    board.master.mutes.write_json(kept)
    return {"check": check}
