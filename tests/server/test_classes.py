"""Which route a request is for, from its first line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from werkzeug.routing import BaseConverter

from flask_stability import StabilityExt
from flask_stability.apps import apps
from flask_stability.scoreboard import Scoreboard
from flask_stability.server.classes import Routes
from flask_stability.server.queue_delay import CHEAP, CRITICAL, HEALTH, NORMAL, SHEDDABLE


@pytest.fixture
def app() -> Iterator[Flask]:
    """An app with views of each kind, the only one of this process."""
    apps.forget()
    made = Flask(__name__)
    stability = StabilityExt(made)
    for name, level in (("pay", "critical"), ("ads", "sheddable"), ("even", "normal"), ("plain", None)):
        def view(**_: Any) -> str:
            return ""
        made.add_url_rule(f"/{name}/<int:number>", name, stability.priority(level)(view) if level else view)
    yield made
    apps.forget()


def _kind(routes: Routes, path: str, method: str = "GET") -> int:
    return routes.of(f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).kind


def test_views_say_how_much_they_matter(app: Flask) -> None:
    """Found by path and method, with and without a query."""
    routes = Routes("/health")
    assert _kind(routes, "/pay/1") == _kind(routes, "/pay/1?a=b") == CRITICAL
    assert _kind(routes, "/ads/2") == SHEDDABLE
    assert _kind(routes, "/plain/3") == NORMAL
    assert _kind(routes, "/pay/1", "POST") == NORMAL  # which will be 405
    assert _kind(routes, "/nowhere") == NORMAL
    assert routes.of(b"GET /pay/7 HTTP/1.1\r\n\r\n").endpoint == "pay"


def test_health_endpoints_are_known(app: Flask) -> None:
    """And what only begins like them is not."""
    routes = Routes("/health")
    assert _kind(routes, "/health") == _kind(routes, "/health/live") == HEALTH
    assert _kind(routes, "/healthy") == NORMAL


@pytest.mark.parametrize("head", [b"", b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\xfe /\x00 HTTP/1.1\r\n\r\n",
                                  b"GET http://[ HTTP/1.1\r\n\r\n", b"GET /%ff%00 HTTP/1.1\r\n\r\n", b"x" * 9000])
def test_nonsense_is_an_ordinary_request(app: Flask, head: bytes) -> None:
    """A hostile client's head raises nothing."""
    assert Routes("/health").of(head).kind == NORMAL


def test_cheap_routes_are_learnt(app: Flask) -> None:
    """From a few answers on, by what requests take; a view's own word stands."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    routes = Routes("/health")
    for endpoint, milliseconds in (("plain", 1), ("even", 1), ("pay", 40)):
        for _ in range(20):
            row.observe("GET", endpoint, 200, milliseconds * 1_000_000)
    assert _kind(routes, "/plain/1") == NORMAL
    routes.learn(row, board)
    assert _kind(routes, "/plain/1") == CHEAP
    assert _kind(routes, "/even/1") == NORMAL
    assert _kind(routes, "/pay/1") == CRITICAL


def test_no_code_of_the_apps_runs(app: Flask) -> None:
    """A converter may ask a database: with one of the app's own no path is resolved."""
    class Asking(BaseConverter):
        def to_python(self, value: str) -> str:
            raise AssertionError("asked")

    app.url_map.converters["asking"] = Asking
    app.add_url_rule("/asks/<asking:it>", "asks", lambda it: it)
    assert _kind(Routes("/health"), "/asks/1") == _kind(Routes("/health"), "/pay/1") == NORMAL


def test_what_is_remembered_is_bounded(app: Flask) -> None:
    """A client may invent any number of paths."""
    routes = Routes("/health")
    for number in range(10_000):
        routes.of(f"GET /nowhere/{number} HTTP/1.1\r\n\r\n".encode())
    assert len(routes._found) <= 4096


def test_a_level_that_does_not_exist_is_told() -> None:
    """With those that do."""
    with pytest.raises(ValueError, match=r"priority\('urgent'\): give one of 'critical', 'normal', 'sheddable'"):
        StabilityExt().priority("urgent")
