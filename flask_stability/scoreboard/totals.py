"""Sums over all workers, running and ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .layout import (
    W_ABANDONED,
    W_WAITS_1S,
    W_WAITS_2S,
    W_WAITS_5S,
    W_WAITS_10S,
    W_WAITS_25MS,
    W_WAITS_50MS,
    W_WAITS_100MS,
    W_WAITS_250MS,
    W_WAITS_500MS,
    W_WAITS_LONGER,
)
from .primitives import ANSWERS, SHED, Entry

#: Waits for a thread are counted in these words, up to these bounds in seconds; the last word has no bound.
WAITS = (W_WAITS_25MS, W_WAITS_50MS, W_WAITS_100MS, W_WAITS_250MS, W_WAITS_500MS, W_WAITS_1S, W_WAITS_2S, W_WAITS_5S,
         W_WAITS_10S, W_WAITS_LONGER)
WAIT_BOUNDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def by_class(entries: Iterable[Entry]) -> list[int]:
    """Return the answers by status class 0..5 over all entries; class 5 includes deliberate refusals."""
    *found, refused = [sum(one) for one in zip(*(words[ANSWERS] for words in entries), strict=True)] or [0] * 7
    found[5] += refused
    return found


@dataclass
class Totals:
    """Sums over all workers, running and ended.

    :ivar counters: the words of `COUNTERS`, by index.
    :ivar endpoints: words of each (method, endpoint): duration_ns, slowest_ns, answers by class 0..5, and, not among
        these, deliberate refusals; the ones among those before the request had a thread; abandoned requests.
    """

    counters: dict[int, int]
    histogram: list[int]
    endpoints: dict[tuple[str, str], Entry] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)

    @property
    def by_class(self) -> list[int]:
        """Return the answers by status class 0 (cut off), 1, 2, 3, 4, 5."""
        return by_class(self.endpoints.values())

    @property
    def requests(self) -> int:
        """Return the number of all answers."""
        return sum(self.by_class)

    @property
    def errors(self) -> int:
        """Return the number of server errors and cut-off answers."""
        by_class = self.by_class
        return by_class[0] + by_class[5]

    @property
    def refused(self) -> int:
        """Return the number of deliberate 503 answers; `errors` includes them."""
        return sum(words[8] for words in self.endpoints.values())

    @property
    def shed(self) -> int:
        """Return the number of these that were refused before they had a thread."""
        return sum(words[SHED] for words in self.endpoints.values())

    @property
    def abandoned(self) -> int:
        """Return the number of requests that were not begun, since their client had left; they are not answers."""
        return self.counters[W_ABANDONED]

    @property
    def waits(self) -> list[int]:
        """Return the number of requests by wait for a thread: below 10 ms, up to each of `WAIT_BOUNDS`, above the last.
        """
        waited = [self.counters[word] for word in WAITS]
        return [max(0, sum(self.histogram) - sum(waited)), *waited]

    def wait(self, share: float) -> float:
        """Return the seconds below which `share` of the requests waited for a thread, interpolated; 0.0 without any."""
        waits = self.waits
        wanted, seen = share * sum(waits), waits[0]
        if seen >= wanted:
            return 0.0
        low = 0.01
        for number, high in zip(waits[1:], WAIT_BOUNDS, strict=False):
            if number and seen + number >= wanted:
                return low + (high - low) * (wanted - seen) / number
            seen, low = seen + number, high
        return WAIT_BOUNDS[-1]

    @property
    def duration_ns(self) -> int:
        """Return the sum of all durations, in nanoseconds."""
        return sum(words[0] for words in self.endpoints.values())
