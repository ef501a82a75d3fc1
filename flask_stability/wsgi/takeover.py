"""A request whose app takes the client's socket over: WebSockets under WSGI.

The libraries for them (simple-websocket, and on it Flask-Sock and Flask-SocketIO) take ``gunicorn.socket`` from the
environ, speak on it themselves, and at the end raise `StopIteration`, for which gunicorn closes the connection.
gevent-websocket's server does the handshake before it calls the app. In both cases the answer has begun, no deadline
holds any more, and nothing of HTTP may be written into the stream.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
from typing import Any

from ..request import RequestRecord

#: RFC 6455: a close frame with the status 1001, "going away": a client connects again.
_GOING_AWAY = b"\x88\x02\x03\xe9"
_CLIENT_LEFT = frozenset({errno.EBADF, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT})


class AppSocket:
    """Stands in the environ for the client's socket, and notices when the app itself sends on it.

    Everything else is the socket's own. What is sent through it is sent under a lock, so that a farewell never falls
    into the middle of a frame. The layer that makes it sets what it has: a call less for each request.

    :ivar stability_socket: the client's.
    :ivar stability_record: the request.
    :ivar stability_lock: None until the app takes the socket over.
    """

    __slots__ = ("stability_lock", "stability_record", "stability_socket")
    stability_socket: socket.socket
    stability_record: RequestRecord
    stability_lock: threading.Lock | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stability_socket, name)

    @property  # type: ignore[misc]  # for a library that asks isinstance()
    def __class__(self) -> type:
        return type(self.stability_socket)

    def __enter__(self) -> AppSocket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream; the descriptor is the server's. gunicorn would count a connection that it finds closed twice
        as ended, and so forget one that lives.
        """
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.stability_socket, socket.SHUT_RDWR)

    def _taken(self) -> threading.Lock:
        if self.stability_lock is None:
            self.stability_lock = threading.Lock()
            self.stability_record.take(self)
        return self.stability_lock

    # -- what takes it over --------------------------------------------------------------------------------------

    def send(self, *args: Any, **options: Any) -> Any:
        """`socket.socket.send`."""
        with self._taken():
            return self.stability_socket.send(*args, **options)

    def sendall(self, *args: Any, **options: Any) -> Any:
        """`socket.socket.sendall`."""
        with self._taken():
            return self.stability_socket.sendall(*args, **options)

    def sendmsg(self, *args: Any, **options: Any) -> Any:
        """`socket.socket.sendmsg`."""
        with self._taken():
            return self.stability_socket.sendmsg(*args, **options)

    def sendfile(self, *args: Any, **options: Any) -> Any:
        """`socket.socket.sendfile`."""
        with self._taken():
            return self.stability_socket.sendfile(*args, **options)

    def write(self, *args: Any, **options: Any) -> Any:
        """`ssl.SSLSocket.write`."""
        with self._taken():
            return self.stability_socket.write(*args, **options)  # type: ignore[attr-defined]

    def makefile(self, *args: Any, **options: Any) -> Any:
        """`socket.socket.makefile`: what is sent by the file is not seen here."""
        self._taken()
        return self.stability_socket.makefile(*args, **options)

    def dup(self) -> Any:
        """`socket.socket.dup`, as `makefile`."""
        self._taken()
        return self.stability_socket.dup()

    def detach(self) -> int:
        """`socket.socket.detach`, as `makefile`."""
        self._taken()
        return self.stability_socket.detach()

    # -- the guard's: the worker leaves --------------------------------------------------------------------------

    def say_goodbye(self) -> None:
        """Tell a WebSocket's client that this server goes away; never waits, never raises."""
        lock = self.stability_lock
        upgrade = str(self.stability_record.environ.get("HTTP_UPGRADE", "")).lower()
        if upgrade != "websocket" or lock is None or not lock.acquire(blocking=False):
            return
        try:
            poll = select.poll()
            poll.register(self.stability_socket, select.POLLOUT)
            if poll.poll(0):
                self.stability_socket.send(_GOING_AWAY)
        except (OSError, ValueError):
            pass  # it is closed already
        finally:
            lock.release()

    def cut(self) -> None:
        """Have the app's next read find the end of the stream; never waits, never raises."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.stability_socket, socket.SHUT_RD)


def client_left(error: BaseException) -> bool:
    """Whether what ended an app's conversation is no fault: `StopIteration`, or the client's own leaving."""
    if isinstance(error, (StopIteration, ConnectionError)):
        return True
    return isinstance(error, OSError) and error.errno in _CLIENT_LEFT


class Farewells:
    """Which of the sockets that apps took over were told that the worker leaves. The guard's.

    :param grace: seconds from the farewell to the end of the stream.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._told: dict[int, tuple[Any, float]] = {}

    def look(self, now: float, records: list[RequestRecord], *, late: bool) -> None:
        """They are closed last: once no other request is in flight, or it is late."""
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
