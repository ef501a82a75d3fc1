"""The outermost WSGI layer: the way of one request.

It gives the request an id and a deadline, enters it in the in-flight table, and sees to it that whatever escapes,
`BaseException` included, in the call, the iteration or the close, is recorded once and answered well:

- before the first chunk a whole answer is given, since ``start_response`` is held back until then;
- after it the connection is cut, so that the client can tell; there is never a second answer inside the first.

An inner layer steps aside when an outer one is there, so both an app and the server's worker can be wrapped.
Under a test client and the development server exceptions go their usual way: an app's own tests notice nothing.
"""

from __future__ import annotations

import errno
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any, cast

from . import logs, scoreboard
from .config import Settings
from .errors import report
from .errors.problem import response_for
from .request import OVER, RequestRecord, current, inflight
from .wsgi_rules import (
    InvalidResponse,
    are_known,
    check_headers,
    check_status,
    content_length,
    forbids_body,
    known_statuses,
)

WSGIApp = Callable[..., Iterable[bytes]]
MARK = "flask_stability.wrapped"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_ident = threading.get_ident
_now = time.monotonic_ns


def _may_be_stopping() -> bool:
    return True


#: Set by the server's hooks: whether this worker was told to end. Only then may a SystemExit that comes out of
#: gunicorn's own signal handlers pass.
stopping: Callable[[], bool] = _may_be_stopping


