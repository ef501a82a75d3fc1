"""One request and its response: the app's calls, the server's calls, and the end.

One object serves as the request's record, the app's ``start_response``, its ``write`` and the iterable for the server.
Its functions look up few names: every object and every name adds to the cost of a good request.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Response
from werkzeug.wrappers import response as werkzeug_response

from .. import logs, scoreboard
from ..errors import report
from ..errors.boundary import Boundary, unavailable
from ..exceptions import DatabaseUnavailable
from ..request import NO_RULE, OVER, SOCKET, RequestRecord, inflight, rule_of
from ..runtime import runtime
from ..scoreboard import black_box
from .takeover import client_left
from .validation import InvalidResponse, check_head, forbids_body, known_heads

END: Any = object()  #: the end of a body

_now = time.monotonic_ns
#: An answer whose body takes this long after its first chunk is a stream, such as an event stream or a download; only
#: its time to that chunk counts as its duration.
STREAM_NS = 100_000_000
#: Bytes that fit in any socket's buffer, even for a distant client that has read nothing yet.
_SMALL = 1 << 14
#: werkzeug's function that yields the body of a Flask response chunk by chunk, and the one that closes it.
_ENCODING = getattr(getattr(werkzeug_response, "_iter_encoded", None), "__code__", None)
_CLOSE = werkzeug_response.Response.close


class ResponseCut(BrokenPipeError):
    """Raised to the server to cut a response that has begun: gunicorn closes the connection without a message."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "response cut")


