"""The boundary: what becomes of an exception that escaped from an app, or of an answer that tells of an error."""

from __future__ import annotations

from collections.abc import Callable

from .. import logs
from ..config import Settings
from ..exceptions import DatabaseUnavailable
from ..request import RequestRecord
from ..runtime import runtime
from . import report
from .problem import response_for

Headers = list[tuple[str, str]]


class Boundary:
    """Judges for one layer around an app.

    :param propagate: whether an exception is to reach the caller, as Flask's PROPAGATE_EXCEPTIONS and TESTING ask for;
        None = never, where a server serves.
    :ivar id_header: the header that carries a request's id.
    """

    def __init__(self, settings: Settings, propagate: Callable[[], bool] | None = None) -> None:
        self.id_header = settings.request_id_header
        self.propagate = propagate
        self._settings = settings

    def judge(self, error: BaseException, request: RequestRecord) -> None:
        """Record what escaped.

        :raises BaseException: `error` itself, where it is to reach the server: the server's own SystemExit, what
            Flask's PROPAGATE_EXCEPTIONS lets out, all of it without a server.
        """
        if not request.supervised or (self.propagate is not None and self.propagate()):
            raise error
        if isinstance(error, SystemExit) and runtime.stopping():
            handler = report.server_handler(error)
            if handler is not None:
                event = "request_timeout" if handler == "handle_abort" else "request_shutdown"
                report.record(error, event=event, level="CRITICAL", request=request)
                raise error
        level = "ERROR" if isinstance(error, Exception) else "CRITICAL"
        report.record(error, event="exception", level=level, request=request)

    def answer(self, error: BaseException, request: RequestRecord) -> tuple[str, Headers, bytes]:
        """Return status line, headers and body for what escaped before the answer began."""
        status, headers, body = response_for(error, request.environ, self._settings, request.id)
        headers.append((self.id_header, request.id))
        return status, headers, body

    def add_id(self, headers: Headers, request: RequestRecord) -> None:
        """Add the request's id, once, to an answer that is an error's or goes to a client that gave an id."""
        name = self.id_header
        if all(given.lower() != name.lower() for given, _ in headers):
            headers.append((name, request.id))

    def note(self, code: int, request: RequestRecord) -> None:
        """Log an answer of 400 or more: without an exception a 5xx is still an error of ours, a 4xx the client's."""
        if code >= 500:
            if request.recorded is None and request.supervised:
                if request.handled is not None:  # by a handler of the app's, which made this answer of it
                    report.record(request.handled, request=request)
                else:
                    logs.error("server_error", status=code, **report.request_fields(request))
        elif self._settings.log_client_errors:
            logs.error("client_error", level="WARNING", status=code, **report.request_fields(request))


def unavailable(request: RequestRecord) -> DatabaseUnavailable:
    """Return what an extension's 500 for a database that cannot be had is replaced by. It was recorded already."""
    error, request.unavailable = request.unavailable, None
    if not isinstance(error, DatabaseUnavailable):
        error = DatabaseUnavailable()
    report.mark(error, request)
    return error
