"""Handle requests that kill workers, in a worker: refuse, hand over or count those on the master's list.

While the list is empty a request costs one look at one word of shared memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import ServiceUnavailable

from ..config import Settings
from ..errors import report
from ..errors.problem import response_for
from ..request import HANDED_OVER
from ..runtime import Part, runtime
from ..scoreboard import black_box
from . import routes
from .handover import EXACT, ID, NotTaken, hand_over
from .routes import Routes
from .upload import Upload

if TYPE_CHECKING:
    from .exchange import Exchange

BUSY = 5.0  #: seconds of Retry-After while too many requests wait for the isolation worker
ENDED = 30.0  #: the same after the isolation worker ended with the request
LONGEST = 120.0  #: seconds without a byte from the isolation worker for a request without a deadline
STARTS = 60.0  #: additional seconds, in which the isolation worker may start
LOOKED_AT = 1 << 16  #: bytes of a body that enter the exact fingerprint


class _Answered:
    """A resource of a watched request, which counts the request when it is over."""

    __slots__ = ("_index",)

    def __init__(self, index: int) -> None:
        self._index = index

    def release(self) -> None:
        """Count the request as answered."""
        index, self._index = self._index, -1
        if index >= 0:
            black_box.count(index)


class _List:
    """The master's list at one version.

    :ivar cases: by fingerprint: the counter's index, and whether requests with it are isolated.
    :ivar convicted: by fingerprint and exact fingerprint: the counter's index, and the end of the refusal.
    :ivar closed: there is no isolation worker, and none may be started now.
    :ivar path: of the isolation worker's socket, "" without one.
    """

    def __init__(self, version: int, data: bytes) -> None:
        self.version = version
        found = json.loads(data or b"{}")
        self.cases: dict[int, tuple[int, bool]] = {one[0]: (one[1], one[2]) for one in found.get("cases", [])}
        self.convicted: dict[int, dict[int, tuple[int, float]]] = {}
        for fingerprint, exact, index, until in found.get("convicted", []):
            self.convicted.setdefault(fingerprint, {})[exact] = index, until
        self.closed = bool(found.get("closed"))
        self.routes = frozenset(found.get("routes", []))
        self.rules = [{name: str(rule[name]) for name in ("route", "method", "path", "action")}
                      for rule in found.get("rules", [])]
        self.path = str(found.get("path", ""))
        self._table: Routes | None = None

    @classmethod
    def current(cls, version: int) -> _List:
        """Return the master's current list; an empty list if it cannot be read."""
        try:
            box = black_box.current()
            return cls(version, box.quarantine.read() if box is not None else b"")
        except Exception as error:  # any worker can write there
            report.record(error, event="internal_error")
            return cls(version, b"")

    def action(self, method: str, path: str, fingerprint: int) -> str:
        """Return the action for a request: "refuse", "isolate", or "" for none."""
        route: str | None = None
        if self.routes or any(rule["route"] for rule in self.rules):
            route = self._route_of(method, path)
        for rule in self.rules:
            if _meets(rule, method, path, route):
                return rule["action"]
        _, isolated = self.cases.get(fingerprint, (0, False))
        return "isolate" if isolated or (route and route in self.routes) else ""

    def _route_of(self, method: str, path: str) -> str:
        if self._table is None:
            box = black_box.current()
            self._table = routes.decode(box.routes.read() if box is not None else b"")
        return self._table.of(method, path)


def _meets(rule: dict[str, str], method: str, path: str, route: str | None) -> bool:
    return ((not rule["method"] or rule["method"] == method) and (not rule["route"] or rule["route"] == route)
            and (not rule["path"] or fnmatchcase(path, rule["path"])))


def _nobody() -> None:
    return None


class _Quarantine(Part):
    """This process's side of the quarantine.

    :ivar list: the last list that was read.
    :ivar knock: wakes the master; set by the server's hooks.
    :ivar alone: this is the isolation worker, which serves requests on the list; set by the server's hooks.
    """

    def __init__(self) -> None:
        self.list = _List(0, b"")
        self.knock: Callable[[], None] = _nobody
        self.alone = False

    def reset_after_fork(self) -> None:
        """Stop waking the master: the child of a worker is not one of its workers."""
        self.knock = _nobody


