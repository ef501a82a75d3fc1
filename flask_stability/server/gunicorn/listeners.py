"""The listening sockets of a worker."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from typing import Any

UNKNOWN = 1 << 30  #: connections wait, but their number is unknown
_UNACKED = 24  #: offset in Linux's struct tcp_info: for a listening socket, the connections in its queue


def knocking(listeners: list[Any]) -> bool:
    """Return whether a connection waits that no worker has accepted yet."""
    poll = select.poll()
    for listener in listeners:
        poll.register(listener.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def backlog(listener: Any) -> int:
    """Return how many connections wait that no worker has accepted yet; `UNKNOWN` except for TCP on Linux."""
    try:
        found = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
        return int(struct.unpack_from("=I", found, _UNACKED)[0])
    except (AttributeError, OSError, struct.error):
        return UNKNOWN


def let_go(listener: Any) -> None:
    """Close a listening socket but keep its descriptor valid, for loops that still look at it. May be called twice."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.dup2(null, listener.fileno(), inheritable=False)
        finally:
            os.close(null)


def keep_names(worker: Any) -> None:
    """Remember the listeners' names: gunicorn asks for them at each request, even after `let_go`."""
    for listener in worker.sockets:
        name = listener.getsockname()
        listener.getsockname = lambda name=name: name
