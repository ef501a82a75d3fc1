"""Our hooks in a worker, from its fork to its exit."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from typing import Any

from .. import logs, request, scoreboard
from ..apps import apps
from ..errors import hooks as process_hooks
from ..request import in_flight
from ..runtime import runtime
from ..scoreboard import Reason, black_box
from ..wsgi import handover, last_good, quarantine, routes
from ..wsgi.middleware import outermost
from . import probes, stacks
from .forks import Forks, ignore
from .guard import Guard, tell_cut, wake_master
from .gunicorn.admission import Admission
from .gunicorn.compat import is_a
from .gunicorn.worker import beat_as_well, leave_well, tell_bad_settings_once, watch_connections, wrap_app
from .process import contained, process
from .timeouts import breaches

LONGEST_ALONE = 300.0  #: seconds after which the isolation worker abandons a request without a deadline


def post_fork(server: Any, worker: Any) -> None:
    if process.supervisor is not None and process.supervisor.control is not None:
        process.supervisor.control.close(inherited=True)
    if process.supervisor is not None:
        for other, child in process.supervisor.children.items():
            if other is not worker:
                stacks.drop(child.dump)
        quarantine.here.alone = process.supervisor.is_alone(worker)
        if not quarantine.here.alone:
            process.supervisor.isolation.end(inherited=True)
    if process.once is not None:
        tell_bad_settings_once(worker, process.once.first)
    row = getattr(worker, "stability_row", None)
    runtime.install(runtime.my_board(), row)
    if row is not None:
        row.words[scoreboard.W_AGE] = worker.age
        row.words[scoreboard.W_STARTED_NS] = time.monotonic_ns()
        black_box.install(row.slot, request.id_prefix())
    elif quarantine.here.alone:
        box = black_box.current()
        black_box.install(box.rows - 1 if box is not None else -1, request.id_prefix())
    logs.process("worker_boot", worker_pid=os.getpid(), age=worker.age, slot=row.slot if row is not None else None)


def post_worker_init(worker: Any) -> None:
    """Watch the loaded app, and mark this worker as ready. A step that fails does not prevent the next."""
    for step in (_set_up_logs, _wrap_app, _tell_stacks, _watch_connections, _start_guard, _leave_well,
                 _watch_forks, _tell_routes, _start_process, _prove, _say_ready):
        contained("post_worker_init", step, (worker,))


def _set_up_logs(worker: Any) -> None:
    problem = logs.setup(process.settings, "worker")
    if problem and worker.age <= 1:  # logged once, by the first worker
        worker.log.warning("flask_stability: %s", problem)
    before = signal.getsignal(signal.SIGUSR1)

    def reopen(number: int, frame: Any) -> None:
        logs.reopen()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGUSR1, reopen)
    signal.siginterrupt(signal.SIGUSR1, False)
    process_hooks.install()
    runtime.stopping = lambda: not worker.alive
    runtime.under_hooks = True


def _wrap_app(worker: Any) -> None:
    settings = next((state.settings for state in apps.all()), process.settings)
    if is_a(type(worker), "sync", "gthread", "base_async", "gtornado"):
        wrap_app(worker, lambda app: outermost(app, settings))
    if quarantine.here.alone:
        wrap_app(worker, handover.restored)
        return
    quarantine.here.knock = lambda: wake_master(worker)
    if worker.age > 1:
        return  # logged once, by the first worker
    for line in breaches(settings, graceful=float(worker.cfg.graceful_timeout), app=True):
        worker.log.warning("flask_stability: %s", line)
    longest = runtime.longest_timeout
    if is_a(type(worker), "sync") and longest and 0 < worker.cfg.timeout < longest + 5:
        worker.log.warning("flask_stability: timeout=%s is below the longest view's deadline of %g s plus 5: on sync "
                           "workers it ends the request; raise timeout", worker.cfg.timeout, longest)


def _tell_stacks(worker: Any) -> None:
    child = process.supervisor.children.get(worker) if process.supervisor is not None else None
    stacks.register(child.dump if child is not None else -1)


def _watch_connections(worker: Any) -> None:
    if not quarantine.here.alone and is_a(type(worker), "sync", "gthread"):
        worker.stability_connections = watch_connections(worker)
        runtime.watches_uploads = worker.stability_connections is not None
        if worker.stability_connections is not None and process.settings.queue_limit:
            worker.stability_connections.admit_by(
                Admission(worker, process.settings, runtime.my_board(), runtime.my_row()))


def _start_guard(worker: Any) -> None:
    board, row = runtime.my_board(), runtime.my_row()
    if not is_a(type(worker), "sync", "gthread"):
        def beat() -> None:
            row.words[scoreboard.W_HEARTBEAT_NS] = time.monotonic_ns()

        beat_as_well(worker, beat)
        return
    guard = process.guard = Guard(
        worker, board, row, process.settings, int(worker.cfg.workers),
        supervised=not board.master.words[scoreboard.M_UNSUPERVISED] and process.supervisor is not None,
        connections=getattr(worker, "stability_connections", None))
    if quarantine.here.alone:
        def patient(now: float) -> None:
            black_box.beat()
            if not any(record.overdue or record.seconds() > LONGEST_ALONE for record in in_flight()):
                worker.notify()  # gunicorn's timeout is for a hung interpreter
        guard.looks = (*guard.looks, patient)
    signal.signal(signal.SIGUSR2, lambda *_: guard.memory.ask_collect())
    signal.siginterrupt(signal.SIGUSR2, False)
    ignore(signal.SIGHUP)
    guard.start()


def _leave_well(worker: Any) -> None:
    words, orders = runtime.my_board().master.words, runtime.my_row().orders

    def last() -> bool | None:
        if os.getppid() != worker.ppid:  # other orphans may serve connections that this one would only hold
            return process.guard is None or not process.guard.kept()
        if words[scoreboard.M_DRAINING] == scoreboard.ENDING:
            return True
        if quarantine.here.alone:
            return False  # waiting connections belong to the next isolation worker: the master keeps the socket
        return None if process.supervisor is not None and not orders[scoreboard.O_RETIRE_SINCE_NS] else False

    if is_a(type(worker), "sync", "gthread"):
        leave = leave_well(worker, last)
        if process.guard is not None:
            process.guard.closing.leave = leave


def _watch_forks(worker: Any) -> None:
    process.forks = Forks(worker)


def _tell_routes(worker: Any) -> None:
    box = black_box.current()
    if box is None or quarantine.here.alone:
        return
    rules = routes.rules_of(worker.wsgi)
    for state in apps.all()[:1] if not rules else ():  # an opaque wrapper surrounds the app
        rules = routes.of_map(state.app.url_map) if state.app is not None else []
    data = routes.encode(rules, box.routes.capacity)
    if rules and box.routes.read() != data:
        box.routes.write(data)


def _start_process(worker: Any) -> None:
    apps.start(checks=not quarantine.here.alone)


def _prove(worker: Any) -> None:
    """Publish the release of this worker; if it is on trial, run its probes, and exit if one fails."""
    row = runtime.my_row()
    settings = next((state.settings for state in apps.all()), process.settings)
    said = {"id": settings.release_id or ""}
    if row.orders[scoreboard.O_TRIAL]:
        said["failed"] = probes.failing(worker.wsgi, replace(settings, release_probes=process.settings.release_probes))
        row.forget_requests()
    row.release.write_json(said)
    if said.get("failed"):
        logs.process("release_probe_failed", level="ERROR", reason=said["failed"])
        sys.exit(0)


def _say_ready(worker: Any) -> None:
    row = runtime.my_row()
    row.words[scoreboard.W_HEARTBEAT_NS] = row.words[scoreboard.W_READY_NS] = time.monotonic_ns()
    row.words[scoreboard.W_STATE] = scoreboard.STATE_READY
    if process.supervisor is not None:
        wake_master(worker)
    begun = row.words[scoreboard.W_STARTED_NS] or row.words[scoreboard.W_READY_NS]
    logs.process("worker_ready", worker_pid=os.getpid(),
                 uptime_s=round((row.words[scoreboard.W_READY_NS] - begun) / 1e9, 1))


def worker_abort(worker: Any) -> None:
    tell_cut()


def worker_exit(server: Any, worker: Any) -> None:
    """End the worker, even if threads refuse to end."""
    if os.getpid() != worker.pid:
        return  # gunicorn also calls the hook in the master, for a worker that vanished
    words = runtime.my_row().words
    if words[scoreboard.W_STATE] >= scoreboard.STATE_READY:  # the guard no longer looks once Python ends
        words[scoreboard.W_HEARTBEAT_NS] = time.monotonic_ns()
        words[scoreboard.W_STATE] = scoreboard.STATE_STOPPING
    if runtime.my_row().orders[scoreboard.O_RETIRE_REASON] == Reason.RELEASE_REFUSED.code:
        serving = runtime.my_board().master.releases.read_json({}).get("serving") or ""
        contained("worker_exit", last_good.drop_refused, (serving,))
    apps.stop()
    if process.guard is not None:
        contained("worker_exit", process.guard.memory.last_words, ())
    if in_flight() and not worker.alive and getattr(worker, "tpool", None) is not None:
        tell_cut()
        sys.stderr.flush()
        os._exit(0)
