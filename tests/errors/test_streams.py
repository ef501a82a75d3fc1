"""An answer is counted by its time to the first byte; how long a stream stays open is counted apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, Response, send_file, stream_with_context

from flask_stability import scoreboard
from flask_stability.config import Settings
from flask_stability.health import metrics
from flask_stability.scoreboard import W_STREAM_MS, W_STREAMS, Row
from flask_stability.wsgi import exchange, middleware
from flask_stability.wsgi.middleware import StabilityMiddleware
from wsgi_client import call, environ


class Clock:
    """Goes when it is told to."""

    now = 1_000_000_000

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        """Later."""
        self.now += int(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The middleware's, and a scoreboard of the test's own."""
    clock = Clock()
    monkeypatch.setattr(exchange, "_now", clock)
    monkeypatch.setattr(middleware, "_now", clock)
    scoreboard.forget()
    return clock


def _app(clock: Clock) -> StabilityMiddleware:
    app = Flask(__name__)

    def events() -> Iterator[str]:
        for number in range(3):
            yield f"data: {number}\n\n"
            clock.pass_seconds(100)

    @app.get("/events")
    def sse() -> Response:
        clock.pass_seconds(0.25)
        return Response(stream_with_context(events()), mimetype="text/event-stream")

    @app.get("/breaks")
    def breaks() -> Response:
        def body() -> Iterator[bytes]:
            yield b"a"
            clock.pass_seconds(9)
            raise ValueError
        return Response(body())

    @app.get("/plain")
    def plain() -> str:
        clock.pass_seconds(0.5)
        return "x"

    @app.get("/file")
    def file() -> Response:
        return send_file(__file__)

    return StabilityMiddleware(app, settings=Settings())


def _row() -> Row:
    return scoreboard.my_row()


def _seconds() -> float:
    return scoreboard.current().totals().duration_ns / 1e9


def _slow_client(app: Any, path: str, clock: Clock) -> None:
    body = app(environ(path), lambda status, headers, exc_info=None: lambda data: None)
    for _ in body:
        clock.pass_seconds(5)
    body.close()


def test_an_event_stream_does_not_make_the_service_slow(clock: Clock) -> None:
    """Five minutes of events are a quarter of a second to the first byte, and 300 s of stream."""
    assert call(_app(clock), "/events").body.count(b"data") == 3
    assert _seconds() == 0.25
    assert (_row().words[W_STREAMS], _row().words[W_STREAM_MS]) == (1, 300_000)


def test_a_stream_that_breaks_is_counted_as_cut(clock: Clock) -> None:
    """Its time to the first byte was good all the same."""
    assert call(_app(clock), "/breaks").cut is not None
    totals = scoreboard.current().totals()
    assert (totals.by_class[0], totals.duration_ns, _row().words[W_STREAM_MS]) == (1, 0, 9_000)


def test_a_download_by_a_slow_client_is_a_stream(clock: Clock) -> None:
    """What the server sends by itself, too."""
    _slow_client(_app(clock), "/file", clock)
    assert _seconds() == 0
    assert _row().words[W_STREAMS] == 1
    assert _row().words[W_STREAM_MS] % 5_000 == 0 != _row().words[W_STREAM_MS]


def test_a_plain_answer_is_no_stream(clock: Clock) -> None:
    """All of its time counts."""
    assert call(_app(clock), "/plain").body == b"x"
    assert (_seconds(), _row().words[W_STREAMS]) == (0.5, 0)


def test_what_writes_by_itself_is_counted_from_its_first_write(clock: Clock) -> None:
    """WSGI's write callable."""
    def app(environ: Any, start: Callable[..., Any]) -> list[bytes]:
        write = start("200 OK", [("Content-Type", "text/plain")])
        clock.pass_seconds(1)
        write(b"a")
        clock.pass_seconds(10)
        write(b"b")
        return []

    assert call(StabilityMiddleware(app, settings=Settings())).body == b"ab"
    assert (_seconds(), _row().words[W_STREAM_MS]) == (1.0, 10_000)


def test_metrics_have_streams_apart(clock: Clock) -> None:
    """Two counters: how many, and for how long."""
    call(_app(clock), "/events")
    body, _ = metrics.exposition(scoreboard.current(), Settings(), "")
    lines = body.decode().splitlines()
    assert "flask_stability_http_streams_total 1.0" in lines
    assert "flask_stability_http_stream_duration_seconds_total 300.0" in lines
    assert "flask_stability_http_request_duration_seconds_sum 0.25" in lines
