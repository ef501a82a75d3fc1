"""Answers inside Flask: only where the app has no handler of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, got_request_exception, request_finished
from flask.logging import default_handler
from werkzeug.exceptions import HTTPException, Unauthorized

from flask_stability.config import Settings
from flask_stability.errors import handlers
from flask_stability.exceptions import (
    CircuitOpen,
    CommitUnknown,
    DatabaseUnavailable,
    DeadlineExceeded,
    PoolClosed,
    PoolTimeout,
    TooManyRequests,
)
from flask_stability.wsgi.middleware import StabilityMiddleware

JSON = {"HTTP_ACCEPT": "application/json"}
Serve = Callable[..., Any]
Records = Callable[[], list[dict[str, Any]]]


def make(form: str = "auto") -> Flask:
    """An app whose path names what its view does."""
    app = Flask("app")
    settings = replace(Settings(), error_format=form)
    handlers.init_app(app, settings)
    app.wsgi_app = StabilityMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, settings=settings, health_app=lambda environ, start: [])

    @app.get("/ok")
    def ok() -> str:
        return "ok"

    @app.get("/value")
    def value() -> str:
        raise ValueError("secret")

    @app.get("/busy")
    def busy() -> str:
        raise PoolTimeout(retry_after=3)

    @app.get("/abort/<int:code>")
    def aborts(code: int) -> str:
        abort(code)

    @app.get("/login")
    def login() -> str:
        raise Unauthorized(www_authenticate=None, description="who are you?")

    @app.get("/kept")
    def kept() -> str:
        abort(Response("mine", 500))

    return app


def test_an_exception_of_a_view_is_one_problem_and_one_record(serve: Serve, records: Records,
                                                               capfd: pytest.CaptureFixture[str]) -> None:
    """With the request's id in body, header and record; Flask's own text on stderr is left out."""
    answer = serve(make(), "/value", QUERY_STRING="token=hidden", **JSON)
    assert answer.status == 500
    assert b"secret" not in answer.body
    record, = records()
    assert record["request_id"] == answer.problem["request_id"] == answer.headers["X-Request-ID"]
    assert (record["route"], record["query_keys"], record["client"]) == ("/value", ["token"], "192.0.2.1")
    assert record["exception"][0]["type"] == "ValueError"
    assert record["exception"][0]["frames"][-1].endswith(" value")
    assert "hidden" not in str(record)
    assert "Traceback" not in capfd.readouterr().err


def test_html_clients_get_flasks_own_page(serve: Serve) -> None:
    """With the headers that every error's answer carries."""
    app = make()
    answer = serve(app, "/nowhere", HTTP_ACCEPT="text/html")
    assert answer.status == 404
    assert b"The requested URL was not found" in answer.body
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Vary"] == "Accept"
    assert serve(make("html"), "/nowhere", **JSON).body == answer.body
    assert serve(make("problem"), "/nowhere", HTTP_ACCEPT="text/html").problem["status"] == 404


def test_what_the_exception_says_to_clients_is_kept(serve: Serve) -> None:
    """Its headers and its description."""
    app = make()
    assert set(serve(app, "/ok", "POST", **JSON).headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert serve(app, "/login", **JSON).problem["detail"] == "who are you?"
    assert serve(app, "/abort/418", **JSON).problem["title"] == "I'm a teapot"


def test_a_response_given_to_abort_is_kept(serve: Serve, records: Records) -> None:
    """It is the app's own answer."""
    assert serve(make(), "/kept", **JSON).body == b"mine"
    assert [record["event"] for record in records()] == ["server_error"]


def test_abort_500_is_a_record_without_a_traceback(serve: Serve, records: Records) -> None:
    """Nothing was raised that tells more."""
    assert serve(make(), "/abort/500", **JSON).problem["status"] == 500
    record, = records()
    assert record["level"] == "ERROR"
    assert "exception" not in record


def test_an_unavailable_database_is_503_with_retry_after(serve: Serve, records: Records) -> None:
    """One record, named for what it is."""
    for extra in (JSON, {}):
        answer = serve(make(), "/busy", **extra)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "3")
    assert {record["event"] for record in records()} == {"database_unavailable"}


