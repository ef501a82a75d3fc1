"""Why a worker ended: pure, from its exit status and what the master knows of it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import NamedTuple


class Exit(NamedTuple):
    """Why a worker ended.

    :ivar reason: one of `scoreboard.REASONS`.
    :ivar detail: its signal or exit status.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Known:
    """What is known of a worker that ended.

    :ivar asked: the reason it was to be replaced for, "" if it was not.
    :ivar killed: the reason we killed it for, "" if we did not.
    :ivar terminated: we sent it SIGTERM.
    :ivar aborted: gunicorn ended it after its `timeout`.
    :ivar ready: it ever served.
    :ivar stopping: the whole service was ending.
    :ivar max_requests: gunicorn's own limit is set: a worker may leave by itself.
    :ivar client: its thread waited for a slow client.
    :ivar left: it was seen leaving in good order.
    :ivar oom_kills: processes of the container that the kernel killed for want of memory meanwhile.
    """

    asked: str = ""
    killed: str = ""
    terminated: bool = False
    aborted: bool = False
    ready: bool = False
    stopping: bool = False
    max_requests: bool = False
    client: bool = False
    left: bool = False
    oom_kills: int = 0


def reason_of(status: int | None, known: Known) -> Exit:
    """The reason of an exit; `status` as `os.waitpid` gives it, None if it is not known."""
    if known.killed:
        return Exit(known.killed, "ended by force")
    if status is None:
        by_itself = "max_requests" if known.left and known.max_requests else "unknown"
        return Exit(known.asked or ("shutdown" if known.stopping else by_itself), "")
    number, code = status & 0x7F, status >> 8
    detail = _signal_name(number) if number else f"exit {code}"
    if known.aborted:
        return Exit("deadline", f"{detail}: a slow client kept it") if known.client else Exit("timeout", detail)
    if known.stopping:
        return Exit("shutdown", detail)
    if number:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            return Exit(known.asked or "asked", detail)
        if number == signal.SIGKILL and known.oom_kills:
            return Exit("out_of_memory", detail)
        return Exit(known.asked if known.terminated and known.asked else "crash_signal", detail)
    if known.terminated and known.asked:
        return Exit(known.asked, detail)
    if not known.ready:
        return Exit("boot_failure", detail)
    if code:
        return Exit("exit_code", detail)
    return Exit(known.asked or ("max_requests" if known.max_requests else "asked"), detail)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
