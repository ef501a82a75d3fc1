"""The health endpoints: they read the scoreboard, and no request of a client makes a check run.

A small Flask app of our own serves them; the middleware passes the path to it, so that an app's login wall or error
handlers cannot interfere.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from .. import logs, scoreboard
from ..config import Settings
from ..runtime import runtime
from . import metrics, report, results
from .access import WAIT, Access
from .dashboard import Dashboard
from .history import MOST, SAMPLES, History, Sample, trends
from .state import FAIL, PASS

HEALTH_JSON = "application/health+json"
#: Options of every rule: a path matches exactly or not at all; a redirect would contain the host that the client named.
MATCHED: dict[str, Any] = {"merge_slashes": False, "strict_slashes": True}
SUFFIXES = ("", "/live", "/ready", "/startup", "/history", "/metrics", "/dashboard")


def declare_broken(reason: str) -> None:
    """Declare that this process cannot go on.

    Its /health/live answers 503 from now on, so that it is replaced from outside.
    """
    runtime.broken = reason or "declared broken"
    logs.error("declared_broken", level="CRITICAL", reason=runtime.broken[:500])


def make_health_app(settings: Settings) -> Flask:
    """Return an app that has only the endpoints."""
    app = Flask("flask_stability.health", static_folder=None, template_folder=None)
    app.register_blueprint(make_blueprint(settings))
    app.register_error_handler(HTTPException, _refused)
    return app


def make_blueprint(settings: Settings) -> Blueprint:
    """Return the endpoints as a blueprint under STABILITY_HEALTH_PATH."""
    access = Access(settings)
    views = _Views(settings, access)
    blueprint = Blueprint("stability_health", __name__, url_prefix=settings.health_path)
    for suffix, view in (("", views.health), ("/live", views.live), ("/ready", views.ready),
                         ("/startup", views.startup), ("/history", views.history), ("/metrics", views.metrics)):
        blueprint.add_url_rule(suffix, suffix.strip("/") or "health", view, methods=["GET"], **MATCHED)
    Dashboard(settings, access, _forbidden, views.health).register(blueprint)
    return blueprint


class _Views:
    def __init__(self, settings: Settings, access: Access) -> None:
        self._settings, self._access = settings, access
        self._trends: tuple[object, dict[str, float] | None] = None, None

    def health(self) -> Response:
        """Answer for the whole service; 503 when a critical check fails."""
        board = runtime.my_board()
        if not self._access.may_see(request):
            return _answer({"status": results.summary(board)})
        return _answer(report.build(board, self._settings))

    def live(self) -> Response:
        """Answer that this worker is alive; 503 only if the app has declared it broken."""
        return _answer({"status": FAIL if runtime.broken else PASS})

    def startup(self) -> Response:
        """Answer whether the app is loaded and the first round of checks is done."""
        return _answer({"status": PASS if results.started(runtime.my_board()) else FAIL})

    def ready(self) -> Response:
        """Answer whether the service takes traffic: it does not drain, and no gate fails."""
        board = runtime.my_board()
        if board.master.words[scoreboard.M_DRAINING]:
            return _answer({"status": FAIL})
        gates = self._settings.health_ready_checks
        closed = bool(gates) and (not results.started(board) or any(results.is_down(board, name) for name in gates))
        return _answer({"status": FAIL if closed else PASS})

    def history(self) -> Response:
        """Answer the samples from the cursor ``?since=`` on, at most ``limit``.

        ``changes`` is the cursor for transitions. ``with=health`` adds the health document, for a client that polls
        both.
        """
        if not self._access.may_see(request):
            return _forbidden()
        board = runtime.my_board()
        history, known = History(board.master.history), History(board.master.history).count
        try:
            since, limit, changes = (max(0, int(request.args.get(name, str(default)))) for name, default in (
                ("since", 0), ("limit", SAMPLES), ("changes", 0)))
        except ValueError:
            return _answer({"status": FAIL, "notes": ["since, limit, changes: give numbers, cursors of an earlier "
                                                      "answer"]}, 400)
        # a cursor of an earlier life of the service is not valid in this one
        first = max(since if since <= known else 0, known - SAMPLES, 0)
        numbers = range(first, min(known, first + max(1, limit)))
        changed = history.changes
        document = {"status": PASS, "cursor": numbers.stop, "more": numbers.stop < known,
                    "life": str(board.master.words[scoreboard.M_STARTED_NS]), "fields": list(Sample._fields[:-1]),
                    "samples": [[round(value, 3) for value in history.at(number)[:-1]] for number in numbers],
                    "workers": [history.memory(number) for number in numbers],
                    "check_names": history.check_names(), "beats": [history.beats(number) for number in numbers],
                    "trend_per_min": self._trend(history, known), "transitions": history.transitions(changes),
                    "changes": changed, "now": round(time.time(), 3)}
        if request.args.get("with") == "health" and not document["more"]:
            document["health"] = report.build(board, self._settings)
        return _answer(document)

    def _trend(self, history: History, known: int) -> dict[str, float] | None:
        """Return the trends, computed once per round: they take longer than everything else."""
        if self._trends[0] != known:
            self._trends = known, trends([history.at(number) for number in range(max(0, known - MOST), known)])
        return self._trends[1]

    def metrics(self) -> Response:
        """Answer the metrics for Prometheus."""
        if not self._access.may_see(request):
            return _forbidden()
        try:
            body, kind = metrics.exposition(runtime.my_board(), self._settings, request.headers.get("Accept", ""))
        except metrics.NotInstalled as error:
            return _answer({"status": FAIL, "notes": [f"metrics need prometheus_client: {error}"]}, 501)
        return Response(body, content_type=kind, headers={"Cache-Control": "no-store"})


def _refused(error: HTTPException) -> Response:
    """Answer for an unknown path or method."""
    response = _answer({"status": FAIL, "notes": [error.name]}, error.code)
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.valid_methods or ())
    return response


def _answer(document: dict[str, Any], code: int | None = None) -> Response:
    status = code if code is not None else 503 if document["status"] == FAIL else 200
    response = Response(json.dumps(document, default=str), status, content_type=HEALTH_JSON)
    response.headers["Cache-Control"] = "no-store"
    if status == 503:
        response.headers["Retry-After"] = "5"
    return response


def _forbidden() -> Response:
    """Answer 401, or 429 for one wrong token too many."""
    wait = request.environ.get(WAIT)
    if wait:
        response = _answer({"status": FAIL, "notes": ["too many wrong tokens: wait, then send the right one"]}, 429)
        response.headers["Retry-After"] = str(math.ceil(wait))
        return response
    response = _answer({"status": FAIL, "notes": ["details are not for everyone: STABILITY_HEALTH_DETAILS"]}, 401)
    response.headers["WWW-Authenticate"] = "Bearer"
    return response
