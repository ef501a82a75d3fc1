"""The way of one request through the outermost layer."""

from __future__ import annotations

import errno
import gc
import io
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from flask import Flask, Response, stream_with_context

from flask_stability.config import Settings
from flask_stability.exceptions import PoolTimeout
from flask_stability.request import RequestRecord, current, in_flight, inflight, remaining
from flask_stability.runtime import runtime
from flask_stability.wsgi.middleware import MARK, StabilityMiddleware

SETTINGS = Settings()
PLAIN = [("Content-Type", "text/plain")]
Serve = Callable[..., Any]
Records = Callable[[], list[dict[str, Any]]]


class Odd(BaseException):
    """Neither an Exception nor known to anyone."""


def wrap(app: Any, **settings: Any) -> StabilityMiddleware:
    return StabilityMiddleware(app, settings=replace(SETTINGS, **settings))


# -- responses of every kind, under the eyes of wsgiref.validate --------------------------------------------------


def a_list(environ: Any, start: Any) -> Any:
    start("200 OK", [*PLAIN, ("Content-Length", "5")])
    return [b"he", b"llo"]


def a_generator(environ: Any, start: Any) -> Any:
    start("200 OK", PLAIN)
    yield b"he"
    yield b"llo"


def a_late_start(environ: Any, start: Any) -> Any:
    def body() -> Iterator[bytes]:
        start("200 OK", PLAIN)
        yield b"hello"
    return body()


def an_empty_first_chunk(environ: Any, start: Any) -> Any:
    start("200 OK", PLAIN)
    return iter([b"", b"hello"])


def written(environ: Any, start: Any) -> Any:
    write = start("200 OK", PLAIN)
    write(b"he")
    return [b"llo"]


@pytest.mark.parametrize("app", [a_list, a_generator, a_late_start, an_empty_first_chunk, written])
def test_a_body_passes_unchanged(app: Any, serve: Serve) -> None:
    """Lists, generators, a late start_response and the write callable reach the client as they are."""
    answer = serve(validator(wrap(validator(app))))
    assert (answer.status, answer.body, answer.cut) == (200, b"hello", None)
    assert answer.headers["Content-Type"] == "text/plain"


@pytest.mark.parametrize(("status", "method", "headers"), [
    ("204 No Content", "GET", []), ("304 Not Modified", "GET", []),
    ("200 OK", "HEAD", [*PLAIN, ("Content-Length", "500")]),
    ("200 OK", "GET", [*PLAIN, ("Content-Length", "0")])])
def test_an_answer_without_a_body_is_no_short_one(status: str, method: str, headers: Any, serve: Serve,
                                                  records: Records) -> None:
    """204, 304, HEAD and an empty body are whole answers."""
    def app(environ: Any, start: Any) -> Any:
        start(status, list(headers))
        return []

    answer = serve(validator(wrap(validator(app))), method=method)
    assert (f"{answer.status}", answer.body, answer.cut) == (status[:3], b"", None)
    assert records() == []


def test_a_file_wrapper_is_passed_through(serve: Serve) -> None:
    """The server gets the very object, so that it can use sendfile, and its close still ends the request."""
    file = io.BytesIO(b"hello")

    def app(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](file)

    answer = serve(wrap(app))
    assert type(answer.source) is FileWrapper
    assert (answer.status, answer.body, file.closed) == (200, b"hello", True)


