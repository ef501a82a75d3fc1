"""Which route a path belongs to, of all the apps that a service calls."""

from __future__ import annotations

import functools
from typing import Any

from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_stability import StabilityExt
from flask_stability.config import Settings
from flask_stability.wsgi import routes
from flask_stability.wsgi.middleware import outermost


def made(name: str, rule: str, *, watched: bool = False) -> Flask:
    """An app with one view."""
    app = Flask(name, static_folder=None)
    app.add_url_rule(rule, name, lambda **_: "")
    if watched:
        StabilityExt(app)
    return app


def of(wsgi: Any, path: str) -> str:
    """The route, as the master finds it from what a worker publishes."""
    return routes.decode(routes.encode(routes.rules_of(wsgi), 1 << 16)).of("GET", path)


def test_an_app_is_found_through_what_lies_around_it() -> None:
    """Our own layer, the app's own ones, and others."""
    app = made("shop", "/items/<int:id>", watched=True)
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    for wsgi in (app, outermost(app, Settings()), ProxyFix(outermost(ProxyFix(app), Settings()))):
        assert of(wsgi, "/items/7") == "/items/<int:id>"


def test_mounted_apps_have_their_place_before_their_rules() -> None:
    """Mounted around the app, in its place, and one inside another."""
    shop = made("shop", "/items/<int:id>", watched=True)
    admin, api = made("admin", "/users/<name>"), made("api", "/v1/<thing>", watched=True)
    nested = DispatcherMiddleware(admin, {"/api": api})
    around = outermost(DispatcherMiddleware(shop, {"/admin": nested}), Settings())
    shop_inside = made("shop2", "/items/<int:id>", watched=True)
    shop_inside.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
        shop_inside.wsgi_app, {"/admin": ProxyFix(nested)})
    for wsgi in (around, outermost(shop_inside, Settings())):
        assert of(wsgi, "/items/7") == "/items/<int:id>"
        assert of(wsgi, "/admin/users/eve") == "/admin/users/<name>"
        assert of(wsgi, "/admin/api/v1/x") == "/admin/api/v1/<thing>"
        assert of(wsgi, "/users/eve") == ""


def test_what_is_no_app_or_goes_in_a_circle_has_none() -> None:
    """Any callable may be served."""
    @functools.wraps(test_an_app_is_found_through_what_lies_around_it)
    def bare(*_: Any) -> list[bytes]:
        return []

    circle: Any = ProxyFix(bare)
    circle.app = circle
    assert routes.rules_of(bare) == routes.rules_of(circle) == []
