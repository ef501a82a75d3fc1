"""Why a worker ended: pure, from its exit status and what the master knows of it."""

from __future__ import annotations

import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """What is known of a worker that ended.

    :ivar asked: the reason it was to be replaced for, "" if it was not.
    :ivar killed: the reason we killed it for, "" if we did not.
    :ivar aborted: gunicorn ended it after its `timeout`.
    :ivar ready: it ever served.
    """

    asked: str = ""
    killed: str = ""
    aborted: bool = False
    ready: bool = False
    stopping: bool = False
    reloading: bool = False
    scaling: bool = False
    oom_kills: int = 0


def reason_of(status: int | None, known: Known) -> tuple[str, str]:
    """(reason, detail) of an exit; `status` as `os.waitpid` gives it, None if it is not known."""
    if known.killed:
        return known.killed, "ended by force"
    if status is None:
        return known.asked or "unknown", ""
    if _signaled(status):
        number = status & 0x7F
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        if known.aborted:
            return "timeout", name
        if known.stopping:
            return "shutdown", name
        if number == signal.SIGKILL and known.oom_kills:
            return "out_of_memory", name
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            return known.asked or "asked", name
        return "crash_signal", name
    code = status >> 8
    if known.aborted:
        return "timeout", f"exit {code}"
    if known.stopping:
        return "shutdown", f"exit {code}"
    if code == 0 or known.asked:
        return known.asked or ("reload" if known.reloading else "scale" if known.scaling else "asked"), f"exit {code}"
    if not known.ready or code in (3, 4):
        return "boot_failure", f"exit {code}"
    return "exit_code", f"exit {code}"


def _signaled(status: int) -> bool:
    return bool(status & 0x7F)
