"""Decide whether a new release is worse than the one that serves: pure, from counts and a clock.

Two releases serve side by side, and each look passes their workers' counts to a `Judge`. It compares shares: of failed
and of slow requests, per route and over all routes, of exceptions of a kind never seen before, and of windows in which
a request costs more processor time. Each comparison is an e-process (`bets`), so the judge may look as often as it
likes and stop as soon as it knows. Over all routes the e-process is the product of the routes' own, so that a different
mix of routes does not look like an effect. Each has a weight, and the weights add up to one (weighted Bonferroni).

Memory, crashes and hangs follow rules, since a single segmentation fault is evidence enough.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .bets import EFFECTS, MOST_WEALTH, STAKE, Bet, Shares, bet_on_all, log_ratio, share
from .release_counts import (
    BASELINE,
    LEAST_SLOW,
    NO_WORKERS,
    NOWHERE,
    Hung,
    Key,
    Latency,
    Memory,
    Route,
    Steps,
    Workers,
    slow_from,
)

ALPHA = 0.001  #: probability of calling a release worse that is not, over all comparisons
WARM = 3.0  #: seconds of service after which latency, processor time and memory count
EARLY, AMPLE, EACH = 5.0, 200, 10  #: seconds, requests, and requests of each frequent route that allow an early end
FREQUENT = 0.02  #: share of the old release's requests above which a route is frequent
ENOUGH = 20  #: requests of the new release below which the judge knows nothing about it
WEIGHTS = {"failed": 0.15, "failed_route": 0.4, "exceptions": 0.15, "slow": 0.1, "slow_route": 0.1, "processor": 0.1}
LATER = 0.1  #: share of a measure's weight for routes that appear later

FEWEST_FAILED, LEAST_FAILED = 3, 0.02  #: failed requests, and the difference of shares, that are worth reporting
WINDOW = 1.0  #: seconds of a window for processor time
BUSY, COSTLIER, COST = 10, 2.0, 0.002  #: requests in a window; × the old release's cost; additional seconds per request
COLDEST = 0.2  #: share of cold requests above which a window does not count
#: share of windows that may look costly by chance; share that the bet assumes of a costlier release
CHANCE, WAGER = 0.1, 0.8
HANGS, SLOWEST = 3.0, 5.0  #: seconds, and × the slowest answer of that route, after which a request counts as hung

#: Exit reasons of which one is enough: the app itself caused it.
FATAL = frozenset({"crash_signal", "exit_code", "timeout", "stuck", "leaked_connections", "memory_hard", "deadline"})
#: Exit reasons that may have another cause.
DOUBTFUL = frozenset({"boot_failure", "out_of_memory", "killed", "unknown", "frozen"})


class Verdict(enum.Enum):
    """A judge's verdict on the new release."""

    UNDECIDED = "undecided"
    WORSE = "worse"
    AS_GOOD = "as good"
    TOO_FEW = "too few requests"  #: the time is over, and too little is known


class Window(NamedTuple):
    """Processor time in seconds, requests, and cold requests of the new release among them."""

    old_s: float
    old: float
    new_s: float
    new: float
    cold: float


NO_WINDOW = Window(0.0, 0, 0.0, 0, 0)


@dataclass(frozen=True)
class Finding:
    """A judge's verdict, with its reason.

    :ivar text: for people: "KeyError in /pay (5xx 100 % against 0.2 %)".
    :ivar measure: failed, slow, exceptions, processor, memory, crash or hang.
    :ivar requests: of the new release, up to now.
    """

    verdict: Verdict = Verdict.UNDECIDED
    text: str = ""
    measure: str = ""
    requests: int = 0


