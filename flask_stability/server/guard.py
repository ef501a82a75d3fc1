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
from ..database import bulkhead
from ..errors import own_line
from ..errors.report import request_fields, stack_of
from ..memory import autopsy, cgroup, collect
from ..memory.sampler import Action, MemoryWatch
from ..memory.trackers import descriptors
from ..request import RequestRecord, in_flight
from ..scoreboard import CODE, Row, Scoreboard
from ..signals import POOL, leak_suspected, request_overdue, send, worker_retired
from ..takeover import Farewells
from .descriptors import Filling, limit, make_room
from .gunicorn.connections import Connections, clients
from .gunicorn.gthread import add_threads, number, queued
from .gunicorn.listeners import knocking, let_go
from .slow_clients import SlowClients
from .threads import Stuck, for_clients, room

UNSUPERVISED = 15.0  #: seconds without a tick of the master after which a worker retires itself
LONG = 1.0  #: seconds of waiting in one request after which a sync worker keeps others waiting; half once others help
LONG_BUSY = 2.0  #: the same for one that computes, or holds a connection: more workers beside it help less
SHOWN_AFTER = 5.0  #: seconds after which a request is shown among those that hang
MOST_SHOWN = 20
HANGS = 5.0  #: seconds in one request after which an orphan counts on no end of it
SOON = 0.25  #: seconds between two looks while something lasts
AT_ONCE = 0.05  #: the same after threads were given in place of those that wait for slow clients: each time some more
PAUSE = 0.5  #: seconds that a look may take; what takes longer (a collection) has kept the requests waiting as well
FAREWELL = 3.0  #: seconds from a WebSocket's farewell to its end, when the worker leaves
LINGER = 2.0  #: seconds after which an orphan whose main thread does not react lets go of the port all the same
SAME_FAILURE = 60.0  #: seconds between two records of a look that fails
#: Has a worker write its stacks. Sent to a process that does not expect it, this signal does nothing.
TELL_STACKS = signal.SIGURG