class Exchange(RequestRecord):
    """The exchange of one request; see the module.

    :ivar boundary: handles escaping exceptions for the layer that created this exchange.
    :ivar start: the server's start_response.
    :ivar head: the arguments for it; None before the app's start_response.
    :ivar writer: the server's write callable, once the server has the head.
    :ivar early: pass the head on immediately: the next to see it is another layer around the app, which may need
        Flask's context for that (OpenTelemetry's does).
    :ivar code: the answer's status; 0 before start_response, and for an answer that was cut off.
    :ivar length: its Content-Length, -1 without one.
    :ivar source: the app's return value, with a close; None before that, and once it is closed.
    :ivar chunk: the first chunk of the body.
    :ivar iterator: yields the rest of the body; None before the first chunk, and at the end.
    :ivar sent: bytes that the app wrote itself, with the write callable.
    :ivar begun_ns: `time.monotonic_ns` when the server got the head, with the first chunk; 0 before.
    """

    __slots__ = ("begun_ns", "boundary", "chunk", "code", "early", "head", "iterator", "length", "sent", "source",
                 "start", "writer")

    __init__ = object.__init__  # the creating layer sets all attributes, which saves a call
    boundary: Boundary
    start: Callable[..., Any]
    early: bool
    head: tuple[str, list[tuple[str, str]]] | None
    writer: Callable[[bytes], Any] | None
    code: int
    length: int
    source: Any
    chunk: bytes
    iterator: Iterator[bytes] | None
    sent: int
    begun_ns: int

    # -- what the app calls --------------------------------------------------------------------------------------

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
        """Check and hold back the head: WSGI's start_response.

        :raises InvalidResponse: for a second call, or an invalid head.
        """
        if exc_info is not None:
            if self.response_started:
                try:
                    raise exc_info[1].with_traceback(exc_info[2])
                finally:
                    exc_info = None
        elif self.code:
            raise InvalidResponse("start_response was called twice")
        headers = [*headers]
        try:
            head = known_heads.get((status, *headers))
        except TypeError:
            headers = [(name, value) for name, value in headers]  # pairs that are lists, or not pairs at all
            head = None
        self.code, self.length = head or check_head(status, headers)
        if self.code == 500 and self.unavailable is not None:
            raise unavailable(self)
        if self.code >= 400 or self.given_id is not None:
            self.boundary.add_id(headers, self)
        self.head = status, headers
        try:
            self.rule = self.environ["werkzeug.request"].url_rule or NO_RULE
        except (AttributeError, KeyError):
            self.rule = self.rule or rule_of(self.environ)
        if self.early:
            self.writer = self.start(status, headers) if self.writer is None else self.start(status, headers, exc_info)
        return self

    def __call__(self, data: bytes) -> None:
        """Write a chunk, which begins the answer: WSGI's imperative write.

        :raises InvalidResponse: if `data` is not bytes.
        :raises OSError: if the client has left.
        """
        if type(data) is not bytes:
            raise InvalidResponse(f"write() was given {type(data).__name__} instead of bytes")
        if not self.response_started:
            self.begin()
        assert self.writer is not None
        self.sent += len(data)
        try:
            self.writer(data)
        except OSError as error:
            report.mark(error, self)  # the client has left: not the app's fault
            raise

    def begin(self) -> None:
        """Pass the head to the server."""
        if self.head is None:
            raise InvalidResponse("the app did not call start_response")
        if self.writer is None:
            self.writer = self.start(*self.head)
        self.response_started = True
        self.begun_ns = _now()
        black_box.answering(self.place)

    def passes_file(self, source: Any) -> bool:
        """Pass a file on for the server's sendfile, with only its close replaced; return False if that is impossible.
        """
        closing = closable(source)
        try:
            source.close = self.close
        except AttributeError:
            return False
        self.source = closing
        self.begin()
        return True

    # -- what the server calls -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        sent, iterator = 0, self.iterator
        if iterator is not None:
            chunk = self.chunk
            sent = len(chunk)
            yield chunk
            try:
                while (chunk := next(iterator, END)) is not END:  # a "for" would ask for an iterator again
                    if type(chunk) is not bytes:
                        raise wrong_chunk(chunk)
                    sent += len(chunk)
                    yield chunk
            except BaseException as error:
                if type(error) is GeneratorExit and error.__traceback__.tb_next is None:  # type: ignore[union-attr]
                    raise  # the server drops this generator: the yield raises it, not the app
                self.cut(error)
            self.iterator = None
        if self.length > sent:
            self._tell_short(sent)
        if "SERVER_SOFTWARE" not in self.environ:
            self.finish()  # a test client does not always close what it got

    def cut(self, error: BaseException) -> None:
        """Cut the response after a failure in mid-stream.

        :raises ResponseCut: or the error itself, if it should reach the caller.
        """
        self.iterator, self.code = None, 0
        self.boundary.judge(error, self)
        raise ResponseCut from None

    def _tell_short(self, sent: int) -> None:
        sent += self.sent  # include what the app wrote itself
        if self.length > sent and self.method != "HEAD" and not forbids_body(self.code) and self.supervised:
            logs.error("content_length_mismatch", level="WARNING", declared=self.length, sent=sent,
                       **report.request_fields(self))
            raise ResponseCut  # a client that keeps the connection would wait for the rest

    def close(self) -> None:
        """Close the app's iterable and finish. The server calls this at the end, however the response ends."""
        source, self.source = self.source, None
        if source is None:
            return
        if self.iterator is not None:
            logs.error("client_left", level="DEBUG", **report.request_fields(self))
        try:
            source.close()
        except BaseException as error:
            self.boundary.judge(error, self)
        finally:
            self.finish()

    def end_taken(self, error: BaseException) -> Iterable[bytes]:
        """End a request whose app spoke with the client itself: write no more HTTP after that.

        :param error: the exception that ended it.
        :raises StopIteration: on which gunicorn closes the connection.
        """
        self.code = 101
        source, self.source = self.source, None
        try:
            if not client_left(error):
                self.code = 0
                self.boundary.judge(error, self)
            if source is not None:
                try:
                    closable(source).close()
                except BaseException as failure:
                    self.boundary.judge(failure, self)
            if SOCKET in self.environ:
                raise StopIteration from None
            return []
        finally:
            self.finish()
            self.client_socket = None  # it refers to this request

    # -- the end -------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> Iterable[bytes]:
        """Answer for an exception that escaped before the first chunk.

        :raises ResponseCut: if the app had already written.
        """
        self.iterator = None
        if self.taken_ns:
            return self.end_taken(error)
        started = self.response_started
        try:
            self.boundary.judge(error, self)
            source, self.source = self.source, None
            if source is not None:
                try:
                    source.close()
                except BaseException as failure:
                    self.boundary.judge(failure, self)
            if started:
                raise ResponseCut from None
            if self.writer is not None and SOCKET in self.environ:
                raise error  # gunicorn has the head already, and would keep its headers beside ours: let it answer 500
            status, headers, body = self.boundary.answer(error, self)
            self.code = int(status[:3])
            self.refused = isinstance(error, DatabaseUnavailable)
            self.start(status, headers, (type(error), error, error.__traceback__))
            return [] if self.method == "HEAD" else [body]
        finally:
            if started:
                self.code = 0
            self.finish()

    def finish(self) -> None:
        """Finish the request: count it, and release what it held. Further calls do nothing. Never raise."""
        environ = self.environ
        if environ is OVER:
            return
        if not self.health:
            try:
                row = runtime.row or runtime.my_row()
                end = self.taken_ns or _now()
                if self.begun_ns and end - self.begun_ns >= STREAM_NS:
                    row.add_stream((end - self.begun_ns) // 1_000_000)
                    end = self.begun_ns
                row.observe(environ["REQUEST_METHOD"], self.rule.endpoint,
                            scoreboard.REFUSED if self.code == 503 and self.refused else self.code,
                            end - self.started_ns - self.held_ns)
                if self.code >= 400:
                    self.boundary.note(self.code, self)
            except Exception as error:
                report.record(error, event="internal_error", request=self)
        if self.resources is not None:
            self._release()
        self.handled = self.unavailable = None
        place, self.place = self.place, -1
        if place >= 0:
            black_box.words[place] = 0
        if self.outer is None and inflight.get(self.thread_id) is self:  # leave() inlined, which saves a call
            inflight[self.thread_id] = None
            self.environ = OVER
        else:
            self.leave()

    def _release(self) -> None:
        """Release everything that the request held, even if a release fails."""
        resources, self.resources = self.resources or [], None
        for resource in resources:
            try:
                resource.release()
            except Exception as error:
                report.record(error, event="release_failed", request=self)


class _Closing:
    """An object with the given function as its close."""

    __slots__ = ("close",)

    def __init__(self, close: Callable[[], object]) -> None:
        self.close = close


def closable(source: Any) -> _Closing:
    """Return an object that closes the app's iterable.

    The iterable may have no close, and its close may be replaced later.
    """
    return _Closing(getattr(source, "close", _nothing))


def _nothing() -> None:
    return None


def plain(source: Any, length: int) -> list[bytes] | None:
    """Return the whole body of `source` for a plain view: Flask's own response, one chunk of `length` bytes; else None.

    Its close does nothing and can be called immediately, and the system takes the chunk from the server without a wait:
    the request is over once the server has it. The function looks where the installed werkzeug keeps the chunk.
    Anything that does not look exactly like that goes the general way, chunk by chunk.
    """
    if not 0 <= length <= _SMALL:
        return None
    try:
        drawn, closed = source._callbacks
        response = closed.__self__
        if (drawn.__self__.gi_code is _ENCODING and type(response) is Response and closed.__func__ is _CLOSE
                and not response._on_close):
            chunks: Any = response.response
            if type(chunks) is list and len(chunks) == 1 and type(chunks[0]) is bytes and len(chunks[0]) == length:
                return chunks
    except (AttributeError, TypeError, ValueError):
        pass
    return None


def wrong_chunk(chunk: object) -> InvalidResponse:
    """Return the exception for a chunk of a wrong type."""
    return InvalidResponse(f"the body gave {type(chunk).__name__} instead of bytes")
