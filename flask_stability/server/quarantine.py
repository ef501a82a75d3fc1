"""Decide which request kills workers: pure, from the requests in flight at each crash and the answers between crashes.

A request that was in flight in one crash is *watched*. One that was in flight in two crashes, while the service
answered others and hardly ever answered it, is a suspect. Suspects are *isolated*: a worker of its own serves them one
at a time. A request that crashes that worker alone is convicted and *refused* for a time that doubles. Then it is
isolated again; a few successes clear it, but the doubled time stays in memory.

Suspicion goes by the fingerprint in the black box, which other clients' requests may share: a suspect is only served
more slowly. A conviction goes by the exact fingerprint, over everything that the sender chooses: no client can cause
the refusal of another client's request.

A kill from outside teaches nothing. While the service answers hardly any request it isolates nothing, because then the
release, or one of its dependencies, is broken. Every table is bounded and its entries expire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WATCHED, ISOLATED, REFUSED = "watched", "isolated", "refused"
FIRST, LONGEST = 30.0, 3600.0  #: seconds of a convicted request's refusal, at first and at most
SUCCESSES = 5  #: answers in isolation that clear a suspect
EVIDENCE = 10  #: other requests answered since the first crash, times the number of later crashes, that make a suspect
RARE = 0.05  #: share of the answered requests above which a request is no suspect
MOST = 160  #: maximum number of watched requests
MOST_ROUTES = 32  #: maximum number of watched routes
MOST_CONVICTED = 32  #: maximum number of requests that are refused, or isolated after a refusal
MOST_SUSPECTS = 8  #: maximum number of isolated requests and routes; more at once indicate a bad release
ROUTE_CRASHES = 3  #: crashes with different requests of one route that isolate the route
FORGET = 3600.0  #: seconds without a crash after which a request is no longer watched
QUIET = 600.0  #: seconds without a crash after which a route is no longer isolated
REMEMBER = 86400.0  #: seconds for which a doubled refusal time is remembered
LONGEST_ROUTE = 500  #: maximum characters of a route; the list of a process has a fixed size
INDICES = 256  #: counters in which workers count the answers to watched requests; more than there are watched requests
#: Why a crash taught nothing, or isolated no request.
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
    """Requests of one fingerprint that were in flight in a crash.

    :ivar index: the counter in which workers count the answers to it.
    :ivar crashes: the number of crashes in which it was in flight.
    :ivar first, last: when the first and the last crash happened, monotonic seconds.
    :ivar goods: requests that the service had answered at the first crash; after a clearance -1 until the next look.
    :ivar good: answers to these requests since then.
    :ivar state: `WATCHED` or `ISOLATED`.
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
    successes: int = 0


@dataclass
class Conviction:
    """Requests of one exact fingerprint that crashed the isolation worker.

    :ivar seen: one of them.
    :ivar index, crashes, first, last, successes: as in a `Case`.
    :ivar state: `REFUSED`, `ISOLATED` after that, or `WATCHED` after a clearance.
    :ivar until: end of its refusal, monotonic seconds.
    :ivar wait: seconds of its next refusal.
    """

    seen: Seen
    index: int
    first: float
    crashes: int = 0
    last: float = 0.0
    state: str = REFUSED
    until: float = 0.0
    wait: float = FIRST
    successes: int = 0


@dataclass
class RouteCase:
    """One route whose different requests were in flight in crashes."""

    first: float
    goods: int
    good_then: int
    crashed: set[int] = field(default_factory=set)
    last: float = 0.0
    isolated: bool = False


