"""Every other kind of answer under the eyes of wsgiref.validate; the clock and the counts of a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from flask import Flask, Response, redirect, send_file

from flask_stability import scoreboard
from flask_stability.config import Settings
from flask_stability.exceptions import PoolTimeout
from flask_stability.request import RequestRecord, current, remaining
from flask_stability.runtime import runtime
from flask_stability.wsgi import exchange
from flask_stability.wsgi.middleware import StabilityMiddleware

SETTINGS = replace(Settings(), request_id_trust=True)
PLAIN = [("Content-Type", "text/plain")]
Serve = Callable[..., Any]
Records = Callable[[], list[dict[str, Any]]]


def wrap(app: Any, layers: int = 1, **more: Any) -> Any:
    """As in a worker: `layers` of ours around the app, and the server's checker around them."""
    for _ in range(layers):
        app = StabilityMiddleware(app, settings=SETTINGS, **more)
    return validator(app)


def fails_in_the_call(environ: Any, start: Any) -> Any:
    raise ValueError


def fails_after_its_head(environ: Any, start: Any) -> Any:
    start("200 OK", PLAIN)
    raise ValueError


def fails_in_the_first_chunk(environ: Any, start: Any) -> Any:
    def body() -> Iterator[bytes]:
        start("200 OK", PLAIN)
        raise ValueError
        yield b""
    return body()


def has_no_database(environ: Any, start: Any) -> Any:
    raise PoolTimeout(retry_after=1.0)


def changes_its_mind(environ: Any, start: Any) -> Any:
    start("200 OK", PLAIN)
    start("500 Internal Server Error", PLAIN, (ValueError, ValueError(), None))
    return [b"changed"]


def does_not_start(environ: Any, start: Any) -> Any:
    return [b"x"]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
@pytest.mark.parametrize("app", [fails_in_the_call, fails_after_its_head, fails_in_the_first_chunk, has_no_database,
                                 changes_its_mind, does_not_start])
def test_an_error_is_a_correct_answer(app: Any, accept: str, method: str, layers: int, serve: Serve,
                                      records: Records) -> None:
    """Whatever the client accepts, with a body or without, with one layer or two."""
    answer = serve(wrap(app, layers), method=method, HTTP_ACCEPT=accept)
    assert answer.cut is None
    assert answer.status == (503 if app is has_no_database else 500)
    assert bool(answer.body) is (method == "GET" or app is changes_its_mind)


def _app() -> Flask:
    app = Flask("app")
    app.add_url_rule("/text", view_func=lambda: "text", endpoint="text")
    app.add_url_rule("/json", view_func=lambda: {"a": [1]}, endpoint="json")
    app.add_url_rule("/away", view_func=lambda: redirect("/text"), endpoint="away")
    nothing = Response(status=204)
    del nothing.headers["Content-Type"]  # which Flask gives it, against the rules
    app.add_url_rule("/none", view_func=lambda: nothing, endpoint="none")
    app.add_url_rule("/file", view_func=lambda: send_file(BytesIO(b"file"), "text/plain"), endpoint="file")
    app.add_url_rule("/stream", view_func=lambda: Response(iter(["a", "", "b"])), endpoint="stream")
    return app


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("path", "method", "status", "body"), [
    ("/text", "GET", 200, b"text"), ("/text", "HEAD", 200, b""), ("/text", "OPTIONS", 200, b""),
    ("/text", "POST", 405, None), ("/nowhere", "GET", 404, None), ("/json", "GET", 200, b'{"a":[1]}\n'),
    ("/away", "GET", 302, None), ("/none", "GET", 204, b""), ("/file", "GET", 200, b"file"),
    ("/file", "HEAD", 200, b""), ("/stream", "GET", 200, b"ab"), ("/health", "GET", 200, b"healthy")])
def test_what_flask_answers_is_correct(path: str, method: str, status: int, body: bytes | None, layers: int,
                                       serve: Serve) -> None:
    """Text, JSON, files, streams, redirects, no body, no method and no route, and our own path; with a given id."""
    def health(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)
        return [b"healthy"]

    answer = serve(wrap(_app(), layers, health_app=health), path, method, HTTP_X_REQUEST_ID="given")
    assert (answer.cut, answer.status) == (None, status)
    assert body is None or answer.body == body
    assert answer.headers["X-Request-ID"] == "given"


@pytest.mark.parametrize("layers", [1, 2])
def test_flasks_file_reaches_the_server_as_its_own_wrapper(layers: int, serve: Serve) -> None:
    """The server can use sendfile through both layers; the request is counted when the server closes it."""
    app: Any = _app()
    for _ in range(layers):
        app = StabilityMiddleware(app, settings=SETTINGS)
    before = runtime.my_row().requests
    answer = serve(app, "/file")
    assert type(answer.source) is FileWrapper
    assert (answer.status, answer.body) == (200, b"file")
    assert runtime.my_row().requests == before + 1


def test_the_deadline_does_not_follow_the_wall_clock(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set, forth or back, makes no request overdue and none everlasting."""
    seen: list[float | None] = []

    def app(environ: Any, start: Any) -> Any:
        record = current()
        assert isinstance(record, RequestRecord)
        record.timeout = 60.0
        now = time.time()
        for wall in (now + 10**6, now - 10**6):
            monkeypatch.setattr(time, "time", lambda wall=wall: wall)
            monkeypatch.setattr(time, "time_ns", lambda wall=wall: int(wall * 1e9))
            seen.extend((remaining(), record.deadline - time.monotonic(), 60.0 - record.seconds()))
        monkeypatch.undo()
        start("200 OK", PLAIN)
        return [b"x"]

    assert serve(StabilityMiddleware(app, settings=SETTINGS)).status == 200
    assert len(seen) == 6
    assert all(left is not None and -3600 < left <= 60 for left in seen), seen


@pytest.mark.parametrize("where", ["view", "body", "close"])
@pytest.mark.parametrize("cut", [False, True])
def test_the_latency_is_counted_to_the_very_end(where: str, cut: bool, serve: Serve, records: Records,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the view, the body and its close, also of an answer that was cut: in the histogram and with the route."""
    monkeypatch.setattr(exchange, "STREAM_NS", 1 << 62)  # a busy machine does not make a stream of it

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"x"
            if where == "body":
                time.sleep(0.05)
            if cut:
                raise ValueError
            yield b"y"

        def close(self) -> None:
            if where == "close":
                time.sleep(0.05)

    def app(environ: Any, start: Any) -> Any:
        if where == "view":
            time.sleep(0.05)
        start("200 OK", PLAIN)
        return Body()

    before = runtime.my_board().totals()
    serve(StabilityMiddleware(app, settings=SETTINGS))
    after = runtime.my_board().totals()
    assert after.duration_ns - before.duration_ns >= 50_000_000
    slow = scoreboard.bucket_of(50_000_000)
    assert sum(after.histogram[slow:]) - sum(before.histogram[slow:]) == 1
    assert after.by_class[0 if cut else 2] == before.by_class[0 if cut else 2] + 1
    assert after.requests == before.requests + 1
