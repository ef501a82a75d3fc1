"""Two simulated releases, side by side, for the judge of releases: good ones in all weathers, and bad ones."""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, field

from flask_stability.server.release import Finding, Judge, Verdict
from flask_stability.server.release_counts import Figures, Key, Route

LOOK = 0.1  #: seconds between two looks
OCTAVES = [2 ** exponent * 65536e-9 for exponent in range(22)]  #: seconds


@dataclass
class Weather:
    """What both releases live in.

    :ivar rate: requests a second.
    :ivar routes: share of the requests, failing share, median and sigma of the latency of each.
    :ivar outages: from, to, share of requests that fail then.
    :ivar slow: from, to, factor on all latencies then.
    """

    rate: float
    old: int
    routes: list[tuple[float, float, float, float]]
    outages: list[tuple[float, float, float]] = field(default_factory=list)
    slow: list[tuple[float, float, float]] = field(default_factory=list)


@dataclass
class Release:
    """How a release differs from the old one.

    :ivar cold: first requests of each route in a worker that are slower, and how much the first is.
    :ivar begins: seconds in which all of them are slower, by that factor at first.
    :ivar slower: factor on all latencies.
    :ivar fails: routes' numbers that fail, all of them for an empty set; None for none.
    :ivar unseen: share of requests that raise an exception of an unknown kind, in both releases.
    :ivar processor: seconds for each request.
    :ivar leak: bytes for each request.
    """

    cold: tuple[int, float] = (5, 3.0)
    begins: tuple[float, float] = (0.0, 1.0)
    slower: float = 1.0
    fails: frozenset[int] | None = None
    unseen: float = 0.0
    processor: float = 0.002
    leak: int = 0


class Worker:
    """Counts as a worker's row does."""

    def __init__(self, release: Release, random: random.Random, weather: Weather, resident: int) -> None:
        self._release, self._random, self._weather = release, random, weather
        self._counts = [[0, 0] for _ in weather.routes]
        self._times = [[0] * (len(OCTAVES) + 1) for _ in weather.routes]
        self._slowest = [0.0] * len(weather.routes)
        self._unseen, self._processor, self._resident = 0, 0.0, resident
        self.requests = 0

    def serve(self, now: float, number: int) -> None:
        """Answer one request of a route."""
        _, failing, median, sigma = self._weather.routes[number]
        draw, release, counts = self._random.random, self._release, self._counts[number]
        fails = draw() < failing or any(since <= now < until and draw() < part
                                        for since, until, part in self._weather.outages)
        fails = fails or (release.fails is not None and (number in release.fails or not release.fails))
        seconds = self._random.lognormvariate(0.0, sigma) * median * release.slower
        for since, until, factor in self._weather.slow:
            if since <= now < until:
                seconds *= factor
        cold, factor = release.cold
        if counts[0] < cold:
            seconds *= factor - (factor - 1.0) * counts[0] / cold
        until, factor = release.begins
        if 0.0 <= now < until:
            seconds *= factor - (factor - 1.0) * now / until
        counts[0] += 1
        counts[1] += fails
        self._times[number][bisect_right(OCTAVES, seconds)] += 1
        self._slowest[number] = max(self._slowest[number], seconds)
        self._unseen += draw() < release.unseen
        self._processor += release.processor * self._random.uniform(0.5, 1.5) * (3.0 if counts[0] <= 5 else 1.0)
        self._resident += release.leak
        self.requests += 1

    def warm_up(self, most: int) -> None:
        """Memory that the first requests fill."""
        self._resident += int((most - self._resident) * 0.02)

    def figures(self) -> Figures:
        """As they are now."""
        routes: dict[Key, Route] = {("GET", str(number)): Route(requests, failed, tuple(self._times[number]),
                                                              self._slowest[number])
                                    for number, (requests, failed) in enumerate(self._counts) if requests}
        kinds = {("KeyError", "/rare"): self._unseen} if self._unseen else {}
        return Figures(routes, kinds, round(self._processor, 2), self._resident, 4)


def weather(random: random.Random) -> Weather:
    """Any: little traffic and much, few routes and many, noisy ones, outages, a machine that slows down."""
    number = random.choice((1, 3, 8, 20, 30))
    shares = [random.paretovariate(1.0) for _ in range(number)]
    routes = [(one / sum(shares), random.choice((0.0, 0.0, 0.002, 0.01, 0.05, 0.3)),
               random.choice((0.0005, 0.003, 0.02, 0.2)), random.uniform(0.2, 1.2)) for one in shares]
    found = Weather(random.choice((1, 5, 20, 60, 120)), random.randint(1, 4), routes)
    for _ in range(random.choice((0, 0, 1, 2))):
        since = random.uniform(0.0, 10.0)
        found.outages.append((since, since + random.uniform(0.1, 3.0), random.uniform(0.3, 1.0)))
    for _ in range(random.choice((0, 0, 1, 2))):
        since = random.uniform(0.0, 10.0)
        found.slow.append((since, since + random.uniform(0.1, 5.0), random.uniform(1.5, 10.0)))
    return found


def good(random: random.Random) -> Release:
    """No worse, but new: its caches are cold, its processor time is a little higher, its kinds of errors are rare."""
    return Release(cold=(random.choice((0, 5, 10, 15)), random.uniform(1.0, 8.0)), slower=random.uniform(0.9, 1.2),
                   begins=(random.choice((0.0, 2.0, 4.0)), random.uniform(1.0, 5.0)),
                   unseen=random.choice((0.0, 0.0, 0.002)), processor=0.002 * random.uniform(0.9, 1.3))


def judged(random: random.Random, weather: Weather, release: Release,
           limit: float = 10.0) -> tuple[Finding, float, int]:
    """Run both until the verdict: the finding, seconds, and how many requests of the new release failed."""
    usual = Release(cold=(0, 1.0), unseen=release.unseen)
    old = [Worker(usual, random, weather, 150 << 20) for _ in range(weather.old)]
    new = Worker(release, random, weather, 60 << 20)
    numbers, shares = range(len(weather.routes)), [route[0] for route in weather.routes]
    for number in random.choices(numbers, shares, k=int(20 * weather.rate)):
        random.choice(old).serve(-1.0, number)
    judge = Judge(0.0, {pid: one.figures() for pid, one in enumerate(old)}, limit=limit)
    now, due = 0.0, 0.0
    while True:
        now += LOOK
        due += weather.rate * LOOK * random.uniform(0.5, 1.5)
        for number in random.choices(numbers, shares, k=int(due)):
            random.choice([*old, new]).serve(now, number)
        due -= int(due)
        new.warm_up(150 << 20)
        found = judge.look(now, {pid: one.figures() for pid, one in enumerate(old)}, {100: new.figures()})
        if found.verdict is not Verdict.UNDECIDED:
            failed = sum(route.failed for route in new.figures().routes.values())
            return found, now, failed