def test_a_file_wrapper_without_a_close_is_passed_through(serve: Serve) -> None:
    """PEP 3333 asks for one only where the file has one."""
    class Wrapper:
        def __init__(self, chunks: list[bytes]) -> None:
            self.chunks = chunks

        def __iter__(self) -> Iterator[bytes]:
            return iter(self.chunks)

    def app(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"]([b"hello"])

    answer = serve(wrap(app), **{"wsgi.file_wrapper": Wrapper})
    assert type(answer.source) is Wrapper
    assert (answer.status, answer.body) == (200, b"hello")


def test_a_file_wrapper_that_is_no_class_does_no_harm(serve: Serve) -> None:
    """uWSGI's is a function."""
    assert serve(wrap(a_list), **{"wsgi.file_wrapper": lambda file: iter(file)}).body == b"hello"


def test_a_stream_is_not_buffered(make_environ: Any) -> None:
    """No chunk is drawn before the server asked for the one before, but for the first."""
    drawn: list[int] = []

    def app(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)
        for number in range(3):
            drawn.append(number)
            yield b"x"

    response = wrap(app)(make_environ(), lambda *_: lambda data: None)
    assert drawn == [0]
    body = iter(response)
    next(body)
    assert drawn == [0]
    next(body)
    assert drawn == [0, 1]
    response.close()  # type: ignore[attr-defined]


def test_close_is_called_once_on_every_path(serve: Serve) -> None:
    """The app's iterable is closed exactly once, whether it ends, fails before or after its first chunk."""
    class Body:
        def __init__(self, chunks: list[Any]) -> None:
            self.chunks, self.closed = iter(chunks), 0

        def __iter__(self) -> Body:
            return self

        def __next__(self) -> bytes:
            chunk = next(self.chunks)
            if isinstance(chunk, Exception):
                raise chunk
            return bytes(chunk)

        def close(self) -> None:
            self.closed += 1

    for chunks in ([b"a"], [ValueError()], [b"a", ValueError()]):
        body = Body(chunks)

        def app(environ: Any, start: Any, body: Body = body) -> Any:
            start("200 OK", PLAIN)
            return body

        serve(wrap(app))
        assert body.closed == 1


# -- what escapes before the first chunk --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [
    ValueError("x"), OSError(errno.EIO, "x"), ConnectionResetError(errno.ECONNRESET, "x"), BrokenPipeError("x"),
    StopIteration(), MemoryError(), RecursionError(), SystemExit(3), SystemExit(0), KeyboardInterrupt(),
    GeneratorExit(), Odd()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["call", "iter", "first chunk"])
def test_whatever_escapes_is_answered_and_recorded_once(error: BaseException, where: str, serve: Serve,
                                                        records: Records) -> None:
    """Exceptions of every class end as one 500 and one record: none reaches the server."""
    if where == "first chunk" and isinstance(error, StopIteration):
        where = "iter"  # from __next__ it is the body's end

    class Body:
        def __iter__(self) -> Body:
            if where == "iter":
                raise error
            return self

        def __next__(self) -> bytes:
            raise error

    def app(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)
        if where == "call":
            raise error
        return Body()

    answer = serve(wrap(app), HTTP_ACCEPT="application/json")
    assert (answer.status, answer.cut, answer.starts) == (500, None, 1)
    record, = records()
    assert record["level"] == ("ERROR" if isinstance(error, Exception) else "CRITICAL")
    assert record["event"] == "exception"
    assert record["exception"][0]["type"].endswith(type(error).__name__)
    assert record["request_id"] == answer.headers["X-Request-ID"] == answer.problem["request_id"]


@pytest.mark.parametrize(("returned", "status", "headers"), [
    (None, "200 OK", PLAIN), ("text", "200 OK", PLAIN), (b"bytes", "200 OK", PLAIN), (7, "200 OK", PLAIN),
    (["text"], "200 OK", PLAIN), ([None], "200 OK", PLAIN),
    ([b"x"], None, PLAIN), ([b"x"], "OK", PLAIN), ([b"x"], 200, PLAIN), ([b"x"], b"200 OK", PLAIN),
    ([b"x"], "200 OK\r\nX: y", PLAIN), ([b"x"], "200 OK", [("X", "a\r\nSet-Cookie: b")]),
    ([b"x"], "200 OK", [("X\n", "a")]), ([b"x"], "200 OK", [("X", 1)]), ([b"x"], "200 OK", [("X", None)]),
    ([b"x"], "200 OK", [(b"X", b"a")]), ([b"x"], "200 OK", [("X", "日本")]), ([b"x"], "200 OK", [("a", "b", "c")]),
    ([b"x"], "200 OK", None), ([b"x"], "200 OK", [("Content-Length", "many")]), ([b"x"], ["200 OK"], PLAIN)])
def test_garbage_is_answered_with_500(returned: Any, status: Any, headers: Any, serve: Serve,
                                      records: Records) -> None:
    """What no server may send becomes one whole 500 with nothing of it in the head."""
    def app(environ: Any, start: Any) -> Any:
        start(status, headers)
        return returned

    answer = serve(wrap(app))
    assert (answer.status, answer.cut, answer.starts) == (500, None, 1)
    assert not {"X", "Set-Cookie"} & set(answer.headers)
    assert len(records()) == 1


