"""The changes that a reload makes in gunicorn's master, and how to undo them."""

from __future__ import annotations

import os
from typing import Any

from gunicorn import util
from gunicorn.pidfile import Pidfile

from .compat import is_a

#: Attributes of the arbiter that a reload replaces.
_NAMES = ("cfg", "_num_workers", "worker_class", "address", "timeout", "proc_name")


class Former:
    """The master's configuration and environment at this moment.

    :param arbiter: gunicorn's.
    """

    def __init__(self, arbiter: Any) -> None:
        self._arbiter = arbiter
        self._values = {name: getattr(arbiter, name) for name in _NAMES if hasattr(arbiter, name)}
        self._app = dict(vars(arbiter.app))
        self._environ = dict(os.environ)

    def restore(self) -> None:
        """Restore them. The listeners stay the same: a reload that changes them cannot be undone."""
        arbiter = self._arbiter
        now = arbiter.cfg
        for name, value in self._values.items():
            setattr(arbiter, name, value)
        vars(arbiter.app).update(self._app)
        arbiter.app.cfg = cfg = self._values["cfg"]
        for name in set(os.environ) - set(self._environ):
            del os.environ[name]
        for name, value in self._environ.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        if now is cfg or now is None:
            return
        arbiter.log.setup(cfg)
        if now.pidfile != cfg.pidfile:
            self._rename_pidfile(cfg.pidfile)
        util._setproctitle(f"master [{arbiter.proc_name}]")

    def _rename_pidfile(self, name: str | None) -> None:
        arbiter = self._arbiter
        if arbiter.pidfile is not None:
            arbiter.pidfile.unlink()
        arbiter.pidfile = Pidfile(name) if name is not None else None
        if arbiter.pidfile is not None:
            arbiter.pidfile.create(arbiter.pid)

    def problem(self) -> str:
        """Return why the old and the new release cannot serve side by side, or "" if they can."""
        arbiter, before = self._arbiter, self._values["cfg"]
        now = arbiter.cfg
        if self._values["address"] != now.address:
            return "bind has changed"
        if (before.uid, before.gid) != (now.uid, now.gid):
            return "user or group has changed"
        if before.worker_class_str != now.worker_class_str:
            return "worker_class has changed"
        if now.preload_app or before.preload_app:
            return "preload_app loads the code into the master"
        if not is_a(now.worker_class, "sync", "gthread"):
            return f"workers of class {now.worker_class_str} are not watched"
        return ""
