"""Workers that give no sign of life: stopped by a signal, or with a hung interpreter."""

from __future__ import annotations

import signal
from collections.abc import Callable

from .. import logs, scoreboard
from ..config import Settings
from ..scoreboard import Reason
from . import replacement, stacks
from .gunicorn.arbiter import STARVED
from .workers import Child, stopped

TELLING = 0.2  #: seconds that a worker has to write its stacks
#: seconds that a worker may stay stopped (SIGSTOP) before the master continues it, and the second time kills it
FROZEN = 1.0


class Unresponsive:
    """Finds unresponsive workers in each tick.

    :param kill_timeout: returns the seconds that a retiring worker may take to end.
    :param look_again: asks for a tick at a monotonic time.
    :param hung: called with each worker whose interpreter hangs.
    """

    def __init__(self, settings: Settings, kill_timeout: Callable[[], float],
                 look_again: Callable[[float], None], hung: Callable[[Child], None] = lambda child: None) -> None:
        self.settings, self._kill_timeout, self._look_again, self._hung = settings, kill_timeout, look_again, hung
        self._looked = 0.0
        self._telling: dict[Child, float] = {}

    def thaw(self, now: float, children: list[Child]) -> None:
        """Continue stopped workers and replace them in good order; kill a worker that is stopped again.

        A stopped process neither answers nor leaves. Once it continues, it answers the requests that it had accepted.
        The kernel reports immediately which process is stopped.
        """
        for child in children:
            if child.killed or not stopped(child.pid):
                child.stopped_at = 0.0
                continue
            child.stopped_at = child.stopped_at or now
            if now - child.stopped_at < FROZEN:
                self._look_again(child.stopped_at + FROZEN)
                continue
            logs.process("worker_frozen", level="ERROR", worker_pid=child.pid, again=child.thawed,
                         stopped_s=round(now - child.stopped_at, 1))
            if child.thawed:
                child.kill(Reason.FROZEN)
                continue
            child.thawed = True
            if not child.asked:
                child.ask(Reason.FROZEN)
            child.send(signal.SIGCONT)

    def silent(self, now: float, children: list[Child]) -> None:
        """Replace in good order each worker in which no Python thread runs any more.

        If the worker recovers, it ends well; otherwise gunicorn's timeout or the kill timeout ends it. A replacement
        worker serves meanwhile. A worker that leaves by itself (max_requests) gives no sign of life while Python ends,
        which takes seconds on a busy machine.
        """
        starved, self._looked = now - self._looked > STARVED, now
        if starved:
            return
        silent = {child: now - child.row.words[scoreboard.W_HEARTBEAT_NS] / 1e9 for child in children
                  if child.row is not None and child.serves() and child.row.words[scoreboard.W_THREADS]}
        patience = self.settings.guard_interval + replacement.patience(list(silent.values()))
        for child, seconds in silent.items():
            most = self._kill_timeout() if child.ending() else patience
            if seconds > most and not child.stopped_at and not child.asked:
                logs.process("worker_silent", level="ERROR", worker_pid=child.pid, silent_s=round(seconds, 1))
                # before anything else: SIGTERM may end the very call that hangs, and its location would be lost
                stacks.ask(child)
                self._telling[child] = now + TELLING
                self._look_again(now + TELLING)
                child.ask(Reason.STUCK)
                self._hung(child)

    def write_down(self, now: float, children: list[Child]) -> None:
        """Append the stacks of silent workers to error.log once they had the time to write them."""
        for child in [child for child, due in self._telling.items() if now >= due]:
            self.gone(child)

    def gone(self, child: Child) -> None:
        """Log the stacks of a worker that ended, or had enough time to write them, if the master asked for them."""
        if self._telling.pop(child, None) is not None:
            stacks.log(child)
