"""The command line's end of the control socket: give the master of a running service an order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from typing import Any

from ..files import reachable
from ..server.control import CREDENTIALS, MOST, ControlError


def ask(path: str, order: dict[str, Any], timeout: float = 10.0, master: int | None = None,
        descriptors: list[int] | None = None) -> dict[str, Any]:
    """Give the master an order and return its answer.

    :param path: see `server.control.path_of`.
    :param timeout: seconds; the master answers in its tick, about once a second.
    :param master: process id of the master. Another process that listens there gets no order.
    :param descriptors: gets those that come with the answer; the caller closes them.
    :raises ControlError: if the master cannot be reached, or refuses.
    """
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as link, \
                reachable(path) as name:
            link.settimeout(timeout)
            link.connect(name)
            pid, _, _ = CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
            if master not in (None, pid):
                raise ControlError(f"process {pid} listens at {path}, and not the master {master}")
            link.send(json.dumps(order).encode())
            link.settimeout(max(0.1, deadline - time.monotonic()))
            if pid == master:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGCHLD)  # it looks now, and not within a second
            data, got, _, _ = socket.recv_fds(link, MOST, 253, socket.MSG_CMSG_CLOEXEC)
            if descriptors is not None:
                descriptors += got
    except FileNotFoundError:
        raise ControlError(f"the master has no control socket at {path}: process-manager.log says why") from None
    except PermissionError:
        raise ControlError(f"{path} is another user's: ask as the service's user, or as root") from None
    except ConnectionRefusedError:
        raise ControlError(f"no process listens at {path}: the master is gone") from None
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
