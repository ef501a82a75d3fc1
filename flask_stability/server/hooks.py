"""gunicorn's server hooks. None of ours can raise; the user's own are called as well, and contained where an
exception of theirs would end the master.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from .. import config, extension, logs, middleware, scoreboard
from ..config import Settings
from ..errors import hooks as process_hooks
from ..exceptions import ConfigError
from ..middleware import StabilityMiddleware
from ..request import inflight
from .guard import Guard, tell_cut
from .order import breaches
from .supervisor import Supervisor

#: The hooks that are chained, and how many arguments gunicorn calls them with.
ARITY = {"on_starting": 1, "on_reload": 1, "when_ready": 1, "pre_fork": 2, "post_fork": 2, "post_worker_init": 1,
         "worker_abort": 1, "pre_request": 2, "child_exit": 2, "worker_exit": 2, "nworkers_changed": 3, "on_exit": 1}
#: Where the user's own exception is to stop what is starting, as in plain gunicorn.
_PASSED_ON = frozenset({"on_starting", "when_ready", "post_fork", "post_worker_init", "pre_request"})

supervisor: Supervisor | None = None
guard: Guard | None = None
_settings = Settings()


def chain(namespace: dict[str, Any]) -> None:
    """Put our hooks around those of a configuration."""
    for name, arity in ARITY.items():
        user = namespace.get(name)
        if getattr(user, "_flask_stability", False) or user is _pre_request:
            continue
        namespace[name] = _chained(name, arity, globals()["_" + name], user)


def _chained(name: str, arity: int, own: Callable[..., None], user: Callable[..., Any] | None) -> Callable[..., None]:
    if name == "pre_request" and user is None:
        return _pre_request  # on the path of every request: not wrapped
    first = name not in ("worker_exit", "on_exit")

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
    except ConfigError:
        raise
    except Exception as error:
        logs.process("hook_failed", level="ERROR", hook=name, error=f"{type(error).__name__}: {error}"[:500])


# -- the master --------------------------------------------------------------------------------------------------


def _on_starting(server: Any) -> None:
    """Settings, logs, board, supervisor. The one place where a bad setting stops the start."""
    global supervisor, _settings
    try:
        _settings = Settings.from_environ()
    except ConfigError as error:
        for problem in error.problems:
            server.log.error("flask_stability: %s", problem)
        sys.exit(1)
    problem = logs.setup(_settings, "master")
    if problem:
        server.log.warning("flask_stability: %s", problem)
    for key, nearest in config.unknown_keys(os.environ).items():
        if nearest is not None:
            server.log.warning("flask_stability: %s is no setting: did you mean %s?", key, nearest)
    _adjust(server)
    cfg = server.cfg
    rows = max(64, 4 * int(cfg.workers))
    run_dir = _settings.run_dir or scoreboard.default_run_dir()
    uid = cfg.uid if cfg.uid != os.geteuid() else -1
    gid = cfg.gid if cfg.gid != os.getegid() else -1
    board, problem = scoreboard.Scoreboard.create(rows, run_dir, uid, gid)
    if problem:
        server.log.warning("flask_stability: %s: `flask stability status` will not work", problem)
    scoreboard.install(board, None)
    supervisor = Supervisor(server, board, _settings)
    if not supervisor.wrap():
        supervisor = None
        board.master.words[scoreboard.M_UNSUPERVISED] = 1
        server.log.warning("flask_stability: this gunicorn lacks what replacement before retirement needs: "
                           "workers retire by themselves")
    logs.process("started", board=board.path, workers=int(cfg.workers), worker_class=str(cfg.worker_class_str))


def _adjust(server: Any) -> None:
    """gunicorn's settings that contradict ours: refused, raised, or told, one line each."""
    cfg = server.cfg
    if cfg.reuse_port and _tcp_migrate() != "1":
        server.log.error("flask_stability: reuse_port loses queued connections at every replacement: leave it off, "
                         "or set the sysctl net.ipv4.tcp_migrate_req=1; it is switched off now")
        cfg.set("reuse_port", False)
    longest = _settings.request_timeout
    if "sync" in str(cfg.worker_class_str) and longest and 0 < cfg.timeout < longest + 5:
        server.log.info("flask_stability: timeout raised from %s to %s s: on sync workers it is the request's deadline",
                        cfg.timeout, int(longest + 5))
        cfg.set("timeout", int(longest + 5))
        server.timeout = cfg.timeout
    for line in breaches(_settings, graceful=float(cfg.graceful_timeout)):
        server.log.warning("flask_stability: %s", line)
    kind = str(cfg.worker_class_str)
    if "sync" not in kind and "thread" not in kind:
        server.log.warning("flask_stability: worker class %s: the guard (deadlines, memory) is off, the rest works",
                           kind)


