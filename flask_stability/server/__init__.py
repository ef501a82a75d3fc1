"""gunicorn's side.

`install(globals())` at the end of a gunicorn.conf.py, or ``gunicorn -c python:flask_stability.server.conf``.
"""

from __future__ import annotations

from typing import Any


def install(namespace: dict[str, Any]) -> None:
    """Chain our server hooks into a gunicorn configuration, around its own.

    :param namespace: the configuration's ``globals()``.
    """
    from . import standard_streams

    standard_streams.reserve()  # before anything is opened that stays open
    from .hooks import chain

    chain(namespace)
