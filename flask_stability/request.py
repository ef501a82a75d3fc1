"""The record of one request, and the table of those in flight.

The guard thread reads the table to find requests past their deadline; the pool asks how long the request may still
wait; the log names the request. One thread serves one request at a time, so the table's key is the thread.
"""

from __future__ import annotations

import functools
import inspect
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from flask import current_app, has_request_context, request_started
from flask import request as flask_request

from .runtime import Part, runtime
from .scoreboard import black_box

F = TypeVar("F", bound=Callable[..., Any])


class Resource(Protocol):
    """A resource that a request holds and gives back at its end at the latest."""

    def release(self) -> None:
        """Give the resource back; further calls do nothing."""


class ClientSocket(Protocol):
    """The object with which an app itself speaks with the client."""

    def say_goodbye(self) -> None:
        """Tell the client that the server is going away; never wait, never raise."""

    def cut(self) -> None:
        """Make the app's next read find the end of the stream; never wait, never raise."""


#: Requests in flight by thread, None for a thread between two requests: a dict whose entries come and go is rebuilt
#: every few times. Each store is atomic; code outside the serving thread calls `in_flight`.
inflight: dict[int, RequestRecord | None] = {}

#: Threads whose request is held during a database outage, and since when (`time.monotonic` seconds).
held: dict[int, float] = {}

#: Nanoseconds for which the request that a thread is about to serve has waited for it; without an entry it has not.
waited: dict[int, int] = {}

_well_formed = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}").fullmatch
OVER: dict[str, Any] = {}
#: Keys of the environ: the client's socket, on which some libraries speak; and the object of gevent-websocket's server.
SOCKET, WEBSOCKET = "gunicorn.socket", "wsgi.websocket"
#: `RequestRecord.recorded` of a request that the isolation worker answers.
HANDED_OVER = "handed over"
_MIN_RATE = "flask_stability.client_min_rate"
#: Key in the environ of a request that must not be held, since no client waits for its answer.
NO_HOLD = "flask_stability.no_hold"


class NoRule:
    """Replaces an unknown rule: no route matched, there is no response yet, or something other than Flask answers."""

    endpoint = rule = ""

    def __bool__(self) -> bool:
        return False


NO_RULE = NoRule()


def rule_of(environ: dict[str, Any]) -> Any:
    """Return werkzeug's rule of the request that this thread serves, `NO_RULE` without one.

    A middleware between us and Flask may have copied the environ (Flask-SocketIO's does), so Flask's entries are
    missing here. From the first such request on, a Flask signal reports each request that Flask begins.
    """
    found = environ.get("werkzeug.request")
    if found is None and "werkzeug.request" not in environ and has_request_context():
        found = flask_request
        request_started.connect(_follow)
    return getattr(found, "url_rule", None) or NO_RULE


def _follow(app: object, **_: Any) -> None:
    record = inflight.get(threading.get_ident())
    if record is not None and record.environ is not OVER:
        record.environ.setdefault("werkzeug.request", flask_request._get_current_object())  # type: ignore[attr-defined]


