"""When a request arrived, which is before a thread took it: the wait in the kernel's queue counts."""

from __future__ import annotations

import re
import socket
import struct
import time
from typing import Any

_LAST_DATA_RECV = 52  #: offset in Linux's struct tcp_info: milliseconds since the last data arrived
_SIZE = _LAST_DATA_RECV + 4
_INFO = getattr(socket, "TCP_INFO", None)
_HEADER = re.compile(rb"\r\nx-request-start:[ \t]*(?:t=)?(\d{9,17}(?:\.\d{1,6})?)[ \t]*\r\n", re.IGNORECASE)
_BODY = re.compile(rb"\r\n(?:content-length:[ \t]*0*[1-9]|transfer-encoding:)", re.IGNORECASE)
WAITED = 0.01  #: seconds: a request that gets a thread sooner did not wait
SAMPLE = 16  #: maximum number of requests served without measuring the wait of one
WINDOW = 60.0  #: seconds for which the smallest distance between the proxy's clock and ours is remembered
MOST = 3600.0  #: seconds: a larger difference between the clocks is not an age


def kernel_age(sock: Any) -> float | None:
    """Return the seconds since a connection's client last sent data; never wait, never raise.

    Return None where the kernel does not report it: for Unix sockets, and on systems without TCP_INFO.
    """
    if _INFO is None:
        return None
    try:
        found = sock.getsockopt(socket.IPPROTO_TCP, _INFO, _SIZE)
        return float(struct.unpack_from("=I", found, _LAST_DATA_RECV)[0]) / 1000 if len(found) >= _SIZE else None
    except OSError:
        return None


def proxy_start(head: bytes) -> float | None:
    """Return the seconds since the epoch that ``X-Request-Start`` gives.

    Return None without the header, and for a request with a body: a proxy may have spent time on receiving the body.

    The size of the number tells seconds, milliseconds and microseconds apart; nginx's ``t=${msec}``, Heroku's router
    and Apache's ``t=%t`` send these units.
    """
    found = _HEADER.search(head)
    if found is None or _BODY.search(head):
        return None
    value = float(found[1])
    for scale in (1.0, 1e3, 1e6):
        if 1e9 <= value / scale < 1e10:
            return value / scale
    return None


class ProxyClock:
    """The age of requests by a trusted proxy's clock, less the smallest age of the last minute.

    The subtraction removes the difference between the two clocks, and the time on the network.
    """

    def __init__(self) -> None:
        self._least, self._before = float("inf"), float("inf")
        self._until = 0.0

    def age(self, started: float, now: float | None = None) -> float:
        """Return the seconds that a request waited; 0.0 for the first request.

        :param started: the proxy's time, seconds since the epoch.
        :param now: our time, seconds since the epoch.
        """
        now = time.time() if now is None else now
        distance = now - started
        if abs(distance) > MOST:
            return 0.0
        if now >= self._until or self._until - now > WINDOW:
            self._least, self._before, self._until = distance, self._least, now + WINDOW / 2
        self._least = min(self._least, distance)
        return max(0.0, distance - min(self._least, self._before))
