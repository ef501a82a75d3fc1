"""Which route a path belongs to, for a process that has no app: a worker publishes its rules, the master matches.

The master learns of a request what stands in shared memory when its worker has died: the path, not the route.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter, Map, Rule, UnicodeConverter

MOST = 2000  #: rules


class _AnyConverter(BaseConverter):
    """Stands for a converter of the app's own: one segment of a path, whatever the arguments."""

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

    :param rules: rule and methods of each (None: any method).
    """

    def __init__(self, rules: Iterable[tuple[str, list[str] | None]] = ()) -> None:
        self._map = Map()
        self._map.converters = _Converters({**Map.default_converters, "default": UnicodeConverter})
        for rule, methods in list(rules)[:MOST]:
            try:
                self._map.add(Rule(rule, methods=methods, endpoint=rule))
            except (LookupError, ValueError, TypeError):
                continue  # one that only the app's own classes can read
        self._adapter = self._map.bind("")

    def of(self, method: str, path: str) -> str:
        """The rule that a request matches, "" if none. Never raises."""
        try:
            rule, _ = self._adapter.match(path, method=method, return_rule=True)
            return str(rule.rule)
        except (HTTPException, ValueError, TypeError, LookupError):
            return ""


def encode(url_map: Map, most: int) -> bytes:
    """Return an app's rules for `decode`, as many as fit into `most` bytes."""
    rules = [[rule.rule, sorted(rule.methods) if rule.methods else None] for rule in url_map.iter_rules()
             if not rule.websocket][:MOST]
    while True:
        data = json.dumps(rules, separators=(",", ":")).encode()
        if len(data) <= most:
            return data
        rules = rules[:len(rules) // 2]


def decode(data: bytes) -> Routes:
    """Return what `encode` wrote; without routes if it cannot be read."""
    try:
        return Routes([(str(rule), methods) for rule, methods in json.loads(data or b"[]")])
    except (ValueError, TypeError):
        return Routes()
