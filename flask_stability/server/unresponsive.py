"""Workers that give no sign of life: stopped by a signal, or with an interpreter that hangs."""

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
FROZEN = 1.0  #: seconds after which a worker that was stopped (SIGSTOP) is made to go on, and a second time killed


class Unresponsive:
    """Looked for in each tick.

    :param kill_timeout: gives the seconds that a retiring worker may take to end.
    :param look_again: asks for a tick at a monotonic time.
    :param hung: is told of a worker whose interpreter hangs.
    """

    def __init__(self, settings: Settings, kill_timeout: Callable[[], float],
                 look_again: Callable[[float], None], hung: Callable[[Child], None] = lambda child: None) -> None:
        self.settings, self._kill_timeout, self._look_again, self._hung = settings, kill_timeout, look_again, hung
        self._looked = 0.0
        self._telling: dict[Child, float] = {}

    def thaw(self, now: float, children: list[Child]) -> None:
        """A stopped process neither answers nor leaves. It is made to go on, so that what it had accepted is answered,
        and is replaced in good order; one that is stopped again is killed. The kernel tells at once who is stopped.
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
        """A worker in which no thread of Python's runs any more is replaced in good order: if it comes to itself again
        it ends well, else gunicorn's timeout or the kill timeout ends it; a newcomer serves meanwhile. One that leaves
        by itself (max_requests) gives no sign any more while Python ends, which takes seconds on a busy machine.
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
                stacks.ask(child)  # first: SIGTERM may end the very call that hangs, and nobody knew where it was
                self._telling[child] = now + TELLING
                self._look_again(now + TELLING)
                child.ask(Reason.STUCK)
                self._hung(child)

    def write_down(self, now: float, children: list[Child]) -> None:
        """Append the stacks that silent workers have told to error.log."""
        for child in [child for child, due in self._telling.items() if now >= due]:
            self.gone(child)

    def gone(self, child: Child) -> None:
        """A worker that may have been asked for its stacks ended, or had time enough to tell them."""
        if self._telling.pop(child, None) is not None:
            stacks.log(child)
