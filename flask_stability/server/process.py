"""What is remembered from hook to hook, and the hand that holds what a hook raises."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .. import logs
from ..config import Settings
from .guard import Guard
from .starting import Once
from .supervisor import Supervisor

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


def contained(name: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Call a function; what it raises is told, and goes no further. `name`: the hook's."""
    try:
        function(*args)
    except BaseException as error:
        if not isinstance(error, Exception) and not (name in _IN_MASTER and isinstance(error, SystemExit)):
            raise
        logs.process("hook_failed", level="ERROR", hook=name, error=f"{type(error).__name__}: {error}"[:500])
