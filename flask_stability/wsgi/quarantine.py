"""Requests that kill workers, in a worker: those on the master's list are refused, handed over, or counted.

While the list is empty a request costs one look at one word of shared memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import ServiceUnavailable

from ..errors.problem import response_for
from ..request import HANDED_OVER
from ..scoreboard import black_box
from . import routes
from .handover import ID, NotTaken, hand_over
from .routes import Routes

if TYPE_CHECKING:
    from .exchange import Exchange

BUSY = 5.0  #: seconds of Retry-After while too many wait for the isolation worker
ENDED = 30.0  #: the same after it ended with the request
LONGEST = 120.0  #: seconds without a byte from it for a request without a deadline
STARTS = 60.0  #: seconds more, in which it may start


def _nobody() -> None:
    return None


#: Set by the server's hooks: wakes the master.
knock: Callable[[], None] = _nobody
#: Set by the server's hooks in the isolation worker: what is on the list is served here.
alone = False


class _Answered:
    """What a watched request holds: it is counted when it is over."""

    __slots__ = ("_index",)

    def __init__(self, index: int) -> None:
        self._index = index

    def release(self) -> None:
        """It was answered."""
        index, self._index = self._index, -1
        if index >= 0:
            black_box.count(index)


class _List:
    """The master's list at one version.

    :ivar cases: by fingerprint: where it is counted, its state, and the end of its refusal.
    """

    def __init__(self, version: int, data: bytes) -> None:
        self.version = version
        try:
            found = json.loads(data or b"{}")
        except ValueError:
            found = {}
        self.cases: dict[int, tuple[int, str, float]] = {
            one[0]: (one[1], one[2], one[3]) for one in found.get("cases", [])}
        self.routes = frozenset(found.get("routes", []))
        self.rules: list[dict[str, Any]] = found.get("rules", [])
        self.path = str(found.get("path", ""))
        self._table: Routes | None = None

    def action(self, method: str, path: str, fingerprint: int, now: float) -> tuple[str, float]:
        """What becomes of a request: "refuse", with seconds, "isolate", or ""."""
        route: str | None = None
        if self.routes or any(rule["route"] for rule in self.rules):
            route = self._route_of(method, path)
        for rule in self.rules:
            if _meets(rule, method, path, route):
                return str(rule["action"]), ENDED
        _, state, until = self.cases.get(fingerprint, (0, "", 0.0))
        if state == "refused" and now < until:
            return "refuse", until - now
        if state in ("refused", "isolated") or (route and route in self.routes):
            return "isolate", 0.0
        return "", 0.0

    def _route_of(self, method: str, path: str) -> str:
        if self._table is None:
            box = black_box.current()
            self._table = routes.decode(box.routes.read() if box is not None else b"")
        return self._table.of(method, path)


def _meets(rule: dict[str, Any], method: str, path: str, route: str | None) -> bool:
    return ((not rule["method"] or rule["method"] == method) and (not rule["route"] or rule["route"] == route)
            and (not rule["path"] or fnmatchcase(path, rule["path"])))


_list = _List(0, b"")


def look(exchange: Exchange, environ: dict[str, Any]) -> Iterable[bytes] | None:
    """Look at a request while the list is not empty; returns its answer, None if the app is to give it."""
    global _list
    version = black_box.listed[0]
    known = _list
    if known.version != version:
        box = black_box.current()
        known = _list = _List(version, box.quarantine.read() if box is not None else b"")
    health, path = exchange.middleware.settings.health_path, exchange.path
    if path == health or path.startswith(health + "/"):
        return None
    fingerprint = black_box.fingerprint_of(environ)
    case = known.cases.get(fingerprint)
    if alone:
        exchange.given_id = environ.get(ID, exchange.given_id)
    else:
        action, seconds = known.action(exchange.method, path, fingerprint, time.monotonic())
        if action == "refuse":
            return refuse(exchange, environ, seconds)
        if action == "isolate" and known.path and "HTTP_UPGRADE" not in environ:
            return _isolate(exchange, environ, known.path)
    if case is not None:
        exchange.hold(_Answered(case[0]))
    return None


def refuse(exchange: Exchange, environ: dict[str, Any], seconds: float) -> Iterable[bytes]:
    """Answer 503 with Retry-After."""
    error = ServiceUnavailable(retry_after=max(1, round(seconds)))
    status, headers, body = response_for(error, environ, exchange.middleware.settings, exchange.id)
    exchange.refused, exchange.recorded = True, "refused"  # a log line for each would be the client's to write
    exchange.start_response(status, headers)
    return [] if exchange.method == "HEAD" else [body]


def _isolate(exchange: Exchange, environ: dict[str, Any], path: str) -> Iterable[bytes]:
    timeout = exchange.timeout or LONGEST
    exchange.timeout = 0.0  # the isolation worker sees to its deadline
    if exchange.place >= 0:
        black_box.words[exchange.place] = 0  # whatever ends this worker, it is not this request
    exchange.recorded = HANDED_OVER  # what fails there is recorded there
    try:
        return hand_over(environ, exchange.start_response, path, request_id=exchange.id, timeout=timeout + STARTS,
                         knock=knock)
    except NotTaken as error:
        return refuse(exchange, environ, BUSY if error.full else ENDED)
