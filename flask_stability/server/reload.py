"""A reload (SIGHUP): the old workers leave when the new ones are ready; one reload at a time.

The next reload waits while the last one's old workers close their connections. Otherwise each of ten reloads in a row
would add a generation of workers.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from .. import logs, scoreboard
from ..scoreboard import Reason
from .replacement import Phase, Replacement
from .workers import Child


class Reload:
    """The reload under way, or the last one.

    :param words: the master's words on the scoreboard.
    :ivar due: a reload waits for the end of the last one.
    :ivar begun: gunicorn reads the configuration and starts the new workers.
    :ivar stalled: the new workers do not boot; the old ones serve on.
    """

    def __init__(self, words: Any) -> None:
        self._words = words
        self.due = self.begun = self.stalled = False

    def begin(self, state: Replacement, children: Collection[Child], *, wait: bool = False) -> bool:
        """Begin a reload, unless it has to wait; return whether it began.

        :param state: the replacement under way.
        :param wait: the last reload's workers are still starting.
        """
        self.due = closing(state) or wait
        if self.due:
            logs.process("reload_waits")
            return False
        self._words[scoreboard.M_RELOADS] += 1
        logs.process("reload")
        now = time.monotonic()
        for child in children:
            child.look(now)
        if any(child.serves() for child in children):
            for child in children:
                if not child.ready_at and not child.term_at:
                    child.kill(Reason.RELOAD)  # it has not served yet, and never will
        self.begun, self.stalled = True, False
        return True

    def failed(self, error: BaseException) -> str:
        """Log that the reload failed and nothing has changed; return the error in words."""
        what = f"{type(error).__name__}: {error}"[:500]
        logs.process("reload_failed", level="ERROR", error=what, remedy="the service goes on as it was")
        return what

    def stall(self) -> None:
        """Report once that a new worker did not boot."""
        if not self.stalled:
            self.stalled = True
            logs.process("reload_stalled", level="ERROR",
                         remedy="the new workers do not boot; the old ones go on serving: repair the app, or send "
                                "SIGHUP after putting the former version back")

    def under_way(self, state: Replacement) -> bool:
        """Return whether new workers are still awaited."""
        return self.begun or (state.reason is Reason.RELOAD and not self.stalled)


def replaced_by_it(children: Collection[Child], newest: int) -> list[Child]:
    """Request the replacement of the old workers; return them.

    :param newest: the age of the last worker before the reload.
    """
    old = [child for child in children if child.worker.age <= newest and not child.term_at and not child.killed]
    for child in old:
        child.ask(Reason.RELOAD)
    return old


def closing(state: Replacement) -> bool:
    """Return whether the last reload's old workers are closing their connections."""
    return state.phase is Phase.CLOSING and state.reason is Reason.RELOAD