@pytest.mark.parametrize("driver", ["MySQLdb", "pymysql.err"])
def test_which_errors_of_a_driver_mean_unavailable(driver: str) -> None:
    """Not reachable, no connection to be had, refused, failed over, cut off; not what is the statement's own fault."""
    kind = type("OperationalError", (Exception,), {"__module__": driver})
    yes = (1021, 1040, 1044, 1045, 1046, 1049, 1053, 1114, 1129, 1130, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1698,
           1792, 1836, 1927, 2002, 2003, 2005, 2006, 2013, 2027, 2055, 4031)
    no = (1020, 1054, 1062, 1064, 1146, 1205, 1213, 1290, 1317, 1969, 3024, 3101)
    assert [code for code in (*yes, *no) if handlers.is_unavailable(kind(code, "…"))] == list(yes)
    assert handlers.is_unavailable(kind(1290, "running with the --read-only option"))


@pytest.mark.parametrize("error", [PoolTimeout, PoolClosed, TooManyRequests, CircuitOpen, DeadlineExceeded])
def test_every_error_of_the_pool_that_means_not_now_is_503(serve: Serve, error: type[DatabaseUnavailable]) -> None:
    """With a time after which asking again makes sense; what may have been stored is no such error."""
    app = make()
    app.add_url_rule("/pool", view_func=_raises(error()))
    app.add_url_rule("/unknown", view_func=_raises(CommitUnknown()))
    answer = serve(app, "/pool", **JSON)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    answer = serve(app, "/unknown", **JSON)
    assert answer.status == 500
    assert "Retry-After" not in answer.headers


def _raises(error: Exception) -> Any:
    def view() -> str:
        raise error

    view.__name__ = type(error).__name__
    return view


def test_a_drivers_unreachable_error_is_503_too(serve: Serve) -> None:
    """Told by the driver's class and number, without importing the driver."""
    kind = type("OperationalError", (Exception,), {"__module__": "MySQLdb"})
    assert handlers.is_unavailable(kind(2003, "refused"))
    assert not handlers.is_unavailable(kind(1064, "syntax"))
    assert not handlers.is_unavailable(kind())
    assert not handlers.is_unavailable(None)
    app = make()

    @app.get("/driver")
    def driver() -> str:
        raise kind(2003, "refused")

    assert serve(app, "/driver").status == 503


def test_a_registered_engine_can_name_its_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a test that fails says no."""
    monkeypatch.setattr(handlers, "unavailable", [lambda error: isinstance(error, LookupError)])
    assert handlers.is_unavailable(KeyError())
    monkeypatch.setattr(handlers, "unavailable", [lambda error: 1 / 0 > 0])
    assert not handlers.is_unavailable(KeyError())


@pytest.mark.parametrize("register", [ValueError, Exception, HTTPException, 500], ids=str)
@pytest.mark.parametrize("where", ["app", "blueprint"])
@pytest.mark.parametrize("early", [True, False])
def test_the_apps_own_handlers_win(register: Any, where: str, early: bool, serve: Serve) -> None:
    """For the class, for every exception, for HTTP exceptions and for 500, in the app and in a blueprint, whether
    they were registered before or after us."""
    def mine(error: Exception) -> tuple[str, int]:
        return f"mine: {type(error).__name__}", 599

    def view() -> str:
        raise ValueError

    app = Flask("app")
    blueprint = Blueprint("blueprint", "blueprint")
    if not early:
        handlers.init_app(app, Settings())
    if where == "app":
        app.register_error_handler(register, mine)
    else:
        blueprint.register_error_handler(register, mine)
    blueprint.add_url_rule("/", view_func=view)
    app.register_blueprint(blueprint)
    if early:
        handlers.init_app(app, Settings())
    answer = serve(StabilityMiddleware(app), "/", **JSON)
    assert answer.status == 599
    assert answer.body.startswith(b"mine: ")


def test_the_apps_own_500_handler_answers_for_the_database_too(serve: Serve) -> None:
    """And a 503 handler of the app's is for what the app raises as 503."""
    app = make()
    app.register_error_handler(500, lambda error: (type(error.original_exception).__name__, 500))
    assert serve(app, "/busy").body == b"PoolTimeout"
    app = make()
    app.register_error_handler(DatabaseUnavailable, lambda error: ("mine", 503))
    assert serve(app, "/busy").body == b"mine"


def test_a_handler_that_fails_is_one_chain(serve: Serve, records: Records) -> None:
    """Both exceptions are told; a 500 handler that fails as well ends at the constant page."""
    app = make()

    @app.errorhandler(ValueError)
    def fails(error: ValueError) -> str:
        raise KeyError("handler")

    assert serve(app, "/value", **JSON).status == 500
    record, = records()
    assert [link["type"] for link in record["exception"]] == ["KeyError", "ValueError"]

    app = make()
    app.register_error_handler(ValueError, fails)

    @app.errorhandler(500)
    def fails_too(error: Exception) -> str:
        raise IndexError

    answer = serve(app, "/value", **JSON)
    assert answer.problem["status"] == 500
    assert [item["exception"][0]["type"] for item in records()[1:]] == ["KeyError", "IndexError"]


