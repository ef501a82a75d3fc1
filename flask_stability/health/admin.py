"""STABILITY_ADMIN_BIND: a second listener, on an address of its own, that shows details to whoever reaches it.

One worker holds it, the leader; when that is gone the next one takes it over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import socketserver
import stat
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from .. import logs
from ..config import Settings
from .blueprint import make_health_app

PATIENCE = 5.0  #: seconds in which the leader before may give up the address before it is told of
MOST = 16  #: connections at once


class _Handler(WSGIRequestHandler):
    """Quiet, patient for ten seconds, and without a look-up of names."""

    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        return

    def address_string(self) -> str:
        return "admin"


class _TCPServer(socketserver.ThreadingMixIn, WSGIServer):
    """Answers each connection in a thread, a few at once."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: Any, app: Any) -> None:
        self._room = threading.BoundedSemaphore(MOST)
        super().__init__(address, _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        # not WSGIServer's, which asks the name service for our name
        socketserver.TCPServer.server_bind(self)
        self._name_it()

    def _name_it(self) -> None:
        self.server_name, self.server_port = "admin", 0
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        return

    def is_ours(self) -> bool:
        """Whether who connects to the address gets here."""
        return True


class _IPv6Server(_TCPServer):
    address_family = socket.AF_INET6


class _UnixServer(_TCPServer):
    """Readable by the user alone; put in place with one rename, so that there is always one to connect to."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        path = str(self.server_address)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise FileExistsError(17, "a file is in its place")
        made = f"{path}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)
        os.fchmod(self.socket.fileno(), 0o600)  # of the file that bind makes: by its name it may be another by then
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
    """Holds the listener while this worker leads. Used by the monitor's thread alone."""

    def __init__(self, settings: Settings) -> None:
        self._bind = settings.admin_bind
        self._settings = settings
        self._server: _TCPServer | None = None
        self._failing_since = 0.0
        self._told = False

    def keep(self, leading: bool, now: float) -> None:
        """Open it if this worker leads, give it up if not. Never raises.

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
        """Give it up, within a second and without waiting for that."""
        server, self._server = self._server, None

        def end(server: _TCPServer) -> None:
            server.shutdown()
            server.server_close()

        if server is not None:
            threading.Thread(target=end, args=(server,), name="stability-admin-end", daemon=True).start()

    def _open(self, bind: str) -> _TCPServer:
        app = make_health_app(dataclasses.replace(self._settings, health_details="always"))
        if bind.startswith("unix:"):
            return _UnixServer(bind.removeprefix("unix:"), app)
        host, _, port = bind.rpartition(":")
        return (_IPv6Server if host.startswith("[") else _TCPServer)((host.strip("[]"), int(port)), app)
