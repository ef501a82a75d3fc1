"""STABILITY_ADMIN_BIND: a second listener that shows details to every client that reaches it.

The leading worker holds it; when that one is gone, the next leader takes it over. The Host header must name the
listener, so a hostile page in an operator's browser cannot read it by DNS rebinding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import socket
import socketserver
import stat
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from .. import logs
from ..config import Settings
from .blueprint import HEALTH_JSON, make_health_app

PATIENCE = 5.0  #: seconds for the previous leader to release the address before that is logged
MOST = 16  #: maximum number of connections at once
LONGEST = 10.0  #: maximum seconds that a connection may take in all
LOCAL = "flask_stability.address"  #: key in the environ: the address at which a connection arrived
_SERVER = ("Server", "stability")

WSGIApp = Callable[..., Iterable[bytes]]


class _Handler(WSGIRequestHandler):
    """Handles a request without logging, for at most ten seconds, without resolving names or revealing versions."""

    timeout = LONGEST

    def version_string(self) -> str:
        return _SERVER[1]

    def log_message(self, format: str, *args: Any) -> None:
        return

    def address_string(self) -> str:
        return "admin"

    def get_environ(self) -> Any:
        environ = super().get_environ()
        name = self.connection.getsockname()
        environ[LOCAL] = name[0] if isinstance(name, tuple) else ""
        return environ


class _TCPServer(socketserver.ThreadingMixIn, WSGIServer):
    """Answers each connection in a thread, a few at once."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: Any, app: Any) -> None:
        self._room = threading.BoundedSemaphore(MOST)
        self._lock = threading.Lock()
        self._begun: dict[socket.socket, float] = {}  # the open connections, the oldest first
        super().__init__(address, _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        # not WSGIServer's, which asks the resolver for our name
        socketserver.TCPServer.server_bind(self)
        self._name_it()

    def _name_it(self) -> None:
        self.server_name, self.server_port = "admin", 0
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self._cut(1)  # an answer takes milliseconds, so the oldest connection is stale
            if not self._room.acquire(timeout=1.0):
                self.shutdown_request(request)
                return
        with self._lock:
            self._begun[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._over(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._over(request)

    def _over(self, request: socket.socket) -> None:
        with self._lock:
            self._begun.pop(request, None)
        self._room.release()

    def service_actions(self) -> None:
        """End old connections, twice a second: a client that drips bytes keeps no thread."""
        late = time.monotonic() - LONGEST
        with self._lock:
            number = sum(begun < late for begun in self._begun.values())
        self._cut(number)

    def _cut(self, number: int) -> None:
        """End the oldest connections; their threads notice."""
        with self._lock:
            for connection in list(self._begun)[:number]:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        return

    def is_ours(self) -> bool:
        """Return whether a connection to the address arrives at this listener."""
        return True



class _IPv6Server(_TCPServer):
    address_family = socket.AF_INET6


class _UnixServer(_TCPServer):
    """Binds a socket file that only the user can open; one rename puts it in place, so there is always one."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        path = str(self.server_address)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise FileExistsError(17, "a file is in its place")
        made = f"{path}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)
        # bind creates the file with this mode; a later chmod by name could hit another file
        os.fchmod(self.socket.fileno(), 0o600)
        self.socket.bind(made)
        try:
            self._inode = os.lstat(made).st_ino
            os.rename(made, path)
        except OSError:
            os.unlink(made)
            raise
        self._name_it()

    def get_request(self) -> tuple[Any, Any]:
        connection, _ = super().get_request()
        return connection, ("", 0)

    def is_ours(self) -> bool:
        try:
            return os.lstat(str(self.server_address)).st_ino == self._inode
        except OSError:
            return False


class AdminListener:
    """Holds the listener while this worker leads. Only the monitor's thread uses it."""

    def __init__(self, settings: Settings) -> None:
        self._bind = settings.admin_bind
        self._settings = settings
        self._server: _TCPServer | None = None
        self._failing_since = 0.0
        self._told = False

    def keep(self, leading: bool, now: float) -> None:
        """Open the listener if this worker leads, else close it. Never raises.

        :param now: monotonic seconds.
        """
        if self._bind is None:
            return
        if self._server is not None and not (leading and self._server.is_ours()):
            self.close()
        if leading and self._server is None:
            try:
                self._server = self._open(self._bind)
                threading.Thread(target=self._server.serve_forever, name="stability-admin", daemon=True).start()
                self._failing_since, self._told = 0.0, False
            except (OSError, OverflowError) as error:
                self._failing_since = self._failing_since or now
                if not self._told and now - self._failing_since >= PATIENCE:
                    self._told = True
                    logs.error("admin_bind_failed", bind=self._bind,
                               error=getattr(error, "strerror", None) or type(error).__name__,
                               remedy="free the address or set another in STABILITY_ADMIN_BIND; it is tried again")

    def close(self) -> None:
        """Close the listener within a second, without waiting for it."""
        server, self._server = self._server, None

        def end(server: _TCPServer) -> None:
            server.shutdown()
            server.server_close()

        if server is not None:
            threading.Thread(target=end, args=(server,), name="stability-admin-end", daemon=True).start()

    def _open(self, bind: str) -> _TCPServer:
        app: WSGIApp = make_health_app(dataclasses.replace(self._settings, health_details="always"))
        if bind.startswith("unix:"):
            return _UnixServer(bind.removeprefix("unix:"), _nameless(app))  # no browser reaches it
        host, _, port = bind.rpartition(":")
        host = host.strip("[]")
        kind = _IPv6Server if ":" in host else _TCPServer
        return kind((host, int(port)), _nameless(_HostCheck(app, host, self._settings.admin_hosts)))


def _nameless(app: WSGIApp) -> WSGIApp:
    """Remove the Python version from the answers of an app."""
    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, _SERVER], *rest)

        return app(environ, start)

    return call


class _HostCheck:
    """Refuses a Host that is not the listener's: its address, localhost, or a name of STABILITY_ADMIN_HOSTS.

    :param host: the host of STABILITY_ADMIN_BIND.
    """

    def __init__(self, app: WSGIApp, host: str, names: Iterable[str]) -> None:
        self._app = app
        self._names = {_bare(name) for name in (host, "localhost", "127.0.0.1", "::1", *names)} - {"0.0.0.0", "::"}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environ.get("HTTP_HOST")
        # No browser omits it; wsgiref joins several with commas, and the result is not a name.
        if given is None or self.is_ours(given, environ.get(LOCAL, "")):
            return self._app(environ, start_response)
        body = (b'{"status": "fail", "notes": ["this listener is not asked by that name: '
                b'add it to STABILITY_ADMIN_HOSTS, or ask by its address"]}')
        start_response("421 Misdirected Request", [("Content-Type", HEALTH_JSON), ("Content-Length", str(len(body))),
                                                   ("Cache-Control", "no-store")])
        return [body]

    def is_ours(self, given: str, address: str) -> bool:
        """Return whether the Host header names the listener.

        :param address: the address at which the connection arrived, not the wildcard that the listener is bound to.
        """
        name = _bare(_without_port(given))
        return bool(name) and (name in self._names or name == _bare(address))


def _without_port(given: str) -> str:
    if given.startswith("["):
        host, closed, rest = given[1:].partition("]")
        return host if closed and (not rest or (rest[0] == ":" and rest[1:].isdecimal())) else ""
    host, colon, port = given.partition(":")
    return host if not colon or port.isdecimal() else ""


def _bare(name: str) -> str:
    """Return a name or address in its canonical form."""
    name = name.strip("[]").partition("%")[0]
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name)
        return str(getattr(address, "ipv4_mapped", None) or address)
    return name.lower().removesuffix(".")
