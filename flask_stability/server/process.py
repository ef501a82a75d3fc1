"""What is remembered from hook to hook, and the hand that holds what a hook raises."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .. import logs
from ..config import Settings
from ..runtime import Part, runtime
from .forks import Forks
from .guard import Guard
from .starting import Once
from .supervisor import Supervisor

#: Where a SystemExit would end the master: all that run in it once the service is up.
_IN_MASTER = frozenset({"on_reload", "pre_fork", "child_exit", "nworkers_changed"})


@dataclass
class Process(Part):
    """What is remembered from hook to hook: by the master, and by each worker, which inherits it.

    :ivar supervisor: the master's; None where this gunicorn cannot be supervised.
    :ivar start_log: on gunicorn's log until the service listens.
    :ivar once: which of the workers tells what is true of them all.
    :ivar guard: the worker's.
    :ivar forks: what a worker does about the processes that its views fork.
    """

    settings: Settings = field(default_factory=Settings)
    supervisor: Supervisor | None = None
    start_log: logging.Filter | None = None
    once: Once | None = None
    guard: Guard | None = None
    forks: Forks | None = None

    def before_fork(self) -> None:
        """Hold the worker's signals back from the child."""
        if self.forks is not None:
            self.forks.before()

    def after_fork_in_parent(self) -> None:
        """Let them in again."""
        if self.forks is not None:
            self.forks.after()

    def reset_after_fork(self) -> None:
        """The guard's thread is the parent's; a worker's child gives up the worker's signals and listeners."""
        self.guard = None
        if self.forks is not None:
            self.forks.in_child()


process = runtime.add("server", Process())


def contained(name: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Call a function; what it raises is told, and goes no further. `name`: the hook's."""
    try:
        function(*args)
    except BaseException as error:
        if not isinstance(error, Exception) and not (name in _IN_MASTER and isinstance(error, SystemExit)):
            raise
        logs.process("hook_failed", level="ERROR", hook=name, error=f"{type(error).__name__}: {error}"[:500])
