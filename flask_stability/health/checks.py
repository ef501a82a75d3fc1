"""The built-in checks and the database checks. They run in threads of their own, never in a request."""

from __future__ import annotations

import os
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING

from .. import scoreboard as board
from ..config import Settings
from ..database.engine import engine_probe, watch_engine
from ..database.probe import is_busy, round_trip
from ..memory import cgroup
from ..memory.policy import container_too_small, limit_too_low
from ..memory.trackers import growing
from ..runtime import runtime
from ..scoreboard import Row, Scoreboard, Totals, percentile
from .certificates import Certificates
from .checks_base import Check, CheckWarning, Details
from .error_rate import INTERVAL, NAME, ErrorRate
from .slo import BurnRate

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from ..database import Pool

__all__ = ["Check", "CheckWarning", "broken_database_check", "builtin", "database_check"]

def __getattr__(name: str) -> type[CheckWarning]:
    if name != "Worry":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("flask_stability.health.checks.Worry is now CheckWarning: import that", DeprecationWarning,
                  stacklevel=2)
    return CheckWarning


FULL = 5.0  #: seconds for which all connections of a worker are in use before the check warns


def database_check(pool: Pool, settings: Settings, *, shared: bool) -> Check:
    """Return the database check, on a connection of its own: an exhausted pool is not a database outage.

    It is critical. It runs immediately when a worker fails to connect, or succeeds again.

    :param shared: the leader checks for all; else each worker that has the check does.
    """
    patience = 0.8 * settings.health_timeout  # so that the driver reports its own reason, not "timeout"

    def ask() -> Details:
        try:
            seconds = round_trip(pool.driver, patience)
        except Exception as error:
            # other connections work: no request fails because of it
            if is_busy(pool.driver, error) and any(row.words[board.W_DB_SIZE] for row in runtime.my_board().live()):
                raise CheckWarning("the database takes no more connections now", kind=pool.driver.kind) from error
            raise
        return {"latency_ms": round(seconds * 1000, 2), "kind": pool.driver.kind}

    def sign() -> object:
        rows = runtime.my_board().live() if shared else [runtime.my_row()]
        return [(int(row.words[board.W_DB_CONNECT_ERRORS]), int(row.words[board.W_DB_BREAKER])) for row in rows]

    return Check("database", ask, critical=True, shared=shared, sign=sign)


def engine_check(engine: Engine, name: str) -> Check:
    """Return the check of an SQLAlchemy engine's database.

    It is critical. It runs immediately when an error of the engine in any worker means that the database is
    unavailable.
    """
    watch_engine(engine)
    return Check(name, partial(engine_probe, engine), critical=True,
                 sign=lambda: [int(row.words[board.W_ENGINE_ERRORS]) for row in runtime.my_board().live()])


def broken_database_check(error: Exception) -> Check:
    """Return a failing check in place of `database_check`, for a configured database for which no pool can be created.
    """
    def fail() -> Details:
        raise error

    return Check("database", fail, critical=True)


def builtin(settings: Settings, shared: Scoreboard, row: Row) -> list[Check]:
    """Return the checks that every service has."""
    found = [Check(NAME, ErrorRate(settings, shared), critical=settings.health_fail_error_rate is not None,
                   interval=min(INTERVAL, settings.health_interval)),
             Check("memory", lambda: _memory(settings, shared, row), shared=False),
             Check("pool", lambda: _pool(row), shared=False,
                   sign=lambda: (_full(row), int(row.words[board.W_DB_BREAKER]))),
             Check("disk", lambda: _disk(settings)),
             Check("response_time", _ResponseTime(settings, shared)),
             Check("release", lambda: _release(shared), interval=min(INTERVAL, settings.health_interval),
                   sign=lambda: shared.master.releases.writes),
             Check("restarts", lambda: _restarts(shared)), Check("logs", _LogDrops(shared))]
    if settings.slo is not None:
        found.append(Check("slo", BurnRate(settings.slo, shared)))
    if settings.health_certificates:
        found.append(Check("certificates", Certificates(settings.health_certificates, settings.health_timeout)))
    return found


def _release(shared: Scoreboard) -> Details:
    """Warn about a refused release, until the next one is accepted."""
    found = shared.master.releases.read_json({})
    details = {"serving": found.get("serving"), "on_trial": found.get("coming") or None, "phase": found.get("phase")}
    refused = found.get("refused")
    if refused:
        raise CheckWarning(str(refused["text"]), refused=refused["release"], **details)
    return details


