"""Find the socket under a driver's connection with a table of drivers, since the DB-API has no such call."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from typing import Any

#: Functions that return the socket's descriptor of a driver's connection, by the first part of the module's name.
DESCRIPTORS: dict[str, Callable[[Any], int]] = {
    "MySQLdb": lambda raw: int(raw.fileno()),
    "pymysql": lambda raw: int(raw._sock.fileno()),
    "psycopg": lambda raw: int(raw.fileno()),
    "psycopg2": lambda raw: int(raw.fileno()),
}


_RESET = struct.pack("ii", 1, 0)


class Link(socket.socket):
    """A second handle on a connection's socket, which ends quietly with its connection."""

    def __del__(self) -> None:
        self.close()


def descriptor(raw: Any) -> int:
    """Return the descriptor of a connection's socket; -1 if unknown or without a socket."""
    for kind in type(raw).__mro__:
        tell = DESCRIPTORS.get(kind.__module__.partition(".")[0])
        if tell is not None:
            try:
                return tell(raw)
            except Exception:
                return -1
    return -1


def reaches(driver: str) -> bool:
    """Return whether the table has a driver, by its module's name; else no call of its connections can be cut off."""
    return driver.partition(".")[0] in DESCRIPTORS


def link_to(raw: Any) -> Link | None:
    """Return a second handle on a connection's socket, to interrupt it; None without one."""
    number = descriptor(raw)
    if number < 0:
        return None
    try:
        link = Link(fileno=os.dup(number))
    except OSError:
        return None
    try:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if link.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_KEEPIDLE"):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    except OSError:
        pass
    return link


def hang_up(link: socket.socket | None) -> None:
    """Interrupt the call of another thread on the connection. Never raises, never blocks."""
    if link is not None:
        try:
            # close with a reset: a server that waits for room at our end would not notice a plain FIN
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            link.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
