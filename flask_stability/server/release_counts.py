"""The counts of a release's workers, and the judgements that need nothing else: latency and memory. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from .bets import Shares, share

Key = tuple[str, str]  #: method and endpoint of a route; class and route of an exception
COLD = 10  #: first requests of a route in a worker that do not count for latency and processor time (5 were too few)
LEAST_SLOW = 0.25  #: difference of the shares of slow requests that is worth reporting
RECENT = 20  #: number of a route's latest requests that must be as slow as all
BASELINE = 20  #: requests of a route from which its usual latency is known
SLOW_OCTAVE = 6  #: number of the octave below which no request counts as slow: 2 ms
#: × the old workers' memory; consecutive samples; bytes by which each must exceed the one before
GROWN, STEPS, STEP = 1.25, 3, 4 << 20
APART = 0.9  #: seconds between two samples
ROOM, PER_REQUEST = 32 << 20, 128 << 10  #: bytes above that; bytes per request


@dataclass(frozen=True)
class Route:
    """Requests of one route that a worker answered.

    :ivar requests: without those that the service refused on purpose.
    :ivar failed: server errors, and answers that were cut off.
    :ivar times: counts by octave of duration, without the time that a request was held.
    :ivar slowest_s: duration of the slowest ever, seconds.
    """

    requests: int = 0
    failed: int = 0
    times: tuple[int, ...] = ()
    slowest_s: float = 0.0


@dataclass(frozen=True)
class Hung:
    """A request in flight that has not begun to answer.

    :ivar where: its route, for people.
    """

    key: Key
    where: str
    seconds: float


@dataclass(frozen=True)
class Figures:
    """A worker's counts since it began.

    :ivar exceptions: recorded exceptions, by class and route.
    :ivar processor_s: processor time, seconds.
    :ivar resident: bytes of memory.
    :ivar threads: the number that serve requests.
    """

    routes: Mapping[Key, Route] = field(default_factory=dict)
    exceptions: Mapping[Key, int] = field(default_factory=dict)
    processor_s: float = 0.0
    resident: int = 0
    threads: int = 1
    hung: tuple[Hung, ...] = ()

    @property
    def requests(self) -> int:
        """Return the number of requests over all routes."""
        return sum(route.requests for route in self.routes.values())


Workers = Mapping[int, Figures]
NOBODY = Figures()
NOWHERE = Route()
NO_WORKERS: Workers = {}


class Steps:
    """The changes of one release's workers between two looks; everything before the first look is its past."""

    def __init__(self) -> None:
        self._known: dict[int, Figures] = {}
        self._warm: set[tuple[int, Key]] = set()

    def take(self, workers: Workers) -> tuple[dict[Key, Route], dict[Key, int], float, int]:
        """Return the growth of each route, each kind of exception and the processor time, and the cold requests.

        Durations count from the first look at which the worker has answered `COLD` requests of that route.
        """
        routes: dict[Key, Route] = {}
        exceptions: dict[Key, int] = {}
        processor, cold = 0.0, 0
        for pid, figures in workers.items():
            before = self._known.get(pid, NOBODY)
            for key, now in figures.routes.items():
                then = before.routes.get(key, NOWHERE)
                if then.requests == now.requests and pid in self._known:
                    continue
                times, more = self._counted(pid, key, then, now), max(0, now.requests - then.requests)
                cold += max(0, more - sum(times))
                known = routes.get(key, NOWHERE)
                routes[key] = Route(known.requests + more,
                                    known.failed + max(0, now.failed - then.failed),
                                    added(known.times, times), max(known.slowest_s, now.slowest_s))
            for kind, number in figures.exceptions.items():
                grown = number - before.exceptions.get(kind, 0)
                if grown > 0:
                    exceptions[kind] = exceptions.get(kind, 0) + grown
            processor += max(0.0, figures.processor_s - before.processor_s)
            self._known[pid] = figures
        return routes, exceptions, processor, cold

    def _counted(self, pid: int, key: Key, then: Route, now: Route) -> tuple[int, ...]:
        if (pid, key) not in self._warm:
            if now.requests < COLD:
                return ()
            self._warm.add((pid, key))
            # A worker that has served for long is warm; its earlier requests count as its past.
            return now.times if not then.requests and now.requests > 10 * COLD else ()
        return tuple(max(0, one - other) for one, other in zip(now.times, then.times or (0,) * len(now.times),
                                                               strict=True))


