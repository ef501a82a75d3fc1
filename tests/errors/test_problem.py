"""Which body an error's answer has."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import MethodNotAllowed, TooManyRequests

from flask_stability.config import Settings
from flask_stability.errors.problem import response_for, retry_after, wants_problem
from flask_stability.exceptions import CircuitOpen

SETTINGS = Settings()


@pytest.mark.parametrize(("accept", "problem"), [
    (None, False), ("", False), ("*/*", False), ("text/html", False), ("application/json", True),
    ("application/problem+json", True), ("application/json, text/html", False),
    ("application/json;q=0.9, text/html;q=0.8", True), ("application/json;q=0.8, text/html;q=0.9", False),
    ("text/html;q=0, */*", True), ("application/*", True), ("application/json;q=0", False),
    ("application/json, */*;q=0.1", True), ("text/html,application/xhtml+xml,*/*;q=0.8", False),
    ("image/png", False), (";;;q=,,", False), ("application/json;q=abc", False)])
def test_json_is_given_to_whoever_likes_it_better_than_html(accept: str | None, problem: bool) -> None:
    """The q-values decide; a browser, curl and a client without wishes get HTML, nobody a 406."""
    assert wants_problem(accept, "auto") is problem


def test_the_setting_overrides_the_client() -> None:
    """problem: always; html: never."""
    assert wants_problem("text/html", "problem")
    assert not wants_problem("application/json", "html")


@given(st.text(max_size=5000))
def test_no_accept_header_can_hurt(accept: str) -> None:
    """It is the client's to write."""
    assert wants_problem(accept, "auto") in (True, False)


def test_the_headers_of_an_http_exception_are_kept() -> None:
    """What the client needs to do better."""
    for error, name, value in ((MethodNotAllowed(["GET", "HEAD"]), "Allow", "GET, HEAD"),
                               (TooManyRequests(retry_after=7), "Retry-After", "7")):
        status, headers, body = response_for(error, {}, replace(SETTINGS, error_format="problem"), "id")
        assert dict(headers)[name] == value
        assert json.loads(body) == {"type": "about:blank", "title": status[4:], "status": int(status[:3]),
                                    "request_id": "id"}


def test_an_answer_tells_nothing_of_the_exception() -> None:
    """Messages may hold anything."""
    for form in ("problem", "html"):
        _, headers, body = response_for(ValueError("secret"), {}, replace(SETTINGS, error_format=form), "id")
        assert b"secret" not in body
        assert b"id" in body
        assert dict(headers)["Cache-Control"] == "no-store"
        assert dict(headers)["Vary"] == "Accept"


def test_an_unavailable_database_is_503() -> None:
    """With the time after which asking again makes sense, in whole seconds, at least one."""
    status, headers, _ = response_for(CircuitOpen(retry_after=0.2), {}, SETTINGS)
    assert (status, dict(headers)["Retry-After"]) == ("503 Service Unavailable", "1")
    error = CircuitOpen()
    error.retry_after = "soon"  # type: ignore[assignment]
    assert retry_after(error) == "1"


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_an_id_cannot_break_out_of_the_page(accept: str) -> None:
    """Ids are checked where they come in; the page needs no more than ASCII."""
    _, headers, body = response_for(ValueError(), {"HTTP_ACCEPT": accept}, SETTINGS, "ü")
    assert body.isascii()
    assert dict(headers)["Content-Length"] == str(len(body))