class RequestRecord:
    """One request.

    :ivar environ: its WSGI environ; empty once the request is over.
    :ivar thread_id: `threading.get_ident` of the thread that serves it.
    :ivar started_ns: `time.monotonic_ns` of its arrival.
    :ivar timeout: seconds from its arrival after which it is overdue; 0.0 = never.
    :ivar held_ns: nanoseconds for which it was held during a database outage: neither slowness nor hanging.
    :ivar queued_ns: nanoseconds for which it waited for a thread, before `started_ns`.
    :ivar response_started: the server has the response's head: the deadline no longer applies.
    :ivar rule: werkzeug's rule that Flask matched, once there is a response: Flask removes it from the environ;
        `NO_RULE` before, and without one.
    :ivar recorded: kind of its exception that was logged last, None = none.
    :ivar health: one of the extension's own endpoints: not counted as traffic.
    :ivar refused: its 503 is deliberate, because the database is unavailable.
    :ivar resources: what it holds, None if nothing.
    :ivar overdue: the guard has noticed that it is past its deadline.
    :ivar outer: the request of the same thread inside which this one runs, if any.
    :ivar taken_ns: `time.monotonic_ns` since which the app itself speaks with the client; 0 = it does not.
    :ivar client_socket: the socket for that, if known.
    :ivar handled: the last exception that a handler of the app got; None = none.
    :ivar unavailable: the database's exception, announced but not yet answered by Flask: see `errors.handlers`.
    :ivar place: index of its slot in the black box; -1 without one.
    """

    __slots__ = ("client_socket", "environ", "given_id", "handled", "health", "held_ns", "outer", "overdue", "place",
                 "queued_ns",
                 "recorded", "refused", "resources", "response_started", "rule", "started_ns", "taken_ns", "thread_id",
                 "timeout", "unavailable")

    def __init__(self, environ: dict[str, Any], started_ns: int, timeout: float = 0.0) -> None:
        self.environ = environ
        self.started_ns = started_ns
        self.timeout = timeout
        self.thread_id = threading.get_ident()
        self.response_started = self.health = self.overdue = self.refused = False
        self.given_id: str | None = None
        self.recorded: object = None
        self.rule: Any = NO_RULE
        self.resources: list[Resource] | None = None
        self.outer: RequestRecord | None = None
        self.taken_ns = self.held_ns = self.queued_ns = 0
        self.client_socket: ClientSocket | None = None
        self.handled: BaseException | None = None
        self.unavailable: BaseException | None = None
        self.place = -1

    @property
    def id(self) -> str:
        """Return the client's id if it is trusted and well formed, else our own: process and time of arrival."""
        return self.given_id or f"{_requests.prefix}-{self.started_ns:x}"

    @property
    def deadline(self) -> float:
        """Return the `time.monotonic` seconds after which it is overdue; 0.0 = never, or not any more."""
        if not self.timeout or self.response_started:
            return 0.0
        return (self.started_ns - self.queued_ns + self.held_ns) / 1e9 + self.timeout

    @property
    def supervised(self) -> bool:
        """Return whether a server serves it: neither a test client (which names none) nor the development server.

        gunicorn's name may be hidden: empty, or another.
        """
        software = self.environ.get("SERVER_SOFTWARE")
        if software is not None and (runtime.under_hooks or SOCKET in self.environ):
            return True
        return bool(software) and not str(software).startswith("Werkzeug")

    @property
    def method(self) -> str:
        """Return the method as the client sent it."""
        return str(self.environ.get("REQUEST_METHOD", ""))

    @property
    def path(self) -> str:
        """Return the path below the server's root, without the query."""
        raw = str(self.environ.get("SCRIPT_NAME", "")) + str(self.environ.get("PATH_INFO", ""))
        return raw.encode("latin-1", "replace").decode("utf-8", "replace")

    @property
    def query_keys(self) -> list[str]:
        """Return the sorted names of the query's parameters; their values may be secrets and are never kept."""
        parts = str(self.environ.get("QUERY_STRING", ""))[:2048].split("&")
        return sorted({name[:64] for name, equals, _ in (part.partition("=") for part in parts) if equals})[:20]

    @property
    def route(self) -> str:
        """Return the rule that Flask matched, or "" without one."""
        rule = self.rule or getattr(self.environ.get("werkzeug.request"), "url_rule", None)
        return str(getattr(rule, "rule", ""))

    @property
    def endpoint(self) -> str:
        """Return the endpoint that Flask matched, or "" without one."""
        rule = self.rule or getattr(self.environ.get("werkzeug.request"), "url_rule", None)
        return str(getattr(rule, "endpoint", ""))

    @property
    def client(self) -> str:
        """Return the peer's address as the server saw it."""
        return str(self.environ.get("REMOTE_ADDR", ""))

    def seconds(self) -> float:
        """Return the seconds since it arrived."""
        return (time.monotonic_ns() - self.started_ns) / 1e9

    def hold(self, resource: Resource) -> None:
        """Remember a resource to give back at the end."""
        if self.resources is None:
            self.resources = []
        self.resources.append(resource)

    def take(self, client_socket: ClientSocket | None = None) -> None:
        """Record that from now on the app itself speaks with the client: its answer has begun."""
        if not self.taken_ns:
            self.client_socket = client_socket
            self.rule = self.rule or rule_of(self.environ)
            self.response_started = True
            self.taken_ns = time.monotonic_ns()
            black_box.answering(self.place)

    def drop(self, resource: Resource) -> None:
        """Forget a resource that was given back already."""
        if self.resources is not None and resource in self.resources:
            self.resources.remove(resource)

    def trust(self, given: str | None) -> None:
        """Adopt the client's id if it is well formed."""
        if given is not None and _well_formed(given):
            self.given_id = given

    @property
    def over(self) -> bool:
        """Return whether the request has left the table."""
        return self.environ is OVER

    def leave(self) -> None:
        """Leave the table; the outer request of the thread, if any, returns to it."""
        outer = self.outer
        if outer is not None and not outer.over:
            inflight[self.thread_id] = outer
        elif inflight.get(self.thread_id) is self:
            inflight[self.thread_id] = None
        self.environ = OVER


