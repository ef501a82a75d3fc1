"""The dashboard: one page that polls the history, its files, and a login form for the token.

The files are read once and served from memory. An unauthenticated client gets only the form's own files, and none if no
token is set. Addresses in the page are relative, so that it works behind a proxy that removes a prefix.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import mimetypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import jinja2
from flask import Blueprint, Response, request
from werkzeug.exceptions import ClientDisconnected

from ..config import Settings
from ..runtime import runtime
from . import results
from .access import COOKIE, LIFETIME, Access

POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
          "form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
LANGUAGES = ("en", "zh")
FORM_FILES = frozenset({"style.css", "icon.svg"})  #: the files of the login form
MOST_BODY = 2048  #: maximum bytes of a login's body
PATIENCE = 5.0  #: seconds for a login's body to arrive
_HERE = Path(__file__).parent


class _File(NamedTuple):
    data: bytes
    kind: str
    tag: str


class Dashboard:
    """The views of one app's settings.

    :param refuse: answers a client that may not see details.
    :param health: the view of the path itself.
    """

    def __init__(self, settings: Settings, access: Access, refuse: Callable[[], Response],
                 health: Callable[[], Response]) -> None:
        self._access, self._refuse, self._health = access, refuse, health
        self._path, self._service = settings.health_path, settings.service_id or ""

    def register(self, blueprint: Blueprint) -> None:
        """Add the routes."""
        for rule, endpoint, view, method in (
                ("/", "index", self.index, "GET"), ("/dashboard", "dashboard", self.page, "GET"),
                ("/dashboard", "login", self.login, "POST"),
                ("/logout", "logout", self.logout, "POST"), ("/dashboard/<name>", "dashboard_file", self.file, "GET")):
            blueprint.add_url_rule(rule, endpoint, view, methods=[method], merge_slashes=False)

    def index(self) -> Response:
        """Answer a browser with an overview and the way in; answer other clients as the path without the slash does."""
        if request.accept_mimetypes.best_match(("application/json", "text/html"), default="application/json") != (
                "text/html"):
            return self._health()
        may_see = self._access.may_see(request)
        path = self._path.rpartition("/")[2]
        pages = [(f"../{path}", "index_health", False), ("live", "index_live", False), ("ready", "index_ready", False),
                 ("startup", "index_startup", False), ("dashboard", "index_dashboard", True),
                 ("history", "index_history", True), ("metrics", "index_metrics", True)]
        return _html("index.html", state=results.summary(runtime.my_board()), pages=pages, may_see=may_see,
                     everybody=self._access.is_open, has_login=self._access.has_login,
                     styled=may_see or self._access.has_login)

    def page(self) -> Response:
        """Serve the page, or the form to an unauthenticated client if there is a token to ask for."""
        if self._access.may_see(request):
            return _html("dashboard.html", service=self._service, health=f"../{self._path.rpartition('/')[2]}",
                         may_leave=self._access.has_login and COOKIE in request.cookies)
        return _html("login.html") if self._access.has_login else self._refuse()

    def login(self) -> Response:
        """Check a token and set a cookie; the number of wrong tokens is limited, and the right one always works."""
        if not self._access.has_login:
            return self._refuse()
        try:
            token = _form_token()
        except (OSError, ClientDisconnected):
            return _closing(_html("login.html", 408, error="login_wrong"))
        if token is None:
            return _closing(_html("login.html", 400, error="login_wrong"))
        if not self._access.is_token(token):
            wait = self._access.refuse(request, event="dashboard_login_refused")
            answer = _html("login.html", 429 if wait else 403, error="login_wait" if wait else "login_wrong")
            if wait:
                answer.headers["Retry-After"] = str(math.ceil(wait))
            return answer
        answer = _redirect("dashboard")
        self._cookie(answer, self._access.new_login(), LIFETIME)
        return answer

    def logout(self) -> Response:
        """Clear the cookie, and accept it no more."""
        if not self._access.has_login:
            return self._refuse()
        self._access.end_login(request.cookies.get(COOKIE, ""))
        answer = _redirect("dashboard")
        self._cookie(answer, "", 0)
        return answer

    def file(self, name: str) -> Response:
        """Serve one of the page's files."""
        may = self._access.may_see(request) or (self._access.has_login and name in FORM_FILES)
        found = _files().get(name) if may else None
        if found is None:
            return self._refuse()
        answer = Response(found.data, content_type=found.kind)
        answer.set_etag(found.tag)
        _guard(answer, "private, no-cache")  # revalidated each time, sent when it has changed
        answer.make_conditional(request)
        return answer

    def _cookie(self, answer: Response, value: str, seconds: int) -> None:
        # Without a path the browser chooses it (RFC 6265, 5.1.4): the folder of the address that it requested, which we
        # do not know behind a proxy that removes a prefix. The scheme comes from the server, not from a header.
        answer.set_cookie(COOKIE, value, max_age=seconds, path=None, httponly=True, samesite="Strict",
                          secure=request.environ["wsgi.url_scheme"] == "https")


