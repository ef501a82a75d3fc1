"""Bets on two shares: e-processes, whose wealth grows while something is more frequent in one of two samples.

Pure. A bet wins nothing on average while the share that it bets on is no higher, so by Ville's inequality its wealth
ever exceeds 1/α with probability α at the most, however often one looks.

- The bet on two shares: R. Turner, A. Ly, P. Grünwald, "Generic E-variables for exact sequential k-sample tests that
  allow for optional stopping", Journal of Statistical Planning and Inference 230 (2024). What each look finds is a
  block; over several strata it is the product of theirs.
- One bet for each of a few effects, mixed with fixed weights: H. Robbins, "Statistical methods related to the law of
  the iterated logarithm", Annals of Mathematical Statistics 41 (1970).
- Bets that begin later join with weights that add up to one, as in J. Shin, A. Ramdas, A. Rinaldo, "E-detectors"
  (2024): many hits in both samples at one moment do not hide later evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

EFFECTS = (0.02, 0.1, 0.3, 0.6, 0.95)  #: shares of the old release's good requests that the bets assume to be lost
STAKE = 0.95  #: share of the wealth in each bet: one block cannot lose all of it
MOST_WEALTH = 1e60


class Bet:
    """The wealth of a bet that something is more frequent in the new release; 1 at first."""

    def __init__(self) -> None:
        self._wealth = [0.0] * len(EFFECTS)
        self._blocks = 0

    @property
    def wealth(self) -> float:
        """Return the wealth over all effects; the part that is not staked yet counts in full."""
        unstaked = 1.0 / (self._blocks + 1)
        return sum(self._wealth) / len(EFFECTS) + unstaked

    def win(self, factors: Sequence[float]) -> None:
        """Multiply the wealth by a block's factor for each effect."""
        self._blocks += 1
        joining = 1.0 / (self._blocks * (self._blocks + 1))  # these weights add up to one
        self._wealth = [min(MOST_WEALTH, (wealth + joining) * factor)
                        for wealth, factor in zip(self._wealth, factors, strict=True)]


class Shares:
    """Two shares, of the old and of the new release.

    :param past: counts of the first sample before this comparison: all requests, and the hits among them.
    :ivar old, new: counts since then: all requests, and the hits among them.
    """

    def __init__(self, past: tuple[int, int] = (0, 0)) -> None:
        self._past = past
        self.old, self.new = (0, 0), (0, 0)
        self._block = 0, 0, 0, 0
        self.bet = Bet()

    def add(self, old: tuple[int, int], new: tuple[int, int]) -> list[float] | None:
        """Add the counts of one look; return the factor for each effect if they complete a block, else None.

        A block has requests of both sides. Where it ends depends on the number of requests, never on the number of
        hits.
        """
        self._block = tuple(map(sum, zip(self._block, (*old, *new), strict=True)))  # type: ignore[assignment]
        old_all, old_hits, new_all, new_hits = self._block
        if not old_all or not new_all:
            return None
        self._block = 0, 0, 0, 0
        usual = self._usual()
        factors = [block_factor(usual, usual + effect * (1.0 - usual), old_all, old_hits, new_all, new_hits)
                   for effect in EFFECTS]
        self.bet.win(factors)
        self.old = self.old[0] + old_all, self.old[1] + old_hits
        self.new = self.new[0] + new_all, self.new[1] + new_hits
        return factors

    def _usual(self) -> float:
        number, hits = self._past[0] + self.old[0], self._past[1] + self.old[1]
        return min(0.98, (hits + 0.02) / (number + 1.0))

    @property
    def shares(self) -> tuple[float, float]:
        """Return the shares of the old release (its past if there is nothing else) and of the new one, up to now."""
        old = self.old if self.old[0] else self._past
        return share(old), share(self.new)


def share(numbers: tuple[int, int]) -> float:
    """Return the hits as a share of all."""
    return numbers[1] / numbers[0] if numbers[0] else 0.0


def block_factor(usual: float, worse: float, old_all: int, old_hits: int, new_all: int, new_hits: int) -> float:
    """Return the e-variable of a block: its likelihood under two shares, relative to the one share between them.

    That share is the nearest of all pairs in which the new share is no higher. The bet stakes `STAKE` of the wealth.
    """
    between = (old_all * usual + new_all * worse) / (old_all + new_all)
    log = (log_ratio(usual, between, old_all, old_hits) + log_ratio(worse, between, new_all, new_hits))
    return 1.0 - STAKE + STAKE * math.exp(min(log, 100.0))


def log_ratio(share: float, other: float, number: int, hits: int) -> float:
    """Return the log-likelihood ratio of two shares."""
    return hits * math.log(share / other) + (number - hits) * math.log((1.0 - share) / (1.0 - other))


def bet_on_all(bet: Bet, found: list[list[float]]) -> None:
    """Continue one bet on several strata: multiply the wealth by the product of their factors."""
    if found:
        bet.win([min(MOST_WEALTH, math.prod(factors)) for factors in zip(*found, strict=True)])
