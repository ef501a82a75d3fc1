"""Answer errors inside Flask, only where the app has no handler of its own.

Flask looks for an app's handlers in `Flask._find_error_handler`, by class, by code, in the blueprint and in the app.
Ours answers only where Flask finds none, so it shadows no handler. Flask announces an unhandled exception
(`got_request_exception`), which records it. Flask's own text on stderr would repeat it and is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, current_app, got_request_exception
from flask import request as flask_request
from flask.logging import default_handler
from werkzeug.exceptions import HTTPException, InternalServerError

from ..config import Settings
from ..dberrors import means_unavailable
from ..exceptions import DatabaseUnavailable
from ..request import current
from .problem import HTML, PROBLEM, page, problem_body, retry_after, wants_problem
from .report import record, recorded

#: Further tests for "the database is unavailable", such as those of a registered engine.
unavailable: list[Callable[[BaseException], bool]] = []


def is_unavailable(error: BaseException | None) -> bool:
    """Return whether an exception means that the database is unavailable. Never raises."""
    try:
        return isinstance(error, DatabaseUnavailable) or means_unavailable(error) or any(
            test(error) for test in unavailable if error is not None)
    except Exception:
        return False


def init_app(app: Flask, settings: Settings) -> None:
    """Answer and record what `app` does not handle itself."""
    kind = type(app)

    def find_error_handler(error: Exception, blueprints: list[str]) -> Any:
        flask = current_app._get_current_object()  # type: ignore[attr-defined]
        handler = kind._find_error_handler(flask, error, blueprints)
        if getattr(error, "original_exception", None) is not None:
            _answered_by_flask()
        _note_handled(flask, error, handler)
        if handler is None and isinstance(error, HTTPException) and _may_answer(flask, error):
            return _Answer(settings)
        return handler

    app._find_error_handler = find_error_handler  # type: ignore[method-assign,assignment]
    got_request_exception.connect(_on_exception, app)
    if _told_already not in default_handler.filters:
        default_handler.addFilter(_told_already)


def _answered_by_flask() -> None:
    """Wrap Flask's search for a handler of the 500. Extensions that answer instead (Flask-RESTX, Flask-RESTful) do not
    search: their 500 for an unavailable database becomes a 503 when it is sent, see `Exchange.start_response`.
    """
    request = current()
    if request is not None:
        request.unavailable = None


def _note_handled(app: Flask, error: BaseException, handler: Any) -> None:
    """Record exceptions that the app's own handlers take: those of a catch-all, and others if the answer is a 5xx."""
    request = current()
    if request is None or handler is None or not request.supervised or propagates(app) or (
            isinstance(error, HTTPException)):
        return
    request.handled = error
    if any(handlers.get(Exception) is handler for scope in app.error_handler_spec.values()
           for handlers in scope.values()):
        record(error, event="database_unavailable" if is_unavailable(error) else "exception", request=request)


def _may_answer(app: Flask, error: HTTPException) -> bool:
    """Not where TRAP_HTTP_EXCEPTIONS asks for the exception itself."""
    return getattr(error, "original_exception", None) is not None or not app.trap_http_exception(error)


def propagates(app: Flask) -> bool:
    """Return whether exceptions must reach the caller, as Flask documents it."""
    setting = app.config["PROPAGATE_EXCEPTIONS"]
    return bool(app.testing or app.debug) if setting is None else bool(setting)


def _on_exception(app: Flask, exception: BaseException, **_: Any) -> None:
    """Record an exception without a handler. Flask-RESTX and Flask-RESTful announce errors below 500 as well."""
    if isinstance(exception, HTTPException) and (exception.code or 500) < 500 and _may_answer(app, exception):
        return
    request = current()
    if request is not None and request.supervised and not propagates(app):
        unavailable = is_unavailable(exception)
        request.unavailable = exception if unavailable else None
        record(exception, event="database_unavailable" if unavailable else "exception", request=request)


def _told_already(item: logging.LogRecord) -> bool:
    """Filter Flask's default handler: do not repeat an exception that error.log has.

    Flask only logs what fails while it finishes the answer to an exception (``after_request``, saving the session).
    """
    error = item.exc_info[1] if item.exc_info else None
    if error is None:
        return True
    request = current()
    if request is not None and request.supervised and str(item.msg).startswith("Request finalizing failed"):
        record(error, event="finalizing_failed", level="WARNING", request=request)
    return not recorded(error, request)


class _Answer:
    """Handle an HTTPException that the app does not handle."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, error: HTTPException) -> Any:
        code = error.code or 500
        original = error.original_exception if isinstance(error, InternalServerError) else None
        is_html = self._settings.error_format == "html" and not is_unavailable(original)
        if error.response is not None or code < 400 or is_html:
            return error
        problem = wants_problem(flask_request.headers.get("Accept"), self._settings.error_format)
        if is_unavailable(original):
            response = self._unavailable(original, problem)
        elif problem:
            detail = error.description
            response = Response(problem_body(code, _request_id(), title=error.name,
                                             detail=str(detail) if detail is not None else None), code)
            for name, value in error.get_headers(flask_request.environ):
                if name.lower() != "content-type":
                    response.headers.add(name, value)
            response.content_type = PROBLEM
        else:
            response = error.get_response(flask_request.environ)  # type: ignore[assignment]
        if self._settings.error_format != "html":
            response.vary.add("Accept")
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _unavailable(self, error: BaseException | None, problem: bool) -> Response:
        body = problem_body(503, _request_id()) if problem else page(503, _request_id())
        response = Response(body, 503, content_type=PROBLEM if problem else HTML)
        request = current()
        if request is not None:
            request.refused = True
        response.headers["Retry-After"] = retry_after(error) if error is not None else "1"
        return response


def _request_id() -> str:
    request = current()
    return request.id if request is not None else ""
