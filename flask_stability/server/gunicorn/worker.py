"""What gunicorn's workers do otherwise under our hooks; what only gthread or sync does is in `gthread` and `sync`."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from gunicorn.errors import AppImportError

from ...exceptions import ConfigError
from . import compat, gthread, sync
from .connections import Connections
from .drain import Last
from .listeners import keep_names


def tell_bad_settings_once(worker: Any, first: Callable[[], bool]) -> None:
    """Settings that cannot be used end the worker with one line a problem, from the first worker only, and no
    traceback.

    :param first: whether this worker is the first that has such a problem.
    """
    load = worker.load_wsgi

    def load_wsgi() -> None:
        try:
            load()
        except ConfigError as error:
            lines = [f"flask_stability: {problem}" for problem in error.problems] if first() else []
            raise AppImportError("\n".join(lines)) from error

    worker.load_wsgi = load_wsgi


def wrap_app(worker: Any, wrap: Callable[[Any], Any]) -> None:
    """Put something around the app that a worker has loaded."""
    worker.wsgi = wrap(worker.wsgi)


def beat_as_well(worker: Any, beat: Callable[[], None]) -> None:
    """Call `beat` at each of gunicorn's own signs of life."""
    notify = worker.notify

    def both() -> None:
        notify()
        beat()

    worker.notify = both


def watch_connections(worker: Any) -> Connections | None:
    """Begin with a sync or gthread worker; None, with a line in gunicorn's log, where this gunicorn or this system
    lacks what it needs.
    """
    threaded = hasattr(worker, "tpool")
    lacking = [name for name in compat.CONNECTIONS["gthread" if threaded else "sync"] if not hasattr(worker, name)]
    if not hasattr(select, "epoll"):
        lacking.append("epoll")
    if lacking:
        worker.log.warning("flask_stability: slow clients are not kept from the threads: this gunicorn or system lacks "
                           "%s", ", ".join(lacking))
        return None
    return gthread.Threaded(worker) if threaded else sync.Single(worker)


def leave_well(worker: Any, last: Last) -> Callable[[], None]:
    """Have a sync or gthread worker leave as `drain` says.

    A SIGTERM that the master has not announced went to this worker alone, or to the whole process group (supervisord,
    systemd): then the master says so a moment later, and until then the worker keeps what waits.

    :returns: to be called now and then by another thread once the worker is told to leave.
    """
    keep_names(worker)
    if hasattr(worker, "tpool"):
        gthread.leave_well(worker, last)
        return lambda: None
    return sync.Leaving(worker, last).leave