class Quarantine:
    """Decides which requests are watched, isolated and refused.

    :ivar cases: by fingerprint.
    :ivar convicted: by exact fingerprint.
    :ivar routes: by URL rule.
    :ivar version: changes with every change of the list for the workers.
    """

    def __init__(self) -> None:
        self.cases: dict[int, Case] = {}
        self.convicted: dict[int, Conviction] = {}
        self.routes: dict[str, RouteCase] = {}
        self.version = 0
        self._next = 0

    # -- what happens ------------------------------------------------------------------------------------------------

    def crashed(self, now: float, seen: Iterable[Seen], goods: int, *, outside: bool = False,
                good_of: Callable[[str], int] = lambda route: 0) -> tuple[list[Told], str]:
        """Record the crash of an ordinary worker; isolate the requests that become suspects.

        :param now: monotonic seconds.
        :param seen: the requests that were in flight.
        :param goods: requests that the service has answered so far.
        :param outside: the worker was killed from outside.
        :param good_of: returns how many requests of a route were answered so far.
        :returns: events for the log, and why no request became a suspect, or "" without such a reason.
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
                continue  # the service answers it all the time
            elif self._suspects() >= MOST_SUSPECTS:
                why = TOO_MANY
            else:
                evidence = {**about(one), "crashes": case.crashes, "answered": case.good, "others_answered": others}
                told.append(Told(event="poison_suspected", fields=evidence))
                self._isolate(case, told)
        return told, why

    def crashed_alone(self, now: float, seen: Iterable[Seen], exact: int, *, outside: bool = False
                      ) -> tuple[list[Told], str]:
        """Convict the request that the isolation worker was serving when it ended. Parameters and result as `crashed`.

        :param exact: the exact fingerprint of that request.
        """
        found = [one for one in seen if not one.answering]
        if outside:
            return [], OUTSIDE
        if len(found) != 1 or not exact:
            return [], ""
        case = self.cases.get(found[0].fingerprint)
        if case is not None:
            case.crashes, case.last, case.successes = case.crashes + 1, now, 0
        one = self.convicted.get(exact)
        if one is None:
            if len(self.convicted) >= MOST_CONVICTED:
                del self.convicted[min(self.convicted, key=self._worth)]
            one = self.convicted[exact] = Conviction(found[0], self._take_index(), now)
        one.crashes, one.last, one.successes = one.crashes + 1, now, 0
        one.state, one.until = REFUSED, now + one.wait
        told = [Told(event="poison_refused", fields={**about(one.seen), "crashes": one.crashes, "seconds": one.wait})]
        one.wait = min(2 * one.wait, LONGEST)
        self.version += 1
        return told, ""

    def answered(self, index: int, number: int, *, alone: bool) -> list[Told]:
        """Count answers to the requests that workers count at `index`; return events for the log.

        :param alone: the isolation worker answered them.
        """
        case = next((case for case in self.cases.values() if case.index == index), None)
        if case is not None:
            case.good += number
        one = case or next((one for one in self.convicted.values() if one.index == index), None)
        if one is None or not alone or one.state is not ISOLATED:
            return []
        one.successes += number
        if one.successes < SUCCESSES:
            return []
        told = [Told(event="poison_cleared", fields={**about(one.seen), "answered_alone": one.successes})]
        one.state, one.successes = WATCHED, 0
        if case is not None:
            # one more crash, with as much evidence as before, makes it a suspect again
            case.crashes, case.good, case.goods = 1, 0, -1
        self.version += 1
        return told

    def tick(self, now: float, goods: int) -> list[Told]:
        """End refusals that are over, and forget old entries; return events for the log."""
        told: list[Told] = []
        for exact, one in list(self.convicted.items()):
            if one.state is REFUSED and now >= one.until:
                self._isolate(one, told)
            if one.state is not REFUSED and now - one.last > REMEMBER:
                del self.convicted[exact]
                self.version += 1
        for fingerprint, case in list(self.cases.items()):
            if case.goods < 0:
                case.goods = goods
            if now - case.last > FORGET:
                del self.cases[fingerprint]
                self.version += 1
                if case.state is ISOLATED:
                    told.append(Told(event="poison_cleared", fields=about(case.seen)))
        for route, found in list(self.routes.items()):
            if now - found.last > QUIET:
                del self.routes[route]
                self.version += found.isolated
                if found.isolated:
                    told.append(Told(event="poison_cleared", fields={"route": route}))
        return told

    def reloaded(self) -> list[Told]:
        """End all refusals, since the app's code has changed; isolate those requests instead."""
        told: list[Told] = []
        for one in self.convicted.values():
            if one.state is REFUSED:
                self._isolate(one, told)
        return told

    def clear(self, fingerprint: int | None = None) -> int:
        """Forget, for an operator, the entries of one fingerprint, exact or not, or all isolated and refused ones.

        :returns: the number of forgotten entries.
        """
        if fingerprint is None:
            cases = [one for one, case in self.cases.items() if case.state is ISOLATED]
            convicted, routes = list(self.convicted), [name for name, one in self.routes.items() if one.isolated]
        else:
            cases = [one for one in (fingerprint,) if one in self.cases]
            convicted = [exact for exact, one in self.convicted.items() if fingerprint in (exact, one.seen.fingerprint)]
            routes = []
        for name in routes:
            del self.routes[name]
        for number in cases:
            del self.cases[number]
        for number in convicted:
            del self.convicted[number]
        self.version += 1
        return len(cases) + len(convicted) + len(routes)

    def forget(self, since: float = float("-inf")) -> None:
        """Forget everything whose first crash was at `since` or later, monotonic seconds."""
        self.cases = {one: case for one, case in self.cases.items() if case.first < since}
        self.convicted = {exact: one for exact, one in self.convicted.items() if one.first < since}
        self.routes = {name: one for name, one in self.routes.items() if one.first < since}
        self.version += 1

    # -- parts -------------------------------------------------------------------------------------------------------

    def _case(self, now: float, seen: Seen, goods: int) -> Case:
        case = self.cases.get(seen.fingerprint)
        if case is None:
            if len(self.cases) >= MOST:  # the least suspicious entry makes room
                del self.cases[min(self.cases, key=lambda one: (
                    self.cases[one].state is ISOLATED, self.cases[one].crashes, self.cases[one].last))]
            case = self.cases[seen.fingerprint] = Case(seen, self._take_index(), now, goods)
            self.version += 1
        elif case.goods < 0:
            case.goods = goods
        return case

    def _take_index(self) -> int:
        """Return a counter's index, reused as late as possible: workers may still count there."""
        taken = {case.index for case in self.cases.values()} | {one.index for one in self.convicted.values()}
        for _ in range(INDICES):
            self._next = (self._next + 1) % INDICES
            if self._next not in taken:
                break
        return self._next

    def _worth(self, exact: int) -> tuple[bool, bool, float]:
        one = self.convicted[exact]
        return one.state is REFUSED, one.state is ISOLATED, one.last

    def _suspects(self) -> int:
        return sum(case.state is not WATCHED for case in self.cases.values()) + sum(
            route.isolated for route in self.routes.values())

    def _isolate(self, one: Case | Conviction, told: list[Told]) -> None:
        one.state, one.successes = ISOLATED, 0
        self.version += 1
        told.append(Told(event="poison_isolated", fields=about(one.seen)))

    def _route(self, now: float, one: Seen, goods: int, good_of: Callable[[str], int], told: list[Told]) -> None:
        """Isolate a route if crashes continue with changing requests of it."""
        if not one.route or len(one.route) > LONGEST_ROUTE:
            return
        if one.route not in self.routes and len(self.routes) >= MOST_ROUTES:
            del self.routes[min(self.routes, key=lambda name: self.routes[name].last)]
        found = self.routes.setdefault(one.route, RouteCase(now, goods, good_of(one.route)))
        if len(found.crashed) < INDICES:
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


def about(seen: Seen) -> dict[str, Any]:
    """Return the fields of a request for a log record."""
    return {"method": seen.method, "path": seen.path, "route": seen.route,
            "fingerprint": f"{seen.fingerprint & 0xFFFF_FFFF_FFFF_FFFF:016x}"}
