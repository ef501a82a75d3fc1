"""Bodies of error answers: problem details (RFC 9457) for programs, Flask's own HTML for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_accept_header

PROBLEM = "application/problem+json"
_JSON = (PROBLEM, "application/json")
_HTML = ("text/html", "application/xhtml+xml")

#: The last resort: no template, no negotiation, nothing that could fail.
FALLBACK_BODY = (b"<!doctype html>\n<html lang=en>\n<title>500 Internal Server Error</title>\n"
                 b"<h1>Internal Server Error</h1>\n<p>The server encountered an internal error and was unable to "
                 b"complete your request.</p>\n")


def wants_problem(accept: str | None, form: str) -> bool:
    """Whether the client is to get problem+json.

    :param accept: the Accept header. Without one, or where JSON and HTML are equally welcome, HTML is given.
    :param form: STABILITY_ERROR_FORMAT.
    """
    if form != "auto":
        return form == "problem"
    if not accept:
        return False
    accepted = parse_accept_header(accept[:2048], MIMEAccept)
    return _best(accepted, _JSON) > _best(accepted, _HTML)


def _best(accepted: MIMEAccept, kinds: tuple[str, ...]) -> float:
    return max(float(accepted.quality(kind)) for kind in kinds)


def problem_body(status: int, request_id: str, *, title: str | None = None, detail: str | None = None,
                 extra: Mapping[str, Any] | None = None) -> bytes:
    """A problem document; nothing internal belongs into `detail`."""
    if title is None:
        try:
            title = HTTPStatus(status).phrase
        except ValueError:
            title = "Error"
    document: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
    if detail:
        document["detail"] = detail
    document["request_id"] = request_id
    document.update(extra or {})
    return json.dumps(document).encode()


def fallback(environ: Mapping[str, Any], form: str, request_id: str, header: str, *, status: int = 500,
             retry_after: float | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
    """Status line, headers and body of an answer made outside of Flask."""
    reason = HTTPStatus(status).phrase
    try:
        problem = wants_problem(environ.get("HTTP_ACCEPT"), form)
    except Exception:
        problem = False
    if problem:
        kind, body = PROBLEM, problem_body(status, request_id)
    elif status == 500:
        kind, body = "text/html; charset=utf-8", FALLBACK_BODY
    else:
        kind, body = "text/html; charset=utf-8", f"<!doctype html>\n<title>{status} {reason}</title>\n".encode()
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"),
               ("Vary", "Accept"), (header, request_id)]
    if retry_after is not None:
        headers.append(("Retry-After", str(max(1, round(retry_after)))))
    return f"{status} {reason}", headers, body


def description_of(error: HTTPException) -> str | None:
    """The text that the exception shows to clients anyway."""
    text = error.description
    return text if isinstance(text, str) else None
