"""Watch a worker's memory and open files, collect garbage, and ask for a replacement before either runs out."""

from __future__ import annotations

import time
from typing import Any

from ... import logs, scoreboard
from ...config import Settings
from ...memory import autopsy, collect
from ...memory.sampler import Action, MemoryWatch
from ...memory.trackers import descriptors
from ...request import held, in_flight
from ...scoreboard import Reason, Row, Scoreboard, black_box
from ..descriptors import Filling, limit, make_room
from ..gunicorn.connections import clients
from .retirement import Retirement


class Memory:
    """The memory of one worker.

    :param workers: number of the service's workers.
    :param handover: seconds from asking for a replacement to the first request that it serves.
    """

    def __init__(self, worker: Any, board: Scoreboard, row: Row, settings: Settings, workers: int, handover: float,
                 retirement: Retirement) -> None:
        self._worker, self._row, self._retirement = worker, row, retirement
        self._watch = MemoryWatch(settings, row, board=board, workers=workers, handover=handover)
        self._filling, self._count_at = Filling(descriptors()), 0.0
        self._collect_asked = False

    def ask_collect(self) -> None:
        """Collect garbage at the next look. Safe in a signal handler."""
        self._collect_asked = True  # no lock: the handler may have interrupted the thread that holds it

    def next_interval(self) -> float:
        """Return the seconds until the next sample is due."""
        return self._watch.next_interval()

    def collect(self, now: float) -> None:
        """Collect garbage if a signal has asked for it."""
        if self._collect_asked:
            self._collect_asked = False
            freed = collect()
            self._row.add(scoreboard.W_GC_RUNS)
            self._row.add(scoreboard.W_GC_FREED, max(0, freed))
            logs.process("garbage_collected", freed_bytes=freed, rss_bytes=int(self._row.words[scoreboard.W_RSS]))

    def look_at_memory(self, now: float) -> None:
        """Take a sample, and act on it."""
        decision = self._watch.tick(now)
        # The memory of requests held for the database will be freed with them: only the hard limit counts meanwhile.
        if decision.action is Action.RETIRE_NOW or (decision.action is Action.RETIRE and not held):
            self._retirement.ask(decision.reason, decision.text)
        resident = int(self._row.words[scoreboard.W_RSS])
        for record in in_flight():
            black_box.grown(record.place, record.started_ns, resident)

    def descriptors(self, now: float) -> None:
        """Count open files and sockets: without a free descriptor the worker could not even accept a connection."""
        if now < self._count_at or self._row.words[scoreboard.W_RETIRE_REASON]:
            return
        told = self._filling.look(descriptors(), clients(self._worker), limit())
        self._count_at = now + 1000 * (time.monotonic() - now)  # counting takes longer the more there are
        if told:
            make_room()
            self._retirement.ask(Reason.OPEN_FILES, told)

    def last_words(self) -> None:
        """Write the autopsy of a worker that retires for its memory or its open files, after its last answer."""
        reason = self._retirement.reason
        if reason.startswith("memory") or reason is Reason.OPEN_FILES:
            logs.error("memory_autopsy", level="WARNING", **autopsy.report(reason))