here = runtime.add("quarantine", _Quarantine())


def look(exchange: Exchange, environ: dict[str, Any], settings: Settings) -> Iterable[bytes] | None:
    """Look at a request while the list is not empty; return its answer, or None if the app should answer."""
    version = black_box.listed[0]
    known = here.list
    if known.version != version:
        known = here.list = _List.current(version)
    if exchange.outer is not None:
        return None  # a view calls its own app: the outer request was looked at
    health, path = settings.health_path, exchange.path
    if path == health or path.startswith(health + "/"):
        return None
    fingerprint = black_box.fingerprint_of(environ)
    case, convicted = known.cases.get(fingerprint), known.convicted.get(fingerprint)
    if here.alone:
        _begin_alone(exchange, environ, convicted)
    else:
        action = known.action(exchange.method, path, fingerprint)
        if action == "refuse":
            return refuse(exchange, environ, settings, ENDED)
        if (action or convicted) and "HTTP_UPGRADE" not in environ:
            answer = _suspect(exchange, environ, settings, known, convicted or {}, isolated=bool(action))
            if answer is not None:
                return answer
    if case is not None:
        exchange.hold(_Answered(case[0]))
    return None


def _begin_alone(exchange: Exchange, environ: dict[str, Any], convicted: dict[int, tuple[int, float]] | None) -> None:
    exchange.given_id = environ.get(ID, exchange.given_id)
    exact = int(environ.get(EXACT, 0))
    black_box.note_exact(exact)
    if convicted and exact in convicted:
        exchange.hold(_Answered(convicted[exact][0]))


def _suspect(exchange: Exchange, environ: dict[str, Any], settings: Settings, known: _List,
             convicted: dict[int, tuple[int, float]], *, isolated: bool) -> Iterable[bytes] | None:
    """Refuse, or have the isolation worker answer; return None for a request that only resembles a convicted one."""
    body = b""
    if environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ:
        source = environ["wsgi.input"]
        if type(source) is not Upload:
            environ["wsgi.input"] = source = Upload(source)
        body = source.read(LOOKED_AT)
        source.put_back(body)
    exact = black_box.exact_of(environ, body)
    _, until = convicted.get(exact, (0, 0.0))
    left = until - time.monotonic()
    if left > 0:
        return refuse(exchange, environ, settings, left)
    if not isolated and exact not in convicted:
        return None
    if known.closed:
        return refuse(exchange, environ, settings, BUSY)
    return _isolate(exchange, environ, settings, known.path, exact) if known.path else None


def refuse(exchange: Exchange, environ: dict[str, Any], settings: Settings, seconds: float) -> Iterable[bytes]:
    """Answer 503 with Retry-After."""
    error = ServiceUnavailable(retry_after=max(1, round(seconds)))
    status, headers, body = response_for(error, environ, settings, exchange.id)
    # clients could otherwise flood the log with one line per request
    exchange.refused, exchange.recorded = True, "refused"
    exchange.start_response(status, headers)
    return [] if exchange.method == "HEAD" else [body]


def _isolate(exchange: Exchange, environ: dict[str, Any], settings: Settings, path: str, exact: int) -> Iterable[bytes]:
    timeout = exchange.timeout or LONGEST
    exchange.timeout = 0.0  # the isolation worker enforces the deadline
    if exchange.place >= 0:
        black_box.words[exchange.place] = 0  # this request cannot be why this worker ends, if it does
    exchange.recorded = HANDED_OVER  # the isolation worker records failures
    try:
        return hand_over(environ, exchange.start_response, path, request_id=exchange.id, exact=exact,
                         timeout=timeout + STARTS, knock=here.knock)
    except NotTaken as error:
        return refuse(exchange, environ, settings, BUSY if error.full else ENDED)
