"""Look after a gthread worker's threads.

Spare threads stand in for those that wait for slow clients or a slow database. The master replaces a worker whose
threads are all stuck.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ... import logs, scoreboard
from ...config import Settings
from ...memory import cgroup, trim
from ...request import held, in_flight
from ...scoreboard import Reason, Row
from ..gunicorn.connections import Connections
from ..gunicorn.gthread import queued
from ..gunicorn.spare_threads import SpareThreads
from ..slow_clients import SlowClients
from ..threads import Stuck, for_clients, room
from .requests import with_stack
from .retirement import Retirement

TOLD_AGAIN = 60.0  #: seconds between two log lines about spare threads added for the database


class Threads:
    """The threads of one worker. A sync worker has one; for it, this module looks at slow clients only.

    :param connections: its clients' connections, None if nothing watches them.
    :param clients: the slow ones among them.
    :param failed: called with the name of a look and an exception, which goes no further.
    :ivar own: configured threads.
    :ivar spares: spare threads.
    :ivar back: when the guard returned from a look that delayed the threads, monotonic seconds.
    :ivar pressed: requests wait for a thread.
    :ivar growing: the last look added spare threads.
    """

    def __init__(self, worker: Any, row: Row, settings: Settings, connections: Connections | None,
                 clients: SlowClients | None, retirement: Retirement,
                 failed: Callable[[str, BaseException], None]) -> None:
        self._worker, self._row, self._settings = worker, row, settings
        self._clients, self._retirement, self._failed = clients, retirement, failed
        self.own = int(worker.cfg.threads) if hasattr(worker, "tpool") else 1
        self._stuck = Stuck(self.own)
        self._giving = threading.Lock()
        self.spares = SpareThreads(worker, lambda: len(in_flight() if connections is None else connections.serving),
                                   self._changed)
        self._told_at, self._trim_asked = -TOLD_AGAIN, False
        self.back = 0.0
        self.pressed = self.growing = False
        self._told_clients = self._sockets_told = False
        row.words[scoreboard.W_THREADS] = self.own

    @property
    def stuck(self) -> bool:
        """Return whether work waits and no thread has begun or ended a request lately."""
        return bool(self._stuck.since)

    def give(self, most: int) -> bool:
        """Add spare threads for requests that wait for the database; return whether any was added. Never raise.

        The first time add as many as are configured, then double the number each time, since threads start slowly on a
        busy machine. Return False if there are `most` spare threads already, or none can be added.
        """
        try:
            with self._giving:
                more = min(max(self.own, self.spares.number), most - self.spares.number, self._room())
                given = self.spares.add(more) if more > 0 and self._worker.alive else 0
        except Exception as error:
            self._failed("give_threads", error)
            return False
        now = time.monotonic()
        if given and self.spares.number > self.own and now - self._told_at >= TOLD_AGAIN:
            self._told_at = now
            logs.process("spare_threads", level="WARNING", reason="the database is slow", threads=self.own, most=most)
        return given > 0

    def _changed(self, number: int) -> None:
        self._row.add(scoreboard.W_THREADS, number)
        self._stuck.added = self.spares.number
        if not self.spares.number:
            self._trim_asked = True  # the threads' freed memory is fragmented

    def trim(self) -> None:
        """Return the memory of spare threads to the system, once all of them have ended."""
        if self._trim_asked:
            self._trim_asked = False
            trim()

    def _room(self) -> int:
        """Return how many more threads this worker may have."""
        return room(self.spares.number, self._settings.spare_max, cgroup.available())

    def slow_clients(self, now: float) -> None:
        """Add spare threads in place of those that wait for slow clients, and cut clients that are too slow."""
        if self._clients is None:
            return
        self.growing = False
        words = self._row.words
        waits = queued(self._worker) if self.own > 1 else words[scoreboard.W_QUEUE]
        self.pressed = bool(waits)
        self._clients.look(now, pressed=self.pressed)
        words[scoreboard.W_SLOW_CLIENTS] = waiting = self._clients.waiting
        if self.own == 1:
            if self._clients.patient():
                self._worker.notify()  # gunicorn's timeout is for an app that hangs
        elif waits and waiting:
            self._in_their_place(self._clients, now, waits, waiting)

    def _in_their_place(self, clients: SlowClients, now: float, waits: int, waiting: int) -> None:
        with self._giving:
            more = for_clients(self.own, self.own + self.spares.number, waiting, self._room())
            if more and self.spares.add(more):
                self.growing = True
                if not self._told_clients:
                    self._told_clients = True
                    logs.process("spare_threads", level="WARNING", reason="slow clients", threads=self.own,
                                 most=self._settings.spare_max)
                return
        if waiting > self.spares.number:
            clients.give_way(now, max(waits, waiting // 4))

    def _clients_to_blame(self) -> bool:
        """Return whether so many threads wait for clients that the app holds fewer than are configured."""
        if self._clients is None or not self._clients.waiting:
            return False
        return len(in_flight()) - self._clients.waiting < self.own

    def threads_stuck(self, now: float) -> None:
        """Add spare threads if all threads are stuck while work waits; if those do not suffice, retire the worker."""
        if self.own < 2:
            return
        if held or self._clients_to_blame():
            self._stuck.since = 0.0
            return
        records = in_flight()
        progress = (self._worker.nr, frozenset(record.started_ns for record in records))
        began = [max(self.back, record.started_ns / 1e9) for record in records]
        before = self._stuck.times
        with self._giving:
            wanted = self._stuck.look(now, queued(self._worker), progress, began)
        if self._stuck.times == before:
            return
        self._row.words[scoreboard.W_STUCK] += 1
        if self._stuck.times == 1:
            logs.error("worker_stuck", threads=self.own, queued=queued(self._worker),
                       requests=[with_stack(record) for record in records[:8]])
        with self._giving:
            given = self.spares.add(min(wanted, self._room()))
        if sum(not record.taken_ns for record in records) < self.own:
            if not self._sockets_told and wanted == 0:
                self._sockets_told = True
                logs.process("threads_held", level="WARNING", threads=self.own + self._stuck.added,
                             remedy="WebSockets hold a thread each, and all of them: give the workers more threads")
        elif not given or self._stuck.lasting(now):
            self._retirement.ask(Reason.STUCK, f"all threads are stuck, {self._stuck.added} spare ones included")
