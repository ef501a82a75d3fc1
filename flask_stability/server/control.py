"""The master's control socket: the only way in for an operator's orders.

A Unix socket of mode 0600 beside the scoreboard's file. Who asks is told by the kernel (``SO_PEERCRED``): the master's
own user, the workers' user, or root. A request is one message of JSON, and so is the answer (``SOCK_SEQPACKET``). The
master serves it in its tick, without a thread, and waits for nobody: a client that connects and says nothing is let go.

Only the master binds it; a worker closes what it inherited. Without it (no directory, a foreign file in its place) the
service runs all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..exceptions import StabilityError
from ..scoreboard import file as scoreboard_file

MOST = 8192  #: bytes of an order, and of an answer
PATIENCE = 5.0  #: seconds for a client to say what it wants
CLIENTS = 16  #: connections at once
_CREDENTIALS = struct.Struct("=iII")  # pid, uid, gid

Handler = Callable[[dict[str, Any], int], dict[str, Any]]


class ControlError(StabilityError):
    """The master could not be asked, or refused; the message says why."""


def path_of(board: str) -> str:
    """Return where the control socket of the master is whose scoreboard has this file."""
    return board.removesuffix(scoreboard_file.SUFFIX) + scoreboard_file.CONTROL


@contextlib.contextmanager
def _reachable(path: str) -> Iterator[str]:
    """A name for `path` that fits into a socket's address (107 bytes), and whose folder cannot be swapped meanwhile."""
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)


def _is_own(folder: str) -> bool:
    """Whether nobody but this process's user can make a file in a folder."""
    found = os.stat(folder)
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class Listener:
    """The master's end.

    :param handle: carries out an order for a user (its uid); what it raises becomes the answer's error. What it returns
        as ``descriptors`` is sent as such, and closed here.
    :param uid: the workers' user, who may give orders too, if it is another; the socket becomes theirs, where nobody
        else can have put another file in its place.
    """

    def __init__(self, path: str, handle: Handler, uid: int = -1) -> None:
        self._path, self._handle, self._uid = path, handle, uid
        self._clients: list[tuple[socket.socket, float]] = []
        self._socket: socket.socket | None = None
        self._owner = os.getpid()

    def open(self) -> str:
        """Listen; return why that cannot be, or "". Never raises."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            with _reachable(self._path) as name:
                with contextlib.suppress(FileNotFoundError):
                    found = os.lstat(name)
                    if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid():
                        os.unlink(name)  # of an earlier process with this number
                listener.bind(name)
                if self._uid != -1 and _is_own(os.path.dirname(name)):
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
        """Answer whoever has asked; wait for nobody. Never raises.

        :param now: monotonic seconds.
        """
        if self._socket is None:
            return
        while len(self._clients) < CLIENTS:
            try:
                client, _ = self._socket.accept()
            except OSError:  # nobody, or no descriptor for it
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
            _, uid, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
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
        """Listen no more. Never raises.

        :param inherited: in a forked child: the socket stays the master's, file and all.
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


def ask(path: str, order: dict[str, Any], timeout: float = 10.0, master: int | None = None,
        descriptors: list[int] | None = None) -> dict[str, Any]:
    """Give the master an order and return its answer.

    :param path: see `path_of`.
    :param timeout: seconds; the master answers in its tick, about once a second.
    :param master: process id of the master: what another process listens there for is not told.
    :param descriptors: gets those that come with the answer; they are the caller's to close.
    :raises ControlError: if it cannot be asked, or refuses.
    """
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as link, \
                _reachable(path) as name:
            link.settimeout(timeout)
            link.connect(name)
            pid, _, _ = _CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if master not in (None, pid):
                raise ControlError(f"process {pid} listens at {path}, and not the master {master}")
            link.send(json.dumps(order).encode())
            link.settimeout(max(0.1, deadline - time.monotonic()))
            if pid == master:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGCHLD)  # it looks now, and not within a second
            if descriptors is None:
                data = link.recv(MOST)
            else:
                data, got, _, _ = socket.recv_fds(link, MOST, 253, socket.MSG_CMSG_CLOEXEC)
                descriptors += got
    except FileNotFoundError:
        raise ControlError(f"the master has no control socket at {path}: process-manager.log says why") from None
    except PermissionError:
        raise ControlError(f"{path} is another user's: ask as the service's user, or as root") from None
    except ConnectionRefusedError:
        raise ControlError(f"nobody listens at {path}: the master is gone") from None
    except TimeoutError:
        raise ControlError(f"the master did not answer within {timeout:g} s: `flask stability status` says whether it "
                           "is silent") from None
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror or error}") from error
    try:
        answer = json.loads(data)
    except ValueError:
        raise ControlError("the master ended the connection without an answer") from None
    if not isinstance(answer, dict) or not answer.get("ok"):
        raise ControlError(str(answer.get("error") if isinstance(answer, dict) else "")[:500] or "it was refused")
    return answer
