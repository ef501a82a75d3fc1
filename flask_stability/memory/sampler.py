"""Measures a worker's memory and what else leaks, and hands the numbers to the judge and to the scoreboard."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from dataclasses import replace

from .. import logs
from .. import scoreboard as shared
from ..config import Settings
from ..scoreboard import Row, Scoreboard
from ..signals import leak_suspected, send
from . import autopsy, cgroup
from .policy import NOTHING, WARM, Action, Decision, Judge, Rules, default_limit, scarce
from .process import collect, confirmed, resident, sizes
from .trackers import DAY, Trackers
from .trend import Verdict, gated_slope

__all__ = ["Action", "Decision", "MemoryWatch", "collect", "confirmed", "resident"]

MINUTE = 60.0  #: seconds
SLOW = 15.0  #: seconds between looks at what costs more
COLLECT_PAUSE = 60.0  #: seconds between collections under pressure, the least
COLLECT_SHARE = 0.01  #: of the time, the most that they may take: all threads wait for a collection


class MemoryWatch:
    """One worker's memory, looked at from its guard thread.

    :param workers: how many workers share the container.
    :param handover: seconds from when the replacement is ready to when this worker takes no more requests.
    """

    def __init__(self, settings: Settings, row: Row, *, board: Scoreboard | None = None, workers: int = 1,
                 handover: float = 4.0) -> None:
        self._settings, self._row, self._board, self._handover = settings, row, board, handover
        now = time.monotonic()
        anonymous = sizes()[1]
        #: Anonymous bytes that other processes have as well: a preloaded app's, as long as no process writes to them.
        self._elsewhere = max(0, anonymous - confirmed()[1])
        given = settings.memory_limit or default_limit(cgroup.limit(), workers, self._elsewhere)
        limit = int(given * (1 - random.uniform(0, settings.memory_limit_jitter)))
        rules = Rules(limit=limit, derived=settings.memory_limit is None, samples=settings.memory_samples,
                      reclaim=settings.memory_reclaim, hard_factor=settings.memory_hard_factor,
                      growth=settings.memory_growth, min_uptime=settings.min_worker_uptime)
        self._judge = Judge(rules, now, floor=max(0, anonymous - self._elsewhere))
        self._trackers = Trackers(row)
        self._leak = Verdict()
        self._next_slow, self._minute, self._next_collect = now + 5.0, now + WARM, float("-inf")
        self._lowest, self._warm = 0, False
        self._floors: deque[float] = deque(maxlen=DAY)
        self._loads: deque[float] = deque(maxlen=DAY)
        self._requests = row.requests
        self._soon = math.inf
        self._publish(*self._measure())

    def next_interval(self) -> float:
        """Seconds to the next look: the nearer the limit, the sooner."""
        return self._judge.interval(self._settings.guard_interval)

    def tick(self, now: float) -> Decision:
        """Measure, publish, judge; reclaims and measures again where that comes first."""
        rss, own = self._measure()
        self._lowest = min(self._lowest or own, own)
        self._ask_master()
        if now >= self._next_slow:
            self._next_slow = now + SLOW
            self._slow(now)
        if now >= self._minute:
            self._minute = now + MINUTE
            self._end_minute(now)
        decision = self._judge.judge(now, own)
        if decision.action is not Action.NONE and not self._confirm(own):
            return NOTHING
        if decision.action is Action.RECLAIM:
            self._reclaim(decision.text)
            rss, own = self._measure()
            decision = self._judge.judge(now, own)
        self._publish(rss, own)
        if decision.action in (Action.NONE, Action.RECLAIM):
            return NOTHING
        if self._row.words[shared.W_RETIRE_REASON]:
            return decision
        return replace(decision, text=f"{decision.text} ({rss} bytes are resident)")

    def _measure(self) -> tuple[int, int]:
        """Resident bytes, and those that replacing this worker would give back."""
        rss, anonymous = sizes()
        return rss, max(0, anonymous - self._elsewhere)

    def _confirm(self, own: int) -> bool:
        """Ask the kernel more exactly; whether it is as much as was thought."""
        anonymous = sizes()[1]
        private = confirmed()[1]
        self._elsewhere = max(0, anonymous - private)
        return private > 0.9 * own

    def _publish(self, rss: int, own: int) -> None:
        words, judge = self._row.words, self._judge
        words[shared.W_RSS], words[shared.W_OWN_MEMORY], words[shared.W_COMMON_MEMORY] = rss, own, self._elsewhere
        words[shared.W_MEMORY_LIMIT] = judge.limit()
        words[shared.W_WARM_FLOOR] = judge.floor
        soon = judge.seconds_to_limit()
        soonest = min(self._soon, math.inf if soon is None else soon)
        self._row.floats[shared.F_SECONDS_TO_LIMIT] = soonest if soonest < math.inf else math.nan

    def _ask_master(self) -> None:
        """What is known from other workers."""
        judge, words = self._judge, self._row.words
        if self._board is not None:
            master = self._board.master.words
            judge.learned = int(master[shared.M_WARM_FLOOR])
            judge.growth_after = master[shared.M_GROWTH_AFTER_NS] / 1e9
            judge.patient = bool(master[shared.M_GROWTH_PATIENCE])
        if words[shared.W_READY_NS] > words[shared.W_STARTED_NS] > 0:
            judge.replacement = (words[shared.W_READY_NS] - words[shared.W_STARTED_NS]) / 1e9 + self._handover

    def _reclaim(self, because: str) -> float:
        """Collect, count and log it; returns the seconds that it took."""
        started = time.perf_counter()
        freed = collect()
        seconds = time.perf_counter() - started
        self._row.add(shared.W_GC_RUNS)
        self._row.add(shared.W_GC_FREED, max(0, freed))
        logs.process("memory_reclaimed", freed_bytes=freed, seconds=round(seconds, 3), because=because)
        return seconds

    def _slow(self, now: float) -> None:
        """Four times a minute: count what leaks besides memory; collect where memory is scarce for all."""
        self._trackers.look(now)
        if self._settings.memory_reclaim and now >= self._next_collect and scarce(
                cgroup.available(), cgroup.total(), cgroup.pressure()):
            seconds = self._reclaim("little memory is left for all")
            self._next_collect = now + max(COLLECT_PAUSE, seconds / COLLECT_SHARE)

    def _end_minute(self, now: float) -> None:
        """Once a minute: the floor, the trends, the verdicts."""
        if self._elsewhere:
            self._confirm(0)  # what was shared becomes a worker's own by being written to
        low, self._lowest = self._lowest, 0
        requests = self._row.requests
        load, self._requests = requests - self._requests, requests
        self._judge.end_minute(now, low)
        if not self._warm:  # the first minute belongs to the warm-up
            self._warm = True
            autopsy.baseline()
            return
        self._floors.append(low)
        self._loads.append(load)
        loads = list(self._loads)
        for detail in self._trackers.end_minute(now, loads):
            logs.error("resource_leak_suspected", level="WARNING", **detail)
            send(leak_suspected, "flask_stability", kind=detail["kind"], detail=detail)
        recent = list(self._floors)[-120:]
        slope = gated_slope(range(len(recent)), recent) if len(recent) >= 10 else 0.0
        self._row.floats[shared.F_MEMORY_TREND] = slope
        limit = self._judge.limit()
        self._soon = max(0.0, (limit - recent[-1]) / slope * 60) if slope > 0 and limit else math.inf
        found = self._leak.look(list(self._floors), loads)
        if found and not self._row.words[shared.W_LEAK_VERDICT]:  # it informs, it does not replace
            detail = {"trend_bytes_per_min": round(slope), "rss_bytes": int(recent[-1]),
                      "seconds_to_limit": round(self._soon) if self._soon < math.inf else None}
            logs.error("memory_leak_suspected", level="WARNING", **detail)
            send(leak_suspected, "flask_stability", kind="memory", detail=detail)
        self._row.words[shared.W_LEAK_VERDICT] = int(found)
