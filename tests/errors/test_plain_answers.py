"""A plain answer, one short chunk of known length, goes to the server as it is; everything else chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, Response, jsonify, render_template_string
from werkzeug.wsgi import ClosingIterator

from flask_stability import StabilityExt
from flask_stability.request import current, in_flight
from flask_stability.runtime import runtime
from flask_stability.wsgi.validation import InvalidResponse, check_head, known_heads

Serve = Callable[..., Any]
Records = Callable[[], list[dict[str, Any]]]


LARGE = "x" * 16_385


class Upper(Response):
    """Its body is not what its response attribute holds."""

    def iter_encoded(self) -> Iterator[bytes]:
        return (chunk.upper() for chunk in super().iter_encoded())


def announced(length: int) -> Response:
    response = Response("text")
    response.headers["Content-Length"] = str(length)
    return response


def with_close(function: Callable[[], object]) -> Response:
    response = Response("text")
    response.call_on_close(function)
    return response


def answers(app: Flask) -> None:
    """Views of every kind, named after what they give."""
    app.add_url_rule("/text", view_func=lambda: "text", endpoint="text")
    app.add_url_rule("/json", view_func=lambda: jsonify(a=1), endpoint="json")
    app.add_url_rule("/page", view_func=lambda: render_template_string("<p>{{ 1 }}</p>"), endpoint="page")
    app.add_url_rule("/empty", view_func=lambda: "", endpoint="empty")
    app.add_url_rule("/missing", view_func=lambda: ("gone", 404), endpoint="missing")
    app.add_url_rule("/upper", view_func=lambda: Upper("text"), endpoint="upper")
    app.add_url_rule("/two", view_func=lambda: Response([b"te", b"xt"]), endpoint="two")
    app.add_url_rule("/strings", view_func=lambda: Response(["text"]), endpoint="strings")
    app.add_url_rule("/stream", view_func=lambda: Response(iter([b"text"])), endpoint="stream")
    app.add_url_rule("/none", view_func=lambda: ("text", 204), endpoint="none")
    app.add_url_rule("/short", view_func=lambda: announced(3), endpoint="short")
    app.add_url_rule("/long", view_func=lambda: announced(5), endpoint="long")
    app.add_url_rule("/large", view_func=lambda: LARGE, endpoint="large")
    app.add_url_rule("/afterwards", view_func=lambda: with_close(lambda: None), endpoint="afterwards")


@pytest.fixture
def app(records: Records) -> Flask:
    app = Flask(__name__)
    answers(app)
    StabilityExt(app)
    app.wsgi_app.on_first_request = None  # type: ignore[attr-defined]
    return app


def as_it_is(answer: Any) -> bool:
    return type(answer.source) is list


@pytest.mark.parametrize(("path", "body"), [("/text", b"text"), ("/json", b'{"a":1}\n'), ("/page", b"<p>1</p>"),
                                            ("/empty", b""), ("/missing", b"gone")])
def test_a_plain_answer_is_handed_on(path: str, body: bytes, app: Flask, serve: Serve) -> None:
    """With the werkzeug that is installed: else each request costs a microsecond or two more, and nothing tells."""
    answer = serve(app, path)
    assert (answer.cut, answer.body, as_it_is(answer)) == (None, body, True)


@pytest.mark.parametrize(("path", "body"), [("/upper", b"TEXT"), ("/two", b"text"), ("/strings", b"text"),
                                            ("/stream", b"text"), ("/none", b""), ("/short", b"text"),
                                            ("/large", LARGE.encode()), ("/afterwards", b"text")])
def test_every_other_answer_is_drawn_from_the_app(path: str, body: bytes, app: Flask, serve: Serve) -> None:
    answer = serve(app, path)
    assert (answer.cut, answer.body, as_it_is(answer)) == (None, body, False)


def test_a_head_request_has_no_body(app: Flask, serve: Serve) -> None:
    answer = serve(app, "/text", method="HEAD")
    assert (answer.cut, answer.body, answer.headers["Content-Length"]) == (None, b"", "4")


def test_an_answer_shorter_than_announced_is_cut(app: Flask, serve: Serve, records: Records) -> None:
    assert serve(app, "/long").cut is not None
    assert [record["event"] for record in records()] == ["content_length_mismatch"]


def test_a_layer_in_between_that_changes_the_body_is_heard(app: Flask, serve: Serve) -> None:
    """Even if it gives the response's own close and as many bytes."""
    inner = app.view_functions["text"]
    response = app.make_response(inner())

    def between(environ: Any, start: Any) -> Any:
        list(response(environ, start))
        return ClosingIterator((chunk.upper() for chunk in response.iter_encoded()), response.close)

    app.wsgi_app._owner, app.wsgi_app._app = None, between  # type: ignore[attr-defined]
    answer = serve(app, "/text")
    assert (answer.cut, answer.body, as_it_is(answer)) == (None, b"TEXT", False)


