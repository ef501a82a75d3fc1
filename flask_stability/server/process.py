"""State that our hooks share, and the containment of exceptions in hooks."""

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

#: Hooks in which a SystemExit would end the master: all that run in it once the service is up.
_IN_MASTER = frozenset({"on_reload", "pre_fork", "child_exit", "nworkers_changed"})


@dataclass
class Process(Part):
    """State that the hooks share: in the master, and in each worker, which inherits it.

    :ivar supervisor: the master's; None where this gunicorn cannot be supervised.
    :ivar start_log: the filter on gunicorn's log until the service listens.
    :ivar once: chooses the one worker that logs facts that are true of all workers.
    :ivar guard: the worker's guard.
    :ivar forks: handles the processes that a worker's views fork.
    """

    settings: Settings = field(default_factory=Settings)
    supervisor: Supervisor | None = None
    start_log: logging.Filter | None = None
    once: Once | None = None
    guard: Guard | None = None
    forks: Forks | None = None

    def before_fork(self) -> None:
        """Block the worker's signals during the fork, so that the child does not handle them."""
        if self.forks is not None:
            self.forks.before()

    def after_fork_in_parent(self) -> None:
        """Unblock the worker's signals in the parent."""
        if self.forks is not None:
            self.forks.after()

    def reset_after_fork(self) -> None:
        """Forget the guard, whose thread is the parent's; give up the worker's signals and listeners in its child."""
        self.guard = None
        if self.forks is not None:
            self.forks.in_child()


process = runtime.add("server", Process())


def contained(name: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Call a function; log its exception instead of raising it.

    :param name: the hook's name.
    """
    try:
        function(*args)
    except BaseException as error:
        if not isinstance(error, Exception) and not (name in _IN_MASTER and isinstance(error, SystemExit)):
            raise
        logs.process("hook_failed", level="ERROR", hook=name, error=f"{type(error).__name__}: {error}"[:500])
