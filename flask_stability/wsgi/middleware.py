"""The outermost WSGI layer: the path of one request.

It gives the request an id and a deadline, and enters it in the in-flight table. It records each escaping exception
once, `BaseException` included, from the call, the iteration or the close, and answers it:

- before the first chunk with a whole answer, since it holds ``start_response`` back until then;
- after it by cutting the connection, so that the client notices; never with a second answer inside the first.

An inner layer steps aside when there is an outer one, so both an app and the server's worker can be wrapped. Under a
test client and the development server exceptions go their usual way: an app's own tests notice no difference.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any, cast

from flask import Flask
from werkzeug.wsgi import ClosingIterator

from ..config import Settings
from ..errors import report
from ..errors.boundary import Boundary
from ..request import NO_RULE, SOCKET, WEBSOCKET, RequestRecord, current, inflight, waited
from ..runtime import runtime
from ..scoreboard import black_box
from ..scoreboard.black_box import begin
from . import quarantine
from .exchange import END, Exchange, closable, plain, wrong_chunk
from .takeover import AppSocket
from .upload import Upload
from .validation import InvalidResponse

WSGIApp = Callable[..., Iterable[bytes]]
MARK = "flask_stability.wrapped"

_now = time.monotonic_ns


class StabilityMiddleware:
    """Wraps a WSGI app.

    :param wsgi_app: the app. With a `health_app`, ``app.wsgi_app``: the layer refers to it weakly, so no cycle keeps
        the app alive.
    :param settings: the app's settings.
    :param health_app: the WSGI app that serves STABILITY_HEALTH_PATH; set to None to let the app's own route win.
    :param propagate: returns whether an exception should reach the caller, as Flask's PROPAGATE_EXCEPTIONS and TESTING
        demand. Called only where the server did not wrap its worker.
    :param on_first_request: called once, before the first request.
    """

    def __init__(self, wsgi_app: WSGIApp, *, settings: Settings | None = None, health_app: WSGIApp | None = None,
                 propagate: Callable[[], bool] | None = None,
                 on_first_request: Callable[[], None] | None = None) -> None:
        self.settings = settings if settings is not None else Settings()
        self.health_app = health_app
        self.boundary = Boundary(self.settings, propagate)
        self._app: Callable[..., Any] = wsgi_app
        self._owner: weakref.ref[Any] | None = None
        if health_app is not None and isinstance(wsgi_app, MethodType):
            self._owner, self._app = weakref.ref(wsgi_app.__self__), wsgi_app.__func__
        self._health_path = self.settings.health_path
        self._health_below = self._health_path + "/"
        #: Returns whether `health_app` serves a path, where the app serves some of them itself.
        self.is_ours: Callable[[str], bool] | None = None
        #: Another layer was put around this one: the head then goes to that layer, not to the server.
        self.wrapped = False
        self.on_first_request = on_first_request
        self.timeout = self.settings.request_timeout
        self._trusted = ("HTTP_" + self.boundary.id_header.upper().replace("-", "_")
                         if self.settings.request_id_trust else None)
        #: The beginning of paths to examine more closely: at the first request all of them.
        self._special = ""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if MARK in environ:
            return self._inside(environ, start_response)
        thread = threading.get_ident()  # looked up each time: gevent replaces it when the worker starts
        exchange: Exchange = Exchange()
        exchange.started_ns = _now()
        exchange.thread_id = thread
        exchange.environ = environ
        exchange.start = start_response
        exchange.boundary = self.boundary
        exchange.timeout = self.timeout
        exchange.rule = NO_RULE
        exchange.response_started = exchange.health = exchange.overdue = exchange.early = exchange.refused = False
        exchange.given_id = exchange.recorded = exchange.resources = exchange.outer = None
        exchange.head = exchange.writer = exchange.source = exchange.iterator = None
        exchange.code = exchange.sent = exchange.begun_ns = 0
        exchange.length = exchange.place = -1
        exchange.taken_ns = exchange.held_ns = 0
        exchange.queued_ns = waited.pop(thread, 0) if waited else 0
        exchange.client_socket = exchange.handled = exchange.unavailable = None
        environ[MARK] = True
        client = environ.get(SOCKET)
        if client is not None:
            environ[SOCKET] = AppSocket(client, exchange)
        elif environ.get(WEBSOCKET) is not None:
            exchange.take()
        if runtime.watches_uploads and (environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ):
            environ["wsgi.input"] = Upload(environ["wsgi.input"])
        try:
            path = environ.get("PATH_INFO", "")
            if path.startswith(self._special) and self._is_health(environ, exchange):
                source: Any = self.health_app(environ, exchange.start_response)  # type: ignore[misc]
            else:
                outer = inflight.get(thread)
                if outer is not None:
                    exchange.outer = _outer(outer)
                inflight[thread] = exchange
                if exchange.outer is None:  # a thread has one slot
                    exchange.place = begin(environ, path, thread, exchange.started_ns, exchange.given_id)
                exchange.early = self.wrapped
                source = quarantine.look(exchange, environ, self.settings) if black_box.listed[0] else None
                if source is None:
                    source = (self._app(environ, exchange.start_response) if self._owner is None
                              else self._app(self._owner(), environ, exchange.start_response))
            exchange.source = source
            if exchange.taken_ns:
                raise StopIteration  # regardless of the app's return value: the conversation is over
            if type(source) is ClosingIterator:  # Flask's own type, which is its own iterator
                chunks = plain(source, exchange.length)
                if chunks is not None and not exchange.response_started:
                    exchange.source = None
                    source.close()  # also here: PEP 3333 requires it, and an app may rely on it
                    if exchange.writer is None:
                        start_response(*exchange.head)  # type: ignore[misc]
                    exchange.finish()
                    return chunks
            else:
                iterator = self._iterator(source, exchange)
                if iterator is None:
                    return cast("Iterable[bytes]", source)
                source = iterator
            chunk = next(source, END)  # drawn here: a failure up to this point still gets a whole answer
            if type(chunk) is bytes:
                exchange.chunk = chunk
                exchange.iterator = source
            elif chunk is not END:
                raise wrong_chunk(chunk)
            if not exchange.response_started:
                head = exchange.head
                if head is None and "HTTP_UPGRADE" in environ and chunk is END and client is None:
                    # taken over by another way than gunicorn's: simple-websocket under gevent's own server
                    exchange.take()
                    raise StopIteration
                if head is None:
                    raise InvalidResponse("the app did not call start_response")
                if exchange.writer is None:
                    exchange.writer = start_response(*head)
                exchange.response_started = True
                exchange.begun_ns = _now()
                black_box.answering(exchange.place)
            return exchange
        except BaseException as error:
            return exchange.fail(error)

    @staticmethod
    def _iterator(source: Any, exchange: Exchange) -> Iterator[Any] | None:
        """Return the iterator of a body that is not a Flask response; None to pass it to the server as it is."""
        if not hasattr(source, "close"):
            exchange.source = closable(source)
        wrapper = exchange.environ.get("wsgi.file_wrapper")  # a server may use any callable
        if type(wrapper) is type and isinstance(source, wrapper) and exchange.passes_file(source):
            return None
        return cast("Iterator[Any]", iter(source))

    @property
    def inner(self) -> Callable[..., Any] | None:
        """Return the wrapped app; None once it no longer exists."""
        owner = self._owner() if self._owner is not None else None
        return self._app if self._owner is None else MethodType(self._app, owner) if owner is not None else None

    def _inside(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Call the app inside an outer layer, which does the work; serve only the health endpoints."""
        if self.on_first_request is not None:
            self._begin_process()
        if self.health_app is not None and environ.get("PATH_INFO", "").startswith(self._health_path):
            record = current()
            if record is not None and self._is_health(environ, record) and self.health_app is not None:
                return self.health_app(environ, start_response)
        inner: Iterable[bytes] = (self._app(environ, start_response) if self._owner is None
                                  else self._app(self._owner(), environ, start_response))
        return inner

    def _is_health(self, environ: dict[str, Any], record: RequestRecord) -> bool:
        """Return whether the request goes to `health_app`; also adopt the request id of a trusted client."""
        if self.on_first_request is not None:
            self._begin_process()
        if self._trusted is not None:
            record.trust(environ.get(self._trusted))
        else:
            self._special = self._health_path
        path: str = environ.get("PATH_INFO", "")
        if self.health_app is None or not (path == self._health_path or path.startswith(self._health_below)) or (
                self.is_ours is not None and not self.is_ours(path)):
            return False
        record.health, record.timeout = True, 0.0
        return True

    def let_nothing_out(self) -> None:
        """Answer all exceptions.

        A server calls this layer directly, so Flask's PROPAGATE_EXCEPTIONS does not count here.
        """
        self.boundary.propagate = None

    def _begin_process(self) -> None:
        begin, self.on_first_request = self.on_first_request, None
        if begin is not None:
            try:
                begin()
            except Exception as error:
                report.record(error, event="internal_error")


def outermost(app: Any, settings: Settings) -> WSGIApp:
    """Return what a server should call instead of `app`: a layer around all of it, or the app with its own layer.

    The app's own layer is enough where nothing wraps it; then it lets no exception out either.
    """
    own = app.wsgi_app if isinstance(app, Flask) and type(app).__call__ is Flask.__call__ else None
    if type(own) is not StabilityMiddleware:
        return StabilityMiddleware(app, settings=settings)
    own.let_nothing_out()
    return cast("WSGIApp", app)


def _outer(record: RequestRecord) -> RequestRecord | None:
    """Return the request inside which a new one begins.

    A request whose answer a test client never read to its end counts as over.
    """
    if not isinstance(record, Exchange) or not record.response_started or record.supervised:
        return record
    outer: RequestRecord | None = record.outer
    record.finish()
    return outer
