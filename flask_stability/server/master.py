"""Our hooks in the master."""

from __future__ import annotations

import gc
import os
import sys
import time
from dataclasses import fields
from typing import Any

from .. import config, environment, logs, scoreboard
from ..config import Settings
from ..exceptions import ConfigError
from ..runtime import runtime
from ..scoreboard import black_box
from . import orphans
from .gunicorn import compat, port_in_use
from .gunicorn.adjust import adjust, refit
from .gunicorn.compat import is_a
from .gunicorn.glogging import be_patient
from .gunicorn.supervising import is_first, make_upgradable, supervise
from .process import contained, process
from .starting import Once
from .supervisor import Supervisor
from .systemd import Notifier


def on_starting(server: Any) -> None:
    """Set up settings, logs, board and supervisor. Only here does a bad setting stop the start."""
    process.once = Once()
    for key, nearest in config.unknown_keys(os.environ).items():
        if nearest is not None:
            server.log.warning("flask_stability: %s is no setting: did you mean %s?", key, nearest)
    try:
        process.settings = Settings.from_environ()
    except ConfigError as error:
        for problem in error.problems:
            server.log.error("flask_stability: %s", problem)
        sys.exit(1)
    problem = logs.setup(process.settings, "master", uid=server.cfg.uid, gid=server.cfg.gid)
    if problem:
        server.log.warning("flask_stability: %s", problem)
    for step in (refit, _be_patient, _tell_version, make_upgradable):
        contained("on_starting", step, (server,))
    adjust(server, process.settings)
    cfg = server.cfg
    if not is_a(cfg.worker_class, "sync", "gthread"):
        server.log.warning("flask_stability: worker class %s: the guard (deadlines, memory) is off, the rest works",
                           cfg.worker_class_str)
    rows = max(64, 4 * int(cfg.workers))
    uid = cfg.uid if cfg.uid != os.geteuid() else -1
    gid = cfg.gid if cfg.gid != os.getegid() else -1
    if is_first(server):
        places = [process.settings.run_dir] if process.settings.run_dir else scoreboard.default_run_dirs()
        contained("on_starting", orphans.end_stuck, (places, orphans.ports_of(cfg.address)))
        process.start_log = port_in_use.watch(server)
    run_dir = process.settings.run_dir or scoreboard.default_run_dir(uid)
    board, problem = scoreboard.Scoreboard.create(rows, run_dir, uid, gid)
    if not run_dir:
        problem = "no scoreboard file: /dev/shm cannot be written, set STABILITY_RUN_DIR to a folder of the service"
    if problem:
        server.log.warning("flask_stability: %s: `flask stability status` will not work", problem)
    runtime.install(board, None)
    black_box.make(rows + 1)  # the last part is the isolation worker's, which has no row
    board.master.words[scoreboard.M_PID] = os.getpid()
    board.master.words[scoreboard.M_STARTED_NS] = time.monotonic_ns()
    arbiter = supervise(server)
    if arbiter is not None:
        process.supervisor = supervisor = Supervisor(arbiter, board, process.settings)
        supervisor.notifier = Notifier.take(os.environ, before=arbiter.predecessor)
        problem = supervisor.listen(uid)
        if problem:
            server.log.warning("flask_stability: %s: `flask stability retire`, `gc` and `mute` will not work", problem)
    else:
        process.supervisor = None
        board.master.words[scoreboard.M_UNSUPERVISED] = 1
        server.log.warning("flask_stability: workers retire by themselves, without replacement before retirement%s",
                           "; take WatchdogSec= out of the systemd unit: nobody feeds its watchdog"
                           if "WATCHDOG_USEC" in os.environ else "")
    logs.process("started", board=board.path, workers=int(cfg.workers), worker_class=str(cfg.worker_class_str))


def _be_patient(server: Any) -> None:
    be_patient(getattr(server, "log", None))


def _tell_version(server: Any) -> None:
    line = compat.verdict(server)
    if line:
        server.log.warning("flask_stability: %s", line)


def when_ready(server: Any) -> None:
    port_in_use.leave(server, process.start_log)
    if process.settings.gc_freeze and server.cfg.preload_app:
        gc.collect()
        gc.freeze()


def on_reload(server: Any) -> None:
    """Give the master and its new workers the current settings.

    They come from gunicorn's configuration, which gunicorn has executed again, and from the ``.env`` file. A
    configuration that is a module is not executed again; the file is read in any case.
    """
    before = process.settings
    try:
        if environment.was_read():
            config.load_dotenv()
        process.settings = Settings.from_environ()
    except ConfigError as error:
        for problem in error.problems:
            server.log.error("flask_stability: %s; what was set before stays", problem)
    if process.supervisor is not None:
        process.supervisor.undo_on_reload = lambda: _back_to(server, before)
    if process.settings != before:
        contained("on_reload", _take_over, (server, before, process.settings))
    if process.once is not None:
        process.once.renew()
    for step in (refit, _be_patient):
        contained("on_reload", step, (server,))
    adjust(server, process.settings)


def _back_to(server: Any, before: Settings) -> None:
    """Restore the settings of before the reload, since its release was refused."""
    now, process.settings = process.settings, before
    if now != before:
        contained("on_reload", _take_over, (server, now, before))


def _take_over(server: Any, before: Settings, now: Settings) -> None:
    """Apply changed settings in the master itself."""
    if process.supervisor is not None:
        process.supervisor.configure(now)
    if any(getattr(before, field.name) != getattr(now, field.name)
           for field in fields(Settings) if field.name.startswith("log_")):
        problem = logs.setup(now, "master", uid=server.cfg.uid, gid=server.cfg.gid)
        if problem:
            server.log.warning("flask_stability: %s", problem)
    if before.run_dir != now.run_dir:
        server.log.warning("flask_stability: STABILITY_RUN_DIR=%s: takes effect when the service is started again; the "
                           "scoreboard stays where it is until then", now.run_dir or "")


def nworkers_changed(server: Any, new: Any, old: Any) -> None:
    return None


def pre_fork(server: Any, worker: Any) -> None:
    if process.supervisor is not None:
        process.supervisor.forking(worker)
    else:
        board = runtime.my_board()
        worker.stability_row = board.allocate(worker.age)
        board.master.words[scoreboard.M_BOOTS] += 1


def child_exit(server: Any, worker: Any) -> None:
    if process.supervisor is not None:
        process.supervisor.exited(worker)
    elif getattr(worker, "stability_row", None) is not None:
        board, row = runtime.my_board(), worker.stability_row
        begun = row.words[scoreboard.W_STARTED_NS]
        uptime = (time.monotonic_ns() - begun) / 1e9 if begun else 0.0
        reason = scoreboard.Reason.of(row.words[scoreboard.W_RETIRE_REASON]) or scoreboard.Reason.UNKNOWN
        board.add_restart(reason, worker.pid, uptime, row.slot)
        board.release(row)
        logs.process("worker_exit", worker_pid=worker.pid, reason=reason, uptime_s=round(uptime, 1))


def on_exit(server: Any) -> None:
    if process.supervisor is not None:
        process.supervisor.left()
    logs.process("stopped")
    runtime.my_board().unlink()
