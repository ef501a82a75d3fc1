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
from ..scoreboard import Scoreboard


class _Handler(WSGIRequestHandler):
    """Quiet, patient for ten seconds, and without a look-up of names."""

    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        return

    def address_string(self) -> str:
        return "admin"

    def get_environ(self) -> dict[str, Any]:
        if not self.client_address:
            self.client_address = ("", 0)
        return super().get_environ()


class _TCPServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True

    def server_bind(self) -> None:
        # not WSGIServer's, which asks the name service for our name
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "admin", 0
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        return


class _IPv6Server(_TCPServer):
    address_family = socket.AF_INET6


class _UnixServer(_TCPServer):
    address_family = socket.AF_UNIX

    def get_request(self) -> tuple[Any, Any]:
        connection, _ = super().get_request()
        return connection, ("", 0)


class AdminListener:
    """Holds the listener while this worker leads."""

    def __init__(self, settings: Settings, board: Scoreboard) -> None:
        self._bind = settings.admin_bind
        self._settings, self._board = settings, board
        self._server: _TCPServer | None = None
        self._told = False

    def keep(self, leading: bool) -> None:
        """Open it if this worker leads, give it up if not. Never raises."""
        if self._bind is None or leading == (self._server is not None):
            return
        if not leading:
            self.close()
            return
        try:
            self._server = self._open(self._bind)
            threading.Thread(target=self._server.serve_forever, name="stability-admin", daemon=True).start()
            self._told = False
        except OSError as error:
            if not self._told:
                self._told = True
                logs.error("admin_bind_failed", bind=self._bind, error=error.strerror or type(error).__name__,
                           remedy="free the address or set another in STABILITY_ADMIN_BIND; it is tried again")

    def close(self) -> None:
        """Give it up."""
        server, self._server = self._server, None
        if server is not None:
            threading.Thread(target=server.shutdown, daemon=True).start()
            with contextlib.suppress(OSError):
                server.server_close()

    def _open(self, bind: str) -> _TCPServer:
        from .blueprint import make_health_app

        server: _TCPServer
        if bind.startswith("unix:"):
            path = bind.removeprefix("unix:")
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)
            before = os.umask(0o177)
            try:
                server = _UnixServer(path, _Handler)  # type: ignore[arg-type]
            finally:
                os.umask(before)
        else:
            host, _, port = bind.rpartition(":")
            kind = _IPv6Server if host.startswith("[") else _TCPServer
            server = kind((host.strip("[]"), int(port)), _Handler)
        server.set_app(make_health_app(dataclasses.replace(self._settings, health_details="always")))
        return server
