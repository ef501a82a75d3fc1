"""Answers for what goes wrong inside Flask, only where the app has no handler of its own.

Flask looks for an app's handlers in `Flask._find_error_handler`; where it finds none, ours answers. The logging of
unhandled exceptions (`Flask.log_exception`) goes to error.log in a process that serves under gunicorn; elsewhere
(tests, ``flask run``, other servers) Flask logs as ever, so that an app's own tests notice nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

from flask import Flask, Response, current_app, has_request_context
from flask import request as flask_request
from flask.logging import default_handler
from werkzeug.exceptions import HTTPException

from ..config import Settings
from ..exceptions import DatabaseUnavailable
from ..request import current
from . import hooks
from .problem import PROBLEM, description_of, problem_body, wants_problem
from .report import record, recorded, request_fields
from .. import logs

ExcInfo = tuple[type, BaseException, TracebackType] | tuple[None, None, None]

#: Further exception classes that mean "the database cannot be had now", such as those of a registered engine.
unavailable: list[Callable[[BaseException], bool]] = []


def is_unavailable(error: BaseException) -> bool:
    """Whether an exception means that the database cannot be had now."""
    if isinstance(error, DatabaseUnavailable):
        return True
    return any(test(error) for test in unavailable)


def init_app(app: Flask, settings: Settings) -> None:
    """Answer and record what `app` does not handle itself."""
    kind = type(app)
    find = getattr(kind, "_find_error_handler", None)

    def find_error_handler(error: Exception, blueprints: list[str]) -> Any:
        flask = current_app._get_current_object()  # type: ignore[attr-defined]
        assert find is not None
        handler = find(flask, error, blueprints)
        if handler is not None:
            return handler
        if isinstance(error, HTTPException):
            return _HttpAnswer(settings)
        if is_unavailable(error) and not propagates(flask):
            return _UnavailableAnswer(settings)
        return None

    def log_exception(exc_info: ExcInfo) -> None:
        flask = current_app._get_current_object()  # type: ignore[attr-defined]
        error = exc_info[1]
        serving = hooks.installed()
        if serving and error is not None:
            record(error)
        if not serving or _has_own_handlers(flask):
            kind.log_exception(flask, exc_info)  # type: ignore[arg-type]

    if find is not None:
        app._find_error_handler = find_error_handler  # type: ignore[method-assign]
    app.log_exception = log_exception  # type: ignore[method-assign]


def propagates(app: Flask) -> bool:
    """Whether exceptions are to reach the caller, as Flask documents it."""
    setting = app.config["PROPAGATE_EXCEPTIONS"]
    return bool(app.testing or app.debug) if setting is None else bool(setting)


def _has_own_handlers(app: Flask) -> bool:
    """Whether the app's logger leads anywhere but to Flask's default stream on stderr."""
    logger: logging.Logger | None = app.logger
    while logger is not None:
        if any(handler is not default_handler for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


class _HttpAnswer:
    """Handler for an HTTPException that the app does not handle."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, error: HTTPException) -> Any:
        code = error.code or 500
        if error.response is not None or code < 400:
            return error
        self._log(error, code)
        try:
            problem = wants_problem(flask_request.headers.get("Accept"), self._settings.error_format)
        except Exception:
            problem = False
        request = current()
        if not problem:
            if code < 500 or request is None or not hooks.installed():
                return error
            response = error.get_response(flask_request.environ)
        else:
            response = error.get_response(flask_request.environ)
            response.data = problem_body(code, request.id if request is not None else "", title=error.name,
                                         detail=description_of(error) if code < 500 else None)
            response.content_type = PROBLEM
        return _stamp(response, self._settings)

    def _log(self, error: HTTPException, code: int) -> None:
        original = getattr(error, "original_exception", None)
        if original is not None and recorded(original) or not hooks.installed():
            return
        if code >= 500:
            record(error, event="http_error", traceback=False, status=code)
        elif self._settings.log_client_errors:
            logs.error("http_error", level="INFO", status=code, **request_fields(current()))


class _UnavailableAnswer:
    """Handler for "the database cannot be had now": 503 with Retry-After."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, error: Exception) -> Response:
        record(error, event="database_unavailable", traceback=False)
        request = current()
        request_id = request.id if request is not None else ""
        if has_request_context() and wants_problem(flask_request.headers.get("Accept"), self._settings.error_format):
            response = Response(problem_body(503, request_id), 503, content_type=PROBLEM)
        else:
            response = Response("<!doctype html>\n<html lang=en>\n<title>503 Service Unavailable</title>\n"
                                "<h1>Service Unavailable</h1>\n<p>The service cannot answer this request now. "
                                "Try again in a moment.</p>\n", 503, mimetype="text/html")
        response.headers["Retry-After"] = str(max(1, round(getattr(error, "retry_after", 1.0))))
        stamped: Response = _stamp(response, self._settings)
        return stamped


def _stamp(response: Any, settings: Settings) -> Any:
    """What every error answer of ours carries."""
    response.headers["Cache-Control"] = "no-store"
    response.vary.add("Accept")
    request = current()
    if request is not None:
        response.headers[settings.request_id_header] = request.id
    return response
