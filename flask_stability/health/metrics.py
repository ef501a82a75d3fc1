"""Metrics of the whole service for Prometheus: a custom collector over the scoreboard.

It does not use prometheus_client's multiprocess files, which remain for each dead worker. Counters come from the
totals, so they never fall when a worker is replaced. An endpoint is a route's name, never the raw path, so clients
cannot create labels.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
from collections import Counter as Counted
from collections.abc import Iterator
from typing import Any

from .. import scoreboard as board
from ..config import Settings
from ..scoreboard import BUCKETS, Row, Scoreboard, Totals, bucket_bound
from .results import Results, results
from .state import ORDER

_PREFIX = "flask_stability_"
_COUNTERS = (("exceptions", "Recorded exceptions.", board.W_EXCEPTIONS),
             ("requests_overdue", "Requests that ran into their deadline.", board.W_OVERDUE),
             ("db_retries", "Units of work that were run again.", board.W_DB_RETRIES),
             ("db_errors", "Connections that were asked for in vain.", board.W_DB_ERRORS),
             ("db_connections_lost", "Connections found broken.", board.W_DB_LOST),
             ("db_connect_errors", "Attempts to connect that failed.", board.W_DB_CONNECT_ERRORS),
             ("log_drops", "Log records that were lost.", board.W_LOG_DROPS),
             ("alerts_lost", "Alerts that could not be delivered.", board.W_ALERTS_LOST))
_CONNECTIONS = (("idle", board.W_DB_AVAILABLE), ("in_use", board.W_DB_IN_USE), ("waiting", board.W_DB_WAITING))
_KEPT = (("fresh", board.W_KEPT_FRESH), ("stale", board.W_KEPT_STALE), ("made", board.W_KEPT_MADE))


class NotInstalled(Exception):
    """prometheus_client is missing."""


def exposition(shared: Scoreboard, settings: Settings, accept: str) -> tuple[bytes, str]:
    """Return body and content type: OpenMetrics or the classic text, as the scraper prefers.

    :raises NotInstalled: without the extra ``metrics``.
    """
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder
    except ImportError as error:
        raise NotInstalled("pip install 'flask_stability[metrics]'") from error
    registry = CollectorRegistry()
    registry.register(_Collector(shared, settings))
    try:
        encoder, kind = choose_encoder(accept)
    except Exception:  # it parses versions and escapings from the header: a client's malformed header is not our error
        encoder, kind = choose_encoder("")
    return encoder(registry), kind


class _Collector:
    """Reads the board once per scrape."""

    def __init__(self, shared: Scoreboard, settings: Settings) -> None:
        self._board, self._settings = shared, settings

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge
        from prometheus_client.core import HistogramMetricFamily as Histogram

        totals, rows, found = self._board.totals(), self._board.live(), results(self._board)

        def labelled(family: Any, name: str, text: str, label: str, values: Iterator[tuple[str, float]]) -> Any:
            metric = family(_PREFIX + name, text, labels=[label])
            for value, number in values:
                metric.add_metric([value], number)
            return metric

        requests = Counter(_PREFIX + "http_requests", "Answered requests.",
                           labels=["method", "endpoint", "status_class"])
        for (method, endpoint), words in totals.endpoints.items():
            *by_class, refused = words[board.ANSWERS]
            by_class[5] += refused
            for kind, number in enumerate(by_class):
                if number:
                    requests.add_metric([method, endpoint, f"{kind}xx" if kind else "cut"], number)
        yield requests
        yield Counter(_PREFIX + "http_requests_refused", "Answers of 503 given on purpose.", value=totals.refused)
        yield Counter(_PREFIX + "http_requests_abandoned", "Requests that were not begun, since their client had left.",
                      value=totals.counters[board.W_ABANDONED])
        shed = Counter(_PREFIX + "http_requests_shed", "503 given before the request had a thread.",
                       labels=["method", "endpoint"])
        for (method, endpoint), words in totals.endpoints.items():
            if words[board.SHED]:
                shed.add_metric([method, endpoint], words[board.SHED])
        yield shed
        if self._settings.queue_limit:
            queue = Histogram(_PREFIX + "http_queue_duration_seconds", "Wait for a thread.", labels=[])
            waits = list(itertools.accumulate(totals.waits))
            queue.add_metric([], list(zip(("0.01", *map(repr, board.WAIT_BOUNDS), "+Inf"), waits, strict=True)), None)
            yield queue
        yield Gauge(_PREFIX + "workers_overloaded", "Workers under overload.", value=_sum(rows, board.W_OVERLOADED))
        duration = Histogram(_PREFIX + "http_request_duration_seconds", "Time to the first byte of the answer.",
                             labels=[])
        duration.add_metric([], _buckets(totals), totals.duration_ns / 1e9)
        yield duration
        yield Counter(_PREFIX + "http_streams", "Answers whose body took 0.1 s or more after its first byte.",
                      value=totals.counters[board.W_STREAMS])
        yield Counter(_PREFIX + "http_stream_duration_seconds", "Time from the first byte of those to their end.",
                      value=totals.counters[board.W_STREAM_MS] / 1000)
        yield Gauge(_PREFIX + "http_requests_in_progress", "Requests in flight.", value=_sum(rows, board.W_BUSY))
        yield Gauge(_PREFIX + "workers", "Workers now.", value=len(rows))
        yield labelled(Gauge, "worker_resident_memory_bytes", "Resident memory.", "slot",
                       ((str(row.slot), int(row.words[board.W_RSS])) for row in rows))
        yield labelled(Counter, "worker_restarts", "Workers that ended.", "reason",
                       ((reason, totals.restarts.get(reason, 0)) for reason in board.REASONS[1:]))
        yield labelled(Gauge, "check_status", "0 pass, 1 warn, 2 fail.", "check",
                       ((name, ORDER[result.status]) for name, result in found.items()))
        yield labelled(Gauge, "check_duration_seconds", "Time of the latest run.", "check",
                       ((name, result.took_ms / 1000) for name, result in found.items()))
        yield labelled(Gauge, "disk_free_bytes", "Free space.", "mount", _free(found))
        yield labelled(Gauge, "db_pool_connections", "Connections, and threads waiting for one.", "state",
                       ((state, _sum(rows, word)) for state, word in _CONNECTIONS))
        yield labelled(Counter, "kept_answers", "Answers of views with keep, by where they came from.", "source",
                       ((source, totals.counters[word]) for source, word in _KEPT))
        yield Gauge(_PREFIX + "db_requests_held", "Requests that wait for a database that is away.",
                    value=_sum(rows, board.W_DB_HELD))
        for name, text, word in _COUNTERS:
            yield Counter(_PREFIX + name, text, value=totals.counters[word])
        yield labelled(Gauge, "release_workers", "Workers by release.", "release", _by_release(rows))
        yield Gauge(_PREFIX + "release_refused", "1: a release was refused, and the one before serves on.",
                    value=int(bool(self._board.master.releases.read_json({}).get("refused"))))
        build = Gauge(_PREFIX + "build_info", "Version of this package, release of the service.",
                      labels=["version", "release"])
        build.add_metric([_version(), self._settings.release_id or ""], 1)
        yield build


def _by_release(rows: list[Row]) -> Iterator[tuple[str, float]]:
    found = Counted(str(row.release.read_json({}).get("id") or "") for row in rows)
    yield from found.items()


def _sum(rows: list[Row], word: int) -> int:
    return sum(int(row.words[word]) for row in rows)


def _free(found: Results) -> Iterator[tuple[str, float]]:
    disk = found.get("disk")
    for path, figures in disk.detail.items() if disk is not None else ():
        yield path, figures["free_bytes"]


def _buckets(totals: Totals) -> list[tuple[str, float]]:
    """Return the cumulative counts at each octave."""
    found: list[tuple[str, float]] = []
    seen = 0
    for bucket in range(BUCKETS):
        seen += totals.histogram[bucket]
        bound = bucket_bound(bucket)
        if bound != float("inf") and bucket % 4 == 0:
            found.append((repr(bound), seen))
    found.append(("+Inf", seen))
    return found


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("flask_stability")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
