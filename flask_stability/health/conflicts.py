"""Find the app's own routes under STABILITY_HEALTH_PATH: those that the app answers, and those that ours hide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask import Flask
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import MapAdapter, RequestRedirect

from ..config import Settings
from .blueprint import make_blueprint


@dataclass(frozen=True)
class Conflicts:
    """The result of `find`.

    :ivar own: our paths that a route of the app names literally: the app answers there.
    :ivar hidden: the app's rules with variables that would match one of our paths: the extension answers there.
    :ivar below: the app has routes below the path: it answers there where we do not.
    :ivar by_hand: the app registered our blueprint itself.
    """

    own: frozenset[str] = frozenset()
    hidden: tuple[str, ...] = ()
    below: bool = False
    by_hand: bool = False


def find(app: Flask, path: str) -> Conflicts:
    """Search the app's url_map.

    :param path: STABILITY_HEALTH_PATH.
    """
    adapter = app.url_map.bind("localhost")
    own, hidden = set(), set()
    for ours in _paths(path):
        rule = _match(adapter, ours)
        if rule is None:
            continue
        if rule.endpoint.startswith("stability_health."):
            return Conflicts(by_hand=True)
        if rule.arguments:
            hidden.add(rule.rule)
        else:
            own.add(ours)
    below = any(rule.rule.startswith(path + "/") for rule in app.url_map.iter_rules())
    return Conflicts(frozenset(own), tuple(sorted(hidden)), below)


class Ours:
    """Decides which paths the extension answers in an app that has routes there as well."""

    def __init__(self, health_app: Flask, found: Conflicts) -> None:
        self._found = found
        self._adapter = health_app.url_map.bind("localhost")

    def __call__(self, path: str) -> bool:
        """Return whether `path` is ours."""
        if path in self._found.own or path.rstrip("/") in self._found.own:
            return False
        return not self._found.below or _match(self._adapter, path) is not None


def _paths(path: str) -> list[str]:
    app = Flask("flask_stability.paths", static_folder=None)
    app.register_blueprint(make_blueprint(Settings(health_path=path)))
    return sorted({rule.rule for rule in app.url_map.iter_rules() if not rule.arguments})


def _match(adapter: MapAdapter, path: str) -> Any:
    """Return the rule that answers a path, whatever the method; None if there is none."""
    method = "GET"
    for _ in range(3):
        try:
            return adapter.match(path, method=method, return_rule=True)[0]
        except RequestRedirect:
            path += "/"
        except MethodNotAllowed as refused:
            method = next(iter(refused.valid_methods or ("GET",)))
        except HTTPException:
            return None
    return None
