"""What every kind of gunicorn worker does otherwise under our hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gunicorn.errors import AppImportError

from ...exceptions import ConfigError


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
