"""Which request kills workers: pure, from what was in flight at each crash and what was answered between two.

A request that was in flight in one crash is *watched*. One that was in flight in two, while others were answered and it
hardly ever was, is a suspect, and is *isolated*: a worker of its own serves suspects one at a time. Only what crashes
there, alone, is convicted and *refused* for a time that doubles. Then it is isolated again; some successes clear it,
and the doubled time is remembered.

Nothing is learnt from a kill from outside, and nothing is isolated while hardly any request is answered: then the
release, or something that it depends on, is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WATCHED, ISOLATED, REFUSED = "watched", "isolated", "refused"
FIRST, LONGEST = 30.0, 3600.0  #: seconds that a convicted request is refused at first, and at the most
SUCCESSES = 5  #: answers in isolation that clear a suspect
EVIDENCE = 10  #: other requests that were answered since the first crash, times the crashes after it
RARE = 0.05  #: share of the answered requests above which one is none that kills
MOST = 32  #: requests and routes that are watched
MOST_SUSPECTS = 8  #: requests and routes that are isolated or refused; more at once are a bad release
ROUTE_CRASHES = 3  #: crashes with different requests of one route after which the route is isolated
FORGET = 3600.0  #: seconds without a crash after which a request is not watched any more
QUIET = 600.0  #: seconds without a crash after which a route is isolated no more
REMEMBER = 86400.0  #: seconds for which a doubled time is remembered
INDICES = 64  #: places in which workers count the answers to watched requests
#: Why nothing was learnt from a crash, or nobody isolated for it.
OUTSIDE, SERVICE, TOO_MANY = "killed from outside", "hardly any request is answered", "too many suspects"


class Seen(NamedTuple):
    """A request that was in flight when a worker ended."""

    fingerprint: int
    method: str
    path: str
    route: str
    answering: bool = False


class Told(NamedTuple):
    """An event for the log: ``poison_suspected``, ``poison_isolated``, ``poison_refused`` or ``poison_cleared``."""

    event: str
    fields: dict[str, Any]


@dataclass
class Case:
    """One request, or one route, that was in flight in a crash.

    :ivar index: where workers count the answers to it.
    :ivar crashes: in how many it was.
    :ivar first, last: when the first and the last was, monotonic seconds.
    :ivar goods: requests that the service had answered at the first; -1 until the next look, after it was cleared.
    :ivar good: answers to this one since.
    :ivar until: end of its refusal, monotonic seconds.
    :ivar wait: seconds of its next refusal.
    :ivar successes: answers in isolation.
    """

    seen: Seen
    index: int
    first: float
    goods: int
    crashes: int = 0
    last: float = 0.0
    good: int = 0
    state: str = WATCHED
    until: float = 0.0
    wait: float = FIRST
    successes: int = 0


@dataclass
class RouteCase:
    """One route, in crashes with different requests."""

    first: float
    goods: int
    good_then: int
    crashed: set[int] = field(default_factory=set)
    last: float = 0.0
    isolated: bool = False


class Quarantine:
    """Decides.

    :ivar cases: by fingerprint.
    :ivar version: changes whenever what workers are to know does.
    """

    def __init__(self) -> None:
        self.cases: dict[int, Case] = {}
        self.routes: dict[str, RouteCase] = {}
        self.version = 0
        self._next = 0

    # -- what happens ------------------------------------------------------------------------------------------------

    def crashed(self, now: float, seen: Iterable[Seen], goods: int, *, outside: bool = False,
                good_of: Callable[[str], int] = lambda route: 0) -> tuple[list[Told], str]:
        """An ordinary worker ended by its own failure.

        :param now: monotonic seconds.
        :param seen: what was in flight.
        :param goods: requests that the service has answered so far.
        :param outside: it was killed from outside.
        :param good_of: how many requests of a route were answered so far.
        :returns: what is told, and why nobody is suspected, "" if there is no such reason.
        """
        if outside:
            return [], OUTSIDE
        told: list[Told] = []
        why = ""
        for one in {one.fingerprint: one for one in seen if not one.answering}.values():
            case = self._case(now, one, goods)
            case.crashes, case.last = case.crashes + 1, now
            if case.state is not WATCHED or case.crashes < 2:
                self._route(now, one, goods, good_of, told)
                continue
            others = goods - case.goods - case.good
            if others * (case.crashes - 1) < EVIDENCE:
                why = SERVICE
            elif case.good > 2 * case.crashes or case.good > RARE * others:
                continue  # it is answered all the time
            elif self._suspects() >= MOST_SUSPECTS:
                why = TOO_MANY
            else:
                evidence = {**_about(case), "crashes": case.crashes, "answered": case.good, "others_answered": others}
                told.append(Told(event="poison_suspected", fields=evidence))
                self._isolate(case, told)
        return told, why

    def crashed_alone(self, now: float, seen: Iterable[Seen], goods: int, *, outside: bool = False
                      ) -> tuple[list[Told], str]:
        """The isolation worker ended: what it was serving is convicted. Parameters and result as `crashed`."""
        found = [one for one in seen if not one.answering]
        if outside:
            return [], OUTSIDE
        if len(found) != 1:
            return [], ""
        case = self._case(now, found[0], goods)
        case.crashes, case.last, case.successes = case.crashes + 1, now, 0
        case.state, case.until = REFUSED, now + case.wait
        told = [Told(event="poison_refused", fields={**_about(case), "crashes": case.crashes, "seconds": case.wait})]
        case.wait = min(2 * case.wait, LONGEST)
        self.version += 1
        return told, ""

    def answered(self, index: int, number: int, *, alone: bool) -> list[Told]:
        """Requests of a watched case were answered.

        :param alone: by the isolation worker.
        """
        case = next((case for case in self.cases.values() if case.index == index), None)
        if case is None:
            return []
        case.good += number
        if not alone or case.state is WATCHED:
            return []
        case.successes += number
        if case.successes < SUCCESSES:
            return []
        told = [Told(event="poison_cleared", fields={**_about(case), "answered_alone": case.successes})]
        case.state, case.until = WATCHED, 0.0
        # one more crash, with as much evidence as before, makes it a suspect again
        case.crashes, case.successes, case.good, case.goods = 1, 0, 0, -1
        self.version += 1
        return told

    def tick(self, now: float, goods: int) -> list[Told]:
        """Let refusals end, and forget what is old."""
        told: list[Told] = []
        for fingerprint, case in list(self.cases.items()):
            if case.state is REFUSED and now >= case.until:
                self._isolate(case, told)
            if case.goods < 0:
                case.goods = goods
            idle = now - case.last
            if case.state is not REFUSED and idle > (REMEMBER if case.wait > FIRST else FORGET):
                del self.cases[fingerprint]
                self.version += 1
        for route, found in list(self.routes.items()):
            if now - found.last > QUIET:
                del self.routes[route]
                self.version += found.isolated
                if found.isolated:
                    told.append(Told(event="poison_cleared", fields={"route": route}))
        return told

    def reloaded(self) -> list[Told]:
        """The app's code is another: refusals end, and are isolated."""
        told: list[Told] = []
        for case in self.cases.values():
            if case.state is REFUSED:
                self._isolate(case, told)
        return told

    def clear(self, fingerprint: int | None = None) -> int:
        """An operator's: forget one case, or all that are isolated or refused, times included; returns how many."""
        found = [one for one, case in self.cases.items()
                 if (one == fingerprint if fingerprint is not None else case.state is not WATCHED)]
        for one in found:
            del self.cases[one]
        routes = [route for route, case in self.routes.items() if case.isolated] if fingerprint is None else []
        for route in routes:
            del self.routes[route]
        self.version += 1
        return len(found) + len(routes)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _case(self, now: float, seen: Seen, goods: int) -> Case:
        case = self.cases.get(seen.fingerprint)
        if case is None:
            watched = sorted((one for one in self.cases.values() if one.state is WATCHED), key=lambda one: one.last)
            if len(self.cases) >= MOST and watched:
                del self.cases[watched[0].seen.fingerprint]
            taken = {one.index for one in self.cases.values()}
            while self._next % INDICES in taken:
                self._next += 1
            case = self.cases[seen.fingerprint] = Case(seen, self._next % INDICES, now, goods)
            self._next += 1  # a place is used again as late as possible: workers may still count there
            self.version += 1
        elif case.goods < 0:
            case.goods = goods
        return case

    def _suspects(self) -> int:
        return sum(case.state is not WATCHED for case in self.cases.values()) + sum(
            route.isolated for route in self.routes.values())

    def _isolate(self, case: Case, told: list[Told]) -> None:
        case.state, case.until, case.successes = ISOLATED, 0.0, 0
        self.version += 1
        told.append(Told(event="poison_isolated", fields=_about(case)))

    def _route(self, now: float, one: Seen, goods: int, good_of: Callable[[str], int], told: list[Told]) -> None:
        """Crashes that go on with changing requests of one route."""
        if not one.route:
            return
        if one.route not in self.routes and len(self.routes) >= MOST:
            del self.routes[min(self.routes, key=lambda name: self.routes[name].last)]
        found = self.routes.setdefault(one.route, RouteCase(now, goods, good_of(one.route)))
        found.crashed.add(one.fingerprint)
        found.last = now
        own = good_of(one.route) - found.good_then
        others = goods - found.goods - own
        if (not found.isolated and len(found.crashed) >= ROUTE_CRASHES and own <= RARE * others
                and others * (len(found.crashed) - 1) >= EVIDENCE and own <= now - found.first
                and self._suspects() < MOST_SUSPECTS):
            found.isolated = True
            self.version += 1
            told.append(Told(event="poison_isolated", fields={
                "route": one.route, "crashes": len(found.crashed), "answered": own, "others_answered": others}))


def _about(case: Case) -> dict[str, Any]:
    return {"method": case.seen.method, "path": case.seen.path, "route": case.seen.route,
            "fingerprint": f"{case.seen.fingerprint & 0xFFFF_FFFF_FFFF_FFFF:016x}"}