def added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sum of two histograms."""
    if not one or not other:
        return one or other
    return tuple(map(sum, zip(one, other, strict=True)))


def slow_from(times: tuple[int, ...]) -> int | None:
    """Return the octave from which a request is slow: the first one entirely above twice the median.

    Return None if too few requests are known.
    """
    total = sum(times)
    if total < BASELINE:
        return None
    seen = 0
    for octave, number in enumerate(times):
        seen += number
        if 2 * seen >= total:
            return max(octave + 2, SLOW_OCTAVE)
    return None


class Latency:
    """Slow requests of one route.

    :param past: the old release's durations before the comparison.
    """

    def __init__(self, past: tuple[int, ...]) -> None:
        self._past = past
        self._from: int | None = None
        self.shares = Shares()
        self._recent: list[tuple[int, int]] = []

    def add(self, old: tuple[int, ...], new: tuple[int, ...]) -> list[float] | None:
        """Add one look's durations; see `Shares.add`."""
        if self._from is None:
            self._from = slow_from(self._past)
            if self._from is None:
                self._past = added(self._past, old)
                return None
            self.shares = Shares(self._split(self._past))
        found = self._split(new)
        if found[0]:
            self._recent.append(found)
            while sum(number for number, _ in self._recent[1:]) >= RECENT:
                del self._recent[0]
        return self.shares.add(self._split(old), found)

    def _split(self, times: tuple[int, ...]) -> tuple[int, int]:
        return sum(times), sum(times[self._from:]) if self._from is not None else 0

    def still_slow(self) -> bool:
        """Return whether the latest requests are as slow as all: slowness that ended once caches were warm is forgiven.
        """
        recent = sum(number for number, _ in self._recent), sum(hits for _, hits in self._recent)
        return recent[0] >= min(RECENT, self.shares.new[0]) and share(recent) - self.shares.shares[0] >= LEAST_SLOW


class Memory:
    """Resident memory of the new release's workers: bytes."""

    def __init__(self) -> None:
        self._samples: dict[int, list[tuple[float, int, int]]] = {}

    def leaks(self, now: float, old: Workers, new: Workers) -> int:
        """Return the process id of a worker that has outgrown the old ones and grows with its requests; 0 = none."""
        usual = max((figures.resident for figures in old.values()), default=0)
        for pid, figures in new.items():
            samples = self._samples.setdefault(pid, [])
            if figures.resident and (not samples or (now - samples[-1][0] >= APART and
                                                     samples[-1][1] != figures.resident)):
                samples.append((now, figures.resident, figures.requests))
                del samples[:-STEPS - 1]
            if not usual or len(samples) <= STEPS or figures.resident < GROWN * usual + ROOM:
                continue
            if all(later[1] - sooner[1] >= max(STEP, PER_REQUEST * (later[2] - sooner[2]))
                   for sooner, later in itertools.pairwise(samples)):
                return pid
        return 0


def since(before: Mapping[Key, Route], now: Mapping[Key, Route]) -> dict[Key, Route]:
    """Return the growth of each route between two counts."""
    found = {}
    for key, route in now.items():
        then = before.get(key, NOWHERE)
        times = tuple(max(0, one - other) for one, other in zip(route.times, then.times or (0,) * len(route.times),
                                                                strict=True))
        found[key] = Route(max(0, route.requests - then.requests), max(0, route.failed - then.failed), times,
                           route.slowest_s)
    return found


def together(workers: Workers) -> dict[Key, Route]:
    """Return the routes of several workers, added up."""
    found: dict[Key, Route] = {}
    for figures in workers.values():
        for key, route in figures.routes.items():
            known = found.get(key, NOWHERE)
            found[key] = Route(known.requests + route.requests, known.failed + route.failed,
                               added(known.times, route.times), max(known.slowest_s, route.slowest_s))
    return found
