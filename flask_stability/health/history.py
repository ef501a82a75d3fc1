"""24 hours of samples and the latest transitions, in rings on the scoreboard: they outlive every worker.

The leader writes and any process reads, without a lock: the writer counts a sample only after writing it, and the slot
being written is never among the counted ones.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..memory.trend import gated_slope

SAMPLES = 2880
TRANSITIONS = 240
#: Minimum and maximum number of points for a trend.
FEWEST, MOST = 60, 120
#: Number of workers per sample whose memory is stored: those in the lowest slots.
WORKERS = 16
#: Number of checks whose beats are stored, in the order in which they appeared.
CHECKS = 32
_SLOTS = SAMPLES + 8
_HEAD = 64
_TEXT = 512
_NAME = 64


class Sample(NamedTuple):
    """One round; counters are totals since the service began.

    ``status``: 0 pass, 1 warn, 2 fail; times in milliseconds, sizes in bytes; ``rss`` is of all workers, ``rss_max`` of
    the largest, ``memory_limit`` the lowest of theirs (0: none); ``failed_rounds`` is set by `append`.
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
    rss_max: float = 0.0
    memory_limit: float = 0.0
    answers_2xx: float = 0.0
    answers_3xx: float = 0.0
    answers_4xx: float = 0.0
    status: float = 0.0
    db_held: float = 0.0
    failed_rounds: float = 0.0


class Memory(NamedTuple):
    """One worker's memory in a round; `age` (modulo 65,536) distinguishes it from the previous worker in its slot."""

    slot: int
    age: int
    rss: int


_SAMPLE = struct.Struct("=22d")
_BEATS = struct.Struct("=Q")  # two bits per check: 0 unknown, 1 pass, 2 warn, 3 fail
_MEMORY = struct.Struct("=HHI")  # slot, age, KiB; 0 KiB means no worker
_RECORD = _SAMPLE.size + _BEATS.size + WORKERS * _MEMORY.size
_TIME = struct.Struct("=d")


