"""Changes to gunicorn's workers under our hooks; `gthread` and `sync` hold the changes for only one class."""

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
    """End a worker that has unusable settings.

    The first such worker logs one line per problem; none writes a traceback.

    :param first: returns whether this worker is the first with such a problem.
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
    """Wrap the app that a worker has loaded."""
    worker.wsgi = wrap(worker.wsgi)


def beat_as_well(worker: Any, beat: Callable[[], None]) -> None:
    """Call `beat` at each of gunicorn's own signs of life."""
    notify = worker.notify

    def both() -> None:
        notify()
        beat()

    worker.notify = both


def watch_connections(worker: Any) -> Connections | None:
    """Begin to watch the connections of a sync or gthread worker.

    Return None, with a line in gunicorn's log, where this gunicorn or this system lacks a name that we rely on.
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
    """Have a sync or gthread worker leave as `drain` describes.

    A SIGTERM that the master has not announced went to this worker alone, or to the whole process group (supervisord,
    systemd). In the latter case the master says so a moment later; until then the worker keeps waiting connections.

    :returns: a function that another thread calls now and then once the worker must leave.
    """
    keep_names(worker)
    if hasattr(worker, "tpool"):
        gthread.leave_well(worker, last)
        return lambda: None
    return sync.Leaving(worker, last).leave
