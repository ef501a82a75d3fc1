"""While two releases serve: a worker accepts few connections at a time, or none, and does not leave by itself."""

from __future__ import annotations

import sys
from typing import Any

from ... import scoreboard
from ...scoreboard import Row, Scoreboard
from ..gunicorn.connections import Connections

TRIAL = 4  #: × the threads: maximum number of connections at a time for a worker whose release is on trial


class TwoReleases:
    """The part of one worker in a trial.

    :param connections: its clients' connections, None where nothing watches them: then the worker cannot be parked.
    """

    def __init__(self, worker: Any, board: Scoreboard, row: Row, threads: int, connections: Connections | None) -> None:
        self._worker, self._master, self._row, self._threads = worker, board.master.words, row, threads
        self._connections = connections if connections is not None and connections.can_limit else None
        self._max_requests = getattr(worker, "max_requests", 0)
        self._on_trial = False
        row.words[scoreboard.W_PARKED] = 0 if self._connections is not None else -1

    @property
    def parked(self) -> bool:
        """Return whether the worker accepts nothing until the master unparks it."""
        return self._row.words[scoreboard.W_PARKED] > 0

    def look(self, now: float) -> None:
        """Carry out the master's orders."""
        orders, words = self._row.orders, self._row.words
        if self._max_requests and self._worker.alive:
            # a replacement worker would run different code
            keep = self._master[scoreboard.M_KEEP_CODE]
            self._worker.max_requests = sys.maxsize if keep else self._max_requests
        if self._connections is None:
            return
        parked, trial = bool(orders[scoreboard.O_PARK]), bool(orders[scoreboard.O_TRIAL])
        if parked != self.parked or trial != self._on_trial:
            self._on_trial = trial
            self._connections.limit(0 if parked else TRIAL * self._threads if trial else None)
            words[scoreboard.W_PARKED] = int(parked)
        if not orders[scoreboard.O_RETIRE_STATE] and words[scoreboard.W_STATE] == scoreboard.STATE_RETIRING:
            words[scoreboard.W_STATE] = scoreboard.STATE_READY
