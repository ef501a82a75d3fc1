"""How this worker holds requests during a database outage, and still serves the others: see `database.hold`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ... import scoreboard
from ...request import held
from ...scoreboard import Row, Scoreboard
from ..gunicorn.listeners import knocking

KNOCKING = 0.25  #: seconds for which connections wait before a sync worker stops holding its request
GIVE_WAY = 0.002  #: seconds that another worker has to accept a connection first


class Holding:
    """A `Host` for one worker.

    :param threads: the number of configured threads.
    :param failed: called with the name of a look and an exception, which goes no further.
    """

    def __init__(self, worker: Any, board: Scoreboard, row: Row, threads: int,
                 failed: Callable[[str, BaseException], None]) -> None:
        self._worker, self._board, self._row = worker, board, row
        self._threads, self._failed = threads, failed
        self._knocked = 0.0

    def may_hold(self) -> bool:
        """See `Host`.

        A gthread worker gets spare threads; a sync worker may hold if another one serves the other requests.
        """
        if self._threads > 1:
            return True
        try:
            now = time.monotonic()
            self._knocked = (self._knocked or now) if knocking(self._worker.sockets) else 0.0
            # staggered, so that the workers stop one after the other
            if self._knocked and now - self._knocked > KNOCKING + 0.1 * (self._row.slot % 8):
                return False
            return any(row.pid != os.getpid() and row.words[scoreboard.W_STATE] == scoreboard.STATE_READY
                       and not row.words[scoreboard.W_DB_HELD] and not row.words[scoreboard.W_STUCK]
                       for row in self._board.live())
        except Exception as error:
            self._failed("may_hold", error)
            return False

    def show_held(self, number: int) -> None:
        """See `Host`."""
        self._row.words[scoreboard.W_DB_HELD] = number

    def give_way(self) -> None:
        """Leave a new connection to a worker that holds fewer requests; otherwise which worker accepts it is a race.

        Runs in the worker's main loop, and waits there for `GIVE_WAY` seconds at most. Never raise.
        """
        mine = len(held)
        if not mine:
            return
        try:
            if any(row.words[scoreboard.W_STATE] == scoreboard.STATE_READY
                   and row.words[scoreboard.W_DB_HELD] < mine for row in self._board.live()):
                time.sleep(GIVE_WAY)
        except Exception as error:
            self._failed("give_way", error)
