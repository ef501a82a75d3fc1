"""Who sees what: a stranger the status alone, whatever is sent."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_stability import StabilityExt
from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.health import results
from flask_stability.health.blueprint import HEALTH_JSON, SUFFIXES, make_blueprint, make_health_app
from flask_stability.health.results import CheckResult
from flask_stability.runtime import runtime
from support import check_result

TOKEN = "a-long-token-of-ours"
PATHS = ["/health" + suffix for suffix in SUFFIXES]
_strangers = make_health_app(replace(Settings(), health_details="token", health_token=TOKEN)).test_client()
_open = make_health_app(replace(Settings(), health_details="always", service_id="orders@here")).test_client()
_closed = make_health_app(Settings()).test_client()


@pytest.mark.parametrize("client", [_strangers, _closed])
def test_a_stranger_sees_the_status_alone(client: Any) -> None:
    """No details, no history, no metrics."""
    assert client.get("/health").json == {"status": "pass"}
    for path in ("/health/history", "/health/metrics"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("given_token", ["Bearer " + TOKEN, "bearer " + TOKEN])
def test_the_token_shows_details(given_token: str) -> None:
    """In the Authorization header, the scheme in any case."""
    assert "detailed" in _strangers.get("/health", headers={"Authorization": given_token}).json


@pytest.mark.parametrize("headers", [
    {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Basic " + TOKEN},
    {"Authorization": "Bearer " + TOKEN[:-1]}, {"Authorization": "Bearer \u00e9"}, {"X-Forwarded-For": "127.0.0.1"},
    {"Forwarded": "for=127.0.0.1"}, {"Host": "localhost"}, {"X-Real-IP": "127.0.0.1"}])
def test_nothing_else_does(headers: dict[str, str]) -> None:
    """No header, and no address: every test client is 127.0.0.1."""
    assert _strangers.get("/health", headers=headers).json == {"status": "pass"}


@settings(max_examples=150)
@given(st.sampled_from([*PATHS, "/health/", "/health/none"]),
       st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "BREW"]),
       st.dictionaries(st.sampled_from(["Authorization", "Host", "Accept", "Forwarded", "X-Forwarded-For", "Cookie"]),
                       st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)),
       st.binary(max_size=100), st.text(max_size=20))
def test_whatever_is_sent_details_never_reach_a_stranger(path: str, method: str, headers: dict[str, str], body: bytes,
                                                         query: str) -> None:
    """And nothing is a server error or a redirect."""
    answer = _strangers.open(path, method=method, headers=headers, data=body, query_string={"since": query})
    assert answer.status_code < 500 or (answer.status_code, path) == (503, "/health/startup")
    assert answer.status_code not in range(300, 400)
    assert b"detailed" not in answer.data
    assert b"flask_stability_" not in answer.data


def test_the_document_follows_the_draft() -> None:
    """draft-inadarei-api-health-check-06: status, version, checks as lists of objects by component and measurement."""
    answer = _open.get("/health")
    assert answer.content_type == HEALTH_JSON
    assert answer.headers["Cache-Control"] == "no-store"
    document = answer.json
    assert document["status"] in ("pass", "warn", "fail")
    assert isinstance(document["version"], str)
    assert isinstance(document["notes"], list)
    for name, measurements in document["checks"].items():
        assert name.count(":") <= 1
        assert isinstance(measurements, list)
        for one in measurements:
            assert one["status"] in ("pass", "warn", "fail")
            assert {"observedValue", "time"} <= set(one)
    assert {"memory", "database", "disk", "response_time", "availability", "workers", "restarts"} <= set(
        document["detailed"])


@pytest.mark.parametrize("path", PATHS)
def test_head_is_answered_like_get(path: str) -> None:
    """With the same status and no body."""
    get, head = _open.get(path), _open.head(path)
    assert (head.status_code, head.data) == (get.status_code, b"")


def test_draining_is_not_ready_but_alive() -> None:
    """So that a load balancer looks elsewhere while requests are still served."""
    board = runtime.my_board()
    board.master.words[sb.M_DRAINING] = 1
    try:
        answer = _open.get("/health/ready")
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
        assert _open.get("/health/live").status_code == 200
    finally:
        board.master.words[sb.M_DRAINING] = 0
    assert _open.get("/health/ready").status_code == 200


def test_readiness_waits_for_its_gates() -> None:
    """503 before the first round of checks and while a gate is down, critical or not; other checks are no gate."""
    client = make_health_app(replace(Settings(), health_ready_checks=("search",))).test_client()
    shared = runtime.my_board().master.shared

    def ready(**checks: CheckResult) -> int:
        results.publish(shared, checks)
        return client.get("/health/ready").status_code

    assert client.get("/health/ready").status_code == 503
    try:
        assert ready(search=check_result(critical=False)) == 200
        assert ready(search=check_result("warn", critical=False, settled="pass", failures=2)) == 200
        assert ready(search=check_result("warn", critical=False, down=True)) == 503
        assert ready(search=check_result(critical=False, at_ns=time.monotonic_ns() - 10**12)) == 503
        assert ready(search=check_result(critical=False), database=check_result("fail", down=True)) == 200
    finally:
        shared.write(b"")


def test_what_there_is_not_is_refused_in_json() -> None:
    """A path or a method: no page, no redirect, nothing to be kept in a cache."""
    for path, method, status in (("/health/none", "GET", 404), ("/health", "POST", 405)):
        answer = _open.open(path, method=method)
        assert (answer.status_code, answer.content_type) == (status, HEALTH_JSON)
        assert answer.headers["Cache-Control"] == "no-store"
        if status == 405:
            assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_metrics_can_be_read(accept: str) -> None:
    """Both formats, with the endpoint's name and never the raw path."""
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_parser
    from prometheus_client.parser import text_string_to_metric_families as parser

    row = runtime.my_row()
    row.observe("GET", "orders.read", 200, 2_000_000)
    row.observe("GET", "orders.read", 500, 9_000_000)
    answer = _open.get("/health/metrics", headers={"Accept": accept})
    families = {family.name: family for family in (open_parser if accept else parser)(answer.get_data(as_text=True))}
    samples = {(sample.labels["status_class"], sample.labels["endpoint"])
               for sample in families["flask_stability_http_requests"].samples}
    assert {("2xx", "orders.read"), ("5xx", "orders.read")} <= samples
    assert "flask_stability_http_request_duration_seconds" in families
    assert "flask_stability_worker_restarts" in families