class ResponseCut(BrokenPipeError):
    """Raised to the server to cut a response that has begun: gunicorn closes the connection and says nothing."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "response cut")


class _Exchange(RequestRecord):
    """One request and its response: its record, the app's ``start_response``, and the iterable for the server.

    One object, since every object that is made costs the path of a good request.
    """

    __slots__ = ("chunk", "code", "done", "headers", "iterator", "middleware", "sent", "source", "start", "status",
                 "writer")

    def __init__(self, middleware: StabilityMiddleware, environ: dict[str, Any], start: Callable[..., Any],
                 started_ns: int, thread_id: int) -> None:
        # RequestRecord.__init__ is repeated here: a call less
        self.environ = environ
        self.started_ns = started_ns
        self.timeout = middleware.timeout
        self.thread_id = thread_id
        self.middleware = middleware
        self.start = start
        self.response_started = self.health = self.overdue = self.done = False
        self.given_id = self.recorded = self.rule = self.resources = self.outer = None
        self.source: Any = None
        self.iterator: Iterator[bytes] | None = None
        self.writer: Callable[[bytes], Any] | None = None
        self.code = self.sent = 0
        self.chunk = b""

    # -- what the app calls --------------------------------------------------------------------------------------

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
        """WSGI's start_response, checked and held back."""
        if exc_info is not None:
            try:
                if self.response_started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.code:
            raise InvalidResponse("start_response was called twice")
        code = known_statuses.get(status) or check_status(status)
        try:
            known = type(headers) is list and are_known(headers)
        except TypeError:
            known = False
        if not known or code >= 400 or self.given_id is not None:
            headers = self._with_id(list(headers), code)
        self.rule = getattr(self.environ.get("werkzeug.request"), "url_rule", None)
        self.code, self.status, self.headers = code, status, headers
        return self.write

    def _with_id(self, headers: list[tuple[str, str]], code: int) -> list[tuple[str, str]]:
        """The headers, checked. An error's answer, and one to a client that gave an id, carries the request's id."""
        name = self.middleware.id_header
        if not check_headers(headers, name) and (code >= 400 or self.given_id is not None):
            headers.append((name, self.id))
        return headers

    def write(self, data: bytes) -> None:
        """WSGI's imperative way: the answer has begun."""
        if type(data) is not bytes:
            raise InvalidResponse(f"write() was given {type(data).__name__} instead of bytes")
        if self.writer is None:
            self.begin()
        assert self.writer is not None
        self.sent += len(data)
        try:
            self.writer(data)
        except OSError as error:
            report.mark(error, self)  # the client is gone: no fault of the app's
            raise

    def begin(self) -> None:
        """Hand the head to the server."""
        if not self.code:
            raise InvalidResponse("the app did not call start_response")
        self.writer = self.start(self.status, self.headers)
        self.response_started = True

    def passes_file(self, source: Any) -> bool:
        """A file for the server's sendfile is handed on untouched but for its close."""
        closing = _Closing(getattr(source, "close", None))
        try:
            source.close = self.close
        except AttributeError:
            return False
        self.source = closing
        self.begin()
        return True

    # -- what the server calls -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        iterator = self.iterator
        if iterator is not None:
            chunk = self.chunk
            while True:
                self.sent += len(chunk)
                yield chunk
                try:
                    chunk = next(iterator)
                except StopIteration:
                    break
                except BaseException as error:
                    self.cut(error)
                if type(chunk) is not bytes:
                    self.cut(_wrong_chunk(chunk))
            self.iterator = None
        if ("Content-Length", str(self.sent)) not in self.headers:
            self._compare_length()
        if self.environ.get("SERVER_SOFTWARE") is None:
            self.finish()  # a test client does not always close what it was given

    def cut(self, error: BaseException) -> None:
        """It failed in mid-stream.

        :raises ResponseCut: or the error itself, where it is to pass.
        """
        self.iterator, self.code = None, 0
        self.middleware.judge(error, self)
        raise ResponseCut from None

    def _compare_length(self) -> None:
        length = content_length(self.headers)
        if length > self.sent and self.method != "HEAD" and not forbids_body(self.code) and self.supervised:
            logs.error("content_length_mismatch", level="WARNING", declared=length, sent=self.sent,
                       **report.request_fields(self))
            raise ResponseCut  # a client that keeps the connection would wait for the rest

    def close(self) -> None:
        """Called by the server at the end, however it ends."""
        if self.done:
            return
        if self.iterator is not None:
            logs.error("client_left", level="DEBUG", **report.request_fields(self))
        self.done = True
        source, self.source = self.source, None
        try:
            if hasattr(source, "close"):
                source.close()
        except BaseException as error:
            self.middleware.judge(error, self)
        finally:
            self.finish()

    # -- the end -------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> Iterable[bytes]:
        """Answer for what escaped before the first chunk.

        :raises ResponseCut: if the app had written already.
        """
        self.done = True
        self.iterator = None
        started = self.response_started
        try:
            self.middleware.judge(error, self)
            if hasattr(self.source, "close"):
                try:
                    self.source.close()
                except BaseException as failure:
                    self.middleware.judge(failure, self)
            if started:
                raise ResponseCut from None
            status, headers, body = response_for(error, self.environ, self.middleware.settings, self.id)
            headers.append((self.middleware.id_header, self.id))
            self.code = int(status[:3])
            self.start(status, headers, (type(error), error, error.__traceback__))
            return [] if self.method == "HEAD" else [body]
        finally:
            if started:
                self.code = 0
            self.finish()

    def finish(self) -> None:
        """The request is over: it is counted, what it held goes back. Once; never raises."""
        environ = self.environ
        if environ is OVER:
            return
        try:
            if not self.health:
                method, rule = environ.get("REQUEST_METHOD"), self.rule
                (scoreboard._row or scoreboard.my_row()).observe(
                    method if method in METHODS else "OTHER", "" if rule is None else rule.endpoint, self.code,
                    _now() - self.started_ns)
                if self.code >= 400:
                    self._note()
        except Exception as error:
            report.record(error, event="internal_error", request=self)
        if self.resources is not None:
            _release(self)
        self.leave()

    def _note(self) -> None:
        """A 5xx answer without an exception is still an error of ours; a 4xx one the client's."""
        if self.code >= 500:
            if self.recorded is None and self.supervised:
                logs.error("server_error", status=self.code, **report.request_fields(self))
        elif self.middleware.settings.log_client_errors:
            logs.error("client_error", level="WARNING", status=self.code, **report.request_fields(self))


class _Closing:
    """A close function as an object that has one."""

    __slots__ = ("close",)

    def __init__(self, close: Callable[[], None] | None) -> None:
        self.close = close


def _wrong_chunk(chunk: object) -> InvalidResponse:
    return InvalidResponse(f"the body gave {type(chunk).__name__} instead of bytes")


