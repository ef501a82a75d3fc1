"""Decide when a worker's memory calls for its replacement: pure decisions, given numbers and a clock."""

from __future__ import annotations

import enum
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..scoreboard import Reason
from .trend import seconds_to

MB = 1 << 20
GROWTH_AT_LEAST = 150 * MB
WARM = 60.0  #: seconds after which a worker's floor counts as warm
SETTLED = 600.0  #: seconds of warm-up: what is reached by then and held is the floor, not growth
HELD = 0.05  #: share by which three minutes' lows may differ for the level to count as held
NEAR = 0.15  #: a limit nearer than this share is looked at more often
EARLY = 0.75  #: share of the limit below which nothing is replaced for its speed alone
PRESSED = 20.0  #: percent of time waiting for memory that counts as pressure
RATE_SECONDS = 6.0  #: the least time that growth is told from
LEAVING = 0.5  #: seconds in which a worker told to go at once still takes requests
REPLACEMENT = 6.0  #: seconds that a replacement may take, until it is known


class Action(enum.Enum):
    """What to do about a worker."""

    NONE = 0
    RECLAIM = 1  #: collect garbage, then look again
    RETIRE = 2  #: replace it; the replacement starts first
    RETIRE_NOW = 3  #: replace it at once


@dataclass(frozen=True)
class Decision:
    """What to do, and why: `text` says it in words."""

    action: Action = Action.NONE
    reason: Reason = Reason.NONE
    text: str = ""


NOTHING = Decision()


@dataclass(frozen=True)
class Rules:
    """The settings that matter, in bytes and seconds.

    :ivar limit: of this worker, its jitter taken off; 0 = none.
    :ivar derived: not given by hand: then it is never below 1.5 × the warm floor.
    """

    limit: int = 0
    derived: bool = False
    samples: int = 3
    reclaim: bool = True
    hard_factor: float = 1.25
    growth: float = 2.5
    min_uptime: float = 60.0


@dataclass
class Judge:
    """Judges one worker's samples in turn.

    :ivar started: seconds, as all times here by one monotonic clock.
    :ivar floor: bytes at the start, then what the worker holds once warm; 0 = not known yet.
    :ivar learned: the floor that other workers reached and held.
    :ivar replacement: seconds that a replacement takes.
    :ivar growth_after: no replacement for growth before.
    :ivar patient: the last worker replaced for growth was still warming up: this one is given the time to show that
        it holds what it reaches.
    """

    rules: Rules
    started: float
    floor: int = 0
    learned: int = 0
    replacement: float = REPLACEMENT
    growth_after: float = float("-inf")
    patient: bool = False
    _warm: bool = False
    _above: int = 0
    _early: int = 0
    _grown: int = 0
    _reclaimed_at: float = float("-inf")
    _lows: deque[int] = field(default_factory=lambda: deque(maxlen=3))
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=60))

    def judge(self, now: float, rss: int) -> Decision:
        """The decision on one more sample, `rss` bytes at `now`."""
        self._recent.append((now, rss))
        limit = self.limit()
        if not limit:
            return self._growth(now, rss)
        self._above = self._above + 1 if rss > limit else 0
        soon = self.seconds_to_limit()
        near = soon is not None and soon < self.replacement and rss > EARLY * limit
        self._early = self._early + 1 if near else 0
        text = f"{rss} bytes, the limit is {limit}"
        hard = limit * self.rules.hard_factor
        if rss > hard or (self._above > 1 and rss + LEAVING * min(self._rates()) > hard):
            return self._after_reclaim(now, Decision(Action.RETIRE_NOW, Reason.MEMORY_HARD, text), patience=5.0)
        if self._above >= self.rules.samples:
            return self._after_reclaim(now, Decision(Action.RETIRE, Reason.MEMORY, text))
        if self._early >= self.rules.samples:
            return self._after_reclaim(now, Decision(
                Action.RETIRE, Reason.MEMORY, f"{text}, which would be reached in {soon or 0:.1f} s"))
        return NOTHING if self._above else self._growth(now, rss)

    def end_minute(self, now: float, low: int) -> None:
        """Once a minute, with the lowest sample of it: the floor of a warm worker.

        What is reached in the warm-up and held for three minutes raises it; what comes later is growth.
        """
        age = now - self.started
        if age < WARM:
            return
        if not self._warm:  # the first minute's lowest was before anything was loaded
            self._warm = True
            self.floor = min(rss for _, rss in list(self._recent)[-20:]) if self._recent else low
            return
        self._lows.append(low)
        if age <= SETTLED + WARM and len(self._lows) == 3 and max(self._lows) <= min(self._lows) * (1 + HELD):
            self.floor = max(self.floor, min(self._lows))

    def limit(self) -> int:
        """The limit in force, in bytes; 0 = none.

        One that was set by hand below what every worker needs would replace them for ever: it is told and not enforced.
        """
        limit, floor = self.rules.limit, max(self.floor, self.learned)
        if not limit or self.rules.derived or limit < floor:
            return max(limit, int(1.5 * floor)) if limit else 0
        return limit

    def seconds_to_limit(self) -> float | None:
        """How soon the limit would be reached by steady growth over the latest samples; None if not at all."""
        return seconds_to(self.limit(), self._recent[-1][1], min(self._rates())) if self._recent else None

    def interval(self, normal: float) -> float:
        """Seconds to the next sample: the sooner the limit might be reached, the sooner."""
        limit = self.limit()
        if not limit or not self._recent:
            return normal
        rss = self._recent[-1][1]
        soon = seconds_to(limit, rss, max(self._rates()))
        wanted = normal / 4 if rss > limit * (1 - NEAR) else normal
        return max(0.1, min(wanted, soon / 20)) if soon is not None else max(0.1, wanted)

    def _rates(self) -> tuple[float, float]:
        """Bytes a second between the lows of the first, second and last third of the latest samples: at least 21 of
        them, and those of six seconds.

        Growth that is steady shows in both, a step in one of them.
        """
        recent = list(self._recent)
        since = recent[-1][0] - RATE_SECONDS
        recent = recent[min(bisect_left(recent, (since, 0)), max(0, len(recent) - 21)):]
        third = len(recent) // 3
        seconds = (recent[-1][0] - recent[0][0]) / 3
        if third < 2 or seconds <= 0:
            return 0.0, 0.0
        low1, low2, low3 = (min(rss for _, rss in part)
                            for part in (recent[:third], recent[third:2 * third], recent[2 * third:]))
        return (low2 - low1) / seconds, (low3 - low2) / seconds

    def _after_reclaim(self, now: float, decision: Decision, patience: float = 60.0) -> Decision:
        """First try to free what can be freed, then decide on the next sample."""
        if not self.rules.reclaim or now - self._reclaimed_at <= patience:
            return decision
        self._reclaimed_at = now
        self._above, self._early, self._grown = (
            min(count, self.rules.samples - 1) for count in (self._above, self._early, self._grown))
        return Decision(Action.RECLAIM, decision.reason, decision.text)

    def _growth(self, now: float, rss: int) -> Decision:
        """Far above the warm floor and still growing, where no limit says anything."""
        floor = max(self.floor, self.learned)
        youngest = max(self.rules.min_uptime, SETTLED if self.patient else WARM)
        if not floor or now - self.started < youngest or now < self.growth_after:
            return NOTHING
        low = min(size for _, size in self._recent)
        far = low >= floor * self.rules.growth and low - floor >= GROWTH_AT_LEAST
        self._grown = self._grown + 1 if far and self._still_growing() else 0
        if self._grown < self.rules.samples:
            return NOTHING
        return self._after_reclaim(now, Decision(
            Action.RETIRE, Reason.MEMORY_GROWTH, f"{rss} bytes, {rss / floor:.1f} × the warm floor, and still growing"))

    def _still_growing(self) -> bool:
        recent = [rss for _, rss in self._recent]
        if len(recent) < 20:
            return False
        third = len(recent) // 3
        first, second, last = (min(part) for part in (recent[:third], recent[third:2 * third], recent[2 * third:]))
        return first < second < last and last - first > 0.01 * first


