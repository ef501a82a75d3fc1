"""Look after a gthread worker's threads.

Spare threads replace those that wait for slow clients or a slow database. A worker whose threads are all stuck is
replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ... import logs, scoreboard
from ...config import Settings
from ...memory import cgroup
from ...request import in_flight
from ...scoreboard import Reason, Row
from ..gunicorn.gthread import add_threads, number, queued
from ..slow_clients import SlowClients
from ..threads import Stuck, for_clients, room
from .requests import with_stack
from .retirement import Retirement


class Threads:
    """The threads of one worker. A sync worker has one; of it, only the slow clients are looked at here.

    :param clients: its slow clients, None if they are not watched.
    :param failed: gets the name of a look and the exception that must go no further.
    :ivar own: configured threads.
    :ivar back: when the guard returned from a look that delayed the threads, monotonic seconds.
    :ivar pressed: requests wait for a thread.
    :ivar growing: the last look added spare threads.
    """

    def __init__(self, worker: Any, row: Row, settings: Settings, clients: SlowClients | None, retirement: Retirement,
                 failed: Callable[[str, BaseException], None]) -> None:
        self._worker, self._row, self._settings = worker, row, settings
        self._clients, self._retirement, self._failed = clients, retirement, failed
        self.own = int(worker.cfg.threads) if hasattr(worker, "tpool") else 1
        self._stuck = Stuck(self.own)
        self._spare, self._given = threading.Lock(), 0
        self.back = 0.0
        self.pressed = self.growing = False
        self._told_clients = self._sockets_told = False
        row.words[scoreboard.W_THREADS] = self.own

    @property
    def stuck(self) -> bool:
        """Return whether work waits and no thread has begun or ended a request lately."""
        return bool(self._stuck.since)

    def give(self, most: int) -> bool:
        """Add as many spare threads as are configured, for requests that wait for a slow database. Never raises.

        Return False if there are `most` spare threads already, or none can be added.
        """
        failed: Exception | None = None
        with self._spare:
            more = min(self.own, most - self._given, self._room())
            if more <= 0 or not self._worker.alive:
                return False
            try:
                given = add_threads(self._worker, more)
            except Exception as error:
                given, failed = False, error
            if given:
                self._given += more
                self._stuck.added += more
                self._row.add(scoreboard.W_THREADS, more)
                first = self._given == more
            else:
                self._given = most  # no more can be had: do not try again
        if failed is not None:
            self._failed("give_threads", failed)
        if not given:
            return False
        if first:
            logs.process("spare_threads", level="WARNING", reason="the database is slow", threads=self.own, most=most)
        return True

    def _room(self) -> int:
        """Return how many more threads this worker may have."""
        return room(number(self._worker) - self.own, self._settings.spare_max, cgroup.available())

    def slow_clients(self, now: float) -> None:
        """Add spare threads for those that wait for slow clients, and cut clients that are too slow."""
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
        with self._spare:
            more = for_clients(self.own, number(self._worker), waiting, self._room())
            if more and add_threads(self._worker, more):
                self._row.add(scoreboard.W_THREADS, more)
                self._stuck.added += more
                self.growing = True
                if not self._told_clients:
                    self._told_clients = True
                    logs.process("spare_threads", level="WARNING", reason="slow clients", threads=self.own,
                                 most=self._settings.spare_max)
                return
        if waiting + self.own > number(self._worker):
            clients.give_way(now, max(waits, waiting // 4))

    def _clients_to_blame(self) -> bool:
        """Return whether so many threads wait for clients that the app holds fewer than are configured."""
        if self._clients is None or not self._clients.waiting:
            return False
        return len(in_flight()) - self._clients.waiting < self.own

    def threads_stuck(self, now: float) -> None:
        """If all threads are stuck while work waits, add spare threads; if those do not suffice, retire."""
        if self.own < 2:
            return
        if self._clients_to_blame():
            self._stuck.since = 0.0
            return
        records = in_flight()
        progress = (self._worker.nr, frozenset(record.started_ns for record in records))
        began = [max(self.back, record.started_ns / 1e9) for record in records]
        before = self._stuck.times
        with self._spare:
            wanted = self._stuck.look(now, queued(self._worker), progress, began)
        if self._stuck.times == before:
            return
        self._row.words[scoreboard.W_STUCK] += 1
        if self._stuck.times == 1:
            logs.error("worker_stuck", threads=self.own, queued=queued(self._worker),
                       requests=[with_stack(record) for record in records[:8]])
        with self._spare:
            more = min(wanted, self._room())
            given = more > 0 and add_threads(self._worker, more)
            if given:
                self._row.add(scoreboard.W_THREADS, more)
        if sum(not record.taken_ns for record in records) < self.own:
            if not self._sockets_told and wanted == 0:
                self._sockets_told = True
                logs.process("threads_held", level="WARNING", threads=self.own + self._stuck.added,
                             remedy="WebSockets hold a thread each, and all of them: give the workers more threads")
        elif not given or self._stuck.lasting(now):
            self._retirement.ask(Reason.STUCK, f"all threads are stuck, {self._stuck.added} spare ones included")
