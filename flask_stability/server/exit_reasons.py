"""Decide why a worker ended: pure, from its exit status and the master's knowledge of it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import NamedTuple

from ..scoreboard import Reason


class Exit(NamedTuple):
    """Why a worker ended.

    :ivar reason: see `Reason`.
    :ivar detail: its signal or exit status.
    """

    reason: Reason
    detail: str


@dataclass(frozen=True)
class Known:
    """The master's knowledge of a worker that ended.

    :ivar asked: the reason to replace it.
    :ivar killed: the reason for which we killed it.
    :ivar terminated: we sent it SIGTERM.
    :ivar aborted: gunicorn ended it after its `timeout`.
    :ivar ready: it has served.
    :ivar stopping: the whole service was ending.
    :ivar max_requests: gunicorn's own limit is set: a worker may leave by itself.
    :ivar client: its thread waited for a slow client.
    :ivar left: the master saw it leave in good order.
    :ivar oom_kills: processes of the container that the kernel has killed for lack of memory since the last exit.
    """

    asked: Reason = Reason.NONE
    killed: Reason = Reason.NONE
    terminated: bool = False
    aborted: bool = False
    ready: bool = False
    stopping: bool = False
    max_requests: bool = False
    client: bool = False
    left: bool = False
    oom_kills: int = 0


def reason_of(status: int | None, known: Known) -> Exit:
    """Return the reason of an exit.

    :param status: as `os.waitpid` returns it, None if unknown.
    """
    if known.killed:
        return Exit(known.killed, "ended by force")
    if status is None:
        by_itself = Reason.MAX_REQUESTS if known.left and known.max_requests else Reason.UNKNOWN
        return Exit(known.asked or (Reason.SHUTDOWN if known.stopping else by_itself), "")
    number, code = status & 0x7F, status >> 8
    detail = _signal_name(number) if number else f"exit {code}"
    if known.aborted:
        if known.client:
            return Exit(Reason.DEADLINE, f"{detail}: a slow client kept it")
        return Exit(Reason.TIMEOUT, detail)
    if known.stopping:
        return Exit(Reason.SHUTDOWN, detail)
    if number:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            return Exit(known.asked or Reason.ASKED, detail)
        if number == signal.SIGKILL and known.oom_kills:
            return Exit(Reason.OUT_OF_MEMORY, detail)
        return Exit(known.asked if known.terminated and known.asked else Reason.CRASH_SIGNAL, detail)
    if known.terminated and known.asked:
        return Exit(known.asked, detail)
    if not known.ready:
        return Exit(Reason.BOOT_FAILURE, detail)
    if code:
        return Exit(Reason.EXIT_CODE, detail)
    return Exit(known.asked or (Reason.MAX_REQUESTS if known.max_requests else Reason.ASKED), detail)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