def default_limit(container: int | None, workers: int, common: int = 0) -> int:
    """0.8 × the container's limit shared among the workers and one replacement; 0 without a container's limit.

    :param common: bytes that all of them have together, as with a preloaded app.
    """
    return int(0.8 * max(container - common, container // 10) / (workers + 1)) if container else 0


def learned_floor(known: int, floors: Sequence[int]) -> int:
    """What the workers reach in their warm-up and hold: the median of the floors once at least two agree.

    :param known: what was learned so far.
    :param floors: of the workers, and of those before them; 0 = not known.
    """
    warm = sorted(floor for floor in floors if floor)
    if len(warm) < 2:
        return known
    middle = warm[len(warm) // 2] if len(warm) % 2 else warm[len(warm) // 2 - 1]
    return middle if warm[-1] <= 1.5 * warm[0] else max(known, warm[0])


def limit_too_low(limit: int, floor: int) -> bool:
    """A worker with nothing to do is close to its limit: it would be replaced over and over."""
    return 0 < limit < 1.2 * floor


def scarce(available: int | None, total: int, pressure: float = 0.0) -> bool:
    """Memory is short for all.

    :param available: bytes that may still be used.
    :param total: bytes there are.
    :param pressure: percent of time that tasks waited for memory: under much of it, less has to be missing.
    """
    return available is not None and available < (0.2 if pressure > PRESSED else 0.1) * total


def container_too_small(container: int | None, workers: int, floor: int, common: int = 0) -> bool:
    """The limit that the container leaves each worker would be too low, see `limit_too_low`."""
    return limit_too_low(default_limit(container, workers, common), floor)


def container_needed(workers: int, floor: int, common: int = 0) -> int:
    """Bytes of a container in which each worker's limit is 1.5 × its floor."""
    return math.ceil(1.5 * floor * (workers + 1) / 0.8) + common


def group_decision(rows: Mapping[int, int], *, available: int | None, total: int, pressure: float = 0.0,
                   floors: Mapping[int, int] | None = None) -> int | None:
    """The slot of the worker to replace where memory is scarce: the largest, if it is large enough to help.

    :param floors: what a fresh worker in each slot would hold again, in bytes: nothing is won by replacing one that
        holds no more.
    """
    if not rows or not scarce(available, total, pressure):
        return None
    slot = max(rows, key=lambda name: rows[name])
    smallest = min((size for name, size in rows.items() if name != slot), default=0)
    fresh = (floors or {}).get(slot, 0)
    return slot if rows[slot] > max(64 * MB, 1.5 * smallest, 1.25 * fresh, 0.05 * total) else None


def growth_pause(base: float, early: int) -> float:
    """Seconds between retirements for growth, or under pressure; doubled for each that came sooner, an hour at most."""
    return float(min(3600.0, base * 2 ** min(early, 10)))
