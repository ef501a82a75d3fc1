"""gunicorn's side.

`install(globals())` at the end of a gunicorn.conf.py, or ``gunicorn -c python:flask_stability.server.conf``.
"""

from __future__ import annotations

from typing import Any


def install(namespace: dict[str, Any], *, defaults: bool = False) -> None:
    """Chain our server hooks into a gunicorn configuration, around its own.

    gunicorn's control socket is off unless the configuration, or an option, names one.

    :param namespace: the configuration's ``globals()``.
    :param defaults: set what neither the configuration nor gunicorn's options set: gthread workers (WEB_CONCURRENCY of
        them, or two per processor and at most 4), 4 threads, three connections per thread, timeouts.
    :raises ConfigError: if WEB_CONCURRENCY is not a number.
    """
    from . import standard_streams

    standard_streams.reserve()  # before any code opens a file that stays open
    from .gunicorn.defaults import control_socket_off, fill, options
    from .hooks import chain

    given = options()
    control_socket_off(namespace, given)
    if defaults:
        fill(namespace, given)
    chain(namespace)
