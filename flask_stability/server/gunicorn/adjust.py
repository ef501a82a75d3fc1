"""Correct settings of gunicorn that contradict ours."""

from __future__ import annotations

from typing import Any

from ...config import Settings
from ..timeouts import breaches
from . import defaults
from .compat import is_a


def adjust(server: Any, settings: Settings) -> None:
    """Refuse, raise or report settings of gunicorn that contradict ours, one line each. Called again after each reload.
    """
    cfg = server.cfg
    if cfg.reuse_port and _tcp_migrate() != "1":
        server.log.error("flask_stability: reuse_port loses queued connections at every replacement: leave it off, "
                         "or set the sysctl net.ipv4.tcp_migrate_req=1; it is switched off now")
        cfg.set("reuse_port", False)
    longest = settings.request_timeout
    if is_a(cfg.worker_class, "sync") and longest and 0 < cfg.timeout < longest + 5:
        server.log.info("flask_stability: timeout raised from %s to %s s: on sync workers it is the request's deadline",
                        cfg.timeout, int(longest + 5))
        cfg.set("timeout", int(longest + 5))
        server.timeout = cfg.timeout
    for line in breaches(settings, graceful=float(cfg.graceful_timeout)):
        server.log.warning("flask_stability: %s", line)


def refit(server: Any) -> None:
    """Choose our defaults again, since another configuration file may have changed the options that they follow from.
    """
    if defaults.refit(server):
        server.worker_class = server.cfg.worker_class


def _tcp_migrate() -> str:
    try:
        with open("/proc/sys/net/ipv4/tcp_migrate_req", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
