"""A sync worker's only thread: while it has been in one request for long and others wait, the master may help."""

from __future__ import annotations

import time
from typing import Any

from ... import scoreboard
from ...request import HANDED_OVER, in_flight
from ...scoreboard import Row, Scoreboard
from ..gunicorn.listeners import knocking
from .retirement import Retirement, wake_master

LONG = 1.0  #: seconds of waiting in one request after which a sync worker keeps others waiting; half once others help
LONG_BUSY = 2.0  #: the same for one that computes, or holds a connection: more workers beside it help less
SOON = 0.25  #: seconds between two looks while something lasts
HANGS = 5.0  #: seconds in one request after which an orphan counts on no end of it


class OneThread:
    """That of one worker.

    :ivar lasts: something keeps it, so the next look comes soon.
    """

    def __init__(self, worker: Any, board: Scoreboard, row: Row, retirement: Retirement) -> None:
        self._worker, self._board, self._row, self._retirement = worker, board, row, retirement
        self._computed = time.monotonic(), time.process_time()
        self._deaf_since, self._deaf_nr = 0.0, 0
        self.lasts = False

    def look(self, now: float) -> None:
        """Write whether it has been in the same request for long, and whether others wait."""
        words, master = self._row.words, self._board.master.words
        records = in_flight()
        if any(record.taken_ns or record.recorded is HANDED_OVER for record in records):
            self._worker.notify()  # its only thread serves a WebSocket: no silence for gunicorn's timeout
        seconds = max((record.seconds() for record in records), default=0.0) if records else self.deaf_for(now)
        self.lasts = seconds >= SOON or bool(self._deaf_since)
        (then, before), self._computed = self._computed, (now, time.process_time())
        if self._computed[1] - before > 0.5 * (now - then) or any(record.resources for record in records):
            long = LONG_BUSY
        else:
            long = LONG if master[scoreboard.M_TARGET] <= master[scoreboard.M_BASE_WORKERS] else LONG / 2
        known = words[scoreboard.W_STUCK] and words[scoreboard.W_QUEUE]
        words[scoreboard.W_STUCK] = int(seconds > long)
        words[scoreboard.W_QUEUE] = int(seconds > long and knocking(self._worker.sockets))
        if words[scoreboard.W_QUEUE] and not known and self._retirement.supervised:
            wake_master(self._worker)

    def deaf_for(self, now: float) -> float:
        """Seconds for which a sync worker with no request in flight has let others wait: a slow client's keeps it, that
        is still to be read.
        """
        if not self._worker.alive or not knocking(self._worker.sockets):
            self._deaf_since = 0.0
        elif not self._deaf_since or self._worker.nr != self._deaf_nr:
            self._deaf_since, self._deaf_nr = now, self._worker.nr
        return now - self._deaf_since if self._deaf_since else 0.0


def hangs() -> bool:
    """Whether a request most likely hangs."""
    return any(record.seconds() > HANGS for record in in_flight())
