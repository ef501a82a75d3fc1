"""The health document, built from the scoreboard alone: no I/O, no lock, and the same in every worker.

``application/health+json``: draft-inadarei-api-health-check-06.
"""

from __future__ import annotations

import heapq
import time
from typing import Any

from .. import scoreboard as board
from ..config import Settings
from ..memory.trackers import growing
from ..scoreboard import STATE_NAMES, Reason, Row, Scoreboard, percentile
from .error_rate import NAME as ERRORS
from .history import History
from .results import CheckResult, Results, judged, merged, overall, staying
from .state import ORDER, PASS


def build(shared: Scoreboard, settings: Settings, now_ns: int | None = None) -> dict[str, Any]:
    """Return the whole document."""
    now = time.monotonic_ns() if now_ns is None else now_ns
    rows = shared.live()
    # before the totals: an exit is counted before its row is released, so the totals include each worker missing here
    workers = [one for one in (_worker(row, now) for row in rows) if one["pid"]]
    own = {row.slot: judged(row.checks, now) for row in rows}
    found = merged([own[row.slot] for row in staying(rows)], shared, now)
    totals = shared.totals()
    words = shared.master.words
    # the worst first; among equals the share of failed requests, which users notice
    troubled = sorted((item for item in found.items() if item[1].status != PASS),
                      key=lambda item: (-ORDER[item[1].status], item[0] != ERRORS))
    notes = [f"{name}: {result.reason or result.status}" for name, result in troubled]
    if words[board.M_DRAINING]:
        notes.append("draining: the service is being stopped")
    if any(row.words[board.W_OVERLOADED] for row in rows):
        notes.append("overload: more requests come than can be answered; some are refused (503)")
    if words[board.M_HOLD_UNTIL_NS]:
        notes.append("workers crash: restarts are held back")
    detailed = {
        "error_rate": _part(found.get(ERRORS)),
        "mutes": mutes(shared),
        "memory": _memory(rows, found, own),
        "database": _database(rows, found, totals),
        "disk": _part(found.get("disk")),
        "response_time": _response_time(found.get("response_time"), totals),
        "availability": _availability(shared, totals),
        "release": release(shared),
        "requests": {"total": totals.requests, "errors": totals.errors,
                     "by_class": {f"{kind}xx": totals.by_class[kind] for kind in range(1, 6)},
                     "cut": totals.by_class[0], "refused": totals.refused,
                     "abandoned": totals.counters[board.W_ABANDONED], "slowest": _slowest(totals)},
        "overload": _overload(rows, totals, measured=bool(settings.queue_limit)),
        "workers": workers,
        "hung": hung(rows, now),
        "restarts": {"total": sum(totals.restarts.values()), "by_reason": totals.restarts,
                     "latest": shared.master.restarts.read_json([])[-10:][::-1],
                     "degraded": bool(words[board.M_DEGRADED])},
        "exceptions": _exceptions(rows, shared, totals),
        "logs": {"dropped": totals.counters[board.W_LOG_DROPS], "sampled": totals.counters[board.W_LOG_SAMPLED]},
        "checks": {name: _part(result) for name, result in found.items()},
    }
    begun = words[board.M_STARTED_NS] or min((row.words[board.W_STARTED_NS] for row in rows), default=now)
    return {"status": overall(found, shared), "version": "1",
            **({"releaseId": settings.release_id} if settings.release_id else {}),
            "serviceId": settings.service_id or "", "time": _wall(0), "notes": notes,
            "checks": _draft_checks(detailed, (now - begun) / 1e9), "detailed": detailed}


def hung(rows: list[Row], now_ns: int) -> list[dict[str, Any]]:
    """Return long requests that have not begun to answer, longest first, with their thread's latest line of app code.
    """
    found = [(entry.pop("started_ns"), {**entry, "slot": row.slot, "pid": row.pid})
             for row in rows for entry in row.hung.read_json([])]
    return [{**entry, "seconds": round((now_ns - started) / 1e9, 1)}
            for started, entry in sorted(found, key=lambda item: int(item[0]))[:20]]


def mutes(shared: Scoreboard, now: float | None = None) -> list[dict[str, Any]]:
    """Return the checks whose alerts are muted now: check, since, until (seconds since the epoch), by."""
    now = time.time() if now is None else now
    found = shared.master.mutes.read_json([])
    return [one for one in found if isinstance(one, dict) and one.get("until", 0) > now] if (
        isinstance(found, list)) else []