class Judge:
    """Compares a new release with the old one while both serve.

    :param now: monotonic seconds, as in all later looks.
    :param old: the old release's workers, with their past.
    :param known: kinds of exceptions seen before.
    :param new: the new release's workers, if they have served before.
    :param limit: seconds from the new release's first service after which the judge decides by what it knows.
    """

    def __init__(self, now: float, old: Workers, known: Iterable[Key] = (), new: Workers = NO_WORKERS, *,
                 limit: float = 10.0) -> None:
        self._limit, self._begun = limit, 0.0
        self._old, self._new = Steps(), Steps()
        past, exceptions, _, _ = self._old.take(old)
        self._new.take(new)
        self._past = past
        self._kinds = {*known, *exceptions}
        self._failed = {key: Shares((route.requests, route.failed)) for key, route in past.items()}
        self._slow = {key: Latency(route.times) for key, route in past.items()}
        self._first = len(past)
        self._exceptions: dict[Key, Shares] = {}
        self._seen: dict[Key, int] = {}  # exceptions of the new release
        self._all_failed, self._all_slow = Bet(), Bet()
        self._memory = Memory()
        self._window = now, NO_WINDOW
        self._processor, self._costs = 1.0, (0.0, 0.0)
        self.requests = 0
        self._answered: dict[Key, int] = {}
        self._old_answered: dict[Key, int] = {}

    # -- one look ------------------------------------------------------------------------------------------------

    def look(self, now: float, old: Workers, new: Workers, *, old_ends: Sequence[str] = (),
             new_ends: Sequence[str] = ()) -> Finding:
        """Take the workers' counts up to now and judge; workers that have ended keep their figures.

        :param old_ends, new_ends: reasons of exits, and of requested replacements, of each side since the first look.
        """
        if new and not self._begun:
            self._begun = now
        warm = bool(self._begun) and now - self._begun >= WARM
        old_routes, old_kinds, old_processor, _ = self._old.take(old)
        new_routes, new_kinds, new_processor, cold = self._new.take(new)
        self._count(old_routes, new_routes)
        self._add_failed(old_routes, new_routes)
        self._add_exceptions(old_routes, new_routes, old_kinds, new_kinds)
        if warm:
            self._add_slow(old_routes, new_routes)
            self._add_processor(now, Window(old_processor, _requests(old_routes), new_processor, _requests(new_routes),
                                             cold))
        else:
            self._window = now, NO_WINDOW
        for measure, text in (_ended(old_ends, new_ends), self._hangs(old, new), self._fails(), self._raises(),
                              self._is_slow(), self._costs_more(), self._leaks(now, old, new, warm)):
            if text:
                return Finding(Verdict.WORSE, text, measure, self.requests)
        return Finding(self._without_finding(now), "", "", self.requests)

    def _without_finding(self, now: float) -> Verdict:
        served = now - self._begun if self._begun else 0.0
        if served >= self._limit:
            return Verdict.AS_GOOD if self.requests >= ENOUGH else Verdict.TOO_FEW
        return Verdict.AS_GOOD if served >= EARLY and self._ample() and not self._suspicious() else Verdict.UNDECIDED

    def _ample(self) -> bool:
        total = sum(self._old_answered.values())
        return self.requests >= AMPLE and all(
            self._answered.get(key, 0) >= EACH for key, number in self._old_answered.items()
            if number > FREQUENT * total)

    def _suspicious(self) -> bool:
        return max(self._all_failed.wealth, self._all_slow.wealth, self._processor,
                   *(shares.bet.wealth for shares in self._failed.values()), 0.0,
                   *(one.shares.bet.wealth for one in self._slow.values())) > 10.0

    # -- counting ------------------------------------------------------------------------------------------------

    def _count(self, old: dict[Key, Route], new: dict[Key, Route]) -> None:
        for known, routes in ((self._old_answered, old), (self._answered, new)):
            for key, route in routes.items():
                known[key] = known.get(key, 0) + route.requests
        self.requests += _requests(new)

    def _add_failed(self, old: dict[Key, Route], new: dict[Key, Route]) -> None:
        found = []
        for key in {**old, **new}:
            shares = self._failed.setdefault(key, Shares())
            one, other = old.get(key, NOWHERE), new.get(key, NOWHERE)
            factors = shares.add((one.requests, one.failed), (other.requests, other.failed))
            if factors is not None:
                found.append(factors)
        bet_on_all(self._all_failed, found)

    def _add_slow(self, old: dict[Key, Route], new: dict[Key, Route]) -> None:
        found = []
        for key in {**old, **new}:
            latency = self._slow.setdefault(key, Latency(()))
            factors = latency.add(old.get(key, NOWHERE).times, new.get(key, NOWHERE).times)
            if factors is not None:
                found.append(factors)
        bet_on_all(self._all_slow, found)

    def _add_exceptions(self, old: dict[Key, Route], new: dict[Key, Route], old_kinds: dict[Key, int],
                        new_kinds: dict[Key, int]) -> None:
        asked = _requests(old), _requests(new)
        for kind, shares in self._exceptions.items():
            shares.add((asked[0], min(asked[0], old_kinds.get(kind, 0))),
                       (asked[1], min(asked[1], new_kinds.get(kind, 0))))
        for kind in {**old_kinds, **new_kinds}:
            if kind not in self._kinds and kind not in self._exceptions:
                self._exceptions[kind] = Shares()  # the look that found it does not count as evidence
        for kind, number in new_kinds.items():
            self._seen[kind] = self._seen.get(kind, 0) + number

    def _add_processor(self, now: float, more: Window) -> None:
        since, sums = self._window
        sums = Window(*map(sum, zip(sums, more, strict=True)))
        self._window = since, sums
        if now - since < WINDOW or min(sums.old, sums.new) < BUSY:
            return
        self._window = now, NO_WINDOW
        if sums.cold > COLDEST * sums.new:
            return
        self._costs = usual, cost = sums.old_s / sums.old, sums.new_s / sums.new
        costly = cost >= COSTLIER * usual and cost - usual >= COST
        self._processor = min(MOST_WEALTH, self._processor * (
            WAGER / CHANCE if costly else (1.0 - WAGER) / (1.0 - CHANCE)))

    # -- judging -------------------------------------------------------------------------------------------------

    def _won(self, bet: Bet | float, measure: str, part: float = 1.0) -> bool:
        return (bet if isinstance(bet, float) else bet.wealth) * ALPHA * WEIGHTS[measure] * part >= 1.0

    def _part(self, number: int) -> float:
        """Return a route's part of its measure's weight.

        :param number: its position in the order in which routes became known.
        """
        if number < self._first:
            return (1.0 - LATER) / self._first
        later = number - self._first + 1
        return (LATER if self._first else 1.0) / (later * (later + 1))

    def _fails(self) -> tuple[str, str]:
        for number, (key, shares) in enumerate(self._failed.items()):
            old, new = shares.shares
            if self._won(shares.bet, "failed_route", self._part(number)) and _worth(shares.new[1], old, new):
                return "failed", self._failed_text(" ".join(key), old, new)
        if self._won(self._all_failed, "failed"):
            old, new = self._overall(list(self._failed.values()))
            if _worth(sum(shares.new[1] for shares in self._failed.values()), old, new):
                return "failed", self._failed_text("all routes", old, new)
        return "", ""

    def _failed_text(self, where: str, old: float, new: float) -> str:
        unknown = {kind: number for kind, number in self._seen.items() if kind not in self._kinds}
        if len(unknown) == 1 or (unknown and where == "all routes"):
            name, route = max(unknown, key=lambda kind: unknown[kind])
            where = f"{name} in {route if route and len(unknown) == 1 else where}"
        return f"{where} (5xx {percent(new)} against {percent(old)})"

    def _overall(self, found: list[Shares]) -> tuple[float, float]:
        sums = [tuple(map(sum, zip(*(getattr(shares, side) for shares in found), strict=True))) or (0, 0)
                for side in ("old", "new")]
        return share(sums[0]), share(sums[1])  # type: ignore[arg-type]

    def _raises(self) -> tuple[str, str]:
        for number, ((name, route), shares) in enumerate(self._exceptions.items(), 1):
            old, new = shares.shares
            if self._won(shares.bet, "exceptions", 1.0 / (number * (number + 1))) and (
                    shares.new[1] >= FEWEST_FAILED and new > 2.0 * old):
                return "exceptions", (f"{name} in {route or 'no route'}, never seen before "
                                      f"({self._seen.get((name, route), 0)} times)")
        return "", ""

    def _is_slow(self) -> tuple[str, str]:
        slow = [(" ".join(key), latency) for key, latency in self._slow.items()]
        for number, (where, latency) in enumerate(slow):
            old, new = latency.shares.shares
            if (self._won(latency.shares.bet, "slow_route", self._part(number)) and new - old >= LEAST_SLOW
                    and latency.still_slow()):
                return "slow", _slow_text(where, old, new)
        if self._won(self._all_slow, "slow"):
            old, new = self._overall([latency.shares for _, latency in slow])
            if new - old >= LEAST_SLOW and any(latency.still_slow() for _, latency in slow):
                return "slow", _slow_text("all routes", old, new)
        return "", ""

    def _costs_more(self) -> tuple[str, str]:
        if not self._won(self._processor, "processor"):
            return "", ""
        old, new = self._costs
        return "processor", f"{1000 * new:.1f} ms of processor time a request against {1000 * old:.1f} ms"

    def _leaks(self, now: float, old: Workers, new: Workers, warm: bool) -> tuple[str, str]:
        pid = self._memory.leaks(now, old, new) if warm else 0
        if not pid:
            return "", ""
        usual = max(figures.resident for figures in old.values())
        return "memory", f"memory grows with each request: {new[pid].resident >> 20} MiB against {usual >> 20} MiB"

    def _hangs(self, old: Workers, new: Workers) -> tuple[str, str]:
        elsewhere = [one.key for figures in old.values() for one in figures.hung if one.seconds > HANGS]
        for figures in new.values():
            found = [one for one in figures.hung if one.key not in elsewhere and self._hung(one)]
            # a machine that stalls holds requests of both releases
            if len(found) >= min(2, figures.threads) + 2 * len(elsewhere):
                return "hang", f"{found[0].where} hangs ({len(found)} requests without an answer)"
        return "", ""

    def _hung(self, one: Hung) -> bool:
        past = self._past.get(one.key)
        return past is not None and past.requests >= BASELINE and one.seconds > max(HANGS, SLOWEST * past.slowest_s)


