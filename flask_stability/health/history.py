"""24 hours of samples and the latest transitions, in rings on the scoreboard: they outlive every worker.

The leader writes, anyone reads, without a lock: a sample is shown by counting it after it was written, and the slot
being written is never one of those that are shown.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..memory.trend import gated_slope

SAMPLES = 2880
TRANSITIONS = 240
#: Points that a trend is told from, at least and at most.
FEWEST, MOST = 60, 120
_SLOTS = SAMPLES + 8
_HEAD = 64
_TEXT = 512


class Sample(NamedTuple):
    """One round; counters are totals since the service began.

    ``status``: 0 pass, 1 warn, 2 fail; times in milliseconds, sizes in bytes; ``failed_rounds`` is set by `append`.
    """

    time: float
    requests: float = 0.0
    errors: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    mean_ms: float = 0.0
    rss: float = 0.0
    workers: float = 0.0
    db_in_use: float = 0.0
    db_idle: float = 0.0
    db_waiting: float = 0.0
    db_latency_ms: float = 0.0
    restarts: float = 0.0
    status: float = 0.0
    failed_rounds: float = 0.0


_SAMPLE = struct.Struct("=16d")
_TIME = struct.Struct("=d")


class History:
    """The rings in a piece of shared memory."""

    def __init__(self, area: memoryview) -> None:
        self._counts = area[:_HEAD].cast("q")
        self._samples = area[_HEAD:_HEAD + _SLOTS * _SAMPLE.size]
        start = _HEAD + _SLOTS * _SAMPLE.size
        self._transitions = area[start:start + TRANSITIONS * _TEXT]

    @property
    def count(self) -> int:
        """Samples ever written: the cursor for `samples`."""
        return int(self._counts[0])

    def append(self, sample: Sample) -> None:
        """Add a round."""
        number, last = self._counts[0], self.last()
        failed = (last.failed_rounds if last else 0) + (sample.status >= 2)
        _SAMPLE.pack_into(self._samples, number % _SLOTS * _SAMPLE.size, *sample[:-1], failed)
        self._counts[0] = number + 1

    def samples(self, since: int = 0) -> list[Sample]:
        """The rounds from cursor `since` on, the oldest first."""
        count = self.count
        return [self._at(number) for number in range(max(since, count - SAMPLES, 0), count)]

    def last(self) -> Sample | None:
        """The newest round."""
        return self._at(self.count - 1) if self.count else None

    def _at(self, number: int) -> Sample:
        return Sample(*_SAMPLE.unpack_from(self._samples, number % _SLOTS * _SAMPLE.size))

    def _first_since(self, time: float) -> int:
        """Number of the first round that is no older than `time`, by bisection; `count` if there is none."""
        low, high = max(0, self.count - SAMPLES), self.count
        while low < high:
            middle = (low + high) // 2
            if _TIME.unpack_from(self._samples, middle % _SLOTS * _SAMPLE.size)[0] < time:
                low = middle + 1
            else:
                high = middle
        return low

    def availability(self, now: float, requests: int, errors: int, window: float) -> dict[str, Any]:
        """Over the last `window` seconds: the share of requests answered without a server error, and of rounds that
        did not fail (`probes`); None where there were none.

        :param requests, errors: the totals at this moment; `now` is the time of day.
        """
        count, first = self.count, self._first_since(now - window)
        oldest = max(0, count - SAMPLES)
        # a service younger than the window began with nothing
        then = self._at(max(oldest, first - 1)) if first > oldest or oldest else None
        asked = requests - int(then.requests if then else 0)
        failed = errors - int(then.errors if then else 0)
        rounds, failures = count - first, 0.0
        if rounds:
            begin = self._at(first)
            failures = self._at(count - 1).failed_rounds - begin.failed_rounds + (begin.status >= 2)
        return {"ratio": round(1 - failed / asked, 6) if asked > 0 else None, "requests": max(0, asked),
                "probes": round(1 - failures / rounds, 6) if rounds else None, "window_s": window,
                "observed_s": round(min(window, now - self._at(oldest).time), 1) if count else 0.0}

    # -- transitions ---------------------------------------------------------------------------------------------

    def transition(self, entry: dict[str, Any]) -> None:
        """Add a change of status."""
        data = json.dumps(entry, separators=(",", ":"), default=str).encode()
        if len(data) >= _TEXT:
            data = json.dumps({key: str(entry.get(key, ""))[:60] if key == "check" else entry.get(key)
                               for key in ("id", "time", "check", "old", "new")}).encode()
        number = self._counts[1]
        start = number % TRANSITIONS * _TEXT
        self._transitions[start:start + _TEXT] = data[:_TEXT].ljust(_TEXT, b"\0")
        self._counts[1] = number + 1

    def transitions(self) -> list[dict[str, Any]]:
        """The latest changes, the newest first."""
        count = self._counts[1]
        found = []
        for number in range(count - 1, max(-1, count - 1 - TRANSITIONS), -1):
            start = number % TRANSITIONS * _TEXT
            try:
                found.append(json.loads(bytes(self._transitions[start:start + _TEXT]).rstrip(b"\0")))
            except ValueError:
                continue
        return found


def trends(samples: Sequence[Sample]) -> dict[str, float] | None:
    """Per minute, by name of the figure, over the latest `MOST` rounds; 0.0 where no trend is significant at 1 %.

    None for fewer than `FEWEST` rounds.
    """
    latest = samples[-MOST:]
    if len(latest) < FEWEST:
        return None
    minutes = [sample.time / 60 for sample in latest]
    return {name: round(gated_slope(minutes, [getattr(sample, name) for sample in latest]), 3)
            for name in ("rss", "mean_ms", "p95_ms", "db_latency_ms")}
