"""When a request arrived, which is before a server had time for it: the wait in the kernel's queue counts."""

from __future__ import annotations

import socket
import struct
from typing import Any

_LAST_DATA_RECV = 52  #: its offset in Linux's struct tcp_info: milliseconds since the last data came
_SIZE = _LAST_DATA_RECV + 4
_INFO = getattr(socket, "TCP_INFO", None)


def kernel_age(sock: Any) -> float | None:
    """Return the seconds since a connection's client last sent something; never waits, never raises.

    None where the kernel does not say: for Unix sockets, and on systems without TCP_INFO.
    """
    if _INFO is None:
        return None
    try:
        found = sock.getsockopt(socket.IPPROTO_TCP, _INFO, _SIZE)
        return float(struct.unpack_from("=I", found, _LAST_DATA_RECV)[0]) / 1000 if len(found) >= _SIZE else None
    except OSError:
        return None