def test_no_start_response_is_answered_with_500(serve: Serve, records: Records) -> None:
    """A body without a head is no answer."""
    assert serve(wrap(lambda environ, start: [b"x"])).status == 500
    assert serve(wrap(lambda environ, start: [])).status == 500
    assert len(records()) == 2


def test_start_response_twice_is_answered_with_500(serve: Serve, records: Records) -> None:
    """Only an exception may replace a head."""
    def app(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)
        start("201 Created", PLAIN)
        return [b"x"]

    assert serve(wrap(app)).status == 500
    assert len(records()) == 1


def test_exc_info_replaces_a_head_that_was_held_back(serve: Serve) -> None:
    """An app that changes its mind before the first chunk is heard."""
    def app(environ: Any, start: Any) -> Any:
        start("200 OK", [*PLAIN, ("X-Old", "1")])
        start("404 Not Found", [("X-New", "1")], (ValueError, ValueError(), None))
        return [b"x"]

    answer = serve(wrap(app))
    assert answer.status == 404
    assert "X-New" in answer.headers
    assert "X-Old" not in answer.headers


def test_headers_given_as_lists_pass(serve: Serve) -> None:
    """gunicorn takes any pair, so do we."""
    def app(environ: Any, start: Any) -> Any:
        start("200 OK", [["Content-Type", "text/plain"]])
        return [b"x"]

    assert serve(wrap(app)).status == 200


def test_an_unavailable_database_is_answered_with_503(serve: Serve) -> None:
    """The client learns when to come again."""
    def app(environ: Any, start: Any) -> Any:
        raise PoolTimeout(retry_after=2.6)

    answer = serve(wrap(app), HTTP_ACCEPT="application/json")
    assert (answer.status, answer.headers["Retry-After"], answer.problem["status"]) == (503, "3", 503)
    assert answer.headers["Cache-Control"] == "no-store"


# -- what fails in mid-stream, in the close ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EIO, "x"), SystemExit(3), GeneratorExit(), Odd()],
                         ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("written_first", [False, True])
def test_a_failure_in_mid_stream_cuts_the_connection(error: BaseException, written_first: bool, serve: Serve,
                                                     records: Records) -> None:
    """One record, no second answer, and an error that gunicorn takes for a closed connection."""
    def stream(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)
        yield b"half"
        raise error

    def write(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)(b"half")
        raise error

    answer = serve(wrap(write if written_first else stream))
    assert (answer.status, answer.starts, answer.body) == (200, 1, b"half")
    assert isinstance(answer.cut, OSError)
    assert answer.cut.errno == errno.EPIPE
    record, = records()
    assert record["response_started"] is True
    assert runtime.my_row().by_class[0] >= 1


def test_a_chunk_of_a_wrong_type_in_mid_stream_cuts_the_connection(serve: Serve, records: Records) -> None:
    """As any other failure there."""
    def app(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)
        return [b"half", "text"]

    assert isinstance(serve(wrap(app)).cut, BrokenPipeError)
    assert len(records()) == 1


def test_a_short_body_is_told_and_cut(serve: Serve, records: Records) -> None:
    """A client that keeps its connection would wait for the rest for ever."""
    def app(environ: Any, start: Any) -> Any:
        start("200 OK", [*PLAIN, ("content-length", "10")])
        return [b"five!"]

    answer = serve(wrap(app))
    assert isinstance(answer.cut, BrokenPipeError)
    record, = records()
    assert (record["level"], record["declared"], record["sent"]) == ("WARNING", 10, 5)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), Odd()], ids=lambda error: type(error).__name__)
def test_a_failing_close_is_recorded_and_the_answer_whole(error: BaseException, serve: Serve,
                                                          records: Records) -> None:
    """The client has its answer already."""
    app = Flask("app")

    @app.get("/")
    def view() -> Response:
        response = Response("hello")

        @response.call_on_close
        def fail() -> None:
            raise error

        return response

    answer = serve(wrap(app))
    assert (answer.status, answer.body, answer.cut) == (200, b"hello", None)
    record, = records()
    assert record["path"] == "/"
    assert record["route"] == "/"


