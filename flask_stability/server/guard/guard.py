"""The guard's thread and its clock.

It never serves a request, waits for nothing but its own clock, and survives every exception of its looks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ... import logs, scoreboard
from ...config import Settings
from ...database import hold
from ...request import in_flight
from ...runtime import runtime
from ...scoreboard import Row, Scoreboard
from ..gunicorn.connections import Connections
from ..gunicorn.gthread import queued
from ..slow_clients import SlowClients
from .closing import Closing
from .holding import Holding
from .memory import Memory
from .one_thread import SOON, OneThread, hangs
from .requests import Requests
from .retirement import Retirement
from .threads import Threads
from .two_releases import TwoReleases

AT_ONCE = 0.05  #: seconds to the next look after spare threads replaced those that wait for slow clients
PAUSE = 0.5  #: seconds; a longer look (a garbage collection) has delayed the requests as well
SAME_FAILURE = 60.0  #: seconds between two log records of a failing look

Look = Callable[[float], None]


class Guard:
    """The guard of one worker.

    :param worker: gunicorn's worker object.
    :param supervised: the master replaces workers before they retire.
    :param connections: its clients' connections, None if nothing watches them.
    :ivar looks: the looks, in order; each gets the time in monotonic seconds.
    """

    def __init__(self, worker: Any, board: Scoreboard, row: Row, settings: Settings, workers: int,
                 supervised: bool, connections: Connections | None = None) -> None:
        self._worker, self._row, self._settings = worker, row, settings
        clients = SlowClients(connections, settings) if connections is not None else None
        self.retirement = retirement = Retirement(worker, board, row, supervised=supervised)
        self.threads = Threads(worker, row, settings, connections, clients, retirement, self._tell_failure)
        self.holding = Holding(worker, board, row, self.threads.own, self._tell_failure)
        self.one_thread = OneThread(worker, board, row, retirement)
        self.requests = Requests(board, row, clients, retirement)
        # a tick of the master, and the time that closes kept-alive connections
        handover = 1.5 + (float(worker.cfg.keepalive) if self.threads.own > 1 else 0.0)
        self.memory = Memory(worker, board, row, settings, workers, handover, retirement)
        self.two_releases = TwoReleases(worker, board, row, self.threads.own, connections)
        self.closing = Closing(worker, board, row, settings, retirement)
        self._failed: dict[str, float] = {}
        self._wake = threading.Event()
        if connections is not None:
            connections.hurry = self._wake.set
            connections.give_way = self.holding.give_way
        self._thread = threading.Thread(target=self.run, name="stability-guard", daemon=True)
        self.looks: tuple[Look, ...] = (
            self.threads.slow_clients, self.beat, self.requests.requests, self.requests.show_hung,
            self.threads.threads_stuck, self.closing.parent, self.closing.ending, self.orders, self.two_releases.look,
            self.memory.look_at_memory, self.memory.descriptors,
            *([connections.admission_look] if connections is not None else []))

    def start(self) -> None:
        """Start the thread."""
        self.retirement.watch_pools()
        self.two_releases.look(time.monotonic())
        if self.threads.own > 1:
            runtime.more_threads = self.threads.give
        hold.hosted_by(self.holding)
        self._thread.start()

    def kept(self) -> bool:
        """Return whether a request that most likely hangs occupies a sync worker. gthread has spare threads."""
        return not hasattr(self._worker, "tpool") and hangs()

    def run(self, wait: Callable[[float], bool] | None = None) -> None:
        """Look again and again; the thread does nothing else. Never return.

        :param wait: waits for that many seconds; returns True if it was woken.
        """
        wait = wait or self._wake.wait
        interval = self._settings.guard_interval
        while True:
            if wait(interval):
                self._wake.clear()
            for look in self.looks:
                started = time.monotonic()
                try:
                    look(started)
                except BaseException as error:
                    self._tell_failure(look.__name__, error)
                if time.monotonic() - started > PAUSE:
                    self.threads.back = time.monotonic()
            interval = self._settings.guard_interval
            try:
                interval = self._next_interval(interval)
            except BaseException as error:
                self._tell_failure("next_interval", error)

    def _next_interval(self, interval: float) -> float:
        soon = (self.threads.stuck or self.one_thread.lasts or self.threads.pressed or self.closing.urgent
                or self.two_releases.parked)
        return min(interval, self.memory.next_interval(), SOON if soon else interval,
                   AT_ONCE if self.threads.growing else interval)

    def _tell_failure(self, look: str, error: BaseException) -> None:
        now = time.monotonic()
        if now - self._failed.get(look, -SAME_FAILURE) >= SAME_FAILURE:
            self._failed[look] = now
            logs.error("guard_failed", look=look.strip("_"), error=f"{type(error).__name__}: {error}"[:300])

    def beat(self, now: float) -> None:
        """Give a sign of life, and publish how many requests are in flight and how many wait."""
        words = self._row.words
        words[scoreboard.W_HEARTBEAT_NS] = time.monotonic_ns()
        words[scoreboard.W_BUSY] = len(in_flight())
        if self.threads.own > 1:
            words[scoreboard.W_QUEUE] = queued(self._worker)
        else:
            self.one_thread.look(now)

    def orders(self, now: float) -> None:
        """Carry out the orders of the master and of signals."""
        orders, words = self._row.orders, self._row.words
        if orders[scoreboard.O_RETIRE_STATE] and words[scoreboard.W_STATE] == scoreboard.STATE_READY:
            words[scoreboard.W_STATE] = scoreboard.STATE_RETIRING
        self.memory.collect(now)
        self.threads.trim()
        self.retirement.go_alone(now)
