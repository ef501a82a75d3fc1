"""Make the bodies of error answers: problem details (RFC 9457) for programs, HTML for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_accept_header

from ..config import Settings
from ..exceptions import DatabaseUnavailable

PROBLEM = "application/problem+json"
HTML = "text/html; charset=utf-8"
_PAGE = ("<!doctype html>\n<html lang=en>\n<title>{status} {title}</title>\n<h1>{title}</h1>\n<p>{text}</p>\n"
         "<p>Request id: {id}</p>\n")
_TEXTS = {500: "The server met an error and could not answer this request.",
          503: "The service cannot answer this request now. Try again in a moment."}
_KEPT = ("allow", "retry-after", "www-authenticate")


def wants_problem(accept: str | None, form: str) -> bool:
    """Return whether the client gets problem+json.

    :param accept: the Accept header. Without one, or if JSON and HTML are equally welcome, the client gets HTML.
    :param form: STABILITY_ERROR_FORMAT.
    """
    if form != "auto":
        return form == "problem"
    if not accept:
        return False
    try:
        accepted = parse_accept_header(accept[:2048], MIMEAccept)
        json_quality = max(accepted.quality(PROBLEM), accepted.quality("application/json"))
        return bool(json_quality > accepted.quality("text/html"))
    except Exception:
        return False


def problem_body(status: int, request_id: str, *, title: str | None = None, detail: str | None = None) -> bytes:
    """Return a problem document. `detail` must not contain anything internal."""
    document: dict[str, Any] = {"type": "about:blank", "title": title or _title(status), "status": status}
    if detail:
        document["detail"] = detail
    document["request_id"] = request_id
    return json.dumps(document).encode()


def page(status: int, request_id: str) -> bytes:
    """Return the same for people: a constant page."""
    return _PAGE.format(status=status, title=_title(status), text=_TEXTS.get(status, _TEXTS[500]),
                        id=request_id).encode("ascii", "xmlcharrefreplace")


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def retry_after(error: BaseException) -> str:
    """Return whole seconds for the Retry-After header, at least 1."""
    try:
        return str(max(1, round(float(getattr(error, "retry_after", 1.0)))))
    except Exception:
        return "1"


def response_for(error: BaseException, environ: Mapping[str, Any], settings: Settings,
                 request_id: str = "") -> tuple[str, list[tuple[str, str]], bytes]:
    """Return status line, headers and body of an answer that is made outside Flask.

    The status is 503 for an unavailable database, an HTTPException's own, else 500. Never raises.
    """
    status, kept = 500, []
    if isinstance(error, DatabaseUnavailable):
        status, kept = 503, [("Retry-After", retry_after(error))]
    elif isinstance(error, HTTPException):
        status, kept = _of_http(error)
    if wants_problem(environ.get("HTTP_ACCEPT"), settings.error_format):
        kind, body = PROBLEM, problem_body(status, request_id)
    else:
        kind, body = HTML, page(status, request_id)
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"),
               ("Vary", "Accept"), *kept]
    return f"{status} {_title(status)}", headers, body


def _of_http(error: HTTPException) -> tuple[int, list[tuple[str, str]]]:
    try:
        status = int(error.code or 500)
        if not 400 <= status < 600:
            return 500, []
        return status, [(name, value) for name, value in error.get_headers() if name.lower() in _KEPT]
    except Exception:
        return 500, []
