"""gunicorn's server hooks. None of ours can raise; the user's own are called as well, and contained like ours,
but for those that may refuse to start the service or to serve a request.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .. import config, environment, extension, logs, middleware, request, scoreboard
from ..config import Settings
from ..errors import hooks as process_hooks
from ..exceptions import ConfigError
from ..middleware import outermost
from ..request import in_flight
from . import orphans
from .forks import Forks, ignore
from .guard import Guard, tell_cut, tell_stacks_on_demand, wake_master
from .gunicorn import compat, port_in_use
from .gunicorn.adjust import adjust
from .gunicorn.arbiter import is_first, make_upgradable, supervise
from .gunicorn.compat import is_a
from .gunicorn.glogging import be_patient
from .gunicorn.worker import beat_as_well, leave_well, tell_bad_settings_once, watch_connections, wrap_app
from .starting import Once
from .supervisor import Supervisor
from .systemd import Notifier
from .timeouts import breaches

#: The hooks that are chained, and how many arguments gunicorn calls them with.
ARITY = {"on_starting": 1, "on_reload": 1, "when_ready": 1, "pre_fork": 2, "post_fork": 2, "post_worker_init": 1,
         "worker_abort": 1, "pre_request": 2, "child_exit": 2, "worker_exit": 2, "nworkers_changed": 3, "on_exit": 1}
#: Where the user's own exception refuses something, as in plain gunicorn: the start of the service, or one request.
_PASSED_ON = frozenset({"on_starting", "when_ready", "pre_request"})
#: Where a SystemExit would end the master: all that run in it once the service is up.
_IN_MASTER = frozenset({"on_reload", "pre_fork", "child_exit", "nworkers_changed"})


@dataclass
class Process:
    """What is remembered from hook to hook: by the master, and by each worker, which inherits it.

    :ivar supervisor: the master's; None where this gunicorn cannot be supervised.
    :ivar start_log: on gunicorn's log until the service listens.
    :ivar once: which of the workers tells what is true of them all.
    :ivar guard: the worker's.
    """

    settings: Settings = field(default_factory=Settings)
    supervisor: Supervisor | None = None
    start_log: logging.Filter | None = None
    once: Once | None = None
    guard: Guard | None = None


process = Process()


def chain(namespace: dict[str, Any]) -> None:
    """Put our hooks around those of a configuration.

    ``forwarder_headers`` is set to none where the configuration says nothing: gunicorn takes the path that a request is
    for from a client's header ``SCRIPT_NAME`` if that comes from a trusted address, as everything does behind a proxy
    on the same machine.
    """
    namespace.setdefault("forwarder_headers", "")
    for name, arity in ARITY.items():
        user = namespace.get(name)
        if getattr(user, "_flask_stability", False) or user is _pre_request:
            continue
        namespace[name] = _chained(name, arity, globals()["_" + name], user)


def _chained(name: str, arity: int, own: Callable[..., None], user: Callable[..., Any] | None) -> Callable[..., None]:
    if name == "pre_request" and user is None:
        return _pre_request  # on the path of every request: not wrapped
    # ours says "ready", or frees what the user's hook may still use: then the user's comes first
    first = name not in ("post_worker_init", "worker_exit", "on_exit")

    def call(*args: Any) -> None:
        if first:
            _contained(name, own, args)
        if user is not None:
            if name in _PASSED_ON:
                user(*args)
            else:
                _contained(name, user, args)
        if not first:
            _contained(name, own, args)

    # gunicorn looks at the number of parameters
    if arity == 1:
        def hook1(a: Any) -> None:
            call(a)
        hook: Any = hook1
    elif arity == 2:
        def hook2(a: Any, b: Any) -> None:
            call(a, b)
        hook = hook2
    else:
        def hook3(a: Any, b: Any, c: Any) -> None:
            call(a, b, c)
        hook = hook3
    hook.__name__ = hook.__qualname__ = name
    hook._flask_stability = True
    return hook  # type: ignore[no-any-return]


def _contained(name: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        function(*args)
    except BaseException as error:
        if not isinstance(error, Exception) and not (name in _IN_MASTER and isinstance(error, SystemExit)):
            raise
        logs.process("hook_failed", level="ERROR", hook=name, error=f"{type(error).__name__}: {error}"[:500])


# -- the master --------------------------------------------------------------------------------------------------


def _on_starting(server: Any) -> None:
    """Settings, logs, board, supervisor. The one place where a bad setting stops the start."""
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
    for step in (_be_patient, _tell_version, make_upgradable):
        _contained("on_starting", step, (server,))
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
        _contained("on_starting", orphans.end_stuck, (places, orphans.ports_of(cfg.address)))
        process.start_log = port_in_use.watch(server)
    run_dir = process.settings.run_dir or scoreboard.default_run_dir(uid)
    board, problem = scoreboard.Scoreboard.create(rows, run_dir, uid, gid)
    if problem:
        server.log.warning("flask_stability: %s: `flask stability status` will not work", problem)
    scoreboard.install(board, None)
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


def _when_ready(server: Any) -> None:
    port_in_use.leave(server, process.start_log)
    if process.settings.gc_freeze and server.cfg.preload_app:
        gc.collect()
        gc.freeze()


def _on_reload(server: Any) -> None:
    """New workers see the ``.env`` file of now, also where the configuration is a module, which is not read again."""
    if environment.was_read():
        try:
            config.load_dotenv()
            process.settings = Settings.from_environ()
        except ConfigError as error:
            for problem in error.problems:
                server.log.error("flask_stability: %s; what was set before stays", problem)
    if process.once is not None:
        process.once.renew()
    _contained("on_reload", _be_patient, (server,))
    adjust(server, process.settings)


def _nworkers_changed(server: Any, new: Any, old: Any) -> None:
    return None


def _pre_fork(server: Any, worker: Any) -> None:
    if process.supervisor is not None:
        process.supervisor.forking(worker)
    else:
        board = scoreboard.current()
        worker.stability_row = board.allocate(worker.age)
        board.master.words[scoreboard.M_BOOTS] += 1


def _child_exit(server: Any, worker: Any) -> None:
    if process.supervisor is not None:
        process.supervisor.exited(worker)
    elif getattr(worker, "stability_row", None) is not None:
        board, row = scoreboard.current(), worker.stability_row
        begun = row.words[scoreboard.W_STARTED_NS]
        uptime = (time.monotonic_ns() - begun) / 1e9 if begun else 0.0
        reason = scoreboard.REASONS[row.words[scoreboard.W_RETIRE_REASON]] if (
            row.words[scoreboard.W_RETIRE_REASON]) else "unknown"
        board.add_restart(reason, worker.pid, uptime, row.slot)
        board.release(row)
        logs.process("worker_exit", worker_pid=worker.pid, reason=reason, uptime_s=round(uptime, 1))


def _on_exit(server: Any) -> None:
    if process.supervisor is not None:
        process.supervisor.left()
    logs.process("stopped")
    scoreboard.current().unlink()


# -- a worker ----------------------------------------------------------------------------------------------------


def _post_fork(server: Any, worker: Any) -> None:
    if process.supervisor is not None and process.supervisor.control is not None:
        process.supervisor.control.close(inherited=True)
    if process.once is not None:
        tell_bad_settings_once(worker, process.once.first)
    row = getattr(worker, "stability_row", None)
    scoreboard.install(scoreboard.current(), row)
    if row is not None:
        row.words[scoreboard.W_AGE] = worker.age
        row.words[scoreboard.W_STARTED_NS] = time.monotonic_ns()
    logs.process("worker_boot", worker_pid=os.getpid(), age=worker.age, slot=row.slot if row is not None else None)


def _post_worker_init(worker: Any) -> None:
    """The app is loaded: watch it, and say that this worker is ready. No step that fails keeps the next from it."""
    for step in (_set_up_logs, _wrap_app, _tell_stacks, _watch_connections, _start_guard, _leave_well,
                 _watch_forks, _start_process, _say_ready):
        _contained("post_worker_init", step, (worker,))


def _set_up_logs(worker: Any) -> None:
    problem = logs.setup(process.settings, "worker")
    if problem and worker.age <= 1:  # told once
        worker.log.warning("flask_stability: %s", problem)
    before = signal.getsignal(signal.SIGUSR1)

    def reopen(number: int, frame: Any) -> None:
        logs.reopen()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGUSR1, reopen)
    signal.siginterrupt(signal.SIGUSR1, False)
    process_hooks.install()
    middleware.stopping = lambda: not worker.alive
    request.under_hooks = True


def _wrap_app(worker: Any) -> None:
    settings = next((state.settings for state in extension.apps()), process.settings)
    if is_a(type(worker), "sync", "gthread", "base_async", "gtornado"):
        wrap_app(worker, lambda app: outermost(app, settings))
    if worker.age > 1:
        return  # told once
    for line in breaches(settings, graceful=float(worker.cfg.graceful_timeout), app=True):
        worker.log.warning("flask_stability: %s", line)
    longest = request.longest_timeout
    if is_a(type(worker), "sync") and longest and 0 < worker.cfg.timeout < longest + 5:
        worker.log.warning("flask_stability: timeout=%s is below the longest view's deadline of %g s plus 5: on sync "
                           "workers it ends the request; raise timeout", worker.cfg.timeout, longest)


def _tell_stacks(worker: Any) -> None:
    tell_stacks_on_demand()


def _watch_connections(worker: Any) -> None:
    if is_a(type(worker), "sync", "gthread"):
        worker.stability_connections = watch_connections(worker)
        middleware.watches_uploads = worker.stability_connections is not None


def _start_guard(worker: Any) -> None:
    board, row = scoreboard.current(), scoreboard.my_row()
    if not is_a(type(worker), "sync", "gthread"):
        def beat() -> None:
            row.words[scoreboard.W_HEARTBEAT_NS] = time.monotonic_ns()

        beat_as_well(worker, beat)
        return
    guard = process.guard = Guard(
        worker, board, row, process.settings, int(worker.cfg.workers),
        supervised=not board.master.words[scoreboard.M_UNSUPERVISED] and process.supervisor is not None,
        connections=getattr(worker, "stability_connections", None))
    signal.signal(signal.SIGUSR2, lambda *_: guard.ask_collect())
    signal.siginterrupt(signal.SIGUSR2, False)
    ignore(signal.SIGHUP)
    guard.start()


def _leave_well(worker: Any) -> None:
    words, orders = scoreboard.current().master.words, scoreboard.my_row().orders

    def last() -> bool | None:
        if os.getppid() != worker.ppid:  # other orphans may serve what one that is kept would only hold
            return process.guard is None or not process.guard.kept()
        if words[scoreboard.M_DRAINING] == scoreboard.ENDING:
            return True
        return None if process.supervisor is not None and not orders[scoreboard.O_RETIRE_SINCE_NS] else False

    if is_a(type(worker), "sync", "gthread"):
        leave = leave_well(worker, last)
        if process.guard is not None:
            process.guard.leave = leave


def _watch_forks(worker: Any) -> None:
    Forks(worker).watch()


def _start_process(worker: Any) -> None:
    extension.start_process()


def _say_ready(worker: Any) -> None:
    row = scoreboard.my_row()
    row.words[scoreboard.W_HEARTBEAT_NS] = row.words[scoreboard.W_READY_NS] = time.monotonic_ns()
    row.words[scoreboard.W_STATE] = scoreboard.STATE_READY
    if process.supervisor is not None:
        wake_master(worker)
    begun = row.words[scoreboard.W_STARTED_NS] or row.words[scoreboard.W_READY_NS]
    logs.process("worker_ready", worker_pid=os.getpid(),
                 uptime_s=round((row.words[scoreboard.W_READY_NS] - begun) / 1e9, 1))


def _pre_request(worker: Any, req: Any) -> None:
    """Before this worker retires, kept-alive connections are closed in good order, one answer at a time."""
    try:
        row = scoreboard._row
        if row is not None and row.orders[scoreboard.O_RETIRE_STATE]:
            req.force_close()
    except Exception as error:  # here, since it is called unwrapped: no request is to fail for it
        logs.process("hook_failed", level="ERROR", hook="pre_request", error=f"{type(error).__name__}: {error}"[:500])


def _worker_abort(worker: Any) -> None:
    tell_cut()


def _worker_exit(server: Any, worker: Any) -> None:
    """The worker's last act: threads that refuse to end must not hold the process."""
    if os.getpid() != worker.pid:
        return  # gunicorn calls it in the master too, for a worker that vanished
    words = scoreboard.my_row().words
    if words[scoreboard.W_STATE] >= scoreboard.STATE_READY:  # the guard has no look any more once Python ends
        words[scoreboard.W_HEARTBEAT_NS] = time.monotonic_ns()
        words[scoreboard.W_STATE] = scoreboard.STATE_STOPPING
    extension.stop_process()
    if process.guard is not None:
        _contained("worker_exit", process.guard.last_words, ())
    if in_flight() and not worker.alive and getattr(worker, "tpool", None) is not None:
        tell_cut()
        sys.stderr.flush()
        os._exit(0)