def test_history_gives_fields_and_a_cursor() -> None:
    """And says what is wrong with a cursor that is none."""
    document = json.loads(_open.get("/health/history").data)
    assert document["fields"][0] == "time"
    assert document["cursor"] >= 0
    assert _open.get("/health/history?since=yesterday").status_code == 400


def test_registered_by_hand_the_endpoints_are_the_apps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its login wall stands before them then, and nobody is warned of that."""
    app = Flask("orders", instance_path=str(tmp_path))
    app.config["TESTING"] = True
    stability = StabilityExt(app)
    app.register_blueprint(stability.health_blueprint)
    app.before_request(lambda: None if "user" in request.cookies else ("log in first", 401))
    client = app.test_client()
    assert client.get("/health").status_code == 401
    client.set_cookie("user", "1")
    assert client.get("/health").json == {"status": "pass"}
    assert "health_path_taken" not in capfd.readouterr().err


_SLASHES = st.lists(st.sampled_from(["", "/", "//", "health", "Health", "history", "live", "dashboard", "logout", ".",
                                     "..", "%2f", "app.js", ";x"]), max_size=6).map("/".join)


@settings(max_examples=200)
@given(_SLASHES, st.sampled_from(["GET", "POST", "HEAD"]))
def test_a_health_path_is_matched_and_never_redirected(rest: str, method: str) -> None:
    """However its slashes are written: an answer that leads elsewhere would name the host that the client named."""
    for client in (_open, _strangers, _by_hand):
        answer = client.open("/health/" + rest, method=method, base_url="http://evil.example/")
        assert answer.status_code not in range(300, 400) or answer.headers["Location"] == "dashboard", rest
        assert "evil.example" not in answer.text + str(answer.headers)


def _app_by_hand() -> Any:
    """An app that registered the blueprint itself: its url_map merges slashes."""
    app = Flask("by_hand")
    app.register_blueprint(make_blueprint(replace(Settings(), health_details="always")))
    return app.test_client()


_by_hand = _app_by_hand()


@pytest.mark.parametrize("path", ["/health//history", "/health/history/", "/health//", "/health/dashboard//app.js"])
def test_a_path_that_is_nearly_one_is_none(path: str) -> None:
    """404, by hand as well."""
    for client in (_open, _by_hand):
        assert client.get(path).status_code == 404