def id_prefix() -> str:
    """Return the prefix of this process's request ids, before the hyphen."""
    return _requests.prefix


def in_flight() -> list[RequestRecord]:
    """Return all requests that this process serves now."""
    return [record for record in list(inflight.values()) if record is not None]


def current() -> RequestRecord | None:
    """Return the request that this thread serves, or None."""
    return inflight.get(threading.get_ident())


def remaining() -> float | None:
    """Return the seconds that this thread's request has left, possibly negative.

    :returns: None without a request, without a deadline, or once its response has begun.
    """
    record = inflight.get(threading.get_ident())
    deadline = record.deadline if record is not None else 0.0
    return deadline - time.monotonic() if deadline else None


def request_timeout(seconds: float) -> Callable[[F], F]:
    """Set a view's own deadline in seconds, counted from the request's arrival (a decorator); 0 = none.

    :raises ValueError: if `seconds` is negative.
    """
    if seconds < 0:
        raise ValueError(f"request_timeout({seconds}): give seconds of at least 0")
    runtime.longest_timeout = max(runtime.longest_timeout, seconds)

    def decorate(view: F) -> F:
        is_async = inspect.iscoroutinefunction(view)

        @functools.wraps(view)
        def limited(*args: Any, **kwargs: Any) -> Any:
            record = current()
            if record is not None:
                record.timeout = seconds
            return (current_app.ensure_sync(view) if is_async else view)(*args, **kwargs)

        return limited  # type: ignore[return-value]

    return decorate


def client_min_rate(bytes_per_second: float) -> Callable[[F], F]:
    """Set a view's own STABILITY_CLIENT_MIN_RATE, bytes per second (a decorator); 0 = cut no client.

    :raises ValueError: if it is negative.
    """
    if bytes_per_second < 0:
        raise ValueError(f"client_min_rate({bytes_per_second}): give bytes per second of at least 0")

    def decorate(view: F) -> F:
        is_async = inspect.iscoroutinefunction(view)

        @functools.wraps(view)
        def limited(*args: Any, **kwargs: Any) -> Any:
            record = current()
            if record is not None:
                record.environ[_MIN_RATE] = bytes_per_second
            return (current_app.ensure_sync(view) if is_async else view)(*args, **kwargs)

        return limited  # type: ignore[return-value]

    return decorate


def min_rate(record: RequestRecord, default: float) -> float:
    """Return the bytes per second that a request's client must send or receive; 0.0 = any rate will do."""
    return float(record.environ.get(_MIN_RATE, default))


class _Requests(Part):
    """The table, and the prefix of this process's request ids."""

    def __init__(self) -> None:
        self.prefix = secrets.token_hex(6)

    def reset_after_fork(self) -> None:
        """Keep only this thread's request, if a view forked; give the child its own prefix of ids."""
        mine = inflight.get(threading.get_ident())
        inflight.clear()
        held.clear()
        waited.clear()
        if mine is not None:
            inflight[mine.thread_id] = mine
        self.prefix = secrets.token_hex(6)


_requests = runtime.add("requests", _Requests())
