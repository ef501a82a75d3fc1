"""Watch a sync worker's only thread: if one request occupies it while others wait, the master may add workers."""

from __future__ import annotations

import time
from typing import Any

from ... import scoreboard
from ...request import HANDED_OVER, held, in_flight
from ...scoreboard import Row, Scoreboard
from ..gunicorn.listeners import knocking
from .retirement import Retirement, wake_master

LONG = 1.0  #: seconds in one waiting request after which others count as waiting; half once spare workers help
LONG_BUSY = 2.0  #: the same for a request that computes or holds a connection: more workers help less then
SOON = 0.25  #: seconds between two looks while a request lasts
HANGS = 5.0  #: seconds in one request after which an orphan does not wait for its end


class OneThread:
    """The thread of one worker.

    :ivar lasts: a request or a slow client occupies the thread, so the next look comes soon.
    """

    def __init__(self, worker: Any, board: Scoreboard, row: Row, retirement: Retirement) -> None:
        self._worker, self._board, self._row, self._retirement = worker, board, row, retirement
        self._computed = time.monotonic(), time.process_time()
        self._deaf_since, self._deaf_nr = 0.0, 0
        self.lasts = False

    def look(self, now: float) -> None:
        """Publish whether the thread has been in one request for long, and whether other clients wait."""
        words, master = self._row.words, self._board.master.words
        records = in_flight()
        if held or any(record.taken_ns or record.recorded is HANDED_OVER for record in records):
            self._worker.notify()  # the request waits for the database or for isolation, or is a WebSocket: not silence
        if held:  # another worker serves the others, or the request would not be held
            seconds = 0.0
        else:
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
        """Return for how many seconds clients have waited without a request in flight.

        The thread is then reading the request of a slow client.
        """
        parked = self._row.words[scoreboard.W_PARKED] > 0
        if not self._worker.alive or parked or not knocking(self._worker.sockets):
            self._deaf_since = 0.0
        elif not self._deaf_since or self._worker.nr != self._deaf_nr:
            self._deaf_since, self._deaf_nr = now, self._worker.nr
        return now - self._deaf_since if self._deaf_since else 0.0


def hangs() -> bool:
    """Return whether a request most likely hangs."""
    return any(record.seconds() > HANGS for record in in_flight())
