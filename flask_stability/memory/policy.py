"""When a worker's memory means that it is to be replaced: pure decisions, given numbers and a clock."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .trend import seconds_to

MB = 1 << 20
GROWTH_AT_LEAST = 150 * MB
WARM = 60.0  #: seconds after which a worker's floor counts as warm
NEAR = 0.15  #: a limit nearer than this share is looked at more often
PRESSED = 20.0  #: percent of time waiting for memory that counts as pressure
REPLACEMENT = 12.0  #: seconds that a replacement may take, used until one was seen


class Action(enum.Enum):
    """What to do about a worker."""

    NONE = 0
    RECLAIM = 1  #: collect garbage, then look again
    RETIRE = 2  #: replace it, the newcomer first
    RETIRE_NOW = 3  #: replace it at once


@dataclass(frozen=True)
class Decision:
    """What to do, and why in words; `reason` is the code's name in the records."""

    action: Action = Action.NONE
    reason: str = ""
    text: str = ""


NOTHING = Decision()


@dataclass(frozen=True)
class Rules:
    """The settings that matter, in bytes and seconds.

    :ivar limit: of this worker, its jitter taken off; 0 = none.
    """

    limit: int = 0
    samples: int = 3
    reclaim: bool = True
    hard_factor: float = 1.25
    growth: float = 2.5
    min_uptime: float = 60.0


@dataclass
class Judge:
    """Judges one worker's samples in turn.

    :ivar floor: the warm floor: the lowest resident memory of the latest minutes once warm, or what the master
        learned from others; 0 = not known yet.
    """

    rules: Rules
    started: float
    floor: int = 0
    learned: int = 0
    _above: int = 0
    _reclaimed_at: float = float("-inf")
    _grown: int = 0
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=60))

    def judge(self, now: float, rss: int) -> Decision:
        """The decision on one more sample."""
        self._recent.append((now, rss))
        limit = self.limit()
        if limit:
            if rss > limit * self.rules.hard_factor:
                return self._over(now, rss, limit, hard=True)
            if rss > limit:
                self._above += 1
                if self._above >= self.rules.samples:
                    return self._over(now, rss, limit, hard=False)
                return NOTHING
            self._above = 0
            soon = self.seconds_to_limit(now)
            if soon is not None and soon < REPLACEMENT and rss > 0.9 * limit:
                return self._after_reclaim(now, Decision(
                    Action.RETIRE, "memory", f"{rss} of {limit} bytes, the limit would be reached in {soon:.0f} s"))
        return self._growth(now, rss)

    def limit(self) -> int:
        """The limit in force: never below 1.5 × the warm floor when it was derived, as given otherwise."""
        return self.rules.limit

    def _over(self, now: float, rss: int, limit: int, *, hard: bool) -> Decision:
        text = f"{rss} bytes above the limit of {limit}"
        if hard:
            return self._after_reclaim(now, Decision(Action.RETIRE_NOW, "memory_hard", text), patience=5.0)
        return self._after_reclaim(now, Decision(Action.RETIRE, "memory", text))

    def _after_reclaim(self, now: float, decision: Decision, patience: float = 60.0) -> Decision:
        """First try to free what can be freed, then decide on the next sample."""
        if self.rules.reclaim and now - self._reclaimed_at > patience:
            self._reclaimed_at = now
            self._above = max(0, self.rules.samples - 1)
            return Decision(Action.RECLAIM, decision.reason, decision.text)
        return decision

    def _growth(self, now: float, rss: int) -> Decision:
        """Far above the warm floor and still growing, where no limit says anything."""
        floor = max(self.floor, self.learned)
        if not floor or now - self.started < max(self.rules.min_uptime, WARM):
            return NOTHING
        if rss < floor * self.rules.growth or rss - floor < GROWTH_AT_LEAST or not self._still_growing(now):
            self._grown = 0
            return NOTHING
        self._grown += 1
        if self._grown < max(self.rules.samples, 5):
            return NOTHING
        return self._after_reclaim(now, Decision(
            Action.RETIRE, "memory_growth", f"{rss} bytes, {rss / floor:.1f} × the warm floor, and still growing"))

    def _still_growing(self, now: float) -> bool:
        recent = list(self._recent)
        if len(recent) < 20:
            return False
        third = len(recent) // 3
        lowest = [min(rss for _, rss in part) for part in (recent[:third], recent[third:2 * third], recent[2 * third:])]
        return lowest[0] < lowest[1] < lowest[2] and lowest[2] - lowest[0] > 0.01 * lowest[0]

    def slope(self) -> float:
        """Bytes a second over the latest samples, by the lows of their halves: quick, for "how soon" only."""
        recent = list(self._recent)[-20:]
        if len(recent) < 4:
            return 0.0
        half = len(recent) // 2
        (t1, low1), (t2, low2) = (min(part, key=lambda item: item[1]) for part in (recent[:half], recent[half:]))
        return (low2 - low1) / (t2 - t1) if t2 > t1 else 0.0

    def seconds_to_limit(self, now: float) -> float | None:
        """How soon the limit would be reached; None if not at all."""
        if not self._recent:
            return None
        return seconds_to(self.limit(), self._recent[-1][1], self.slope())

    def interval(self, normal: float) -> float:
        """Seconds to the next sample: the sooner the limit, the sooner."""
        limit = self.limit()
        if not limit or not self._recent:
            return normal
        soon = self.seconds_to_limit(0.0)
        if soon is not None and soon < 20:
            return max(0.1, min(normal, soon / 20))
        return max(0.1, normal / 4) if self._recent[-1][1] > limit * (1 - NEAR) else normal


def default_limit(container: int | None, workers: int) -> int:
    """0.8 × the container's limit shared among the workers and one newcomer; 0 without a container's limit."""
    return int(0.8 * container / (workers + 1)) if container else 0


def learned_floor(known: int, floors: Sequence[int]) -> int:
    """What the workers reach in their warm-up and hold: the median of the warm floors once at least two agree."""
    warm = sorted(floor for floor in floors if floor)
    if len(warm) < 2:
        return known
    middle = warm[len(warm) // 2] if len(warm) % 2 else warm[len(warm) // 2 - 1]
    return middle if warm[-1] <= 1.5 * warm[0] else max(known, warm[0])


def group_decision(rows: Mapping[int, int], *, available: int | None, total: int,
                   pressure: float = 0.0) -> int | None:
    """The slot of the worker to replace under pressure on all: the largest, if it is large enough to help.

    :param available: bytes that may still be used.
    :param total: bytes there are.
    :param pressure: percent of time that tasks waited for memory: under much of it, less has to be missing.
    """
    scarce = 0.2 if pressure > PRESSED else 0.1
    if available is None or not rows or available >= scarce * total:
        return None
    slot = max(rows, key=lambda name: rows[name])
    others = [size for name, size in rows.items() if name != slot]
    smallest = min(others, default=0)
    return slot if rows[slot] > max(64 * MB, 1.5 * smallest) and rows[slot] > 0.05 * total else None


def growth_pause(base: float, early: int) -> float:
    """Seconds between retirements for growth: doubled for each that came sooner, an hour at the most."""
    return float(min(3600.0, base * 2 ** min(early, 10)))
