"""Hand a request over to another worker of the same service: proxy it as HTTP over a Unix socket.

The worker that accepted and parsed the request still speaks with the client, so TLS, read-ahead and keep-alive work as
usual. A header of its own carries the parts of the environ that are not headers (the client's address, the scheme, the
id). The other worker trusts this header because only the service's own user can open the socket.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote

from ..files import reachable

HEADER, KEY = "X-Stability-Handover", "HTTP_X_STABILITY_HANDOVER"
ID, EXACT = "flask_stability.id", "flask_stability.exact"  # keys of the environ in the other worker
CHUNK = 1 << 16  #: bytes
#: Headers of one hop only (RFC 9110, 7.6.1), and those that the server facing the client sets itself.
_OF_THE_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
                         "upgrade", "expect", "server", "date"})
_SAFE = "/:@!$&'()*+,;=~-._"


class NotTaken(Exception):
    """The other worker did not take the request, or ended before it answered.

    :param full: too many requests already wait for it.
    """

    def __init__(self, *, full: bool) -> None:
        super().__init__("the isolation worker is busy" if full else "the isolation worker ended")
        self.full = full


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("handover", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.setblocking(False)  # the kernel then refuses a connection beyond the backlog instead of blocking
        with reachable(self._path) as name:
            self.sock.connect(name)
        self.sock.settimeout(self.timeout)


class Answer:
    """The other worker's answer, chunk by chunk."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response = connection, response

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._response.read1(CHUNK):
            yield chunk

    def close(self) -> None:
        """Close the connection to the other worker. The server calls this."""
        self._response.close()
        self._connection.close()


def hand_over(environ: dict[str, Any], start_response: Callable[..., Any], path: str, *, request_id: str,
              exact: int, timeout: float, knock: Callable[[], None]) -> Iterable[bytes]:
    """Have the worker that accepts at `path` answer a request; return the body.

    :param exact: its exact fingerprint.
    :param timeout: seconds without a byte after which to give up.
    :param knock: called once the request waits there.
    :raises NotTaken: before any part of the answer.
    """
    connection = _Connection(path, timeout)
    try:
        try:
            connection.connect()
        except BlockingIOError:
            raise NotTaken(full=True) from None
        knock()
        _send(connection, environ, request_id, exact)
        response = connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        raise NotTaken(full=False) from error
    except BaseException:
        connection.close()
        raise
    headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _OF_THE_HOP]
    answer = Answer(connection, response)
    try:
        start_response(f"{response.status} {response.reason or 'Status'}", headers)
    except BaseException:
        answer.close()
        raise
    return answer


def _send(connection: http.client.HTTPConnection, environ: dict[str, Any], request_id: str, exact: int) -> None:
    path = quote((environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1"), safe=_SAFE) or "/"
    connection.putrequest(environ["REQUEST_METHOD"], path, skip_host=True, skip_accept_encoding=True)
    kept = {name: value for name, value in environ.items() if type(value) is str and not name.startswith("HTTP_")
            and name not in ("CONTENT_LENGTH", "CONTENT_TYPE", "SERVER_SOFTWARE")}
    kept[ID], kept[EXACT] = request_id, str(exact)
    connection.putheader(HEADER, base64.b64encode(json.dumps(kept).encode()).decode())
    for name, value in environ.items():
        if name.startswith("HTTP_") and name != KEY and type(value) is str:
            header = name[5:].replace("_", "-").title()
            if header.lower() not in _OF_THE_HOP and header.lower() not in ("content-length", "content-type"):
                connection.putheader(header, value)
    if environ.get("CONTENT_TYPE"):
        connection.putheader("Content-Type", environ["CONTENT_TYPE"])
    length = environ.get("CONTENT_LENGTH")
    chunked = not length and "chunked" in str(environ.get("HTTP_TRANSFER_ENCODING", "")).lower()
    if length:
        connection.putheader("Content-Length", length)
    elif chunked:
        connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    if length or chunked:
        for chunk in _body(environ, int(length) if length else None):
            connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
        if chunked:
            connection.send(b"0\r\n\r\n")


def _body(environ: dict[str, Any], left: int | None) -> Iterator[bytes]:
    source = environ["wsgi.input"]
    while left is None or left > 0:
        chunk = source.read(CHUNK if left is None else min(CHUNK, left))
        if not chunk:
            return
        if left is not None:
            left -= len(chunk)
        yield chunk


def restored(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Return the app for the worker that gets the requests: it sees the environ of the worker that accepted them."""
    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            given = json.loads(base64.b64decode(environ.pop(KEY)))
        except (KeyError, ValueError):
            start_response("400 Bad Request", [("Content-Length", "0")])
            return []
        environ.update({str(name): str(value) for name, value in given.items()})
        return app(environ, start_response)

    return call