def _tcp_migrate() -> str:
    try:
        with open("/proc/sys/net/ipv4/tcp_migrate_req", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _when_ready(server: Any) -> None:
    if _settings.gc_freeze and server.cfg.preload_app:
        gc.collect()
        gc.freeze()


def _on_reload(server: Any) -> None:
    return None


def _nworkers_changed(server: Any, new: Any, old: Any) -> None:
    return None


def _pre_fork(server: Any, worker: Any) -> None:
    if supervisor is not None:
        supervisor.forking(worker)
    else:
        worker.stability_row = scoreboard.current().allocate(worker.age)


def _child_exit(server: Any, worker: Any) -> None:
    if supervisor is not None:
        supervisor.exited(worker)
    elif getattr(worker, "stability_row", None) is not None:
        board, row = scoreboard.current(), worker.stability_row
        uptime = (time.monotonic_ns() - row.words[scoreboard.W_STARTED_NS]) / 1e9
        board.add_restart(scoreboard.REASONS[row.words[scoreboard.W_RETIRE_REASON]] if
                          row.words[scoreboard.W_RETIRE_REASON] else "unknown", worker.pid, uptime, row.slot)
        board.release(row)


def _on_exit(server: Any) -> None:
    logs.process("stopped")
    scoreboard.current().unlink()


# -- a worker ----------------------------------------------------------------------------------------------------


def _post_fork(server: Any, worker: Any) -> None:
    row = getattr(worker, "stability_row", None)
    scoreboard.install(scoreboard.current(), row)
    if row is not None:
        row.words[scoreboard.W_AGE] = worker.age
        row.words[scoreboard.W_STARTED_NS] = time.monotonic_ns()


def _post_worker_init(worker: Any) -> None:
    """The app is loaded: watch it, and say that this worker is ready."""
    global guard
    board, row = scoreboard.current(), scoreboard.my_row()
    logs.setup(_settings, "worker")
    process_hooks.install()
    middleware.stopping = lambda: not worker.alive
    settings = next((state.settings for state in extension.apps()), _settings)
    worker.wsgi = StabilityMiddleware(worker.wsgi, settings=settings)
    for line in breaches(settings, graceful=float(worker.cfg.graceful_timeout), app=True):
        worker.log.warning("flask_stability: %s", line)
    watched = _watched(worker)
    if watched:
        guard = Guard(worker, board, row, _settings, int(worker.cfg.workers),
                      supervised=not board.master.words[scoreboard.M_UNSUPERVISED] and supervisor is not None)
        signal.signal(signal.SIGUSR2, lambda *_: guard.ask_collect() if guard is not None else None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.siginterrupt(signal.SIGUSR2, False)
    now = time.monotonic_ns()
    row.words[scoreboard.W_HEARTBEAT_NS] = row.words[scoreboard.W_READY_NS] = now
    row.words[scoreboard.W_STATE] = scoreboard.STATE_READY
    if guard is not None:
        guard.start()
    extension.start_process()


def _watched(worker: Any) -> bool:
    """Whether the worker's requests run in threads that a guard thread can look at."""
    modules = {base.__module__ for base in type(worker).__mro__}
    return bool(modules & {"gunicorn.workers.sync", "gunicorn.workers.gthread"})


def _pre_request(worker: Any, req: Any) -> None:
    """Before this worker retires, kept-alive connections are closed in good order, one answer at a time."""
    if guard is not None and guard.closing:
        req.force_close()


def _worker_abort(worker: Any) -> None:
    tell_cut()


def _worker_exit(server: Any, worker: Any) -> None:
    """The worker's last act: threads that refuse to end must not hold the process."""
    if os.getpid() != worker.pid:
        return  # gunicorn calls it in the master too, for a worker that vanished
    extension.stop_process()
    if inflight and not worker.alive and getattr(worker, "tpool", None) is not None:
        tell_cut()
        sys.stderr.flush()
        os._exit(0)
