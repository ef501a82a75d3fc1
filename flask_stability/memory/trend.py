"""Whether a series grows, and how fast: rank statistics that a single spike cannot fool. Pure.

Mann–Kendall test: H. B. Mann, "Nonparametric tests against trend", Econometrica 13 (1945); slope: P. K. Sen,
"Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968), after H. Theil (1950).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import median

#: A part of the verdict: parts into which the life after warm-up is cut.
PARTS = 8
#: Minutes of life after warm-up before the first vote.
SHORTEST = 40
VOTES = 3


def mann_kendall(values: Sequence[float]) -> float:
    """z of the test for a monotonic trend, corrected for ties; above 2.58 a rise is significant at 1 %."""
    n = len(values)
    if n < 3:
        return 0.0
    s = sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1:])
    ties: dict[float, int] = {}
    for value in values:
        ties[value] = ties.get(value, 0) + 1
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties.values())) / 18
    if variance <= 0 or s == 0:
        return 0.0
    return (s - math.copysign(1, s)) / math.sqrt(variance)


def theil_sen(times: Sequence[float], values: Sequence[float]) -> float:
    """Median of the slopes of all pairs, in units of value per unit of time; 0.0 for fewer than two points."""
    slopes = [(values[j] - values[i]) / (times[j] - times[i])
              for i in range(len(values)) for j in range(i + 1, len(values)) if times[j] != times[i]]
    return median(slopes) if slopes else 0.0


def gated_slope(times: Sequence[float], values: Sequence[float], z: float = 2.58) -> float:
    """Theil–Sen slope where Mann–Kendall finds a trend, else 0.0."""
    return theil_sen(times, values) if abs(mann_kendall(values)) > z else 0.0


def leaks(floors: Sequence[float]) -> bool:
    """One vote that a series of minima (one per minute, in bytes, warm-up left out) is a leak and no warm-up or step.

    The series is cut into 8 parts, each represented by its minimum. A leak rises (z ≥ 2.3) in every quarter, goes on
    rising (the second half at least 0.6 × the first), without a jump above 40 % of the rise, by at least 8 MB and 5 %.
    """
    if len(floors) < SHORTEST:
        return False
    size = len(floors) / PARTS
    parts = [min(floors[int(i * size):int((i + 1) * size)]) for i in range(PARTS)]
    growth = parts[-1] - parts[0]
    if growth < max(8e6, 0.05 * parts[0]) or mann_kendall(parts) < 2.3:
        return False
    half = PARTS // 2
    first, second = parts[half - 1] - parts[0], parts[-1] - parts[half]
    if second < 0.6 * first:
        return False
    if min(parts[i + 1] - parts[i - 1] for i in (2, 4, 6)) < 0.15 * growth:
        return False  # the top or the bottom of a wave
    jump = max(b - a for a, b in itertools.pairwise(parts))
    return jump <= 0.4 * growth


class Verdict:
    """Three votes for a leak, each on a life longer by a quarter than the last: what is a wave has turned by then.

    A load that rises steadily for two hours cannot be told from a leak; that is why a verdict only informs.

    :ivar leaking: the verdict so far.
    """

    def __init__(self, longest: int = 720) -> None:
        self._longest = longest
        self._votes = 0
        self._next = SHORTEST
        self.leaking = False

    def look(self, floors: Sequence[float]) -> bool:
        """The verdict after one more minute."""
        length = len(floors)
        if length < min(self._next, self._longest):
            return self.leaking
        vote = leaks(floors)
        self._votes = min(VOTES, self._votes + 1) if vote else 0
        self._next = max(length + 1, length * 5 // 4) if vote and self._votes < VOTES else length + 1
        self.leaking = self._votes >= VOTES
        return self.leaking


def seconds_to(limit: float, current: float, slope_per_second: float) -> float | None:
    """Seconds until `limit` is reached at that slope; None if it never is."""
    if slope_per_second <= 0 or limit <= 0:
        return None
    return max(0.0, (limit - current) / slope_per_second)