def test_a_client_that_left_is_no_error_of_the_app(make_environ: Any, records: Records) -> None:
    """The server stops asking, or its write fails: nothing is logged above DEBUG."""
    def app(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)
        yield b"x"
        yield b"y"

    response = wrap(app)(make_environ(), lambda *_: lambda data: None)
    next(iter(response))
    response.close()  # type: ignore[attr-defined]

    def writes(environ: Any, start: Any) -> Any:
        start("200 OK", PLAIN)(b"x")
        return []

    def gone(data: bytes) -> None:
        raise BrokenPipeError(errno.EPIPE, "gone")

    with pytest.raises(BrokenPipeError):
        wrap(writes)(make_environ(), lambda *_: gone)
    assert records() == []


# -- where no server serves, and where Flask's settings let exceptions out ------------------------------------------


@pytest.mark.parametrize("software", [None, "Werkzeug/3.1"])
@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), SystemExit(3)],
                         ids=lambda error: type(error).__name__)
def test_a_test_client_sees_the_exception_itself(software: str | None, error: BaseException, serve: Serve,
                                                 records: Records) -> None:
    """An app's own tests and the development server notice nothing of us."""
    def app(environ: Any, start: Any) -> Any:
        raise error

    answer = serve(wrap(app), SERVER_SOFTWARE=software)
    assert answer.cut is error
    assert answer.starts == 0
    assert records() == []


def test_propagation_is_respected_by_the_layer_inside_the_app(serve: Serve, records: Records) -> None:
    """PROPAGATE_EXCEPTIONS hands the exception to whatever is around the app."""
    error = ValueError()

    def app(environ: Any, start: Any) -> Any:
        raise error

    inner = StabilityMiddleware(app, settings=SETTINGS, propagate=lambda: True)
    assert serve(inner).cut is error
    assert serve(wrap(inner)).status == 500
    assert len(records()) == 1


def _raise_as(module_name: str, function: str) -> Callable[[], None]:
    """A function that raises SystemExit as a handler of that module would."""
    scope: dict[str, Any] = {"__name__": module_name}
    exec(f"def {function}():\n    raise SystemExit(1)", scope)
    handler: Callable[[], None] = scope[function]
    return handler


@pytest.mark.parametrize(("handler", "event"), [("handle_abort", "request_timeout"),
                                                ("handle_quit", "request_shutdown")])
def test_the_servers_own_system_exit_passes(handler: str, event: str, serve: Serve, records: Records) -> None:
    """What gunicorn's signal handler raises in the view is recorded as what it is, and reaches gunicorn."""
    end = _raise_as("gunicorn.workers.base", handler)

    def app(environ: Any, start: Any) -> Any:
        end()

    assert isinstance(serve(wrap(app)).cut, SystemExit)
    record, = records()
    assert (record["event"], record["level"]) == (event, "CRITICAL")


