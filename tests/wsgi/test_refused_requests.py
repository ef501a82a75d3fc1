"""A worker's side of the quarantine: which requests are refused, and that all others are served as ever."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, request

from flask_stability import StabilityExt
from flask_stability.runtime import runtime
from flask_stability.scoreboard import black_box
from flask_stability.scoreboard.black_box import BlackBox, exact_of, fingerprint_of
from flask_stability.wsgi import quarantine
from flask_stability.wsgi.quarantine import here
from wsgi_client import call, environ


class Worker:
    """An app in a process that has a black box."""

    def __init__(self) -> None:
        self.box = BlackBox(2)
        self.app = Flask("app")
        StabilityExt(self.app)

        @self.app.route("/inner")
        def inner() -> str:
            return f"inner {self.app.test_client().get('/x').status_code}"

        @self.app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
        @self.app.route("/<path:path>", methods=["GET", "POST"])
        def anything(path: str) -> str:
            return f"served {request.get_data(as_text=True)}"

    def tell(self, **document: Any) -> None:
        """As the master does."""
        assert self.box.list_quarantine(json.dumps(document).encode(), empty=not document)

    def convict(self, path: str, seconds: float = 600.0, body: bytes = b"", **extra: Any) -> None:
        """A request crashed alone."""
        made = environ(path, **extra)
        self.tell(convicted=[[fingerprint_of(made), exact_of(made, body), 1, time.monotonic() + seconds]])


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """What it knows of the list ends with the test."""
    found = Worker()
    monkeypatch.setattr(black_box, "_box", found.box)
    monkeypatch.setattr(black_box, "listed", found.box.listed)
    yield found
    here.list = type(here.list)(0, b"")


def test_while_the_list_is_empty_nothing_is_looked_at(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after it was not: a request costs a look at one word."""
    looked: list[str] = []
    monkeypatch.setattr(quarantine, "look", lambda exchange, *_: looked.append(exchange.path))
    call(worker.app, "/a")
    worker.tell(rules=[{"id": 1, "route": "", "method": "", "path": "/x", "action": "refuse"}])
    call(worker.app, "/b")
    worker.tell()
    call(worker.app, "/c")
    assert looked == ["/b"]


def test_a_refused_request_gets_503_and_nothing_internal(worker: Worker) -> None:
    """It says when to come again, and not why."""
    worker.convict("/x", HTTP_ACCEPT="application/json")
    answer = call(worker.app, "/x", HTTP_ACCEPT="application/json")
    assert answer.status == 503
    assert 590 <= int(answer.headers["Retry-After"]) <= 600
    assert set(answer.problem) == {"type", "title", "status", "request_id"}


@pytest.mark.parametrize("other", [
    {"HTTP_COOKIE": "user=alice"}, {"HTTP_AUTHORIZATION": "Bearer alice"}, {"HTTP_USER_AGENT": "another"},
    {"QUERY_STRING": "q=2"}, {"method": "POST"}, {"path": "/y"}])
def test_the_request_of_another_client_is_served(worker: Worker, other: dict[str, str]) -> None:
    """Whatever differs of what a client chooses: nobody's request crashes for another's."""
    sent: dict[str, Any] = {"path": "/x", "QUERY_STRING": "q=1", "HTTP_COOKIE": "user=mallory", "HTTP_USER_AGENT": "m"}
    worker.convict(**sent)
    assert call(worker.app, **sent).status == 503
    assert call(worker.app, **{**sent, **other}).status == 200


def test_what_proxies_add_makes_no_other_request(worker: Worker) -> None:
    """A client that retries gets new ids, and perhaps another address."""
    worker.convict("/x", HTTP_X_FORWARDED_FOR="192.0.2.7", HTTP_X_REQUEST_ID="1", HTTP_TRACEPARENT="00-1")
    answer = call(worker.app, "/x", HTTP_X_FORWARDED_FOR="192.0.2.8", HTTP_X_REQUEST_ID="2", HTTP_TRACEPARENT="00-2",
                  REMOTE_ADDR="192.0.2.9")
    assert answer.status == 503


@pytest.mark.parametrize("size", [5, 1 << 16, 200_000])
def test_a_body_of_the_same_length_is_another_request_and_is_read_whole(worker: Worker, size: int) -> None:
    """Its beginning was read to tell them apart."""
    bad, good = b"x" * size, b"y" * size
    sent: dict[str, Any] = {"method": "POST", "CONTENT_LENGTH": str(size), "CONTENT_TYPE": "text/plain"}
    worker.convict("/x", body=bad[:1 << 16], **sent)
    assert call(worker.app, "/x", **sent, **{"wsgi.input": io.BytesIO(bad)}).status == 503
    answer = call(worker.app, "/x", **sent, **{"wsgi.input": io.BytesIO(good)})
    assert (answer.status, answer.body) == (200, b"served " + good)


def test_when_the_time_is_over_it_is_isolated_or_served_where_it_comes_if_that_cannot_be(worker: Worker) -> None:
    """Without a socket for the isolation worker; while none may be started it is refused for a moment."""
    worker.convict("/x", seconds=-1.0)
    assert call(worker.app, "/x").status == 200
    made = environ("/x")
    worker.tell(cases=[[fingerprint_of(made), 3, True]], closed=True)
    answer = call(worker.app, "/x")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")


def test_health_endpoints_are_never_touched(worker: Worker) -> None:
    """A rule may name everything."""
    worker.tell(rules=[{"id": 1, "route": "", "method": "", "path": "/*", "action": "refuse"}])
    assert call(worker.app, "/x").status == 503
    assert call(worker.app, "/health/live").status == 200


def test_a_request_inside_a_request_is_the_outer_ones_business(worker: Worker) -> None:
    """A view that asks its own app gets its answer."""
    worker.convict("/x")
    worker.tell(rules=[{"id": 1, "route": "", "method": "", "path": "/x", "action": "refuse"}])
    assert call(worker.app, "/inner").body == b"inner 200"


@pytest.mark.parametrize("data", [b"no json", b"[1]", b'{"cases": [1]}', b'{"rules": 7}', b'{"convicted": [[1, 2]]}',
                                  b'{"rules": [{"id": 1}]}', b"\xff"])
def test_a_list_that_cannot_be_read_refuses_nobody(worker: Worker, data: bytes) -> None:
    """Any worker can write there, and one that is broken may have."""
    assert worker.box.list_quarantine(data, empty=False)
    assert call(worker.app, "/x").status == 200


def test_answers_to_watched_requests_are_counted_once_each(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this worker's own part; others are not."""
    monkeypatch.setattr(black_box, "_counts", memoryview(bytearray(black_box.COUNTS * 8)).cast("q"))
    worker.tell(cases=[[fingerprint_of(environ("/x")), 200, False]])
    for path in ("/x", "/y", "/x"):
        assert call(worker.app, path).status == 200
    assert black_box._counts[200] == 2
    assert sum(black_box._counts) == 2
    assert runtime.parts["quarantine"] is here