def _ended(old: Sequence[str], new: Sequence[str]) -> tuple[str, str]:
    fatal = [reason for reason in new if reason in FATAL]
    doubtful = [reason for reason in new if reason in DOUBTFUL]
    same = sum(reason in FATAL or reason in DOUBTFUL for reason in old)
    if 2 * len(fatal) + len(doubtful) < 2 + 4 * same:
        return "", ""
    return "crash", f"a worker ended: {(fatal or doubtful)[0].replace('_', ' ')}"


def _requests(routes: dict[Key, Route]) -> int:
    return sum(route.requests for route in routes.values())


class Alarm:
    """Compares the new release with the old one's past, once the old one no longer serves.

    A finding is only a reason to compare the two again, since the load may have changed instead.

    :param usual: the old release's counts by route.
    """

    def __init__(self, usual: Mapping[Key, Route]) -> None:
        self._usual: dict[Key, tuple[float, int | None]] = {
            key: (min(0.98, (route.failed + 4.0) / (route.requests + 8.0)), slow_from(route.times))
            for key, route in usual.items()}
        self._slow = {key: (sum(usual[key].times[since:]) + 8.0) / (sum(usual[key].times) + 32.0)
                      for key, (_, since) in self._usual.items() if since is not None}
        self._steps = Steps()
        self._bets: dict[tuple[str, Key], Bet] = {}
        self._all = {"failed": Bet(), "slow": Bet()}

    def look(self, workers: Workers) -> str:
        """Return what has become worse, or "" if nothing has."""
        routes, _, _, _ = self._steps.take(workers)
        found: dict[str, list[list[float]]] = {"failed": [], "slow": []}
        for key, route in routes.items():
            failing, since = self._usual.get(key, (0.05, None))
            found["failed"].append(self._bet("failed", key, failing, route.requests, route.failed))
            if since is not None and route.times:
                number, slow = sum(route.times), sum(route.times[since:])
                found["slow"].append(self._bet("slow", key, min(0.98, self._slow[key]), number, slow))
        for measure, factors in found.items():
            bet_on_all(self._all[measure], factors)
            if self._all[measure].wealth * ALPHA * WEIGHTS[measure] >= 1.0:
                return f"all routes: {measure}"
        for (measure, key), bet in self._bets.items():
            if bet.wealth * ALPHA * WEIGHTS[f"{measure}_route"] / max(1, len(self._usual)) >= 1.0:
                return f"{' '.join(key)}: {measure}"
        return ""

    def _bet(self, measure: str, key: Key, usual: float, number: int, hits: int) -> list[float]:
        logs = [log_ratio(usual + effect * (1.0 - usual), usual, number, hits) for effect in EFFECTS]
        factors = [1.0 - STAKE + STAKE * math.exp(min(100.0, log)) for log in logs]
        self._bets.setdefault((measure, key), Bet()).win(factors)
        return factors


def _worth(failed: int, old: float, new: float) -> bool:
    return failed >= FEWEST_FAILED and new >= max(2.0 * old, old + LEAST_FAILED)


def _slow_text(where: str, old: float, new: float) -> str:
    return f"{where} is slow ({percent(new)} of requests take more than twice the usual time, against {percent(old)})"


def percent(part: float) -> str:
    """Return a share for people: 100 %, 3 %, 0.2 %."""
    return f"{100 * part:.1f} %" if 0.0 < part < 0.095 else f"{100 * part:.0f} %"
