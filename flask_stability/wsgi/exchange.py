"""One request and its response: what the app calls, what the server calls, and the end.

One object serves as the request's record, the app's ``start_response``, its ``write`` and the iterable for the
server, and its functions look up little: every object and every name costs the path of a good request.
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

END: Any = object()  #: of a body

_now = time.monotonic_ns
#: An answer whose body takes this long after its first chunk is a stream, as an event stream or a download is: it is
#: counted by its time to that chunk.
STREAM_NS = 100_000_000
#: Bytes that fit in any socket's buffer, also of a client far away that has read nothing yet.
_SMALL = 1 << 14
#: What gives the body of a response of Flask's, chunk by chunk, and what closes it, in werkzeug.
_ENCODING = getattr(getattr(werkzeug_response, "_iter_encoded", None), "__code__", None)
_CLOSE = werkzeug_response.Response.close


class ResponseCut(BrokenPipeError):
    """Raised to the server to cut a response that has begun: gunicorn closes the connection and says nothing."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "response cut")


class Exchange(RequestRecord):
    """See the module.

    :ivar boundary: judges what escapes, for the layer that made it.
    :ivar start: the server's start_response.
    :ivar head: what it will be called with; None before the app's start_response.
    :ivar writer: the server's write callable, once it was given the head.
    :ivar early: the head is given on at once: the next to see it is another layer around the app, which may need
        Flask's context for that (OpenTelemetry's does).
    :ivar code: the answer's status; 0 before start_response, and for an answer that was cut off.
    :ivar length: its Content-Length, -1 without one.
    :ivar source: what the app returned, with a close; None before that, and once it was closed.
    :ivar chunk: the first of the body.
    :ivar iterator: what the rest of the body comes from; None before the first chunk, and at the end.
    :ivar sent: bytes that the app wrote itself, by the write callable.
    :ivar begun_ns: `time.monotonic_ns` when the server was given the head, with the first chunk; 0 before.
    """

    __slots__ = ("begun_ns", "boundary", "chunk", "code", "early", "head", "iterator", "length", "sent", "source",
                 "start", "writer")

    __init__ = object.__init__  # the layer that makes it sets all of them: a call less
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
        """WSGI's start_response, checked and held back."""
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
            headers = [(name, value) for name, value in headers]  # pairs that are lists, or nothing of the kind
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
        """WSGI's imperative way to write: the answer has begun."""
        if type(data) is not bytes:
            raise InvalidResponse(f"write() was given {type(data).__name__} instead of bytes")
        if not self.response_started:
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
        if self.head is None:
            raise InvalidResponse("the app did not call start_response")
        if self.writer is None:
            self.writer = self.start(*self.head)
        self.response_started = True
        self.begun_ns = _now()
        black_box.answering(self.place)

    def passes_file(self, source: Any) -> bool:
        """A file for the server's sendfile is handed on untouched but for its close."""
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
                    raise  # the server drops this generator: it is raised by the yield, not by the app
                self.cut(error)
            self.iterator = None
        if self.length > sent:
            self._tell_short(sent)
        if "SERVER_SOFTWARE" not in self.environ:
            self.finish()  # a test client does not always close what it was given

    def cut(self, error: BaseException) -> None:
        """It failed in mid-stream.

        :raises ResponseCut: or the error itself, where it is to pass.
        """
        self.iterator, self.code = None, 0
        self.boundary.judge(error, self)
        raise ResponseCut from None

    def _tell_short(self, sent: int) -> None:
        sent += self.sent  # what was written
        if self.length > sent and self.method != "HEAD" and not forbids_body(self.code) and self.supervised:
            logs.error("content_length_mismatch", level="WARNING", declared=self.length, sent=sent,
                       **report.request_fields(self))
            raise ResponseCut  # a client that keeps the connection would wait for the rest

    def close(self) -> None:
        """Called by the server at the end, however it ends."""
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
        """The app spoke with the client itself, and is done: nothing of HTTP is written after that.

        :param error: what it ended with.
        :raises StopIteration: for which gunicorn closes the connection.
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
            self.client_socket = None  # which knows this request

    # -- the end -------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> Iterable[bytes]:
        """Answer for what escaped before the first chunk.

        :raises ResponseCut: if the app had written already.
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
                raise error  # gunicorn has the head already, and would keep its headers beside ours: it answers 500
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
        """The request is over: it is counted, what it held goes back. Once; never raises."""
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
        if self.outer is None and inflight.get(self.thread_id) is self:  # leave(), a call less
            inflight[self.thread_id] = None
            self.environ = OVER
        else:
            self.leave()

    def _release(self) -> None:
        """Give back what the request held, whatever happens."""
        resources, self.resources = self.resources or [], None
        for resource in resources:
            try:
                resource.release()
            except Exception as error:
                report.record(error, event="release_failed", request=self)


class _Closing:
    """A close function as an object that has one."""

    __slots__ = ("close",)

    def __init__(self, close: Callable[[], object]) -> None:
        self.close = close


def closable(source: Any) -> _Closing:
    """What closes what the app returned, whether that has a close or not, and also once it was given another one."""
    return _Closing(getattr(source, "close", _nothing))


def _nothing() -> None:
    return None


def plain(source: Any, length: int) -> list[bytes] | None:
    """All of the body that `source` gives, if it is a plain view's: Flask's own response, one chunk of `length` bytes.

    Its close has nothing to do and can be called at once, and the system takes the chunk from the server without a
    wait: the request is over when the server has it. It is looked for where the installed werkzeug keeps it; what does
    not look exactly like that goes the general way, chunk by chunk.
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
    """What a chunk of a wrong type is refused with."""
    return InvalidResponse(f"the body gave {type(chunk).__name__} instead of bytes")
