"""Metrics of the whole service for Prometheus: a custom collector over the scoreboard.

Not prometheus_client's multiprocess files, which stay for each dead worker; counters come from the totals, so they
never fall when a worker is replaced.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from .. import scoreboard as board
from ..config import Settings
from ..scoreboard import BUCKETS, Scoreboard, Totals, bucket_bound
from .state import ORDER

_PREFIX = "flask_stability"


class NotInstalled(Exception):
    """prometheus_client is missing."""


def exposition(shared: Scoreboard, settings: Settings, accept: str) -> tuple[bytes, str]:
    """Body and content type: OpenMetrics or the classic text, as the scraper prefers.

    :raises NotInstalled: without the extra ``metrics``.
    """
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder
    except ImportError as error:
        raise NotInstalled("pip install 'flask_stability[metrics]'") from error
    registry = CollectorRegistry()
    registry.register(_Collector(shared, settings))
    encoder, kind = choose_encoder(accept)
    return encoder(registry), kind


class _Collector:
    """Reads the board once per scrape."""

    def __init__(self, shared: Scoreboard, settings: Settings) -> None:
        self._board, self._settings = shared, settings

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        totals, rows = self._board.totals(), self._board.live()
        requests = CounterMetricFamily(f"{_PREFIX}_http_requests", "Answered requests.",
                                       labels=["method", "endpoint", "status_class"])
        for (method, endpoint), words in totals.endpoints.items():
            for kind, number in enumerate(words[2:]):
                if number:
                    requests.add_metric([method, endpoint, f"{kind}xx" if kind else "cut"], number)
        yield requests
        duration = HistogramMetricFamily(f"{_PREFIX}_http_request_duration_seconds", "Time to answer.", labels=[])
        duration.add_metric([], _buckets(totals), totals.duration_ns / 1e9)
        yield duration
        yield GaugeMetricFamily(f"{_PREFIX}_http_requests_in_progress", "Requests in flight.",
                                value=sum(int(row.words[board.W_BUSY]) for row in rows))
        memory = GaugeMetricFamily(f"{_PREFIX}_worker_resident_memory_bytes", "Resident memory.", labels=["slot"])
        for row in rows:
            memory.add_metric([str(row.slot)], int(row.words[board.W_RSS]))
        yield memory
        restarts = CounterMetricFamily(f"{_PREFIX}_worker_restarts", "Workers that ended.", labels=["reason"])
        for reason, number in totals.restarts.items():
            restarts.add_metric([reason], number)
        yield restarts
        yield from self._checks(rows, GaugeMetricFamily)
        connections = GaugeMetricFamily(f"{_PREFIX}_db_pool_connections", "Connections.", labels=["state"])
        for state, word in (("idle", board.W_DB_AVAILABLE), ("in_use", board.W_DB_IN_USE)):
            connections.add_metric([state], sum(int(row.words[word]) for row in rows))
        yield connections
        for name, text, word in (("db_retries", "Units of work run again.", board.W_DB_RETRIES),
                                 ("db_errors", "Checkouts that failed.", board.W_DB_ERRORS),
                                 ("exceptions", "Recorded exceptions.", board.W_EXCEPTIONS),
                                 ("log_drops", "Log records lost.", board.W_LOG_DROPS),
                                 ("alerts_lost", "Alerts that could not be delivered.", board.W_ALERTS_LOST)):
            yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=totals.counters[word])
        yield GaugeMetricFamily(f"{_PREFIX}_workers", "Workers now.", value=len(rows))
        build = GaugeMetricFamily(f"{_PREFIX}_build_info", "Version.", labels=["version"])
        build.add_metric([self._settings.release_id or ""], 1)
        yield build

    def _checks(self, rows: list[board.Row], family: Any) -> Iterator[Any]:
        from .report import _results

        results = _results(rows, time.monotonic_ns())
        status = family(f"{_PREFIX}_check_status", "0 pass, 1 warn, 2 fail.", labels=["check"])
        took = family(f"{_PREFIX}_check_duration_seconds", "Time of the latest run.", labels=["check"])
        free = family(f"{_PREFIX}_disk_free_bytes", "Free space.", labels=["mount"])
        for name, result in results.items():
            status.add_metric([name], ORDER[result["status"]])
            took.add_metric([name], result["took_ms"] / 1000)
        for path, figures in (results.get("disk") or {}).get("detail", {}).items():
            free.add_metric([path], figures["free_bytes"])
        yield from (status, took, free)


def _buckets(totals: Totals) -> list[tuple[str, float]]:
    """Cumulative counts at each octave."""
    found: list[tuple[str, float]] = []
    seen = 0
    for bucket in range(BUCKETS):
        seen += totals.histogram[bucket]
        bound = bucket_bound(bucket)
        if bound != float("inf") and bucket % 4 == 0:
            found.append((repr(bound), seen))
    found.append(("+Inf", seen))
    return found
