"""Bring a worker to its end: log what is cut, close WebSockets, and end a worker that hangs from C."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from typing import Any

from ... import logs, scoreboard
from ...config import Settings
from ...database import hold
from ...request import held, in_flight
from ...scoreboard import Row, Scoreboard
from ...wsgi.takeover import Farewells
from ..gunicorn.listeners import let_go
from .requests import tell_cut
from .retirement import Retirement

FAREWELL = 3.0  #: seconds from a WebSocket's farewell to its end, when the worker leaves
LINGER = 2.0  #: seconds after which an orphan releases the port even if its main thread does not react


class Closing:
    """The end of one worker.

    :ivar leave: see `drain`.
    :ivar since: when the end began, monotonic seconds; 0.0 = not yet.
    :ivar cut_told: the guard has logged the requests that will be cut.
    """

    def __init__(self, worker: Any, board: Scoreboard, row: Row, settings: Settings, retirement: Retirement) -> None:
        self._worker, self._board, self._row, self._settings = worker, board, row, settings
        self._retirement = retirement
        self._file = logs.error_file()
        self._farewells = Farewells(FAREWELL)
        self.leave: Callable[[], None] = lambda: None
        self.since = 0.0
        self.cut_told = False

    @property
    def urgent(self) -> bool:
        """Return whether the worker ends and has not yet logged what is cut. A second later may be too late."""
        return bool(self.since) and not self.cut_told

    def parent(self, now: float) -> None:
        """End a worker whose master died. gunicorn does that, unless the main thread is stuck."""
        if os.getppid() == self._worker.ppid:
            return
        if not self._retirement.term_sent:
            self._begin(now)
            self._retirement.terminate()
        elif now - self.since > LINGER:
            for listener in self._worker.sockets:  # the service may start again on the same port
                let_go(listener)

    def ending(self, now: float) -> None:
        """Log what will be cut after SIGTERM, and arm the switch in C that ends a worker which does not end itself."""
        words = self._row.words
        if not self._worker.alive:
            words[scoreboard.W_STATE] = scoreboard.STATE_STOPPING
            self.leave()
        elif not (self._row.orders[scoreboard.O_RETIRE_SINCE_NS] or self._retirement.term_sent
                  or self._board.master.words[scoreboard.M_DRAINING] == scoreboard.ENDING):
            return  # a sync worker that waits for a Python lock does not run its signal handler
        if not self.since:
            self._begin(now)
        grace = float(self._worker.cfg.graceful_timeout)
        self._farewells.look(now, in_flight(), late=now - self.since > grace - FAREWELL - 2.0)
        if held and now - self.since > grace / 2:  # held requests need time to answer
            hold.let_go("the database does not answer, and the worker ends")
        if not self.cut_told and in_flight() and now - self.since > max(0.5, grace - 1.5):
            self.cut_told = True
            tell_cut()

    def _begin(self, now: float) -> None:
        """Arm the dead man's switch: it needs neither the GIL nor a thread of ours."""
        self.since = now
        given = self._settings.retire_mercy
        seconds = given if given is not None else float(self._worker.cfg.graceful_timeout) + 5.0
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)