def test_a_system_exit_of_the_view_does_not_pass_while_the_worker_stops(serve: Serve,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does one that merely looks like the server's while the worker is not told to end."""
    assert serve(wrap(lambda environ, start: _raise_as("app", "handle_abort")())).status == 500
    monkeypatch.setattr(runtime, "stopping", lambda: False)
    assert serve(wrap(lambda environ, start: _raise_as("gunicorn.workers.base", "handle_abort")())).status == 500


# -- ids, deadlines, the table of those in flight -------------------------------------------------------------------


def _not_found(environ: Any, start: Any) -> Any:
    start("404 Not Found", [("Content-Length", "1"), *environ.get("more", ())])
    return [b"x"]


def test_a_given_id_is_taken_over_only_if_trusted_and_well_formed(serve: Serve) -> None:
    """A log line cannot be forged by a header."""
    for trusted, given, taken in ((True, "abc-1", True), (False, "abc-1", False), (True, "a b", False),
                                  (True, "x" * 129, False), (True, "a\n", False), (True, "", False)):
        answer = serve(wrap(_not_found, request_id_trust=trusted), HTTP_X_REQUEST_ID=given)
        assert (answer.headers["X-Request-ID"] == given) is taken


def test_a_trusted_id_comes_back_on_a_good_answer(serve: Serve) -> None:
    """Whoever gives an id gets it back; otherwise only an error's answer carries one."""
    assert serve(wrap(a_list, request_id_trust=True), HTTP_X_REQUEST_ID="abc").headers["X-Request-ID"] == "abc"
    assert "X-Request-ID" not in serve(wrap(a_list)).headers


def test_the_apps_own_id_header_stays(serve: Serve) -> None:
    """It is not sent twice."""
    answer = serve(wrap(_not_found), more=[("x-request-id", "mine")])
    assert answer.headers["x-request-id"] == "mine"
    assert "X-Request-ID" not in answer.headers


def test_ids_differ(serve: Serve) -> None:
    """No two requests share one."""
    ids = {serve(wrap(_not_found)).headers["X-Request-ID"] for _ in range(200)}
    assert len(ids) == 200


def test_the_record_is_in_the_table_while_the_request_runs(serve: Serve) -> None:
    """With its thread, its deadline and what its log lines tell."""
    seen: dict[str, Any] = {}

    def app(environ: Any, start: Any) -> Any:
        record = current()
        assert record is not None
        assert record is inflight[threading.get_ident()]
        assert MARK in environ
        seen.update(method=record.method, path=record.path, keys=record.query_keys, client=record.client,
                    left=remaining(), started=record.response_started)
        start("200 OK", PLAIN)
        yield b"x"
        seen.update(then=remaining())

    serve(wrap(app, request_timeout=60.0), "/caf\xc3\xa9", QUERY_STRING="b=secret&a=1&bare")
    assert 50 < seen.pop("left") <= 60
    assert seen == {"method": "GET", "path": "/café", "keys": ["a", "b"], "client": "192.0.2.1", "started": False,
                    "then": None}


def test_a_request_inside_a_request_does_not_hide_the_outer_one(serve: Serve) -> None:
    """A test client in a view, or an app that calls another."""
    def outer(environ: Any, start: Any) -> Any:
        mine = current()
        assert serve(wrap(a_list)).status == 200
        assert current() is mine
        return a_list(environ, start)

    assert serve(wrap(outer)).body == b"hello"


def test_an_inner_layer_steps_aside(serve: Serve, records: Records) -> None:
    """Around the app and around the worker: one record, one count."""
    before = runtime.my_row().requests

    def app(environ: Any, start: Any) -> Any:
        raise ValueError

    assert serve(wrap(wrap(app))).status == 500
    assert len(records()) == 1
    assert runtime.my_row().requests == before + 1


@pytest.mark.parametrize("layers", [1, 2])
def test_the_health_path_is_served_and_not_counted(layers: int, serve: Serve) -> None:
    """By the inner layer also under an outer one, without the app, a deadline, or a trace in the figures."""
    seen: list[tuple[bool, float]] = []

    def health(environ: Any, start: Any) -> Any:
        record = current()
        seen.append((record is None or record.health, record.deadline if record is not None else 0.0))
        start("200 OK", PLAIN)
        return [b"healthy"]

    app: Any = StabilityMiddleware(a_list, settings=SETTINGS, health_app=health)
    if layers == 2:
        app = wrap(app)
    before = runtime.my_row().requests
    assert serve(app, "/health").body == serve(app, "/health/live").body == b"healthy"
    assert seen == [(True, 0.0)] * 2
    assert runtime.my_row().requests == before
    assert serve(app, "/healthy").body == b"hello"
    assert runtime.my_row().requests == before + 1


def test_a_failing_health_app_is_answered_as_any_other(serve: Serve, records: Records) -> None:
    """It has no handler above it."""
    def health(environ: Any, start: Any) -> Any:
        raise ValueError

    assert serve(StabilityMiddleware(a_list, settings=SETTINGS, health_app=health), "/health").status == 500
    assert len(records()) == 1


def test_a_request_is_counted_with_method_route_and_status(serve: Serve) -> None:
    """By the route's name, never by the raw path; methods that nobody knows are one."""
    app = Flask("app")

    @app.route("/users/<name>", methods=["GET", "PURGE"], endpoint="user")
    def user(name: str) -> str:
        return name

    for method in ("GET", "PURGE"):
        assert serve(wrap(app), "/users/1", method).status == 200
    assert serve(wrap(app), "/nowhere").status == 404
    found = runtime.my_board().totals().endpoints
    assert found["GET", "user"][4] >= 1
    assert found["OTHER", "user"][4] >= 1
    assert found["GET", ""][6] >= 1


def test_a_5xx_answer_without_an_exception_is_one_record_without_a_traceback(serve: Serve, records: Records) -> None:
    """abort(500), or a view that answers 503 itself."""
    def app(environ: Any, start: Any) -> Any:
        start("503 Service Unavailable", PLAIN)
        return [b"x"]

    serve(wrap(app))
    record, = records()
    assert (record["event"], record["level"], record["status"]) == ("server_error", "ERROR", 503)
    assert "exception" not in record


def test_a_4xx_answer_is_recorded_only_if_asked_for(serve: Serve, records: Records) -> None:
    """It is the client's error."""
    serve(wrap(_not_found))
    assert records() == []
    serve(wrap(_not_found, log_client_errors=True))
    record, = records()
    assert (record["event"], record["status"]) == ("client_error", 404)


def test_what_a_request_holds_is_given_back_whatever_happens(serve: Serve, records: Records) -> None:
    """Also if one of them fails to, also if the view failed."""
    given_back: list[str] = []

    class Held:
        def __init__(self, name: str) -> None:
            self.name = name

        def release(self) -> None:
            given_back.append(self.name)
            if self.name == "bad":
                raise OSError("bad")

    def app(environ: Any, start: Any) -> Any:
        record = current()
        assert isinstance(record, RequestRecord)
        for name in ("a", "bad", "b"):
            record.hold(Held(name))
        raise ValueError

    assert serve(wrap(app)).status == 500
    assert given_back == ["a", "bad", "b"]
    assert [record["event"] for record in records()] == ["exception", "release_failed"]


def test_the_first_request_starts_the_process_once_and_may_fail(serve: Serve, records: Records) -> None:
    """What belongs to the process starts without harm to the request."""
    calls: list[int] = []

    def begin() -> None:
        calls.append(1)
        raise RuntimeError("no threads left")

    app = StabilityMiddleware(a_list, settings=SETTINGS, on_first_request=begin)
    assert serve(app).body == serve(app).body == b"hello"
    assert calls == [1]
    assert [record["event"] for record in records()] == ["internal_error"]


# -- what stays behind ------------------------------------------------------------------------------------------------


def test_no_cycle_keeps_the_app_alive() -> None:
    """An app that nobody holds is freed at once, as Flask promises."""
    app = Flask("app")
    app.wsgi_app = StabilityMiddleware(app.wsgi_app, settings=SETTINGS, health_app=a_list)  # type: ignore[method-assign]
    gone = weakref.ref(app)
    gc.disable()
    try:
        del app
        assert gone() is None
    finally:
        gc.enable()


def test_a_request_leaves_no_cycle(serve: Serve, make_environ: Any) -> None:
    """Its environ is freed when the server lets go, without the garbage collector."""
    class Environ(dict):  # type: ignore[type-arg]
        """A dict that can be referred to weakly."""

    environ = Environ(make_environ())
    gone = weakref.ref(environ)
    gc.collect()
    gc.disable()
    try:
        response = wrap(a_list)(environ, lambda *_: lambda data: None)
        list(response)
        response.close()  # type: ignore[attr-defined]
        del environ, response
        assert gone() is None
    finally:
        gc.enable()


def test_a_response_that_a_test_client_does_not_close_leaves_the_table(make_environ: Any) -> None:
    """When it was read to its end, or when the next request begins."""
    app = wrap(a_list)
    first = app(make_environ(SERVER_SOFTWARE=None), lambda *_: lambda data: None)
    app(make_environ(SERVER_SOFTWARE=None), lambda *_: lambda data: None)
    record, = in_flight()
    assert record is not first
    assert record.outer is None
    third = app(make_environ(SERVER_SOFTWARE=None), lambda *_: lambda data: None)
    list(third)
    assert not in_flight()


def test_a_stream_with_context_works_through_both_layers(serve: Serve) -> None:
    """Flask's own streaming helper."""
    app = Flask("app")

    @app.get("/")
    def view() -> Response:
        return Response(stream_with_context(iter(["a", "b"])))

    app.wsgi_app = StabilityMiddleware(app.wsgi_app, settings=SETTINGS, health_app=a_list)  # type: ignore[method-assign]
    answer = serve(validator(wrap(app)))
    assert (answer.status, answer.body) == (200, b"ab")