class History:
    """The rings in a piece of shared memory."""

    def __init__(self, area: memoryview) -> None:
        self._counts = area[:_HEAD].cast("q")
        self._samples = area[_HEAD:_HEAD + _SLOTS * _RECORD]
        start = _HEAD + _SLOTS * _RECORD
        self._transitions = area[start:start + TRANSITIONS * _TEXT]
        start += TRANSITIONS * _TEXT
        self._names = area[start:start + CHECKS * _NAME]

    @property
    def count(self) -> int:
        """Return the number of samples ever written: the cursor for `samples`."""
        return int(self._counts[0])

    def append(self, sample: Sample, workers: Iterable[Memory] = (), beats: Mapping[str, int] | None = None) -> None:
        """Add a round.

        :param workers: the memory of each worker; the first `WORKERS` are stored.
        :param beats: by name of the check, the worst status since the previous round: 0 pass, 1 warn, 2 fail.
        """
        number, last = self._counts[0], self.last()
        failed = (last.failed_rounds if last else 0) + (sample.status >= 2)
        start = number % _SLOTS * _RECORD
        _SAMPLE.pack_into(self._samples, start, *sample[:-1], failed)
        _BEATS.pack_into(self._samples, start + _SAMPLE.size, self._packed(beats or {}))
        held = [one for one in workers if one.rss > 0][:WORKERS]
        start += _SAMPLE.size + _BEATS.size
        for slot, age, rss in [*held, *[(0, 0, 0)] * (WORKERS - len(held))]:
            _MEMORY.pack_into(self._samples, start, slot & 0xFFFF, age & 0xFFFF, min(rss + 1023 >> 10, 0xFFFFFFFF))
            start += _MEMORY.size
        self._counts[0] = number + 1

    def samples(self, since: int = 0) -> list[Sample]:
        """Return the rounds from cursor `since` on, the oldest first."""
        count = self.count
        return [self.at(number) for number in range(max(since, count - SAMPLES, 0), count)]

    def memory(self, number: int) -> list[Memory]:
        """Return the workers' memory in the round of this number, in bytes."""
        start = number % _SLOTS * _RECORD + _SAMPLE.size + _BEATS.size
        found = _MEMORY.iter_unpack(self._samples[start:start + WORKERS * _MEMORY.size])
        return [Memory(slot, age, kib << 10) for slot, age, kib in found if kib]

    def beats(self, number: int) -> str:
        """Return the checks' statuses in the round of this number, a digit for each of `check_names`.

        The digits are 0 unknown, 1 pass, 2 warn, 3 fail.
        """
        beats: int = _BEATS.unpack_from(self._samples, number % _SLOTS * _RECORD + _SAMPLE.size)[0]
        return "".join(str(beats >> 2 * index & 3) for index in range(self._counts[2]))

    def check_names(self) -> list[str]:
        """Return the names of the checks in `beats`."""
        return [bytes(self._names[index * _NAME:(index + 1) * _NAME]).rstrip(b"\0").decode(errors="replace")
                for index in range(self._counts[2])]

    def _packed(self, beats: Mapping[str, int]) -> int:
        """Return the beats in one word; a new check gets a place, as long as there is one."""
        names, packed = self.check_names(), 0
        for name, status in beats.items():
            # not cut in the middle of a character: later lookups must find it again
            name = name.encode(errors="replace")[:_NAME].decode(errors="ignore")
            if name not in names and len(names) < CHECKS:
                start = len(names) * _NAME
                self._names[start:start + _NAME] = name.encode().ljust(_NAME, b"\0")
                names.append(name)
                self._counts[2] = len(names)
            if name in names:
                packed |= min(status + 1, 3) << 2 * names.index(name)
        return packed

    def last(self) -> Sample | None:
        """Return the newest round, None before the first."""
        return self.at(self.count - 1) if self.count else None

    def at(self, number: int) -> Sample:
        """Return the round of this number, one of the latest `SAMPLES`."""
        return Sample(*_SAMPLE.unpack_from(self._samples, number % _SLOTS * _RECORD))

    def _first_since(self, time: float) -> int:
        """Return the number of the first round that is not older than `time`, by bisection; `count` if there is none.
        """
        low, high = max(0, self.count - SAMPLES), self.count
        while low < high:
            middle = (low + high) // 2
            if _TIME.unpack_from(self._samples, middle % _SLOTS * _RECORD)[0] < time:
                low = middle + 1
            else:
                high = middle
        return low

    def availability(self, now: float, requests: int, errors: int, window: float) -> dict[str, Any]:
        """Return the availability over the last `window` seconds.

        That is the share of requests answered without a server error (`ratio`), and of rounds that did not fail
        (`probes`); None where there were none.

        :param now: time of day, seconds since the epoch.
        :param requests, errors: the totals at this moment.
        """
        count, first = self.count, self._first_since(now - window)
        oldest = max(0, count - SAMPLES)
        # a service younger than the window started from zero
        then = self.at(max(oldest, first - 1)) if first > oldest or oldest else None
        asked = requests - int(then.requests if then else 0)
        failed = errors - int(then.errors if then else 0)
        rounds, failures = count - first, 0.0
        if rounds:
            begin = self.at(first)
            failures = self.at(count - 1).failed_rounds - begin.failed_rounds + (begin.status >= 2)
        return {"ratio": round(1 - failed / asked, 6) if asked > 0 else None, "requests": max(0, asked),
                "probes": round(1 - failures / rounds, 6) if rounds else None, "window_s": window,
                "observed_s": round(max(0.0, min(window, now - self.at(oldest).time)), 1) if count else 0.0}

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

    @property
    def changes(self) -> int:
        """Return the number of changes ever written: the cursor for `transitions`."""
        return int(self._counts[1])

    def transitions(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the latest changes from cursor `since` on, the newest first."""
        count = self._counts[1]
        found = []
        for number in range(count - 1, max(-1, since - 1, count - 1 - TRANSITIONS), -1):
            start = number % TRANSITIONS * _TEXT
            try:
                found.append(json.loads(bytes(self._transitions[start:start + _TEXT]).rstrip(b"\0")))
            except ValueError:
                continue
        return found


def trends(samples: Sequence[Sample]) -> dict[str, float] | None:
    """Return the trends per minute, by name of the figure, over the latest `MOST` rounds.

    A trend is 0.0 where it is not significant at 1 %. Return None for fewer than `FEWEST` rounds.
    """
    latest = samples[-MOST:]
    if len(latest) < FEWEST:
        return None
    minutes = [sample.time / 60 for sample in latest]
    return {name: round(gated_slope(minutes, [getattr(sample, name) for sample in latest]), 3)
            for name in ("rss", "mean_ms", "p95_ms", "db_latency_ms")}
