"""Find the route of a path in a process without an app: a worker publishes its rules, the master matches.

When a worker has died, the master finds only the request's path in shared memory, not its route.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from types import MethodType
from typing import Any

from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter, Map, Rule, UnicodeConverter

MOST = 2000  #: maximum number of rules
_DEEPEST = 12  #: maximum layers of middleware around an app
#: Attributes in which middlewares keep the app that they call.
_INNER = ("wsgi_app", "app", "application", "inner")


class _AnyConverter(BaseConverter):
    """Replaces a converter of the app's own: one segment of a path, whatever the arguments."""

    weight = 100

    def __init__(self, map: Map, *args: Any, **options: Any) -> None:
        super().__init__(map)


class _Converters(dict[str, type[BaseConverter]]):
    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> type[BaseConverter]:
        return _AnyConverter


class Routes:
    """The rules of an app.

    :param rules: rule, methods (None: any) and endpoint of each.
    """

    def __init__(self, rules: Iterable[tuple[str, list[str] | None, str]] = ()) -> None:
        self._map = Map()
        self._map.converters = _Converters({**Map.default_converters, "default": UnicodeConverter})
        self._endpoints: dict[str, set[str]] = {}
        for rule, methods, endpoint in list(rules)[:MOST]:
            self._endpoints.setdefault(rule, set()).add(endpoint)
            try:
                self._map.add(Rule(rule, methods=methods, endpoint=rule))
            except (LookupError, ValueError, TypeError):
                continue  # only the app's own classes can read this rule
        self._adapter = self._map.bind("")

    def endpoints_of(self, rule: str) -> set[str]:
        """Return the app's endpoints of a rule."""
        return self._endpoints.get(rule, set())

    def of(self, method: str, path: str) -> str:
        """Return the rule that a request matches, or "" if none does. Never raise."""
        try:
            rule, _ = self._adapter.match(path, method=method, return_rule=True)
            return str(rule.rule)
        except (HTTPException, ValueError, TypeError, LookupError):
            return ""


def apps_in(wsgi: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Flask]]:
    """Yield the Flask apps that a WSGI app calls, each with its mount point (werkzeug's DispatcherMiddleware)."""
    owner = wsgi.__self__ if isinstance(wsgi, MethodType) else None
    if isinstance(owner, Flask):
        yield prefix, owner
    if depth > _DEEPEST or owner is not None or wsgi is None:
        return
    if isinstance(wsgi, Flask):
        yield prefix, wsgi
    mounts = getattr(wsgi, "mounts", None)
    if isinstance(mounts, dict):
        for place, mounted in mounts.items():
            yield from apps_in(mounted, f"{prefix}{place}", depth + 1)
    for name in _INNER:
        inner = getattr(wsgi, name, None)
        if callable(inner):
            yield from apps_in(inner, prefix, depth + 1)
            return


def rules_of(wsgi: Any) -> list[list[Any]]:
    """Return the rules of the Flask apps that a WSGI app calls, each with its app's mount point, for `encode`."""
    apps = dict.fromkeys(apps_in(wsgi))
    return [rule for prefix, app in apps for rule in of_map(app.url_map, prefix)]


def of_map(url_map: Map, prefix: str = "") -> list[list[Any]]:
    """Return an app's rules for `encode`."""
    return [[prefix + rule.rule, sorted(rule.methods) if rule.methods else None, str(rule.endpoint)]
            for rule in url_map.iter_rules() if not rule.websocket]


def encode(rules: list[list[Any]], most: int) -> bytes:
    """Return the rules as bytes for `decode`, as many as fit into `most` bytes."""
    rules = rules[:MOST]
    while True:
        data = json.dumps(rules, separators=(",", ":")).encode()
        if len(data) <= most:
            return data
        rules = rules[:len(rules) // 2]


def decode(data: bytes) -> Routes:
    """Return the routes that `encode` wrote; none if they cannot be read."""
    try:
        return Routes([(str(rule), methods, str(endpoint)) for rule, methods, endpoint in json.loads(data or b"[]")])
    except (ValueError, TypeError):
        return Routes()