class Guard:
    """One worker's.

    :param worker: gunicorn's object.
    :param supervised: the master replaces workers before they retire.
    :param connections: those of its clients, None where they are not watched.
    """

    def __init__(self, worker: Any, board: Scoreboard, row: Row, settings: Settings, workers: int,
                 supervised: bool, connections: Connections | None = None) -> None:
        self._connections = connections
        self._clients = SlowClients(connections, settings) if connections is not None else None
        self._worker, self._board, self._row, self._settings = worker, board, row, settings
        self._supervised = supervised
        self._threads = int(worker.cfg.threads) if hasattr(worker, "tpool") else 1
        self._stuck = Stuck(self._threads)
        self._spare, self._given = threading.Lock(), 0
        # a tick of the master, and the time in which kept-alive connections are closed
        handover = 1.5 + (float(worker.cfg.keepalive) if self._threads > 1 else 0.0)
        self._memory = MemoryWatch(settings, row, board=board, workers=workers, handover=handover)
        self.leave: Callable[[], None] = lambda: None  # of `drain`
        self._file = logs.error_file()
        self._ending_since = self._back = 0.0
        self._computed = time.monotonic(), time.process_time()
        self._lasts = False
        self._deaf_since, self._deaf_nr = 0.0, 0
        self._filling, self._count_at = Filling(descriptors()), 0.0
        self._term_sent = self._cut_told = self._collect_asked = self._sockets_told = False
        self._farewells = Farewells(FAREWELL)
        self._pressed = self._growing = self._told_clients = False
        self._reason = ""
        self._hung, self._hung_at = 0, 0.0
        self._failed: dict[str, float] = {}
        self._wake = threading.Event()
        if connections is not None:
            connections.hurry = self._wake.set
        self._thread = threading.Thread(target=self._run, name="stability-guard", daemon=True)
        self._looks: tuple[Callable[[float], None], ...] = (
            self._slow_clients, self._beat, self._requests, self._show_hung, self._threads_stuck, self._parent,
            self._ending, self._orders, self._look_at_memory, self._descriptors)
        row.words[scoreboard.W_THREADS] = self._threads

    def start(self) -> None:
        """Begin."""
        leak_suspected.connect(self._leaked)
        if self._threads > 1:
            bulkhead.threads_from(self.give_threads)
        self._thread.start()

    def ask_collect(self) -> None:
        """From a signal handler: collect garbage at the next look."""
        self._collect_asked = True  # no lock: the handler may have interrupted whoever holds it

    def kept(self) -> bool:
        """Whether a request that most likely hangs keeps a sync worker; gthread has spare threads for what it took."""
        return not hasattr(self._worker, "tpool") and any(record.seconds() > HANGS for record in in_flight())

    def give_threads(self, most: int) -> bool:
        """As many spare threads again as a gthread worker has, for requests that wait for a slow database; False if
        there were `most` of them before. Never raises.
        """
        failed: Exception | None = None
        with self._spare:
            more = min(self._threads, most - self._given, self._room())
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
                self._given = most  # no more are to be had: not tried again
        if failed is not None:
            self._tell_failure("give_threads", failed)
        if not given:
            return False
        if first:
            logs.process("spare_threads", level="WARNING", reason="the database is slow", threads=self._threads,
                         most=most)
        return True

    def _run(self) -> None:
        interval = self._settings.guard_interval
        while True:
            if self._wake.wait(interval):
                self._wake.clear()
            interval = self._settings.guard_interval
            for look in self._looks:
                started = time.monotonic()
                try:
                    look(started)
                except BaseException as error:
                    self._tell_failure(look.__name__, error)
                if time.monotonic() - started > PAUSE:
                    self._back = time.monotonic()
            try:
                # a second late at the end, what is cut would be told too late
                soon = (self._stuck.since or self._lasts or self._pressed
                        or (self._ending_since and not self._cut_told))
                interval = min(interval, self._memory.next_interval(), SOON if soon else interval,
                               AT_ONCE if self._growing else interval)
            except BaseException as error:
                self._tell_failure("next_interval", error)

    def _tell_failure(self, look: str, error: BaseException) -> None:
        now = time.monotonic()
        if now - self._failed.get(look, -SAME_FAILURE) >= SAME_FAILURE:
            self._failed[look] = now
            logs.error("guard_failed", look=look.strip("_"), error=f"{type(error).__name__}: {error}"[:300])

    def _room(self) -> int:
        """How many threads more this worker may have."""
        return room(number(self._worker) - self._threads, self._settings.spare_max, cgroup.available())

    # -- one look each -------------------------------------------------------------------------------------------

    def _slow_clients(self, now: float) -> None:
        """Threads that wait for slow clients get others in their place, and clients that are too slow are cut."""
        if self._clients is None or self._connections is None:
            return
        self._growing = False
        self._connections.look(now)
        words = self._row.words
        waits = queued(self._worker) if self._threads > 1 else words[scoreboard.W_QUEUE]
        self._pressed = bool(waits)
        self._clients.look(now, pressed=self._pressed)
        words[scoreboard.W_SLOW_CLIENTS] = waiting = self._clients.waiting
        if self._threads == 1:
            if self._clients.patient():
                self._worker.notify()  # gunicorn's timeout is for an app that hangs
        elif waits and waiting:
            self._in_their_place(now, waits, waiting)

    def _in_their_place(self, now: float, waits: int, waiting: int) -> None:
        assert self._clients is not None
        with self._spare:
            more = for_clients(self._threads, number(self._worker), waiting, self._room())
            if more and add_threads(self._worker, more):
                self._row.add(scoreboard.W_THREADS, more)
                self._stuck.added += more
                self._growing = True
                if not self._told_clients:
                    self._told_clients = True
                    logs.process("spare_threads", level="WARNING", reason="slow clients", threads=self._threads,
                                 most=self._settings.spare_max)
                return
        if waiting + self._threads > number(self._worker):
            self._clients.give_way(now, max(waits, waiting // 4))

    def _clients_to_blame(self) -> bool:
        """So many threads wait for clients that the app holds fewer than the worker's own."""
        if self._clients is None or not self._clients.waiting:
            return False
        return len(in_flight()) - self._clients.waiting < self._threads

    def _beat(self, now: float) -> None:
        words = self._row.words
        words[scoreboard.W_HEARTBEAT_NS] = time.monotonic_ns()
        records = in_flight()
        words[scoreboard.W_BUSY] = len(records)
        if self._threads > 1:
            words[scoreboard.W_QUEUE] = queued(self._worker)
            return
        if any(record.taken_ns for record in records):
            self._worker.notify()  # its only thread serves a WebSocket: no silence for gunicorn's timeout
        self._held(now)

    def _held(self, now: float) -> None:
        """A sync worker's one thread has been in the same request for long, and others wait: the master may help."""
        words, master = self._row.words, self._board.master.words
        records = in_flight()
        seconds = max((record.seconds() for record in records), default=0.0) if records else self._deaf_for(now)
        self._lasts = seconds >= SOON or bool(self._deaf_since)
        (then, before), self._computed = self._computed, (now, time.process_time())
        if self._computed[1] - before > 0.5 * (now - then) or any(record.resources for record in records):
            long = LONG_BUSY
        else:
            long = LONG if master[scoreboard.M_TARGET] <= master[scoreboard.M_BASE_WORKERS] else LONG / 2
        known = words[scoreboard.W_STUCK] and words[scoreboard.W_QUEUE]
        words[scoreboard.W_STUCK] = int(seconds > long)
        words[scoreboard.W_QUEUE] = int(seconds > long and knocking(self._worker.sockets))
        if words[scoreboard.W_QUEUE] and not known and self._supervised:
            wake_master(self._worker)

    def _deaf_for(self, now: float) -> float:
        """Seconds for which a sync worker with no request in flight has let others wait: a slow client's keeps it, that
        is still to be read.
        """
        if not self._worker.alive or not knocking(self._worker.sockets):
            self._deaf_since = 0.0
        elif not self._deaf_since or self._worker.nr != self._deaf_nr:
            self._deaf_since, self._deaf_nr = now, self._worker.nr
        return now - self._deaf_since if self._deaf_since else 0.0

    def _requests(self, now: float) -> None:
        """Requests past their deadline: told with the stack of their thread, and the worker is replaced."""
        for record in in_flight():
            if record.deadline and now > record.deadline and not record.response_started and not record.overdue:
                if self._clients is not None and self._clients.overdue(now, record):
                    continue
                record.overdue = True
                self._row.add(scoreboard.W_OVERDUE)
                logs.error("request_overdue", level="CRITICAL", **request_fields(record),
                           stack=stack_of(record.thread_id))
                self.retire("deadline", f"a request is past its deadline: {record.path[:200]}")
                send(request_overdue, "flask_stability", request_id=record.id, path=record.path,
                     seconds=record.seconds())

    def _show_hung(self, now: float) -> None:
        """Requests that take long and have not begun to answer, the longest first, for the health document."""
        if now - self._hung_at < 1.0:
            return
        self._hung_at = now
        found = sorted((record for record in in_flight() if record.seconds() > SHOWN_AFTER
                        and not record.response_started and not record.taken_ns), key=lambda record: record.started_ns)
        if found or self._hung:
            entries = [{"method": record.method[:16], "route": record.route[:200], "path": record.path[:200],
                        "started_ns": record.started_ns, "request_id": record.id,
                        "where": own_line.of_thread(record.thread_id)} for record in found[:MOST_SHOWN]]
            while not self._row.hung.write_json(entries) and entries:
                entries.pop()
        self._hung = len(found)

    def _threads_stuck(self, now: float) -> None:
        """All threads stuck while work waits: spare threads, and replacement if those do not suffice."""
        if self._threads < 2:
            return
        if self._clients_to_blame():
            self._stuck.since = 0.0
            return
        records = in_flight()
        progress = (self._worker.nr, frozenset(record.started_ns for record in records))
        began = [max(self._back, record.started_ns / 1e9) for record in records]
        before = self._stuck.times
        with self._spare:
            wanted = self._stuck.look(now, queued(self._worker), progress, began)
        if self._stuck.times == before:
            return
        self._row.words[scoreboard.W_STUCK] += 1
        if self._stuck.times == 1:
            logs.error("worker_stuck", threads=self._threads, queued=queued(self._worker),
                       requests=[_with_stack(record) for record in records[:8]])
        given = add_threads(self._worker, min(wanted, self._room()))
        if sum(not record.taken_ns for record in records) < self._threads:
            if not self._sockets_told and wanted == 0:
                self._sockets_told = True
                logs.process("threads_held", level="WARNING", threads=self._threads + self._stuck.added,
                             remedy="WebSockets hold a thread each, and all of them: give the workers more threads")
        elif not given or self._stuck.lasting(now):
            self.retire("stuck", f"all threads are stuck, {self._stuck.added} spare ones included")

    def _parent(self, now: float) -> None:
        """A worker whose master died goes: gunicorn sees to it, unless its main thread is stuck."""
        if os.getppid() == self._worker.ppid:
            return
        if not self._term_sent:
            self._term_sent = True
            self._begin_ending(now)
            os.kill(os.getpid(), signal.SIGTERM)
        elif now - self._ending_since > LINGER:
            for listener in self._worker.sockets:  # the service may start anew on the same port
                let_go(listener)

    def _ending(self, now: float) -> None:
        """After SIGTERM: what will be cut is told, and a worker that will not go is ended by a switch in C."""
        words = self._row.words
        if not self._worker.alive:
            words[scoreboard.W_STATE] = scoreboard.STATE_STOPPING
            self.leave()
        elif not (self._row.orders[scoreboard.O_RETIRE_SINCE_NS] or self._term_sent
                  or self._board.master.words[scoreboard.M_DRAINING] == scoreboard.ENDING):
            return  # a sync worker that waits for a lock of Python's does not run its signal handler
        if not self._ending_since:
            self._begin_ending(now)
        grace = float(self._worker.cfg.graceful_timeout)
        self._farewells.look(now, in_flight(), late=now - self._ending_since > grace - FAREWELL - 2.0)
        if not self._cut_told and in_flight() and now - self._ending_since > max(0.5, grace - 1.5):
            self._cut_told = True
            tell_cut()

    def _begin_ending(self, now: float) -> None:
        """Arm the dead man's switch: it needs neither the GIL nor a thread of ours."""
        self._ending_since = now
        given = self._settings.retire_mercy
        seconds = given if given is not None else float(self._worker.cfg.graceful_timeout) + 5.0
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)

    def _orders(self, now: float) -> None:
        """Do what the master or a signal asks for."""
        orders, words = self._row.orders, self._row.words
        if orders[scoreboard.O_RETIRE_STATE] and words[scoreboard.W_STATE] == scoreboard.STATE_READY:
            words[scoreboard.W_STATE] = scoreboard.STATE_RETIRING
        if self._collect_asked:
            self._collect_asked = False
            freed = collect()
            self._row.add(scoreboard.W_GC_RUNS)
            self._row.add(scoreboard.W_GC_FREED, max(0, freed))
            logs.process("garbage_collected", freed_bytes=freed, rss_bytes=int(words[scoreboard.W_RSS]))
        self._retire_self(now)

    def _retire_self(self, now: float) -> None:
        """Without a master that ticks, a worker that has to go goes by itself."""
        words = self._row.words
        if not words[scoreboard.W_RETIRE_REASON] or not self._worker.alive or self._term_sent:
            return
        silent = now - self._board.master.words[scoreboard.M_TICK_NS] / 1e9
        asked_for = now - words[scoreboard.W_RETIRE_SINCE_NS] / 1e9
        if not self._supervised or (silent > UNSUPERVISED and asked_for > UNSUPERVISED):
            self._term_sent = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _look_at_memory(self, now: float) -> None:
        decision = self._memory.tick(now)
        if decision.action is Action.RETIRE:
            self.retire(decision.reason, decision.text)
        elif decision.action is Action.RETIRE_NOW:
            self.retire("memory_hard", decision.text)

    def _leaked(self, sender: object, kind: str = "", detail: object = None, **more: object) -> None:
        """A leak informs; but a worker whose pool is gone for good has to go."""
        if kind == POOL:
            self.retire("leaked_connections", f"all connections of the pool are held for long: {detail}")

    def _descriptors(self, now: float) -> None:
        """More and more files or sockets are open: out of them, a worker could not even accept a connection."""
        if now < self._count_at or self._row.words[scoreboard.W_RETIRE_REASON]:
            return
        told = self._filling.look(descriptors(), clients(self._worker), limit())
        self._count_at = now + 1000 * (time.monotonic() - now)  # counting takes longer the more there are
        if told:
            make_room()
            self.retire("open_files", told)

    def last_words(self) -> None:
        """After the last answer: what a worker was holding that had to go for its memory or its open files."""
        if self._reason.startswith("memory") or self._reason == "open_files":
            logs.error("memory_autopsy", level="WARNING", **autopsy.report(self._reason))

    # -- asking for replacement ----------------------------------------------------------------------------------

    def retire(self, reason: str, text: str) -> None:
        """Ask the master for this worker's replacement, once; and once more when it has become urgent."""
        words = self._row.words
        before = words[scoreboard.W_RETIRE_REASON]
        if before and (reason != "memory_hard" or before == CODE[reason]):
            return
        self._reason = reason
        if not before:
            words[scoreboard.W_RETIRE_SINCE_NS] = time.monotonic_ns()
        words[scoreboard.W_RETIRE_REASON] = CODE[reason]
        logs.process("replacement_asked", level="WARNING", reason=reason, detail=text)
        if self._supervised:
            wake_master(self._worker)
        send(worker_retired, "flask_stability", reason=reason, detail=text, pid=os.getpid())


def wake_master(worker: Any) -> None:
    """SIGCHLD has the master look at its workers now instead of within a second, and does nothing else."""
    if os.getppid() == worker.ppid:
        try:
            os.kill(worker.ppid, signal.SIGCHLD)
        except OSError:
            pass


def tell_stacks_on_demand() -> None:
    """`TELL_STACKS` writes the stacks of all threads to error.log, in C: also while no thread of Python's runs."""
    faulthandler.register(TELL_STACKS, file=logs.error_file(), all_threads=True)


def tell_cut() -> None:
    """Log every request in flight with its stack: it is about to be cut."""
    for record in in_flight():
        if not record.taken_ns:
            logs.error("request_cut", **request_fields(record), stack=stack_of(record.thread_id))


def _with_stack(record: RequestRecord) -> dict[str, Any]:
    return {**request_fields(record), "stack": stack_of(record.thread_id)[-8:]}
