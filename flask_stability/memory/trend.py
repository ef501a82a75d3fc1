"""Tell whether a series grows, and how fast, by rank statistics that a single spike cannot fool. Pure functions.

Mann–Kendall test: H. B. Mann, "Nonparametric tests against trend", Econometrica 13 (1945); slope: P. K. Sen,
"Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968), after H. Theil (1950).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import StatisticsError, correlation, median

#: A part of the verdict: parts into which the life after warm-up is cut.
PARTS = 8
#: Minutes of life after warm-up before the first vote.
SHORTEST = 40
VOTES = 3
LEAST = 8e6  #: bytes of growth that are worth a word


def mann_kendall(values: Sequence[float]) -> float:
    """Return z of the test for a monotonic trend, corrected for ties. Above 2.58 a rise is significant at 1 %."""
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
    """Return the median slope of all pairs, in value per unit of time; 0.0 for fewer than two points."""
    slopes = [(values[j] - values[i]) / (times[j] - times[i])
              for i in range(len(values)) for j in range(i + 1, len(values)) if times[j] != times[i]]
    return median(slopes) if slopes else 0.0


def gated_slope(times: Sequence[float], values: Sequence[float], z: float = 2.58) -> float:
    """Return the Theil–Sen slope if Mann–Kendall finds a trend, else 0.0."""
    return theil_sen(times, values) if abs(mann_kendall(values)) > z else 0.0


def leaks(floors: Sequence[float], loads: Sequence[float] = (), *, least: float = LEAST,
          share: float = 0.05) -> bool:
    """Vote whether a series of minima, one per minute after warm-up, looks like a leak rather than a step.

    The series is cut into 8 parts, each represented by its minimum. A leak rises (z ≥ 2.3) in every quarter, goes on
    rising (the second half at least 0.6 × the first), without a jump above 40 % of the rise.

    :param loads: requests in the same minutes. Growth that only follows the load is not a leak.
    :param least, share: the smallest rise that counts: in units of the series, and as a share of its beginning.
    """
    if len(floors) < SHORTEST:
        return False
    first, last = (min(_part(floors, number)) for number in (0, PARTS - 1))
    growth = last - first
    if growth < max(least, share * first):
        return False  # as nearly always: the other parts need no look
    parts = [min(_part(floors, number)) for number in range(PARTS)]
    if mann_kendall(parts) < 2.3:
        return False
    half = PARTS // 2
    early, late = parts[half - 1] - first, last - parts[half]
    if late < 0.6 * early:
        return False
    if min(parts[i + 1] - parts[i - 1] for i in (2, 4, 6)) < 0.15 * growth:
        return False  # the top or the bottom of a wave
    if max(b - a for a, b in itertools.pairwise(parts)) > 0.4 * growth:
        return False
    return len(loads) != len(floors) or not _follows(
        parts, [sum(part) / len(part) for part in (_part(loads, number) for number in range(PARTS))])


def _part(values: Sequence[float], number: int) -> Sequence[float]:
    """One of the `PARTS`, from 0."""
    size = len(values) / PARTS
    return values[int(number * size):int((number + 1) * size)]


def _follows(floors: Sequence[float], loads: Sequence[float]) -> bool:
    """Return whether the load rose by a tenth or more and the floors followed it without doubling."""
    if floors[-1] > 2 * floors[0] or max(loads) <= 1.1 * min(loads) or mann_kendall(loads) < 2.3:
        return False
    try:
        return correlation(floors, loads) >= 0.8
    except StatisticsError:
        return False


class Verdict:
    """Collect three votes for a leak, each after twice the lifetime of the last: a wave has turned by then.

    If the series has doubled, the next vote comes after a quarter more of the lifetime.

    An unknown load that rises steadily for hours looks exactly like a leak. A verdict therefore only informs.

    :param least, share: see `leaks`.
    :ivar leaking: the verdict so far.
    """

    def __init__(self, least: float = LEAST, share: float = 0.05) -> None:
        self._least, self._share = least, share
        self._minutes = self._votes = 0
        self._next = SHORTEST
        self.leaking = False

    def look(self, floors: Sequence[float], loads: Sequence[float] = ()) -> bool:
        """Return the verdict after one more minute.

        :param floors, loads: of the whole lifetime or of its latest day, see `leaks`.
        """
        self._minutes = max(self._minutes + 1, len(floors))
        if self._minutes < self._next:
            return self.leaking
        vote = leaks(floors, loads, least=self._least, share=self._share)
        self._votes = min(VOTES, self._votes + 1) if vote else 0
        self.leaking = self._votes >= VOTES
        longer = 1.25 if floors[-1] > 2 * floors[0] else 2.0
        self._next = int(self._minutes * longer) if vote and not self.leaking else self._minutes + 1
        return self.leaking


def seconds_to(limit: float, current: float, slope_per_second: float) -> float | None:
    """Return the seconds until `limit` is reached at that slope; None if it never is."""
    if slope_per_second <= 0 or limit <= 0:
        return None
    return max(0.0, (limit - current) / slope_per_second)