def test_a_response_class_that_was_patched_is_heard(app: Flask, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Response.iter_encoded
    monkeypatch.setattr(Response, "iter_encoded", lambda self: (chunk.upper() for chunk in plain(self)))
    answer = serve(app, "/text")
    assert (answer.cut, answer.body, as_it_is(answer)) == (None, b"TEXT", False)


def test_another_werkzeug_goes_the_general_way(app: Flask, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that keeps its callbacks elsewhere: the answer is the same."""
    kept = ClosingIterator.__init__

    def init(self: Any, iterable: Any, callbacks: Any = None) -> None:
        kept(self, iterable, callbacks)
        self.elsewhere = self.__dict__.pop("_callbacks")

    monkeypatch.setattr(ClosingIterator, "__init__", init)
    monkeypatch.setattr(ClosingIterator, "close", lambda self: [callback() for callback in self.elsewhere])
    answer = serve(app, "/text")
    assert (answer.cut, answer.body, as_it_is(answer)) == (None, b"text", False)


@pytest.mark.parametrize("software", ["gunicorn/1", None])
def test_it_is_counted_and_over_when_the_server_has_it(software: str | None, app: Flask, serve: Serve,
                                                       make_environ: Callable[..., dict[str, Any]]) -> None:
    """What the request held is given back before the answer is sent."""
    released: list[str] = []

    class Held:
        def release(self) -> None:
            released.append("held")

    def view() -> str:
        record = current()
        assert record is not None
        record.hold(Held())
        return "text"

    app.view_functions["text"] = view
    before = runtime.my_row().requests
    body: Any = app(make_environ("/text", SERVER_SOFTWARE=software), lambda status, headers, exc_info=None: None)
    assert (body, released, in_flight()) == ([b"text"], ["held"], [])
    assert runtime.my_row().requests == before + 1


def test_what_is_to_be_done_after_the_answer_is_done_after_it(app: Flask, make_environ: Callable[..., dict[str, Any]],
                                                              ) -> None:
    """Once, and within the request."""
    seen: list[Any] = []
    app.view_functions["text"] = lambda: with_close(lambda: seen.append(current()))
    body: Any = app(make_environ("/text"), lambda status, headers, exc_info=None: None)
    assert ([*body], seen) == ([b"text"], [])
    body.close()
    body.close()
    assert len(seen) == 1
    assert seen[0] is not None
    assert not in_flight()


def test_a_close_function_that_fails_is_recorded_once(app: Flask, serve: Serve, records: Records) -> None:
    """The answer was whole: the server hears nothing."""
    app.view_functions["text"] = lambda: with_close(lambda: 1 // 0)
    answer = serve(app, "/text")
    assert (answer.cut, answer.body) == (None, b"text")
    assert ["ZeroDivisionError" in str(record) for record in records()] == [True]


def test_a_response_class_whose_close_was_patched_is_closed(app: Flask, serve: Serve,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(Response, "close", lambda self: closed.append(self))
    assert serve(app, "/text").body == b"text"
    assert len(closed) == 1


def test_a_plain_answer_is_closed_once_within_its_request(app: Flask, serve: Serve,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """It is handed on as it is, and closed all the same."""
    closed: list[Any] = []
    kept = ClosingIterator.close

    def close(self: Any) -> None:
        closed.append(current())
        kept(self)

    monkeypatch.setattr(ClosingIterator, "close", close)
    answer = serve(app, "/text")
    assert (answer.cut, answer.body, as_it_is(answer)) == (None, b"text", True)
    assert len(closed) == 1
    assert closed[0] is not None


def test_a_plain_answer_whose_close_fails_is_recorded_once_and_answered(app: Flask, serve: Serve, records: Records,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was sent yet: a whole answer is given, and the request is over."""
    monkeypatch.setattr(ClosingIterator, "close", lambda self: 1 // 0)
    answer = serve(app, "/text")
    assert answer.cut is None
    assert answer.status == 500
    assert ["ZeroDivisionError" in str(record) for record in records()] == [True]
    assert not in_flight()


def test_a_head_that_the_server_refuses_is_an_error(app: Flask, make_environ: Callable[..., dict[str, Any]],
                                                    records: Records) -> None:
    """Recorded with its request, and answered."""
    heads: list[str] = []

    def refuses(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        heads.append(status)
        if len(heads) == 1:
            raise ValueError("no such header")

    body: Any = app(make_environ("/text"), refuses)
    assert heads == ["200 OK", "500 Internal Server Error"]
    assert b"500" in b"".join(body)
    assert [record["path"] for record in records()] == ["/text"]


# -- heads ------------------------------------------------------------------------------------------------------


def test_heads_that_repeat_are_known_and_never_too_many() -> None:
    for length in range(2000):
        headers = [("Content-Type", "text/html"), ("Content-Length", str(length))]
        assert check_head("200 OK", headers) == (200, length)
    assert 0 < len(known_heads) <= 1000


def test_no_secret_is_kept_in_memory() -> None:
    head = ("200 OK", ("Set-Cookie", "session=secret"), ("Content-Length", "3"))
    assert check_head(head[0], [*head[1:]]) == (200, 3)
    assert (head[0], head[1:]) not in known_heads


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "\x7f", "€", "\ud800", 5, None, b"x"])
@pytest.mark.parametrize("name", ["Content-Type", "X-Mine", "Content-Length"])
def test_a_bad_value_is_refused_each_time(name: str, value: Any) -> None:
    for _ in range(2):
        with pytest.raises(InvalidResponse, match=f"{name}|Content-Length is no number"):
            check_head("200 OK", [(name, value)])


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\n", "é", 5, None])
def test_a_bad_name_is_refused_each_time(name: Any) -> None:
    for _ in range(2):
        with pytest.raises(InvalidResponse, match="invalid name"):
            check_head("200 OK", [(name, "x")])


@pytest.mark.parametrize("status", ["", "200OK", "99 x", "200 a\n", "200 €", "0200 x", 200, None, b"200 OK"])
def test_a_bad_status_is_refused_each_time(status: Any) -> None:
    for _ in range(2):
        with pytest.raises(InvalidResponse, match="invalid status"):
            check_head(status, [])


@pytest.mark.parametrize(("headers", "length"), [
    ([], -1), ([("content-LENGTH", "7")], 7), ([("Content-Length", " 7 ")], 7),
    ([("Content-Length", "7"), ("Content-Length", "8")], 7), ([("X-Mine", "a\tb"), ("X-Name", "é")], -1)])
def test_a_good_head_is_read(headers: list[tuple[str, str]], length: int) -> None:
    for _ in range(2):
        assert check_head("204", headers) == (204, length)
