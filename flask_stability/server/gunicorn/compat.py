"""Every undocumented name of gunicorn that we rely on, checked once at start.

Tested with the versions in `TESTED`. For another version one line reports what it lacks and what that costs; without a
vital name the workers retire by themselves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import CodeType
from typing import Any

import gunicorn

#: Major versions that the tests run with.
TESTED = range(23, 28)


@dataclass(frozen=True)
class Need:
    """A name of gunicorn's that we need.

    :ivar names: any one of them is enough.
    :ivar cost: what does not work without it.
    """

    names: tuple[str, ...]
    cost: str


#: Without any of these the arbiter cannot be supervised.
VITAL = ("manage_workers", "reap_workers", "reload", "stop", "handle_term", "handle_usr1", "_num_workers", "WORKERS",
         "LISTENERS", "worker_age", "reexec_pid", "master_pid", "cfg", "log", "app")
ARBITER = (
    Need(("wait_for_signals", "sleep"), "the master looks at its workers once a second at best"),
    Need(("murder_workers",), "a worker past `timeout` may be killed before its stacks are logged"),
    Need(("spawn_workers",), "spare workers start one by one"),
    Need(("spawn_worker",), "spare workers start one by one, and more workers than rows are not seen"),
    Need(("START_CTX",), "SIGUSR2 may not find `python -m gunicorn`"),
    Need(("timeout",), "`timeout` is not raised above the longest request's deadline"),
)
WORKER = (
    Need(("alive",), "a worker's end is not noticed"),
    Need(("sockets",), "a worker that leaves holds the port until its last request is done"),
    Need(("ppid",), "orphaned workers are not noticed"),
    Need(("notify",), "other worker classes show no sign of life"),
    Need(("nr",), "stuck threads may be taken for busy ones"),
    Need(("wsgi",), "exceptions outside Flask are not handled"),
    Need(("aborted",), "an exit past `timeout` counts as a crash"),
    Need(("tmp",), "descriptors of workers that do not boot stay open"),
)
GTHREAD = (
    Need(("enqueue_req",), "clients that send half a head keep threads"),
    Need(("poller",), "clients that send half a head keep threads"),
    Need(("tpool",), "no spare threads, and all threads being stuck is not noticed"),
    Need(("set_accept_enabled", "futures"), "a worker that leaves holds the port until its last request is done"),
    Need(("accept",), "connections that wait at the service's end are reset"),
    Need(("nr_conns",), "connections that wait at the service's end are reset"),
    Need(("worker_connections",), "spare threads get no more connections"),
    Need(("handle_quit",), "SIGINT and SIGQUIT may wait for a lock until the worker is killed"),
)
SYNC = (
    Need(("wait_fds",), "clients that send half a head keep workers"),
    Need(("accept",), "connections that wait at the service's end are reset"),
    Need(("run",), "connections that wait at the service's end are reset"),
    Need(("handle",), "connections that wait at the service's end are reset"),
    Need(("handle_exit",), "connections that wait at the service's end are reset"),
)
#: Without any of these, nothing keeps slow clients from occupying threads.
CONNECTIONS = {"gthread": ("enqueue_req", "handle", "poller", "tpool", "nr_conns", "worker_connections"),
               "sync": ("accept", "handle", "run", "wait_fds", "sockets")}


def can_supervise(server: Any) -> bool:
    """Return whether this arbiter has the names that replacement before retirement needs."""
    return all(hasattr(server, name) for name in VITAL)


def told_exits(server: Any) -> dict[str, Any] | None:
    """Return the globals of the function that collects the workers' exits if it calls ``os.waitpid``, else None."""
    function = getattr(type(server), "reap_workers", None)
    names = getattr(function, "__globals__", {})
    code = getattr(function, "__code__", None)
    return names if names.get("os") is os and code is not None and "waitpid" in code.co_names else None


def lacks(server: Any) -> list[str]:
    """Return the names that we rely on and this gunicorn lacks: one text each, with the cost."""
    found = [f"Arbiter.{name} (no replacement before retirement, no supervision)"
             for name in VITAL if not hasattr(server, name)]
    if told_exits(server) is None:
        found.append("os.waitpid in Arbiter.reap_workers (an exit's reason may be unknown)")
    found += _missing("Arbiter", names_of(type(server)) | set(dir(server)), ARBITER)
    worker_class = server.cfg.worker_class
    names = names_of(worker_class)
    found += _missing("Worker", names, WORKER)
    if is_a(worker_class, "gthread"):
        found += _missing("ThreadWorker", names, GTHREAD)
    elif is_a(worker_class, "sync"):
        found += _missing("SyncWorker", names, SYNC)
    return found


def verdict(server: Any, version: str = gunicorn.__version__) -> str:
    """Return one line for the log if this gunicorn is no tested version or lacks a name, else an empty text."""
    major = version.partition(".")[0]
    known = major.isdecimal() and int(major) in TESTED
    missing = lacks(server)
    if known and not missing:
        return ""
    return (f"gunicorn {version} is {'' if known else 'not '}among the tested versions ({TESTED[0]} to {TESTED[-1]}); "
            + (f"it lacks {'; '.join(missing)}" if missing else "it lacks nothing that is known to be needed"))


def is_a(worker_class: type, *names: str) -> bool:
    """Return whether a worker class is, or derives from, one of gunicorn's."""
    modules = {base.__module__ for base in worker_class.__mro__}
    return any(f"gunicorn.workers.{name}" in modules for name in names)


def names_of(cls: type) -> set[str]:
    """Return the attributes of a class and of its instances, without an instance: the names that its methods use."""
    found = set(dir(cls))
    for base in cls.__mro__:
        for value in vars(base).values():
            code = getattr(getattr(value, "__func__", value), "__code__", None)
            if isinstance(code, CodeType):
                found.update(code.co_names)
    return found


def _missing(owner: str, names: set[str], needs: tuple[Need, ...]) -> list[str]:
    return [f"{owner}.{' or '.join(need.names)} ({need.cost})" for need in needs if not names.intersection(need.names)]
