"""Extensions that stand beside ours in the same app: Flask-RESTX, Flask-RESTful, OpenTelemetry's instrumentation."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, abort

from flask_stability import StabilityExt
from flask_stability.exceptions import DatabaseUnavailable
from wsgi_client import Answer

Serve = Callable[..., Answer]
Records = Callable[[], list[dict[str, Any]]]


def _resources(library: str) -> Flask:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "restx":
            from flask_restx import Api, Resource
        else:
            from flask_restful import Api, Resource
    app = Flask("orders")
    StabilityExt(app)
    api = Api(app)

    class Fails(Resource):  # type: ignore[misc]
        def get(self, kind: str) -> Any:
            if kind == "unavailable":
                raise DatabaseUnavailable("away", retry_after=7)
            if kind == "bug":
                raise ValueError("bug")
            return abort(int(kind))

    api.add_resource(Fails, "/orders/<kind>")
    return app


@pytest.mark.parametrize("library", ["restx", "restful"])
@pytest.mark.parametrize("code", [404, 400, 422])
def test_what_is_below_500_is_none_of_ours(library: str, code: int, serve: Serve, records: Records) -> None:
    """Both announce every HTTPException as if nobody had handled it."""
    assert serve(_resources(library), f"/orders/{code}").status == code
    assert records() == []


@pytest.mark.parametrize("library", ["restx", "restful"])
def test_a_database_that_is_away_is_answered_503(library: str, serve: Serve, records: Records) -> None:
    """With Retry-After, and recorded once."""
    answer = serve(_resources(library), "/orders/unavailable")
    assert (answer.status, dict(answer.headers)["Retry-After"]) == (503, "7")
    record, = records()
    assert record["event"] == "database_unavailable"


@pytest.mark.parametrize("library", ["restx", "restful"])
def test_a_bug_stays_theirs_to_answer(library: str, serve: Serve, records: Records) -> None:
    """A 500 of theirs, recorded once."""
    answer = serve(_resources(library), "/orders/bug")
    assert answer.status == 500
    assert json.loads(answer.body)["message"] == "Internal Server Error"
    record, = records()
    assert (record["event"], record["exception"][0]["type"]) == ("exception", "ValueError")


# -- an app's own handlers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("handled", "status", "recorded"), [
    (Exception, 500, True), (Exception, 400, True), (ValueError, 503, True), (ValueError, 400, False)])
def test_what_an_apps_own_handler_was_given_is_recorded(handled: type[Exception], status: int, recorded: bool,
                                                        serve: Serve, records: Records) -> None:
    """With its stack: a handler of all exceptions hides them; any other if it makes a 5xx of it."""
    app = Flask("orders")
    StabilityExt(app)
    app.register_error_handler(handled, lambda error: ("sorry", status))

    @app.get("/fails")
    def fails() -> str:
        raise ValueError("the cause")

    assert serve(app, "/fails").status == status
    assert [record["exception"][0]["message"] for record in records()] == ["the cause"] * recorded
    assert serve(app, "/none").status == (status if handled is Exception else 404)
    assert len(records()) == recorded or status >= 500


# -- OpenTelemetry ---------------------------------------------------------------------------------------------------


@pytest.fixture
def traced() -> Iterator[tuple[Flask, Any]]:
    """An app instrumented after StabilityExt, and what its spans are exported to."""
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = Flask("orders")
    StabilityExt(app)
    FlaskInstrumentor().instrument_app(app, tracer_provider=provider)
    app.add_url_rule("/good/<name>", "good", lambda name: name)
    app.add_url_rule("/stream", "stream", lambda: iter([b"one", b"two"]))
    app.add_url_rule("/fails", "fails", lambda: [][0])

    def breaks() -> Iterator[bytes]:
        raise ValueError("before the first chunk")
        yield b""

    app.add_url_rule("/breaks", "breaks", breaks)
    yield app, exporter
    FlaskInstrumentor.uninstrument_app(app)


@pytest.mark.parametrize(("path", "status"), [("/good/ann", 200), ("/stream", 200), ("/fails", 500), ("/none", 404)])
def test_opentelemetry_sees_status_and_response(path: str, status: int, traced: tuple[Flask, Any], serve: Serve,
                                                records: Records) -> None:
    """It is told of the answer while Flask's request context is there, since it reads that."""
    app, exporter = traced
    assert serve(app, path).status == status
    span, = exporter.get_finished_spans()
    assert span.attributes["http.status_code"] == status
    assert [record["event"] for record in records()] == ["exception"] * (status == 500)


def test_what_fails_before_the_first_chunk_is_still_answered(traced: tuple[Flask, Any], serve: Serve,
                                                             records: Records) -> None:
    """Although the head was given on before it."""
    assert serve(traced[0], "/breaks").status == 500
    assert [record["event"] for record in records()] == ["exception"]
