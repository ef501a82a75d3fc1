"""Describe the state of the service for the log and the command line: from the scoreboard alone."""

from __future__ import annotations

import math
import time
from typing import Any

from .. import scoreboard as board
from ..health import report
from ..health.error_rate import NAME as ERRORS
from ..health.results import results
from ..scoreboard import STATE_NAMES, Reason, Row, Scoreboard


def status_block(shared: Scoreboard, now_ns: int | None = None) -> dict[str, Any]:
    """Return the state of master, workers and restarts."""
    now = time.monotonic_ns() if now_ns is None else now_ns
    words = shared.master.words
    totals = shared.totals()
    found = results(shared, now).get(ERRORS)
    errors = found.detail if found is not None else {}
    return {"master_pid": int(words[board.M_PID]), "uptime_s": _since(words[board.M_STARTED_NS], now),
            "tick_age_s": _since(words[board.M_TICK_NS], now), "base_workers": int(words[board.M_BASE_WORKERS]),
            "target_workers": int(words[board.M_TARGET]), "replacing": bool(words[board.M_SURGE]),
            "held": bool(words[board.M_HOLD_UNTIL_NS]), "degraded": bool(words[board.M_DEGRADED]),
            "draining": bool(words[board.M_DRAINING]), "reloads": int(words[board.M_RELOADS]),
            "error_rate": {window: errors.get(window) for window in ("1m", "5m")},
            "release": report.release(shared),
            "mutes": report.mutes(shared), "requests": totals.requests, "errors": totals.errors,
            "restarts": totals.restarts,
            "workers": [worker_block(row, now) for row in shared.live()]}


def worker_block(row: Row, now: int) -> dict[str, Any]:
    """Return the state of one worker."""
    words = row.words
    trend = row.floats[board.F_MEMORY_TREND]
    reason = words[board.W_RETIRE_REASON] or row.orders[board.O_RETIRE_REASON]
    return {"slot": row.slot, "pid": row.pid, "state": STATE_NAMES[min(max(words[board.W_STATE], 0), 4)],
            "uptime_s": _since(words[board.W_STARTED_NS], now), "heartbeat_age_s": _since(words[board.W_HEARTBEAT_NS],
                                                                                          now),
            "rss_bytes": int(words[board.W_RSS]), "limit_bytes": int(words[board.W_MEMORY_LIMIT]),
            "trend_bytes_per_min": round(trend) if math.isfinite(trend) else 0, "busy": int(words[board.W_BUSY]),
            "threads": int(words[board.W_THREADS]), "queue": int(words[board.W_QUEUE]), "requests": row.requests,
            "errors": row.errors,
            "retiring": Reason.of(reason)}


def _since(then_ns: int, now_ns: int) -> float | None:
    return round((now_ns - then_ns) / 1e9, 1) if then_ns else None
