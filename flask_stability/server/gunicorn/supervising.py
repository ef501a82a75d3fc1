"""Take over a running arbiter before its signal handlers are set."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from gunicorn.arbiter import Arbiter

from . import compat
from .arbiter import SupervisedArbiter
from .arbiter23 import SupervisedArbiter23
from .glogging import Kills


def supervise(server: Any) -> SupervisedArbiter | None:
    """Make an arbiter supervised; the caller sets its `supervision` before anything else uses it.

    :returns: the same object; None if this gunicorn version lacks an attribute we rely on.
    """
    if not compat.can_supervise(server) or not isinstance(server, Arbiter):
        return None
    collects = compat.told_exits(server)
    kind = SupervisedArbiter if hasattr(server, "wait_for_signals") else SupervisedArbiter23
    try:
        server.__class__ = type(kind.__name__, (kind, type(server)), {})
    except TypeError:  # its class allows no subclass
        return None
    assert isinstance(server, SupervisedArbiter)
    server.begin(collects)
    error_log = getattr(server.log, "error_log", None)  # not every logger_class has one
    if isinstance(error_log, logging.Logger):
        error_log.addFilter(Kills(lambda pid: server.supervision.killed_for(pid)))
    return server


def is_first(server: Any) -> bool:
    """Return whether an arbiter replaces no other (SIGUSR2)."""
    return not server.master_pid


def make_upgradable(server: Any) -> None:
    """Have SIGUSR2 start ``python -m gunicorn`` the way it was started.

    gunicorn would run its own ``__main__.py`` by path. Its folder would then come first in the module search path, its
    ``http`` would hide Python's, and the second master would die at its first import.
    """
    script = os.path.abspath(server.START_CTX["args"][1])
    if os.path.basename(script) == "__main__.py" and os.path.basename(os.path.dirname(script)) == "gunicorn":
        server.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]
