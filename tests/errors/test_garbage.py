"""Garbage from the app, from the client and in the middle of a stream: never two answers, never nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flask_stability import logs
from flask_stability.config import Settings
from flask_stability.wsgi.middleware import StabilityMiddleware
from wsgi_client import call

ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
                     st.lists(st.none() | st.text() | st.binary(), max_size=3))
STATUS = st.one_of(st.sampled_from(["200 OK", "204 No Content", "404 Not Found", "503 X", "200"]), ANYTHING)
HEADERS = st.one_of(ANYTHING, st.lists(st.one_of(
    ANYTHING, st.tuples(st.text() | st.sampled_from(["X", "Content-Length"]), st.text() | st.integers())), max_size=4))
CHUNK = st.one_of(st.binary(), st.binary(), st.binary(), ANYTHING,
                  st.sampled_from([ValueError, SystemExit, GeneratorExit, ConnectionResetError]))


def _app(status: Any, headers: Any, chunks: Any, late: bool, write: bool) -> Any:
    def body(start: Any) -> Iterator[Any]:
        if late:
            start(status, headers)
        for chunk in chunks:
            if isinstance(chunk, type):
                raise chunk("x")
            yield chunk

    def app(environ: Any, start: Any) -> Any:
        if not late:
            writer = start(status, headers)
            if write:
                writer(chunks[0] if isinstance(chunks, list) and chunks else b"")
        return body(start) if isinstance(chunks, list) else chunks

    return app


@settings(max_examples=600)
@given(STATUS, HEADERS, st.one_of(st.lists(CHUNK, max_size=4), ANYTHING), st.booleans(), st.booleans())
def test_an_app_can_return_what_it_likes(status: Any, headers: Any, chunks: Any, late: bool, write: bool) -> None:
    """The client gets one whole answer, or one that is visibly cut; the server gets an OSError or nothing."""
    logs.sample, sample = lambda key, now=None: None, logs.sample  # type: ignore[assignment]
    try:
        answer = call(StabilityMiddleware(_app(status, headers, chunks, late, write), settings=Settings()))
    finally:
        logs.sample = sample  # type: ignore[assignment]
    assert answer.starts == 1
    assert 100 <= answer.status <= 999
    assert answer.cut is None or isinstance(answer.cut, BrokenPipeError)
    for name, value in answer.headers.items():
        assert "\n" not in name + value
        assert "\r" not in name + value
        assert "\0" not in name + value
    if answer.status == 500 and answer.cut is None and "X-Request-ID" in answer.headers:
        assert int(answer.headers.get("Content-Length", len(answer.body))) == len(answer.body)


@given(st.dictionaries(st.sampled_from(["REQUEST_METHOD", "PATH_INFO", "SCRIPT_NAME", "QUERY_STRING", "REMOTE_ADDR",
                                        "HTTP_ACCEPT", "HTTP_X_REQUEST_ID"]), st.text(max_size=300)))
def test_a_client_can_send_what_it_likes(parts: dict[str, str]) -> None:
    """A failing request with odd parts is answered and recorded."""
    def app(environ: Any, start: Any) -> Any:
        raise ValueError

    logs.forget_storms()
    before = logs.drops()
    method = parts.pop("REQUEST_METHOD", "GET")
    path = parts.pop("PATH_INFO", "/")
    answer = call(StabilityMiddleware(app, settings=Settings(request_id_trust=True)), path, method, **parts)
    assert answer.status == 500
    assert answer.cut is None
    assert logs.drops() == before
