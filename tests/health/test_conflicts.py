"""An app's own routes under STABILITY_HEALTH_PATH."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from flask_stability import StabilityExt
from flask_stability.health import conflicts


def _app(*rules: str, **options: Any) -> Flask:
    app = Flask("orders")
    app.testing = True
    for rule in rules:
        app.add_url_rule(rule, rule, lambda **_: "the app's own", **options)
    return app


@pytest.mark.parametrize("rule", ["/health", "/health/"])
def test_an_app_with_its_own_health_keeps_it_and_gets_the_rest(rule: str, capfd: pytest.CaptureFixture[str]) -> None:
    """/health/live, /ready and /metrics are what it lacks."""
    app = _app(rule)
    StabilityExt(app)
    client = app.test_client()
    assert client.get("/health", follow_redirects=True).text == "the app's own"
    assert client.get("/health/live").json == {"status": "pass"}
    assert client.get("/health/metrics").status_code == 401
    assert '"health_path_taken"' in capfd.readouterr().err


def test_a_route_below_is_the_apps_and_hides_nothing_of_ours() -> None:
    """The app's /health/database and /health/<name> answer; the extension's own paths are the extension's."""
    app = _app("/health/database", "/health/<int:number>")
    StabilityExt(app)
    client: Any = app.test_client()
    assert client.get("/health/database").text == client.get("/health/7").text == "the app's own"
    assert "status" in client.get("/health").json
    assert "status" in client.get("/health/ready").json
    assert client.get("/health/none").status_code == 404


@pytest.mark.parametrize(("rule", "hidden"), [("/<project>/", True), ("/<path:page>", True), ("/<int:number>", False)])
def test_a_rule_that_would_match_ours_too_is_told(rule: str, hidden: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """The extension answers there; nobody has to find that out."""
    app = _app(rule)
    StabilityExt(app)
    client: Any = app.test_client()
    assert "status" in client.get("/health").json
    assert ('"health_path_hides"' in capfd.readouterr().err) == hidden


def test_other_methods_and_subdomains_are_looked_at_as_the_url_map_does() -> None:
    """A route for POST alone is the app's; one on another subdomain is not in the way."""
    assert conflicts.find(_app("/health", methods=["POST"]), "/health").own == {"/health"}
    assert conflicts.find(_app("/health", methods=["PATCH"]), "/health").own == {"/health"}
    app = Flask("orders", subdomain_matching=True)
    app.add_url_rule("/health", "mine", lambda: "", subdomain="status")
    assert conflicts.find(app, "/health") == conflicts.Conflicts()
