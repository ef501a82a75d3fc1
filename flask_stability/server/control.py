"""The master's control socket: the only channel for an operator's orders.

A Unix socket of mode 0600 beside the scoreboard's file. The kernel names the caller (``SO_PEERCRED``); the master
accepts its own user, the workers' user and root. A request is one JSON message, and so is the answer
(``SOCK_SEQPACKET``). The master serves the socket in its tick, without a thread, and never waits: it drops a client
that connects and sends nothing.

Only the master binds the socket; a worker closes the inherited one. Without the socket (no directory, or another file
in its place) the service still runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any

from ..exceptions import StabilityError
from ..files import reachable
from ..scoreboard import file as scoreboard_file

MOST = 8192  #: maximum bytes of an order, and of an answer
PATIENCE = 5.0  #: seconds that a client has to send its order
CLIENTS = 16  #: maximum number of connections at once
CREDENTIALS = struct.Struct("=iII")  # pid, uid, gid

Handler = Callable[[dict[str, Any], int], dict[str, Any]]


class ControlError(StabilityError):
    """The master was unreachable, or refused the order; the message gives the reason."""


def path_of(board: str) -> str:
    """Return the path of the control socket of the master whose scoreboard has this file."""
    return board.removesuffix(scoreboard_file.SUFFIX) + scoreboard_file.CONTROL


def is_own(folder: str) -> bool:
    """Return whether only this process's user can create files in a folder."""
    found = os.stat(folder)
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class Listener:
    """The master's end of the control socket.

    :param handle: carries out an order for a user (its uid). Its exception becomes the answer's error. The listener
        sends the ``descriptors`` that it returns as file descriptors, and closes them.
    :param uid: the workers' user if it differs from ours, -1 = it does not. This user may give orders too. The listener
        makes it the socket's owner if no other user can have replaced the file.
    """

    def __init__(self, path: str, handle: Handler, uid: int = -1) -> None:
        self._path, self._handle, self._uid = path, handle, uid
        self._clients: list[tuple[socket.socket, float]] = []
        self._socket: socket.socket | None = None
        self._owner = os.getpid()

    def open(self) -> str:
        """Listen; return the reason if that fails, else "". Never raise."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            with reachable(self._path) as name:
                with contextlib.suppress(FileNotFoundError):
                    found = os.lstat(name)
                    if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid():
                        os.unlink(name)  # left by an earlier process with this process id
                listener.bind(name)
                if self._uid != -1 and is_own(os.path.dirname(name)):
                    os.chown(name, self._uid, -1, follow_symlinks=False)
            listener.listen(CLIENTS)
        except OSError as error:
            listener.close()
            return f"no control socket at {self._path}: {error.strerror or error}"
        finally:
            os.umask(before)
        self._socket = listener
        return ""

    def serve(self, now: float) -> None:
        """Answer the clients that have sent an order, without waiting for the others. Never raise.

        :param now: monotonic seconds.
        """
        if self._socket is None:
            return
        while len(self._clients) < CLIENTS:
            try:
                client, _ = self._socket.accept()
            except OSError:  # no client, or no free descriptor for one
                break
            client.setblocking(False)
            self._clients.append((client, now + PATIENCE))
        for client, until in list(self._clients):
            try:
                data = client.recv(MOST + 1)
            except BlockingIOError:
                if now < until:
                    continue
                data = b""
            except OSError:
                data = b""
            self._clients.remove((client, until))
            with contextlib.suppress(OSError), client:
                if data:
                    self._send(client, *self._answer(client, data))

    @staticmethod
    def _send(client: socket.socket, answer: bytes, descriptors: list[int]) -> None:
        try:
            socket.send_fds(client, [answer], descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _answer(self, client: socket.socket, data: bytes) -> tuple[bytes, list[int]]:
        descriptors: list[int] = []
        try:
            _, uid, _ = CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
            if uid not in (0, os.geteuid(), self._uid):
                raise ControlError("orders are taken from the service's own user and from root")
            order = json.loads(data) if len(data) <= MOST else None
            if not isinstance(order, dict):
                raise ControlError("an order is a JSON object")
            answer: dict[str, Any] = {"ok": True, **self._handle(order, uid)}
            descriptors = answer.pop("descriptors", [])
        except Exception as error:
            answer = {"ok": False, "error": str(error)[:500] or type(error).__name__}
        found = json.dumps(answer, default=str).encode()
        return found if len(found) <= MOST else b'{"ok": true}', descriptors

    def close(self, *, inherited: bool = False) -> None:
        """Stop listening. Never raise.

        :param inherited: in a forked child: the master keeps the socket and its file.
        """
        for client, _ in self._clients:
            client.close()
        self._clients = []
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            if not inherited and os.getpid() == self._owner:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