# -- what a login sends --------------------------------------------------------------------------------------------


def _form_token() -> str | None:
    """Return the token in the request's form; None if there is none.

    Read here, byte by byte: a client that never sends the announced body must not hold a thread.

    :raises OSError: if it does not arrive in time.
    """
    length = request.content_length
    if length is None or not 0 < length <= MOST_BODY or request.mimetype != "application/x-www-form-urlencoded":
        return None
    stream, connection = request.environ["wsgi.input"], request.environ.get("gunicorn.socket")
    deadline = time.monotonic() + PATIENCE
    before = connection.gettimeout() if connection is not None else None
    data = b""
    try:
        while len(data) < length:
            if connection is not None:
                connection.settimeout(max(0.01, deadline - time.monotonic()))
            byte = stream.read(1)
            if not byte or time.monotonic() > deadline:
                raise TimeoutError("the body did not arrive")
            data += byte
    finally:
        if connection is not None:
            connection.settimeout(before)
    try:
        return parse_qs(data.decode("ascii"), max_num_fields=4)["token"][0].strip()
    except (KeyError, ValueError):
        return None


# -- answers -------------------------------------------------------------------------------------------------------


def _guard(answer: Response, cache: str) -> None:
    answer.headers.update({
        "Cache-Control": cache, "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin"})


def _html(template: str, status: int = 200, **values: Any) -> Response:
    language = request.accept_languages.best_match(LANGUAGES, default="en") or "en"
    text = words(language)
    answer = Response(_templates().get_template(template).render(
        t=text, words=json.dumps(text, ensure_ascii=False), language=language, **values), status, mimetype="text/html")
    _guard(answer, "no-store")
    answer.headers["Content-Language"] = language
    answer.vary.update(("Accept-Language", "Cookie"))
    return answer


def _redirect(where: str) -> Response:
    """Redirect to one of our own pages only; the address is relative, so that no header can influence it."""
    answer = Response(status=303, headers={"Location": where})
    _guard(answer, "no-store")
    return answer


def _closing(answer: Response) -> Response:
    """Close the connection after an answer: the rest of the body must not be read as the next request."""
    answer.headers["Connection"] = "close"
    return answer


@functools.cache
def words(language: str) -> dict[str, str]:
    """Return the page's texts in a language."""
    found: dict[str, str] = json.loads((_HERE / "templates" / f"words.{language}.json").read_text("utf-8"))
    return found


@functools.cache
def _templates() -> jinja2.Environment:
    """Return our own template environment, which an app's context processors and templates cannot affect."""
    return jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, auto_reload=False,
                              undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@functools.cache
def _files() -> dict[str, _File]:
    """Return all files by name, so that no name can lead elsewhere."""
    found = {}
    for path in sorted((_HERE / "static").iterdir()):
        kind = {".js": "text/javascript"}.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
        data = path.read_bytes()
        found[path.name] = _File(data, f"{kind}; charset=utf-8", hashlib.sha256(data).hexdigest()[:20])
    return found
