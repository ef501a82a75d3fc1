"""Read the workers' figures for the judge of releases, in the master: from the board's rows and the kernel's clock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from .. import scoreboard
from ..scoreboard import Row
from ..scoreboard.times import by_route
from .release_counts import Figures, Hung, Key, Route
from .workers import Child

_TICKS = os.sysconf("SC_CLK_TCK")


def read(children: Iterable[Child]) -> dict[int, Figures]:
    """Return the figures of workers that have a row, by process id. Never raise."""
    return {child.pid: figures(child.row, child.pid) for child in children if child.row is not None and child.pid}


def figures(row: Row, pid: int) -> Figures:
    """Return a worker's figures, skipping malformed entries: the master must survive whatever a worker wrote."""
    routes: dict[Key, Route] = {}
    for key, words, times in by_route(row.endpoints, row.entries, row.times):
        routes[key] = Route(sum(words[2:8]), words[2] + words[7], times, words[1] / 1e9)
    return Figures(routes, _exceptions(row), processor_seconds(pid), int(row.words[scoreboard.W_RSS]),
                   max(1, int(row.words[scoreboard.W_THREADS])), tuple(_hung(row)))


def _exceptions(row: Row) -> dict[Key, int]:
    found: dict[Key, int] = {}
    for entry in _entries(row.exceptions.read_json([])):
        try:
            name = str(entry["class"])[:200]
            if not name.startswith("flask_stability."):  # our own refusals say nothing about a release
                found[name, str(entry["route"])[:200]] = int(entry["count"])
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _hung(row: Row) -> Iterable[Hung]:
    now = time.monotonic_ns()
    for entry in _entries(row.hung.read_json([])):
        try:
            yield Hung((str(entry["method"]), str(entry["endpoint"])), str(entry["route"])[:200],
                       (now - int(entry["started_ns"])) / 1e9)
        except (KeyError, TypeError, ValueError):
            continue


def _entries(found: Any) -> list[dict[str, Any]]:
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def processor_seconds(pid: int) -> float:
    """Return the processor seconds of a process, its threads included; 0.0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, IndexError, ValueError):
        return 0.0
