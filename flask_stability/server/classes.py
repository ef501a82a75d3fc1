"""Find the route of a request before it has a thread: from its request line, the app's URL map and the routes' costs.

The worker asks only while requests wait. A path that only the app's own code could resolve counts as an ordinary one.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple
from urllib.parse import unquote

from flask import Flask
from werkzeug.routing import Map

from .. import scoreboard
from ..apps import apps
from ..priority import priority_of
from .queue_delay import CHEAP, CRITICAL, HEALTH, NORMAL, SHEDDABLE

CHEAPER = 1 / 3  #: × the mean cost, weighted by the time spent: a route below this is cheap
LEAST = 5  #: answers of a route before its mean cost counts
MOST = 4096  #: maximum number of paths remembered
_CLASSES = {"critical": CRITICAL, "normal": NORMAL, "sheddable": SHEDDABLE}
_BUILT_IN = set(Map.default_converters.values())


class Route(NamedTuple):
    """The class of a request (`queue_delay`), and the method and endpoint that count it."""

    kind: int
    method: str
    endpoint: str


UNKNOWN = Route(NORMAL, "GET", "")


class Routes:
    """The routes of one worker.

    :param health_path: STABILITY_HEALTH_PATH where no app sets another.
    """

    def __init__(self, health_path: str) -> None:
        self._health_path = health_path
        self._found: dict[tuple[str, str], Route] = {}
        self._cheap: set[tuple[str, str]] = set()
        self._all: dict[tuple[str, str], scoreboard.Entry] = {}
        self._adapters: weakref.WeakKeyDictionary[Flask, Any] = weakref.WeakKeyDictionary()

    def of(self, head: bytes) -> Route:
        """Return the route of a request, given the beginning of its head; never raise, never wait."""
        try:
            method, target, _ = head[:2048].split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        except ValueError:
            return UNKNOWN
        path = target.partition("?")[0]
        found = self._found.get((method, path))
        if found is None:
            try:
                found = self._find(method, unquote(path))
            except Exception:
                found = Route(NORMAL, method, "")
            if len(self._found) >= MOST:
                self._found.clear()
            self._found[method, path] = found
        return found

    def _find(self, method: str, path: str) -> Route:
        state = next(iter(apps.all()), None)
        health = state.settings.health_path if state is not None else self._health_path
        if path == health or path.startswith(health + "/"):
            return Route(HEALTH, method, "")
        app = state.app if state is not None else None
        if app is None or app.url_map.host_matching or not _BUILT_IN.issuperset(app.url_map.converters.values()):
            return Route(NORMAL, method, "")
        adapter = self._adapters.get(app)
        if adapter is None:
            adapter = self._adapters[app] = app.url_map.bind("")
        endpoint, _ = adapter.match(path, method=method)
        wanted = _CLASSES.get(priority_of(app.view_functions.get(endpoint)))
        if wanted is None:
            wanted = CHEAP if (method, endpoint) in self._cheap else NORMAL
        return Route(wanted, method, endpoint)

    def learn(self, row: scoreboard.Row, board: scoreboard.Scoreboard | None = None) -> None:
        """Find out again which routes are cheap. The guard calls this once in a while.

        :param row: this worker's row, which is quick to read.
        :param board: the board of all workers, which takes longer the more there are; None = keep the last totals.
        """
        if board is not None:
            self._all = dict(board.totals().endpoints)
        means = {}
        for key, words in [*self._all.items(), *row.endpoints.items(row.entries)]:
            answers = sum(words[2:8])
            if answers >= LEAST:
                means[key] = answers, words[0] / answers
        total = sum(answers * mean for answers, mean in means.values())
        if not total:
            return
        bound = CHEAPER * sum(answers * mean * mean for answers, mean in means.values()) / total
        cheap = {key for key, (_, mean) in means.items() if mean < bound}
        if cheap != self._cheap:
            self._cheap = cheap
            self._found = {}
