"""The outermost WSGI layer: the way of one request.

It gives the request an id and a deadline, enters it in the in-flight table, and sees to it that whatever escapes,
`BaseException` included, in the call, the iteration or the close, is recorded once and answered well:

- before the first chunk a whole answer is given, since ``start_response`` is held back until then;
- after it the connection is cut, so that the client can tell; there is never a second answer inside the first.

An inner layer steps aside when an outer one is there, so both an app and the server's worker can be wrapped.
"""

from __future__ import annotations

import errno
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any

from . import logs, scoreboard
from .config import Settings
from .errors import report
from .errors.problem import fallback
from .exceptions import DatabaseUnavailable
from .request import RequestRecord, inflight

WSGIApp = Callable[..., Iterable[bytes]]
MARK = "flask_stability"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_STATUS = re.compile(r"[1-9]\d\d(?: [\t \x21-\x7e\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t \x21-\x7e\x80-\xff]*")
_known_names: set[str] = {"Content-Type", "Content-Length"}

_ident = threading.get_ident
_now = time.monotonic_ns

#: Set by the server: whether this worker was told to end, so that a SystemExit is the server's, not the view's.
stopping: Callable[[], bool] = lambda: False  # noqa: E731


class ResponseCut(BrokenPipeError):
    """Raised to the server to cut a response that has begun; servers take it for a client that went away."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "response cut after an exception")


class InvalidResponse(RuntimeError):
    """The app broke the rules of WSGI (PEP 3333)."""


class _Exchange:
    """One request and its response: the app's start_response, and the iterable for the server."""

    __slots__ = ("_body", "_done", "_first", "_headers", "_length", "_middleware", "_sent", "_source",
                 "_start", "_started", "_status", "_writer", "record")

    def __init__(self, middleware: StabilityMiddleware, record: RequestRecord, start: Callable[..., Any]) -> None:
        self._middleware = middleware
        self.record = record
        self._start = start
        self._status: str | None = None
        self._headers: list[tuple[str, str]] = []
        self._length = -1
        self._sent = 0
        self._source: Any = None
        self._body: Iterator[bytes] | None = None
        self._first: bytes | None = None
        self._writer: Any = None
        self._started = False
        self._done = False

    # -- what the app calls --------------------------------------------------------------------------------------

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
        """WSGI's start_response, checked and held back."""
        if exc_info is not None:
            try:
                if self._started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._status is not None:
            raise InvalidResponse("start_response was called twice")
        if type(status) is not str or not _STATUS.fullmatch(status):
            raise InvalidResponse(f"invalid status {status!r}")
        length = -1
        for name, value in headers:
            if name not in _known_names:
                _check_name(name)
            if type(value) is not str or not value.isprintable() or not value.isascii():
                _check_value(name, value)
            if name == "Content-Length":
                length = int(value)
        self._status, self._headers, self._length = status, headers, length
        return self._write

    def _write(self, data: bytes) -> None:
        """WSGI's imperative way: the answer has begun."""
        if not self._started:
            self._begin()
        self._sent += len(data)
        self._writer(data)

    def _begin(self) -> None:
        if self._status is None:
            raise InvalidResponse("the app did not call start_response")
        self._started = True
        self._writer = self._start(self._status, self._headers)
        self.record.response_started = True

    def respond(self, source: Any) -> Any:
        """The app's iterable, its first chunk drawn already, so that failing until then still gets a whole answer."""
        wrapper = self.record.environ.get("wsgi.file_wrapper")
        if wrapper is not None and isinstance(wrapper, type) and isinstance(source, wrapper):
            return self._pass_file(source)
        self._source = source
        if isinstance(source, str):
            raise InvalidResponse("the app returned str instead of an iterable of bytes")
        body = iter(source)
        for chunk in body:
            if type(chunk) is not bytes:
                raise InvalidResponse(f"the body gave {type(chunk).__name__} instead of bytes")
            if chunk:
                self._first = chunk
                self._body = body
                break
        if not self._started:
            self._begin()
        return self

    def _pass_file(self, source: Any) -> Any:
        """A file for the server's sendfile: handed on untouched but for its close."""
        self._source = _Closing(getattr(source, "close", None))
        self._begin()
        self._length = -1
        source.close = self.close
        return source

    # -- what the server calls -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = self._first
        if chunk is not None:
            self._first = None
            self._sent += len(chunk)
            return chunk
        if self._body is None:
            raise StopIteration
        try:
            chunk = next(self._body)
            if type(chunk) is not bytes:
                raise InvalidResponse(f"the body gave {type(chunk).__name__} instead of bytes")
        except StopIteration:
            self._body = None
            raise
        except BaseException as error:
            self._body, self._status = None, "000"
            self._middleware.escaped(error, self.record)
            raise ResponseCut from None
        self._sent += len(chunk)
        return chunk

    def close(self) -> None:
        """Called by the server at the end, however it ends."""
        source, self._source = self._source, None
        try:
            close = getattr(source, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            self._middleware.escaped(error, self.record)
        finally:
            self.finish(int((self._status or "0")[:3]))

    # -- the end -------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> Iterable[bytes]:
        """Answer for an exception that escaped before the first chunk; cut the connection if it came later.

        :raises ResponseCut: if the app had written already.
        """
        record, middleware = self.record, self._middleware
        source, self._source = self._source, None
        self._body = self._first = None
        try:
            middleware.escaped(error, record)
            close = getattr(source, "close", None)
            if close is not None:
                try:
                    close()
                except BaseException as failure:
                    report.record(failure, request=record)
            if self._started:
                self._status = "000"
                raise ResponseCut from None
            unavailable = isinstance(error, DatabaseUnavailable)
            status, headers, body = fallback(
                record.environ, middleware.settings.error_format, record.id, middleware.settings.request_id_header,
                status=503 if unavailable else 500, retry_after=getattr(error, "retry_after", None))
            self._status, self._length = status, -1
            self._start(status, headers)
            return [] if record.method == "HEAD" else [body]
        finally:
            self.finish(int((self._status or "0")[:3]))

    def finish(self, status: int) -> None:
        """Account for the request, once."""
        if self._done:
            return
        self._done = True
        record = self.record
        if self._length != self._sent and self._length >= 0 and self._body is None and status:
            self._tell_length(status)
        self._middleware.leave(record, status)

    def _tell_length(self, status: int) -> None:
        if self.record.method != "HEAD" and status >= 200 and status not in (204, 304):
            logs.error("content_length_mismatch", level="WARNING", declared=self._length, sent=self._sent,
                       **report.request_fields(self.record))


class _Closing:
    """A close function as an object that has one."""

    __slots__ = ("close",)

    def __init__(self, close: Callable[[], None] | None) -> None:
        self.close = close


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidResponse("a response header has an invalid name")
    if len(_known_names) < 1000:
        _known_names.add(name)


def _check_value(name: str, value: Any) -> None:
    # the value may carry a secret: it is not shown
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise InvalidResponse(f"the response header {name} has an invalid value")


class StabilityMiddleware:
    """Wraps a WSGI app.

    :param wsgi_app: the app, or ``app.wsgi_app``, which is held weakly: no cycle keeps the app alive.
    :param settings: the app's settings.
    :param health_app: the WSGI app that serves `health_paths`, in any process that is not to be reached by the
        app's own handlers.
    :param propagate: whether an exception is to reach the caller instead of being answered, as Flask's
        PROPAGATE_EXCEPTIONS and TESTING ask for. Only asked where the server did not wrap its worker.
    :param on_first_request: called once, before the first request.
    """

    def __init__(self, wsgi_app: WSGIApp, *, settings: Settings | None = None, health_app: WSGIApp | None = None,
                 health_paths: Iterable[str] = (), propagate: Callable[[], bool] | None = None,
                 on_first_request: Callable[[], None] | None = None) -> None:
        self.settings = settings if settings is not None else Settings()
        self._owner: weakref.ref[Any] | None = None
        self._app: Any = wsgi_app
        if isinstance(wsgi_app, MethodType):
            self._owner, self._app = weakref.ref(wsgi_app.__self__), wsgi_app.__func__
        self.health_app = health_app
        self.health_paths = set(health_paths)
        self._propagate = propagate
        self._on_first_request = on_first_request
        self._timeout = self.settings.request_timeout
        self._trusted = None
        if self.settings.request_id_trust:
            self._trusted = "HTTP_" + self.settings.request_id_header.upper().replace("-", "_")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._on_first_request is not None:
            self._begin_process()
        owner = self._owner
        if MARK in environ:
            if environ.get("PATH_INFO") in self.health_paths and self.health_app is not None:
                environ[MARK].own = True
                return self.health_app(environ, start_response)
            app = self._app
            result: Iterable[bytes] = (app(environ, start_response) if owner is None
                                       else app(owner(), environ, start_response))
            return result
        ident = _ident()
        now = _now()
        record = RequestRecord(environ, ident, now, now / 1e9 + self._timeout if self._timeout else 0.0, self._trusted)
        environ[MARK] = record
        before = inflight.get(ident)
        if before is not None:
            record.outer = before
        inflight[ident] = record
        exchange = _Exchange(self, record, start_response)
        try:
            if environ.get("PATH_INFO") in self.health_paths and self.health_app is not None:
                record.own = True
                return exchange.respond(self.health_app(environ, exchange.start_response))  # type: ignore[no-any-return]
            app = self._app
            return exchange.respond(  # type: ignore[no-any-return]
                app(environ, exchange.start_response) if owner is None
                else app(owner(), environ, exchange.start_response))
        except BaseException as error:
            if self._propagates():
                exchange.finish(0)
                raise
            return exchange.fail(error)

    def leave(self, record: RequestRecord, status: int) -> None:
        """The request is over: what it held goes back, it is counted. Never raises."""
        try:
            resources = record.resources
            if resources is not None:
                record.resources = None
                for resource in resources:
                    try:
                        resource.release()
                    except BaseException as error:
                        report.record(error, event="release_failed", request=record)
            outer = record.outer
            if outer is None:
                inflight.pop(record.thread_id, None)
            else:
                inflight[record.thread_id] = outer
            if not record.own:
                environ = record.environ
                request = environ.get("werkzeug.request")
                rule = request.url_rule if request is not None else None
                method = environ["REQUEST_METHOD"]
                scoreboard.my_row().observe(method if method in METHODS else "OTHER",
                                            rule.endpoint if rule is not None else "", status,
                                            _now() - record.started_ns)
        except Exception as error:
            report.record(error, event="internal_error", request=record)

    def escaped(self, error: BaseException, record: RequestRecord) -> None:
        """Record what escaped.

        :raises BaseException: `error` itself, where it is to reach the server: its own SystemExit, or as Flask's
            PROPAGATE_EXCEPTIONS asks for.
        """
        if isinstance(error, SystemExit) and stopping():
            # raised in the view by the server's signal handler: a timeout (SIGABRT) or a shutdown (SIGINT, SIGQUIT)
            report.record(error, event="request_ended_by_server", level="CRITICAL", request=record)
            raise error
        if self._propagates():
            raise error
        level = "ERROR" if isinstance(error, Exception) else "CRITICAL"
        report.record(error, event="exception_escaped", level=level, request=record)

    def _propagates(self) -> bool:
        return self._propagate is not None and self._propagate()

    def _begin_process(self) -> None:
        begin, self._on_first_request = self._on_first_request, None
        if begin is not None:
            try:
                begin()
            except Exception as error:
                report.record(error, event="internal_error")