def _wall(age: float) -> str:
    """Return the time of day `age` seconds ago, in the draft's format."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - age))


def _part(result: CheckResult | None) -> dict[str, Any]:
    return result.part() if result is not None else {"status": PASS}


def _status(result: CheckResult | None) -> str:
    return result.status if result is not None else PASS


_TRENDS = (("threads", board.F_THREADS_TREND), ("timers", board.F_TIMERS_TREND), ("open_files", board.F_FDS_TREND),
           ("receivers", board.F_RECEIVERS_TREND), ("gc_objects", board.F_GC_OBJECTS_TREND),
           ("garbage", board.F_GARBAGE_TREND))


def _memory(rows: list[Row], found: Results, own: dict[int, Results]) -> dict[str, Any]:
    workers: list[dict[str, Any]] = [
        {"slot": row.slot, "pid": row.pid, "status": _status(own[row.slot].get("memory")),
         "rss_bytes": int(row.words[board.W_RSS]), "private_bytes": int(row.words[board.W_OWN_MEMORY]),
         "limit_bytes": int(row.words[board.W_MEMORY_LIMIT]),
         "trend_bytes_per_min": _finite(row.floats[board.F_MEMORY_TREND]) or 0,
         "seconds_to_limit": _finite(row.floats[board.F_SECONDS_TO_LIMIT]),
         "warm_floor_bytes": int(row.words[board.W_WARM_FLOOR]),
         "leak_suspected": bool(row.words[board.W_LEAK_VERDICT]), "threads": int(row.words[board.W_N_THREADS]),
         "timers": int(row.words[board.W_N_TIMERS]), "open_files": int(row.words[board.W_N_FDS]),
         "receivers": int(row.words[board.W_N_RECEIVERS]), "garbage": int(row.words[board.W_N_GARBAGE]),
         "gc_objects": int(row.words[board.W_N_GC_OBJECTS]), "growing": growing(row.words[board.W_GROWING]),
         "trends_per_hour": {name: round(_finite(row.floats[word]) or 0.0, 2) for name, word in _TRENDS}}
        for row in rows]
    times = [worker["seconds_to_limit"] for worker in workers if worker["seconds_to_limit"] is not None]
    return {**_part(found.get("memory")), "rss_bytes": sum(worker["rss_bytes"] for worker in workers),
            "limit_bytes": max((worker["limit_bytes"] for worker in workers), default=0),
            "trend_bytes_per_min": sum(worker["trend_bytes_per_min"] for worker in workers),
            "seconds_to_limit": min(times, default=None), "workers": workers}


def _database(rows: list[Row], found: Results, totals: board.Totals) -> dict[str, Any]:
    pool: dict[str, Any] = {
        name: sum(int(row.words[word]) for row in rows)
        for name, word in (("size", board.W_DB_SIZE), ("idle", board.W_DB_AVAILABLE), ("in_use", board.W_DB_IN_USE),
                           ("waiting", board.W_DB_WAITING), ("held", board.W_DB_HELD), ("max", board.W_DB_MAX))}
    pool.update({name: totals.counters[word] for name, word in (
        ("requests", board.W_DB_REQUESTS), ("errors", board.W_DB_ERRORS), ("lost", board.W_DB_LOST),
        ("leaks_suspected", board.W_DB_LEAKS), ("retries", board.W_DB_RETRIES),
        ("connect_errors", board.W_DB_CONNECT_ERRORS))})
    pool["breaker"] = "open" if any(row.words[board.W_DB_BREAKER] for row in rows) else "closed"
    result = found.get("database")
    if result is None:
        return {"status": PASS, "critical": True, "configured": bool(pool["max"]), "pool": pool, "error": None}
    return {"configured": True, **_part(result), "pool": pool}


def _response_time(result: CheckResult | None, totals: board.Totals) -> dict[str, Any]:
    """Return the response times since the service began; ``recent``: between the latest two looks of the check."""
    requests, part = totals.requests, _part(result)
    recent = {name: part.pop(name) for name in (result.detail if result is not None else ())}
    return {**part, **{f"p{share}_ms": round(percentile(totals.histogram, share / 100) * 1000, 2)
                       for share in (50, 95, 99)},
            "mean_ms": round(totals.duration_ns / requests / 1e6, 2) if requests else 0.0, "recent": recent}


def _availability(shared: Scoreboard, totals: board.Totals) -> dict[str, Any]:
    """Return the availability over 24 hours, and over the last five minutes and the last hour."""
    history, now = History(shared.master.history), time.time()
    day, hour, minutes = (history.availability(now, totals.requests, totals.errors, window)
                          for window in (86400.0, 3600.0, 300.0))
    return {**day, "1h": hour, "5m": minutes}


def _slowest(totals: board.Totals) -> list[dict[str, Any]]:
    """Return the five routes with the highest mean."""
    def mean(item: tuple[tuple[str, str], board.Entry]) -> float:
        return item[1][0] / max(1, sum(item[1][board.ANSWERS]))

    return [{"method": method, "endpoint": endpoint, "requests": sum(words[board.ANSWERS]),
             "mean_ms": round(mean(((method, endpoint), words)) / 1e6, 2), "slowest_ms": round(words[1] / 1e6, 2)}
            for (method, endpoint), words in heapq.nlargest(5, totals.endpoints.items(), mean)]


def release(shared: Scoreboard) -> dict[str, Any]:
    """Return which release serves, which one is on trial, and which one was refused, with the reason."""
    found = shared.master.releases.read_json({})
    return {name: found.get(name) or None for name in ("serving", "coming", "phase", "refused")}


def _overload(rows: list[Row], totals: board.Totals, *, measured: bool) -> dict[str, Any]:
    """Return how long requests wait for a thread, and the outcome of those that got none."""
    routes = sorted(((words[board.SHED], words[board.ABANDONED], key) for key, words in totals.endpoints.items()
                     if words[board.SHED] or words[board.ABANDONED]), reverse=True)
    return {"workers": sum(bool(row.words[board.W_OVERLOADED]) for row in rows),
            "total": totals.counters[board.W_OVERLOADS], "refused": totals.shed, "clients_gone": totals.abandoned,
            **{f"wait_p{share}_ms": round(totals.wait(share / 100) * 1000, 1) if measured else None
               for share in (50, 95, 99)},
            "routes": [{"method": method, "endpoint": endpoint, "refused": shed, "clients_gone": abandoned}
                       for shed, abandoned, (method, endpoint) in routes[:10]]}


def _worker(row: Row, now: int) -> dict[str, Any]:
    words = row.words
    return {"slot": row.slot, "pid": row.pid, "state": STATE_NAMES[min(max(words[board.W_STATE], 0), 4)],
            "uptime_s": round((now - words[board.W_STARTED_NS]) / 1e9, 1) if words[board.W_STARTED_NS] else None,
            "rss_bytes": int(words[board.W_RSS]), "requests": row.requests,
            "errors": row.errors, "busy": int(words[board.W_BUSY]),
            "threads": int(words[board.W_THREADS]), "queue": int(words[board.W_QUEUE]),
            "overdue": int(words[board.W_OVERDUE]), "retiring": Reason.of(words[board.W_RETIRE_REASON]),
            "release": row.release.read_json({}).get("id") or None}


def _exceptions(rows: list[Row], shared: Scoreboard, totals: board.Totals) -> dict[str, Any]:
    """Return the latest exceptions, including those of workers that have ended."""
    latest = board.merged_exceptions([*(row.exceptions for row in rows), shared.master.exceptions])
    return {"total": totals.counters[board.W_EXCEPTIONS], "latest": latest[:10]}


def _draft_checks(detailed: dict[str, Any], uptime: float) -> dict[str, list[dict[str, Any]]]:
    """Return the ``checks`` object of the draft: lists of measurements by component and quantity."""

    def measured(part: dict[str, Any], value: Any, unit: str, kind: str = "system",
                 component: str = "") -> dict[str, Any]:
        return {**({"componentId": component} if component else {}), "componentType": kind, "observedValue": value,
                "observedUnit": unit, "status": part["status"], "time": _wall(part.get("age_s", 0))}

    database, disk = detailed["database"], detailed["disk"]
    checks: dict[str, list[dict[str, Any]]] = {"memory:utilization": []}
    for worker in detailed["memory"]["workers"]:
        rss, private, limit = worker["rss_bytes"], worker["private_bytes"], worker["limit_bytes"]
        checks["memory:utilization"].append(measured(
            worker, round(100 * private / limit, 1) if limit else rss, "percent" if limit else "bytes",
            component=f"worker-{worker['slot']}"))
    if database["configured"]:
        checks["database:responseTime"] = [measured(database, database.get("latency_ms"), "ms", "datastore")]
        checks["database:connections"] = [measured(detailed["checks"].get("pool", {"status": PASS}),
                                                   database["pool"]["in_use"], "connections", "datastore")]
    checks["disk:utilization"] = [
        measured(disk, round(100 - 100 * figures["free_bytes"] / max(1, figures["total_bytes"]), 1), "percent",
                 component=path) for path, figures in disk.items() if isinstance(figures, dict)]
    for name, part in detailed["checks"].items():
        if name not in ("memory", "database", "pool", "disk"):
            checks[f"{name.replace(':', '-')}:responseTime"] = [measured(part, part["took_ms"], "ms", "component")]
    checks["uptime"] = [measured({"status": PASS}, round(uptime, 1), "s")]
    return checks


def _finite(number: float) -> float | None:
    return round(number, 1) if number == number and abs(number) != float("inf") else None