def _memory(settings: Settings, shared: Scoreboard, row: Row) -> Details:
    words = row.words
    own, limit = int(words[board.W_OWN_MEMORY]), int(words[board.W_MEMORY_LIMIT])
    details = {"rss_bytes": int(words[board.W_RSS]), "private_bytes": own, "limit_bytes": limit}
    if words[board.W_LEAK_VERDICT]:
        raise CheckWarning("memory leak suspected", **details)
    if limit and own > 0.9 * limit:
        raise CheckWarning("close to the limit", **details)
    growth = growing(words[board.W_GROWING])
    if growth:
        raise CheckWarning(f"steadily growing: {', '.join(growth)}", **details)
    if limit_too_low(limit, int(words[board.W_WARM_FLOOR])):
        raise CheckWarning("the limit is below 1.2 × what a warm worker needs", **details)
    workers, floor = int(shared.master.words[board.M_BASE_WORKERS]), int(words[board.W_WARM_FLOOR])
    common = int(words[board.W_COMMON_MEMORY])
    if settings.memory_limit is None and workers and container_too_small(cgroup.limit(), workers, floor, common):
        raise CheckWarning("the container is too small for its workers", **details)
    return details


def _pool(row: Row) -> Details:
    words = row.words
    details = {"in_use": int(words[board.W_DB_IN_USE]), "max": int(words[board.W_DB_MAX]),
               "waiting": int(words[board.W_DB_WAITING])}
    if words[board.W_DB_BREAKER]:
        raise CheckWarning("the circuit to the database is open", **details)
    if details["waiting"]:
        raise CheckWarning("threads wait for a connection", **details)
    if _full(row):
        raise CheckWarning(f"all connections have been in use for more than {FULL:g} s", **details)
    return details


def _full(row: Row) -> bool:
    since = row.words[board.W_DB_FULL_NS]
    return bool(since) and time.monotonic_ns() - since > FULL * 1e9


def _disk(settings: Settings) -> Details:
    """Check space and inodes: a file system without either accepts no file."""
    found: Details = {}
    low = []
    for path in settings.health_disk_paths:
        figures = os.statvfs(path)
        free, total = figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize
        found[path] = {"free_bytes": free, "total_bytes": total, "free_inodes": figures.f_favail,
                       "total_inodes": figures.f_files}
        if total and free < settings.health_disk_min_free * total:
            low.append(f"little space on {path}")
        if figures.f_files and figures.f_favail < settings.health_disk_min_free * figures.f_files:
            low.append(f"few inodes left on {path}: remove small files")
    if low:
        raise CheckWarning("; ".join(low), **found)
    return found


class _ResponseTime:
    """Checks mean and 95th percentile of all workers since its last run.

    The first run of a new leader, or of one that leads again, only stores the totals: old requests are not recent.
    """

    def __init__(self, settings: Settings, shared: Scoreboard) -> None:
        self._settings, self._board = settings, shared
        self._before: Totals | None = None
        self._looked = 0.0

    def __call__(self) -> Details:
        now, totals = time.monotonic(), self._board.totals()
        before = self._before if now - self._looked < 3 * self._settings.health_interval else None
        self._before, self._looked = totals, now
        requests = totals.requests - before.requests if before is not None else 0
        if before is None or requests <= 0:
            return {"requests": 0}
        recent = [max(0, new - old) for new, old in zip(totals.histogram, before.histogram, strict=True)]
        errors, duration = totals.errors - before.errors, totals.duration_ns - before.duration_ns
        mean, p95 = duration / requests / 1e9, percentile(recent, 0.95)
        details = {"requests": requests, "errors": errors, "mean_ms": round(mean * 1000, 2),
                   "p50_ms": round(percentile(recent, 0.5) * 1000, 2), "p95_ms": round(p95 * 1000, 2),
                   "p99_ms": round(percentile(recent, 0.99) * 1000, 2)}
        if mean > self._settings.health_mean_latency or p95 > self._settings.health_p95_latency:
            raise CheckWarning("slow answers", **details)
        return details


def _restarts(shared: Scoreboard) -> Details:
    words = shared.master.words
    details = {"crashes": int(words[board.M_CRASHES])}
    if words[board.M_DEGRADED]:
        raise CheckWarning("too many worker crashes", **details)
    return details


class _LogDrops:
    """Checks for log records lost since its last run."""

    def __init__(self, shared: Scoreboard) -> None:
        self._board = shared
        self._known = 0

    def __call__(self) -> Details:
        dropped = self._board.totals().counters[board.W_LOG_DROPS]
        recent, self._known = dropped - self._known, dropped
        if recent > 0:
            raise CheckWarning("log records are dropped", dropped=dropped, recent=recent)
        return {"dropped": dropped}
