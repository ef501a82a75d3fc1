"""Measures a worker's memory and what else leaks, and hands the numbers to the judge and to the scoreboard."""

from __future__ import annotations

import gc
import itertools
import math
import os
import random
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from typing import Any

import psutil

from .. import logs
from .. import scoreboard as shared
from ..config import Settings
from ..scoreboard import Row, Scoreboard
from ..signals import leak_suspected, send
from . import autopsy, cgroup
from .policy import NOTHING, WARM, Action, Decision, Judge, Rules, default_limit
from .trend import Verdict, gated_slope

__all__ = ["Action", "Decision", "MemoryWatch", "resident"]

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_statm = -1


def resident() -> int:
    """Bytes of this process in memory now; 2 µs by an open descriptor of /proc, psutil where there is none."""
    global _statm
    if _statm < 0:
        try:
            _statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return int(psutil.Process().memory_info().rss)
    try:
        return int(os.pread(_statm, 128, 0).split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return int(psutil.Process().memory_info().rss)


def confirmed() -> tuple[int, int]:
    """Proportional and private bytes by smaps_rollup: 0.3 to 17 ms, so only asked before a replacement."""
    found = {"Pss": 0, "Private": 0}
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            for line in file:
                name = line.partition(":")[0].partition("_")[0]
                if line.startswith(("Pss:", "Private_")):
                    found[name] += int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return resident(), resident()
    return found["Pss"], found["Private"]


def _after_fork() -> None:
    """The descriptor leads to the parent's figures."""
    global _statm
    if _statm >= 0:
        os.close(_statm)
    _statm = -1


os.register_at_fork(after_in_child=_after_fork)


class MemoryWatch:
    """One worker's memory, looked at from its guard thread.

    :param workers: how many workers share the container.
    """

    def __init__(self, settings: Settings, row: Row, *, board: Scoreboard | None = None, workers: int = 1) -> None:
        self._settings, self._row, self._board = settings, row, board
        self._started = time.monotonic()
        given = settings.memory_limit or default_limit(cgroup.limit(), workers)
        self._derived = settings.memory_limit is None
        limit = int(given * (1 - random.uniform(0, settings.memory_limit_jitter))) if given else 0
        self._judge = Judge(Rules(limit=limit, samples=settings.memory_samples, reclaim=settings.memory_reclaim,
                                  hard_factor=settings.memory_hard_factor, growth=settings.memory_growth,
                                  min_uptime=settings.min_worker_uptime), self._started)
        self._next_slow = self._started + 5.0
        self._minute = self._started + 60.0
        self._lowest = 0
        self._floors: deque[tuple[float, int]] = deque(maxlen=720)
        self._leak = Verdict()
        self._warned_low = False
        self._baseline = False
        self._last = 0.0
        self._trackers: dict[str, deque[int]] = {}
        self._told: set[str] = set()
        row.words[shared.W_MEMORY_LIMIT] = limit
        row.words[shared.W_RSS] = resident()
        row.floats[shared.F_SECONDS_TO_LIMIT] = math.nan

    def next_interval(self) -> float:
        """Seconds to the next look: the nearer the limit, the sooner."""
        return self._judge.interval(self._settings.guard_interval)

    def tick(self, now: float) -> Decision:
        """Measure, publish, judge; reclaims where that comes first."""
        rss = resident()
        row = self._row
        row.words[shared.W_RSS] = rss
        self._lowest = min(self._lowest or rss, rss)
        if now >= self._minute:
            self._end_minute(now)
        if now >= self._next_slow:
            self._next_slow = now + 15.0
            self._slow(now)
        decision = self._judge.judge(now, rss)
        if decision.action is Action.RECLAIM:
            self._reclaim(decision)
            return NOTHING
        if decision.action is not Action.NONE and not row.words[shared.W_RETIRE_REASON]:
            # what is shared with the master would not be freed: told once, with the reason
            proportional, private = confirmed()
            row.words[shared.W_PSS] = proportional
            return replace(decision, text=f"{decision.text} (of it {private} bytes private)")
        return decision

    def _reclaim(self, decision: Decision) -> None:
        from . import collect

        freed = collect()
        self._row.add(shared.W_GC_RUNS)
        self._row.add(shared.W_GC_FREED, max(0, freed))
        logs.process("memory_reclaimed", freed_bytes=freed, because=decision.text)

    def _end_minute(self, now: float) -> None:
        """Once a minute: the floor, the trend, the verdict."""
        self._minute = now + 60.0
        floor, self._lowest = self._lowest, 0
        age = now - self._started
        if age < WARM:
            return
        self._floors.append((now, floor))
        judge, row = self._judge, self._row
        if not judge.floor:
            judge.floor = floor
            row.words[shared.W_WARM_FLOOR] = floor
            self._raise_derived_limit(floor)
        if self._board is not None:
            judge.learned = int(self._board.master.words[shared.M_WARM_FLOOR])
        if not self._baseline:
            self._baseline = True
            autopsy.baseline()
        recent = list(self._floors)[-120:]
        times, lows = [at for at, _ in recent], [float(low) for _, low in recent]
        slope = gated_slope(times, lows) if len(recent) >= 10 else 0.0
        row.floats[shared.F_MEMORY_TREND] = slope * 60
        limit = judge.limit()
        row.floats[shared.F_SECONDS_TO_LIMIT] = ((limit - recent[-1][1]) / slope if slope > 0 and limit else math.nan)
        self._verdict([float(low) for _, low in self._floors])

    def _raise_derived_limit(self, floor: int) -> None:
        """A limit below what a fresh worker needs would replace for ever: ours is raised, a given one is told of."""
        judge = self._judge
        limit = judge.limit()
        if not limit:
            return
        if self._derived and limit < 1.5 * floor:
            judge.rules = Rules(**{**judge.rules.__dict__, "limit": int(1.5 * floor)})
            self._row.words[shared.W_MEMORY_LIMIT] = judge.limit()
        elif limit < 1.2 * floor and not self._warned_low:
            self._warned_low = True
            logs.process("memory_limit_too_low", level="WARNING", limit=limit, warm_floor=floor,
                         remedy=f"a warm worker needs {floor} bytes: set STABILITY_MEMORY_LIMIT to at least "
                                f"{int(1.5 * floor)}")

    def _verdict(self, floors: list[float]) -> None:
        """A verdict informs, it does not replace."""
        found = self._leak.look(floors)
        if found and not self._row.words[shared.W_LEAK_VERDICT]:
            detail = {"trend_bytes_per_min": round(self._row.floats[shared.F_MEMORY_TREND]), "rss": int(floors[-1])}
            logs.error("memory_leak_suspected", level="WARNING", **detail)
            send(leak_suspected, "flask_stability", kind="memory", detail=detail)
        self._row.words[shared.W_LEAK_VERDICT] = int(found)

    def _slow(self, now: float) -> None:
        """What leaks in Python as timers and listeners do elsewhere, four times a minute."""
        words = self._row.words
        threads = threading.enumerate()
        found: dict[str, tuple[int, int]] = {
            "threads": (shared.W_N_THREADS, len(threads)),
            "timers": (shared.W_N_TIMERS, sum(isinstance(thread, threading.Timer) for thread in threads)),
            "descriptors": (shared.W_N_FDS, _descriptors()),
            "receivers": (shared.W_N_RECEIVERS, _receivers()),
            "gc_garbage": (shared.W_N_GARBAGE, len(gc.garbage)),
        }
        words[shared.W_N_GC_OBJECTS] = sum(gc.get_count())
        for name, (word, number) in found.items():
            words[word] = number
            self._track(name, number)

    def _track(self, name: str, number: int) -> None:
        """Warn, once, of a count that has grown steadily for half an hour."""
        series = self._trackers.setdefault(name, deque(maxlen=120))
        series.append(number)
        if name in self._told or len(series) < 120 or number < series[0] + 30:
            return
        lows = [min(list(series)[i:i + 15]) for i in range(0, 120, 15)]
        if all(a < b for a, b in itertools.pairwise(lows)):
            self._told.add(name)
            logs.error("resource_leak_suspected", level="WARNING", kind=name, now=number, half_an_hour_ago=series[0])
            send(leak_suspected, "flask_stability", kind=name, detail={"now": number, "before": series[0]})


def _descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def _receivers() -> int:
    """Receivers connected to Flask's signals."""
    module = sys.modules.get("flask.signals")
    signals: list[Any] = [value for value in vars(module or object).values() if hasattr(value, "receivers")]
    return sum(len(signal.receivers) for signal in signals)