class StabilityMiddleware:
    """Wraps a WSGI app.

    :param wsgi_app: the app. With a `health_app`, ``app.wsgi_app``: it is held weakly, so no cycle keeps the app
        alive.
    :param settings: the app's settings.
    :param health_app: the WSGI app that serves STABILITY_HEALTH_PATH; set to None to let the app's own route win.
    :param propagate: whether an exception is to reach the caller, as Flask's PROPAGATE_EXCEPTIONS and TESTING ask
        for. Asked only where the server did not wrap its worker.
    :param on_first_request: called once, before the first request.
    """

    def __init__(self, wsgi_app: WSGIApp, *, settings: Settings | None = None, health_app: WSGIApp | None = None,
                 propagate: Callable[[], bool] | None = None,
                 on_first_request: Callable[[], None] | None = None) -> None:
        self.settings = settings if settings is not None else Settings()
        self.health_app = health_app
        self.id_header = self.settings.request_id_header
        self._app: Callable[..., Any] = wsgi_app
        self._owner: weakref.ref[Any] | None = None
        if health_app is not None and isinstance(wsgi_app, MethodType):
            self._owner, self._app = weakref.ref(wsgi_app.__self__), wsgi_app.__func__
        self._health_path = self.settings.health_path
        self._health_below = self._health_path + "/"
        self._propagate = propagate
        self.on_first_request = on_first_request
        self.timeout = self.settings.request_timeout
        self._trusted = ("HTTP_" + self.id_header.upper().replace("-", "_")
                         if self.settings.request_id_trust else None)
        self._rare = health_app is not None or self._trusted is not None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.on_first_request is not None:
            self._begin_process()
        if MARK in environ:
            if self._rare and environ.get("PATH_INFO", "").startswith(self._health_path):
                return self._step_aside(environ, start_response)
            inner: Iterable[bytes] = (self._app(environ, start_response) if self._owner is None
                                      else self._app(self._owner(), environ, start_response))
            return inner
        thread = _ident()
        exchange = _Exchange(self, environ, start_response, _now(), thread)
        environ[MARK] = True
        try:
            app, owner = self._app, self._owner
            if self._rare and self._is_health(environ, exchange):
                app, owner = self.health_app or app, None
            else:
                if thread in inflight:
                    exchange.outer = _outer(inflight[thread])
                inflight[thread] = exchange
            source: Any = (app(environ, exchange.start_response) if owner is None
                           else app(owner(), environ, exchange.start_response))
            exchange.source = source
            # the first chunk is drawn here: what fails until then still gets a whole answer
            wrapper = environ.get("wsgi.file_wrapper")
            # (a server may give any callable as wrapper)
            if type(wrapper) is type and isinstance(source, wrapper) and exchange.passes_file(source):
                return cast("Iterable[bytes]", source)
            iterator = iter(source)
            for chunk in iterator:
                if type(chunk) is not bytes:
                    raise _wrong_chunk(chunk)
                exchange.chunk, exchange.iterator = chunk, iterator
                break
            if exchange.writer is None:
                if not exchange.code:
                    raise InvalidResponse("the app did not call start_response")
                exchange.writer = start_response(exchange.status, exchange.headers)
                exchange.response_started = True
            return exchange
        except BaseException as error:
            return exchange.fail(error)

    def _step_aside(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """An outer layer does the work; only the health endpoints are still ours."""
        record = current()
        if record is not None and self._is_health(environ, record) and self.health_app is not None:
            return self.health_app(environ, start_response)
        inner: Iterable[bytes] = (self._app(environ, start_response) if self._owner is None
                                  else self._app(self._owner(), environ, start_response))
        return inner

    def _is_health(self, environ: dict[str, Any], record: RequestRecord) -> bool:
        """Whether it goes to `health_app`; also takes over the id of a client that is trusted."""
        if self._trusted is not None:
            record.trust(environ.get(self._trusted))
        path: str = environ.get("PATH_INFO", "")
        if self.health_app is None or not (path == self._health_path or path.startswith(self._health_below)):
            return False
        record.health, record.timeout = True, 0.0
        return True

    def judge(self, error: BaseException, record: RequestRecord) -> None:
        """Record what escaped.

        :raises BaseException: `error` itself, where it is to reach the server: the server's own SystemExit, what
            Flask's PROPAGATE_EXCEPTIONS lets out, all of it without a server.
        """
        if not record.supervised or (self._propagate is not None and self._propagate()):
            raise error
        if isinstance(error, SystemExit) and stopping():
            handler = report.server_handler(error)
            if handler is not None:
                event = "request_timeout" if handler == "handle_abort" else "request_shutdown"
                report.record(error, event=event, level="CRITICAL", request=record)
                raise error
        level = "ERROR" if isinstance(error, Exception) else "CRITICAL"
        report.record(error, event="exception", level=level, request=record)

    def _begin_process(self) -> None:
        begin, self.on_first_request = self.on_first_request, None
        if begin is not None:
            try:
                begin()
            except Exception as error:
                report.record(error, event="internal_error")


def _outer(record: RequestRecord) -> RequestRecord | None:
    """The request inside which a new one begins; one whose answer a test client never read to its end is over."""
    if isinstance(record, _Exchange) and record.response_started and not record.supervised:
        record.finish()
        return record.outer
    return record


def _release(record: RequestRecord) -> None:
    """Give back what the request held, whatever happens."""
    resources, record.resources = record.resources or [], None
    for resource in resources:
        try:
            resource.release()
        except Exception as error:
            report.record(error, event="release_failed", request=record)
