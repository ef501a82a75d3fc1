"""A request whose app takes over the client's socket: WebSockets under WSGI.

The WebSocket libraries (simple-websocket, and on it Flask-Sock and Flask-SocketIO) take ``gunicorn.socket`` from the
environ, speak on it themselves, and at the end raise `StopIteration`, on which gunicorn closes the connection.
gevent-websocket's server does the handshake before it calls the app. In both cases the answer has begun, no deadline
applies any more, and the server must write no HTTP into the stream.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
from typing import Any

from ..request import RequestRecord

#: RFC 6455: a close frame with status 1001, "going away", after which a client reconnects.
_GOING_AWAY = b"\x88\x02\x03\xe9"
_CLIENT_LEFT = frozenset({errno.EBADF, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT})


class AppSocket:
    """Replaces the client's socket in the environ, and notices when the app itself sends on it.

    Everything else is the socket's own. A lock protects each send, so that a farewell never falls into the middle of a
    frame.
    """

    __slots__ = ("_lock", "_record", "_socket")

    def __init__(self, client: socket.socket, record: RequestRecord) -> None:
        self._socket, self._record = client, record
        self._lock: threading.Lock | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    @property  # type: ignore[misc]  # for a library that asks isinstance()
    def __class__(self) -> type:
        return type(self._socket)

    def __enter__(self) -> AppSocket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream, but leave the descriptor to the server.

        gunicorn would count a connection that it finds closed twice as ended, and so forget a live one.
        """
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _taken(self) -> threading.Lock:
        if self._lock is None:
            self._lock = threading.Lock()
            self._record.take(self)
        return self._lock

    # -- what takes it over --------------------------------------------------------------------------------------

    def send(self, *args: Any, **options: Any) -> Any:
        """Send as `socket.socket.send` does."""
        with self._taken():
            return self._socket.send(*args, **options)

    def sendall(self, *args: Any, **options: Any) -> Any:
        """Send as `socket.socket.sendall` does."""
        with self._taken():
            return self._socket.sendall(*args, **options)

    def sendmsg(self, *args: Any, **options: Any) -> Any:
        """Send as `socket.socket.sendmsg` does."""
        with self._taken():
            return self._socket.sendmsg(*args, **options)

    def sendfile(self, *args: Any, **options: Any) -> Any:
        """Send as `socket.socket.sendfile` does."""
        with self._taken():
            return self._socket.sendfile(*args, **options)

    def write(self, *args: Any, **options: Any) -> Any:
        """Write as `ssl.SSLSocket.write` does."""
        with self._taken():
            return self._socket.write(*args, **options)  # type: ignore[attr-defined]

    def makefile(self, *args: Any, **options: Any) -> Any:
        """Return a file as `socket.socket.makefile` does. This object does not see what the file sends."""
        self._taken()
        return self._socket.makefile(*args, **options)

    def dup(self) -> Any:
        """Return a duplicate as `socket.socket.dup` does, with the same restriction as `makefile`."""
        self._taken()
        return self._socket.dup()

    def detach(self) -> int:
        """Return the descriptor as `socket.socket.detach` does, with the same restriction as `makefile`."""
        self._taken()
        return self._socket.detach()

    # -- the guard's: the worker leaves --------------------------------------------------------------------------

    def say_goodbye(self) -> None:
        """Tell a WebSocket's client that this server is going away; never wait, never raise."""
        lock = self._lock
        upgrade = str(self._record.environ.get("HTTP_UPGRADE", "")).lower()
        if upgrade != "websocket" or lock is None or not lock.acquire(blocking=False):
            return
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            if poll.poll(0):
                self._socket.send(_GOING_AWAY)
        except (OSError, ValueError):
            pass  # the socket is closed already
        finally:
            lock.release()

    def cut(self) -> None:
        """Make the app's next read find the end of the stream; never wait, never raise."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RD)


def client_left(error: BaseException) -> bool:
    """Return whether an app's conversation ended without a fault: by `StopIteration`, or because the client left."""
    if isinstance(error, (StopIteration, ConnectionError)):
        return True
    return isinstance(error, OSError) and error.errno in _CLIENT_LEFT


class Farewells:
    """The farewells to clients whose sockets apps took over, when the worker leaves. The guard uses it.

    :param grace: seconds from the farewell to the end of the stream.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._told: dict[int, tuple[Any, float]] = {}

    def look(self, now: float, records: list[RequestRecord], *, late: bool) -> None:
        """Say goodbye once no other request is in flight, or it is late; cut each socket after the grace time.

        :param now: monotonic seconds.
        :param records: the requests in flight.
        :param late: do not wait for other requests any longer.
        """
        taken = [record for record in records if record.taken_ns]
        if not taken or (len(taken) < len(records) and not late):
            return
        for record in taken:
            client = record.client_socket
            if client is None:
                continue
            known, since = self._told.setdefault(id(record), (record, 0.0))
            if known is record and not since:
                self._told[id(record)] = record, now
                client.say_goodbye()
            elif now - since > self._grace:
                client.cut()