def test_notes_of_an_exception_are_told(serve: Serve, records: Records) -> None:
    """``add_note`` is where a layer says what to do about an exception that is not its own."""
    app = make()

    @app.route("/noted")
    def noted() -> str:
        error = ValueError("it broke")
        error.add_note("mend it")
        raise error

    assert serve(app, "/noted").status == 500
    record, = records()
    assert record["exception"][0]["message"] == "it broke; mend it"


def test_after_request_that_fails_is_one_record(serve: Serve, records: Records,
                                                capfd: pytest.CaptureFixture[str]) -> None:
    """Flask runs it twice."""
    app = make()

    @app.after_request
    def fails(response: Response) -> Response:
        raise ValueError("after")

    assert serve(app, "/ok").status == 500
    assert len(records()) == 1
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("place", ["teardown_request", "teardown_appcontext"])
def test_a_teardown_that_fails_is_one_record_and_500(place: str, serve: Serve, records: Records) -> None:
    """It escapes Flask."""
    app = make()

    @getattr(app, place)  # type: ignore[untyped-decorator]
    def fails(error: BaseException | None) -> None:
        raise OSError("teardown")

    assert serve(app, "/ok").status == 500
    assert len(records()) == 1


def test_a_signals_receiver_that_fails_is_recorded(serve: Serve, records: Records) -> None:
    """With the request."""
    app = make()

    def receiver(sender: Flask, **_: Any) -> None:
        raise ValueError("receiver")

    with request_finished.connected_to(receiver, app):
        assert serve(app, "/ok").status == 500
    assert {record["path"] for record in records()} == {"/ok"}
    with got_request_exception.connected_to(receiver, app):
        assert serve(app, "/value").status == 500


@pytest.mark.parametrize("key", ["TESTING", "DEBUG", "PROPAGATE_EXCEPTIONS"])
def test_flasks_settings_let_exceptions_out(key: str, serve: Serve, records: Records) -> None:
    """Through Flask, as it documents; the layer around the worker still answers for them."""
    app = make()
    app.config[key] = True
    app.wsgi_app.boundary.propagate = lambda: handlers.propagates(app)  # type: ignore[attr-defined]
    answer = serve(app, "/value")
    assert isinstance(answer.cut, ValueError)
    assert records() == []
    assert serve(StabilityMiddleware(app), "/value").status == 500
    assert len(records()) == 1


def test_trap_http_exceptions_is_respected(serve: Serve, records: Records) -> None:
    """The exception itself is what was asked for."""
    app = make()
    app.config["TRAP_HTTP_EXCEPTIONS"] = True
    assert serve(app, "/abort/404", **JSON).problem["status"] == 500
    assert records()[0]["exception"][0]["type"].endswith("NotFound")


def test_an_apps_own_tests_notice_nothing(records: Records) -> None:
    """With Flask's test client: the same status, the same body, no record."""
    ours, plain = make().test_client(), Flask("app").test_client()
    assert ours.get("/nowhere").data == plain.get("/nowhere").data
    assert b"Internal Server Error" in ours.get("/value").data
    assert records() == []


def test_the_apps_own_logging_still_hears_of_it(serve: Serve, records: Records) -> None:
    """Only Flask's default handler is spared the repetition."""
    heard: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, item: logging.LogRecord) -> None:
            heard.append(item)

    app = make()
    handler = Handler()
    app.logger.addHandler(handler)
    try:
        serve(app, "/value")
    finally:
        app.logger.removeHandler(handler)
    assert len(heard) == 1
    assert len(records()) == 1
    assert handlers._told_already in default_handler.filters


def test_a_broken_log_handler_of_the_app_does_not_lose_the_request(serve: Serve, records: Records) -> None:
    """It is a failure like any other."""
    class Handler(logging.Handler):
        def emit(self, item: logging.LogRecord) -> None:
            raise OSError("the log's disk is full")

    app = make()
    handler = Handler()
    app.logger.addHandler(handler)
    try:
        assert serve(app, "/value", **JSON).problem["status"] == 500
    finally:
        app.logger.removeHandler(handler)
    assert [record["exception"][0]["type"] for record in records()] == ["ValueError", "OSError"]
