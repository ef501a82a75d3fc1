"""The record of one request, and the table of those in flight.

The guard thread reads the table to find requests past their deadline; the pool asks how long the request may still
wait; the log asks which request it was. One thread serves one request at a time, so the table's key is the thread.
"""

from __future__ import annotations

import functools
import os
import secrets
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl

F = TypeVar("F", bound=Callable[..., Any])


class Resource(Protocol):
    """What a request holds and gives back at its end at the latest."""

    def release(self) -> None:
        """Give back; called more than once without harm."""


#: Requests in flight by thread. Insertion and deletion are atomic; readers iterate over ``list(inflight.values())``.
inflight: dict[int, RequestRecord] = {}

_numbers = count(1)
_prefix = secrets.token_hex(6)

#: The longest deadline that any view asked for, seconds; 0.0 = none did.
longest_timeout = 0.0


class RequestRecord:
    """One request.

    :ivar started_ns: `time.monotonic_ns` of its arrival.
    :ivar deadline: `time.monotonic` seconds after which it is overdue; 0.0 = never.
    :ivar response_started: the first byte may have been sent.
    :ivar recorded: an exception of it was logged.
    :ivar overdue: the guard has noticed that it is past its deadline.
    :ivar resources: what it holds, None if nothing.
    :ivar own: one of the extension's own endpoints: not counted as traffic.
    :ivar outer: the request of the same thread inside which this one is made, if any.
    """

    __slots__ = ("_id", "_number", "deadline", "environ", "outer", "overdue", "own", "recorded", "resources",
                 "response_started", "started_ns", "thread_id", "trusted_header")

    def __init__(self, environ: dict[str, Any], thread_id: int, started_ns: int, deadline: float,
                 trusted_header: str | None) -> None:
        self.environ = environ
        self.thread_id = thread_id
        self.started_ns = started_ns
        self.deadline = deadline
        self.trusted_header = trusted_header
        self.response_started = False
        self.overdue = False
        self.own = False
        self.recorded = False
        self.outer: RequestRecord | None = None
        self.resources: list[Resource] | None = None
        self._number = next(_numbers)
        self._id: str | None = None

    @property
    def id(self) -> str:
        """The request's id: the client's where that is trusted and well formed, else our own."""
        if self._id is None:
            given = self.environ.get(self.trusted_header) if self.trusted_header else None
            self._id = given if given and _well_formed(given) else f"{_prefix}-{self._number:x}"
        return self._id

    @property
    def method(self) -> str:
        """As the client sent it."""
        return str(self.environ.get("REQUEST_METHOD", ""))

    @property
    def path(self) -> str:
        """Path below the server's root, without the query."""
        return str(self.environ.get("SCRIPT_NAME", "")) + str(self.environ.get("PATH_INFO", ""))

    @property
    def query_keys(self) -> list[str]:
        """Names of the query's parameters; their values may be secrets and are never kept."""
        query = str(self.environ.get("QUERY_STRING", ""))[:2048]
        try:
            return sorted({key for key, _ in parse_qsl(query, keep_blank_values=True, max_num_fields=50)})[:20]
        except ValueError:
            return []

    @property
    def route(self) -> str:
        """The rule that Flask matched, or ""."""
        return str(getattr(getattr(self.environ.get("werkzeug.request"), "url_rule", None), "rule", "") or "")

    @property
    def client(self) -> str:
        """The peer's address as the server saw it."""
        return str(self.environ.get("REMOTE_ADDR", ""))

    def seconds(self) -> float:
        """Since it arrived."""
        return (time.monotonic_ns() - self.started_ns) / 1e9

    def hold(self, resource: Resource) -> None:
        """Remember what has to be given back at the end."""
        if self.resources is None:
            self.resources = []
        self.resources.append(resource)

    def drop(self, resource: Resource) -> None:
        """It was given back already."""
        if self.resources is not None and resource in self.resources:
            self.resources.remove(resource)


def _well_formed(text: str) -> bool:
    return len(text) <= 128 and all(char.isalnum() or char in "-_.:/+=" for char in text) and text.isascii()


def current() -> RequestRecord | None:
    """The request that this thread serves."""
    return inflight.get(threading.get_ident())


def remaining() -> float | None:
    """Seconds that this thread's request has left, possibly negative; None without a deadline."""
    record = inflight.get(threading.get_ident())
    if record is None or not record.deadline:
        return None
    return record.deadline - time.monotonic()


def request_timeout(seconds: float) -> Callable[[F], F]:
    """Decorator: the view's own deadline, counted from the request's arrival; 0 = none.

    :raises ValueError: if `seconds` is negative.
    """
    if seconds < 0:
        raise ValueError(f"request_timeout({seconds}): give seconds of at least 0")
    global longest_timeout
    longest_timeout = max(longest_timeout, seconds)

    def decorate(view: F) -> F:
        @functools.wraps(view)
        def limited(*args: Any, **kwargs: Any) -> Any:
            record = inflight.get(threading.get_ident())
            if record is not None:
                record.deadline = record.started_ns / 1e9 + seconds if seconds else 0.0
            return view(*args, **kwargs)

        return limited  # type: ignore[return-value]

    return decorate


def _after_fork() -> None:
    """In a forked child: the parent's requests are not ours, and ids must differ from the parent's."""
    global _prefix
    inflight.clear()
    _prefix = secrets.token_hex(6)


os.register_at_fork(after_in_child=_after_fork)
