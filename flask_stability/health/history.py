"""24 hours of samples and the latest transitions, in rings on the scoreboard: they outlive every worker.

Written by the leader; a reader that meets a half-written sample sees a time of 0 or an unreadable line and leaves it
out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

SAMPLES = 2880
TRANSITIONS = 240
_HEAD = 64
_TEXT = 256


class Sample(NamedTuple):
    """One round; counters are totals since the service began.

    ``status``: 0 pass, 1 warn, 2 fail; times in milliseconds, sizes in bytes.
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
    reserved: float = 0.0


_SAMPLE = struct.Struct("=16d")


class History:
    """The rings in a piece of shared memory."""

    def __init__(self, area: memoryview) -> None:
        self._counts = area[:_HEAD].cast("q")
        self._samples = area[_HEAD:_HEAD + SAMPLES * _SAMPLE.size]
        start = _HEAD + SAMPLES * _SAMPLE.size
        self._transitions = area[start:start + TRANSITIONS * _TEXT]

    @property
    def count(self) -> int:
        """Samples ever written: the cursor for `samples`."""
        return int(self._counts[0])

    def append(self, sample: Sample) -> None:
        """Add a round."""
        number = self._counts[0]
        start = number % SAMPLES * _SAMPLE.size
        self._samples[start:start + 8] = bytes(8)  # a time of 0: being written
        data = _SAMPLE.pack(*sample)
        self._samples[start + 8:start + _SAMPLE.size] = data[8:]
        self._samples[start:start + 8] = data[:8]
        self._counts[0] = number + 1

    def samples(self, since: int = 0) -> list[Sample]:
        """The rounds from cursor `since` on, the oldest first."""
        count = self.count
        found = []
        for number in range(max(since, count - SAMPLES, 0), count):
            sample = self._at(number)
            if sample.time:
                found.append(sample)
        return found

    def _at(self, number: int) -> Sample:
        return Sample(*_SAMPLE.unpack_from(self._samples, number % SAMPLES * _SAMPLE.size))

    def before(self, time: float) -> Sample | None:
        """The newest round no younger than `time`'s, or the oldest there is: by bisection."""
        low, high = max(0, self.count - SAMPLES), self.count
        if low == high:
            return None
        first = low
        while low < high:
            middle = (low + high) // 2
            if self._at(middle).time < time:
                low = middle + 1
            else:
                high = middle
        return self._at(max(first, low - 1))

    def last(self) -> Sample | None:
        """The newest round."""
        return self._at(self.count - 1) if self.count else None

    def transition(self, entry: dict[str, Any]) -> None:
        """Add a change of status."""
        data = json.dumps(entry, separators=(",", ":"), default=str).encode()
        if len(data) >= _TEXT:
            data = json.dumps({key: entry[key] for key in ("time", "check", "old", "new") if key in entry}).encode()
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


def availability(history: History, now: float, requests: int, errors: int, window: float) -> dict[str, Any]:
    """Share of requests answered without a server error, and of rounds that did not fail, over a window of seconds."""
    then = history.before(now - window)
    asked = requests - int(then.requests if then else 0)
    failed = errors - int(then.errors if then else 0)
    if asked <= 0 and requests:
        asked, failed = requests, errors
    since = min(window, now - then.time) if then else 0.0
    return {"ratio": round(1 - failed / asked, 6) if asked > 0 else None, "requests": max(0, asked),
            "window_s": window, "observed_s": round(since, 1)}


def probes(samples: Sequence[Sample]) -> float | None:
    """Share of rounds whose status was not fail."""
    return round(sum(sample.status < 2 for sample in samples) / len(samples), 6) if samples else None
