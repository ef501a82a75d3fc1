"""A worker's guard thread: looks at the requests in flight and at the memory about once a second.

It never serves, never waits for anything but its own clock, and outlives whatever one of its looks raises.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import logs, scoreboard
from ..config import Settings
from ..errors.report import request_fields, stack_of
from ..memory import autopsy, collect
from ..memory.sampler import Action, MemoryWatch
from ..request import RequestRecord, inflight
from ..scoreboard import CODE, Row, Scoreboard
from ..signals import request_overdue, send, worker_retired

STUCK = 2.0  #: seconds that all threads are in the same requests with work queued before spare threads come
UNSUPERVISED = 15.0  #: seconds without a tick of the master after which a worker retires itself


class Guard:
    """One worker's."""

    def __init__(self, worker: Any, board: Scoreboard, row: Row, settings: Settings, workers: int,
                 supervised: bool) -> None:
        self._worker, self._board, self._row, self._settings = worker, board, row, settings
        self._supervised = supervised
        self._pool = getattr(worker, "tpool", None)
        self._threads = int(getattr(worker.cfg, "threads", 1) or 1) if _threaded(worker) else 1
        self._memory = MemoryWatch(settings, row, board=board, workers=workers)
        self._stuck_since = 0.0
        self._stuck_requests: set[int] = set()
        self._spare = False
        self._term_at = 0.0
        self._armed = self._cut_told = self._autopsied = False
        self._collect_asked = False
        self.closing = False
        self._wake = threading.Event()
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name="stability-guard", daemon=True)
        row.words[scoreboard.W_THREADS] = self._threads

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ask_collect(self) -> None:
        """From a signal handler: collect garbage at the next look."""
        self._collect_asked = True
        self._wake.set()

    def _run(self) -> None:
        while True:
            interval = min(self._settings.guard_interval, self._memory.next_interval())
            self._wake.wait(interval)
            self._wake.clear()
            for look in self._looks():
                try:
                    look(time.monotonic())
                except Exception as error:
                    logs.error("guard_failed", look=getattr(look, "__name__", "?"),
                               error=f"{type(error).__name__}: {error}"[:300])

    def _looks(self) -> tuple[Callable[[float], None], ...]:
        return (self._beat, self._requests, self._stuck, self._ending, self._orders, self._look_at_memory)

    # -- one look each -------------------------------------------------------------------------------------------

    def _beat(self, now: float) -> None:
        words = self._row.words
        words[scoreboard.W_HEARTBEAT_NS] = time.monotonic_ns()
        words[scoreboard.W_BUSY] = len(inflight)
        words[scoreboard.W_QUEUE] = self._queued()

    def _queued(self) -> int:
        queue = getattr(getattr(self._worker, "tpool", None), "_work_queue", None)
        return int(queue.qsize()) if queue is not None else 0

    def _requests(self, now: float) -> None:
        """Requests past their deadline: told with the stack of their thread, and the worker is replaced."""
        for record in list(inflight.values()):
            if record.deadline and now > record.deadline and not record.response_started and not record.overdue:
                record.overdue = True
                self._row.add(scoreboard.W_OVERDUE)
                logs.error("request_overdue", level="CRITICAL", **request_fields(record),
                           stack=stack_of(record.thread_id))
                send(request_overdue, "flask_stability", request_id=record.id, path=record.path,
                     seconds=record.seconds())
                self.retire("deadline", f"a request is past its deadline: {record.path[:200]}")

    def _stuck(self, now: float) -> None:
        """All threads in the same requests for two seconds while work waits: spare threads, once; then replacement."""
        records = list(inflight.values())
        threads = self._threads * (2 if self._spare else 1)
        if self._threads < 2 or len(records) < threads or not self._queued():
            self._stuck_since = 0.0
            return
        ids = {id(record) for record in records}
        if not self._stuck_since or ids != self._stuck_requests:
            self._stuck_since, self._stuck_requests = now, ids
            return
        if now - self._stuck_since < STUCK:
            return
        self._stuck_since = 0.0
        self._row.words[scoreboard.W_STUCK] += 1
        if self._spare:
            self.retire("stuck", "all threads and their spares are stuck")
            return
        self._spare = True
        self._tell_stuck(records)
        self._add_threads()

    def _tell_stuck(self, records: list[RequestRecord]) -> None:
        logs.error("worker_stuck", threads=self._threads, queued=self._queued(),
                   requests=[{**request_fields(record), "stack": stack_of(record.thread_id)[-8:]}
                             for record in records[:8]])

    def _add_threads(self) -> None:
        pool = getattr(self._worker, "tpool", None)
        if not (hasattr(pool, "_max_workers") and hasattr(pool, "_adjust_thread_count")):
            self.retire("stuck", "all threads are stuck")
            return
        assert pool is not None
        pool._max_workers += self._threads
        for _ in range(min(self._threads, max(1, self._queued()))):
            pool._adjust_thread_count()

    def _ending(self, now: float) -> None:
        """After SIGTERM: what will be cut is told, and a worker that will not go is ended by a switch in C."""
        if self._worker.alive:
            return
        words = self._row.words
        if not self._term_at:
            self._term_at = now
            words[scoreboard.W_STATE] = scoreboard.STATE_STOPPING
        grace = float(self._worker.cfg.graceful_timeout)
        if not self._armed:
            self._armed = True
            given = self._settings.retire_mercy
            mercy = given if given is not None else grace + 5.0
            faulthandler.dump_traceback_later(mercy, exit=True, file=logs.error_file())
        if not self._cut_told and inflight and now - self._term_at > max(0.5, grace - 1.5):
            self._cut_told = True
            tell_cut()
        if self._reason.startswith("memory") and not self._autopsied and not inflight:
            self._autopsied = True
            logs.error("memory_autopsy", level="WARNING", **autopsy.report(self._reason))

    def _orders(self, now: float) -> None:
        """What the master, the command line or a signal asks for."""
        orders, words = self._row.orders, self._row.words
        if orders[scoreboard.O_COMMAND_SEQ] != words[scoreboard.W_COMMAND_ACK]:
            words[scoreboard.W_COMMAND_ACK] = orders[scoreboard.O_COMMAND_SEQ]
            if orders[scoreboard.O_COMMAND] == scoreboard.CMD_CLOSE_KEEPALIVE:
                self.closing = True
                words[scoreboard.W_CLOSE_KEEPALIVE] = 1
                words[scoreboard.W_STATE] = scoreboard.STATE_RETIRING
            elif orders[scoreboard.O_COMMAND] == scoreboard.CMD_GC:
                self._collect_asked = True
        if self._collect_asked:
            self._collect_asked = False
            freed = collect()
            self._row.add(scoreboard.W_GC_RUNS)
            self._row.add(scoreboard.W_GC_FREED, max(0, freed))
            logs.process("garbage_collected", freed_bytes=freed, rss_bytes=int(words[scoreboard.W_RSS]))
        self._self_retire(now)

    def _self_retire(self, now: float) -> None:
        """Without a master that ticks, a worker that has to go goes by itself."""
        words = self._row.words
        if not words[scoreboard.W_RETIRE_REASON] or not self._worker.alive:
            return
        tick = self._board.master.words[scoreboard.M_TICK_NS]
        silent = now - tick / 1e9
        asked_for = now - words[scoreboard.W_RETIRE_SINCE_NS] / 1e9
        if not self._supervised or (silent > UNSUPERVISED and asked_for > UNSUPERVISED):
            os.kill(os.getpid(), signal.SIGTERM)

    def _look_at_memory(self, now: float) -> None:
        decision = self._memory.tick(now)
        if decision.action is Action.RETIRE:
            self.retire(decision.reason, decision.text)
        elif decision.action is Action.RETIRE_NOW:
            self.retire("memory_hard", decision.text)

    # -- asking for replacement ----------------------------------------------------------------------------------

    def retire(self, reason: str, text: str) -> None:
        """Ask the master for this worker's replacement, once."""
        words = self._row.words
        if words[scoreboard.W_RETIRE_REASON]:
            if reason == "memory_hard":
                words[scoreboard.W_RETIRE_REASON] = CODE[reason]
            return
        self._reason = reason
        words[scoreboard.W_RETIRE_SINCE_NS] = time.monotonic_ns()
        words[scoreboard.W_RETIRE_REASON] = CODE[reason]
        logs.process("replacement_asked", level="WARNING", reason=reason, detail=text)
        send(worker_retired, "flask_stability", reason=reason, detail=text, pid=os.getpid())
        if self._supervised:
            try:
                os.kill(os.getppid(), signal.SIGCHLD)  # wakes the master's loop, and does nothing else
            except OSError:
                pass


def tell_cut() -> None:
    """Log every request in flight with its stack: it is about to be cut."""
    for record in list(inflight.values()):
        logs.error("request_cut", level="ERROR", **request_fields(record), stack=stack_of(record.thread_id))


def _threaded(worker: Any) -> bool:
    return hasattr(worker, "tpool")
