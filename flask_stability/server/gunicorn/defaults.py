"""Our defaults for gunicorn's options. Some follow from others, so we choose them when all options are known.

gunicorn reads the command line and GUNICORN_CMD_ARGS before a configuration file; we read both here, so that
``--threads 30`` also raises the connections, and our number of threads does not turn ``-k sync`` into gthread.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from typing import Any

from gunicorn import util
from gunicorn.config import Config

from ...exceptions import ConfigError
from .compat import is_a

THREADS = 4
CONNECTIONS = 3  #: × the threads: a wedged worker accepts no more than it could serve
_FOLLOW = ("threads", "worker_connections")
_chosen: dict[str, Any] = {}  #: the values of `_FOLLOW` that we have chosen


def options() -> dict[str, Any]:
    """Return the options in GUNICORN_CMD_ARGS and on the command line, as gunicorn itself reads them."""
    found: dict[str, Any] = {}
    config = Config()
    for arguments in (config.get_cmd_args_from_env(), sys.argv[1:]):
        # gunicorn has complained already; an application that embeds it has arguments of its own
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            parsed, _ = config.parser().parse_known_args(arguments)
            found.update({name: value for name, value in vars(parsed).items() if value is not None})
    return found


def fill(namespace: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Set in a configuration what neither it nor an option gives.

    :param given: from `options`.
    :raises ConfigError: if WEB_CONCURRENCY is not a number.
    """
    namespace.setdefault("worker_class", "gthread")
    if "workers" not in namespace:
        namespace["workers"] = _web_concurrency(min(4, 2 * (os.cpu_count() or 1)))
    namespace.setdefault("timeout", 30)
    namespace.setdefault("graceful_timeout", 30)
    namespace.setdefault("keepalive", 5)
    known = {**{name: namespace[name] for name in _FOLLOW if name in namespace}, **given}
    values = following(given.get("worker_class", namespace["worker_class"]),
                       *(known.get(name) for name in _FOLLOW))
    _chosen.clear()
    _chosen.update({name: value for name, value in values.items() if name not in known})
    namespace.update(_chosen)


def control_socket_off(namespace: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Switch gunicorn's control socket off unless the configuration asks for it.

    All services of a user share its default path, and each takes it from the one before.
    """
    if not any(name.startswith("control_socket") for name in (*namespace, *given)):
        namespace["control_socket_disable"] = True


def refit(holder: Any) -> bool:
    """Choose again if another file changed what our values follow from; return whether that changed anything.

    A configuration may import ours and set threads of its own.

    :param holder: the object that has the ``cfg``: gunicorn's arbiter or application.
    """
    if not _chosen:
        return False
    cfg = holder.cfg
    before = {name: getattr(cfg, name) for name in _FOLLOW}
    after = following(cfg.settings["worker_class"].get(), *(
        None if value == _chosen.get(name) else value for name, value in before.items()))
    for name, value in after.items():
        if value != before[name]:
            cfg.set(name, value)
    return after != before


def following(worker_class: Any, threads: Any, connections: Any) -> dict[str, int]:
    """Return threads and worker_connections: as given, else what suits the rest.

    :param worker_class: gunicorn's option: a name or a class.
    :param threads: None = not given, as with `connections`.
    """
    if threads is None:
        threads = THREADS if _kind(worker_class, "gthread") else 1  # more would turn sync into gthread
    if connections is None:
        threaded = _kind(worker_class, "gthread") or (_kind(worker_class, "sync") and int(threads) > 1)
        connections = CONNECTIONS * int(threads) if threaded else Config().worker_connections
    return {"threads": int(threads), "worker_connections": int(connections)}


def _kind(worker_class: Any, name: str) -> bool:
    try:
        return is_a(util.load_class(worker_class), name)
    except Exception:  # gunicorn reports the reason, and ends
        return False


def _web_concurrency(otherwise: int) -> int:
    """Return WEB_CONCURRENCY as gunicorn reads it; it may come from ``.env`` too, which gunicorn does not read.

    :raises ConfigError: if it is not a number.
    """
    given = os.environ.get("WEB_CONCURRENCY")
    if given is None:
        return otherwise
    if not given.strip().isdecimal():
        raise ConfigError(f"WEB_CONCURRENCY={given[:80]!r}: give a number of workers, such as 4")
    return int(given)
