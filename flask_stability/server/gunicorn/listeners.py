"""The listening sockets of a worker."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from typing import Any

UNKNOWN = 1 << 30  #: connections wait, nobody knows how many
_UNACKED = 24  #: its offset in Linux's struct tcp_info: of a listening socket the connections in its queue


def knocking(listeners: list[Any]) -> bool:
    """Whether a connection waits that no worker has accepted yet."""
    poll = select.poll()
    for listener in listeners:
        poll.register(listener.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def backlog(listener: Any) -> int:
    """Return how many connections wait that no worker has accepted yet; `UNKNOWN` but for TCP on Linux."""
    try:
        found = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
        return int(struct.unpack_from("=I", found, _UNACKED)[0])
    except (AttributeError, OSError, struct.error):
        return UNKNOWN


def let_go(listener: Any) -> None:
    """Its descriptor stays valid, for whatever loop still looks at it, but is no socket any more; once or again."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.dup2(null, listener.fileno(), inheritable=False)
        finally:
            os.close(null)


def keep_names(worker: Any) -> None:
    """gunicorn asks for them at each request, also after they were let go of."""
    for listener in worker.sockets:
        name = listener.getsockname()
        listener.getsockname = lambda name=name: name
