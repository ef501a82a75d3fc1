"""A leaving worker closes the listening sockets immediately; at the service's end it first accepts what waits there.

gunicorn's workers hold them until their last request is done. At the end of a service that is a trap: while one request
is in flight the kernel goes on accepting connections that no worker will serve, and resets them when the last worker
ends (150 requests a second, one of 6 s in flight: 720 lost). Once the sockets are closed the kernel refuses new
connections, and a proxy takes the next instance, whatever the method.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

MOST = 4096  #: maximum number of connections accepted from one queue
WORD = 2.0  #: seconds that the master has to say whether the service or only this worker ends
#: Returns whether the service ends and no other worker will accept what waits; None until the master says so.
Last = Callable[[], bool | None]


def awaited(last: Last) -> bool:
    """Wait for the master's word and return it; return False if none comes."""
    until = time.monotonic() + WORD
    while (known := last()) is None and time.monotonic() < until:
        time.sleep(0.01)
    return bool(known)


def on_sigterm(handler: Callable[[int, Any], None]) -> None:
    """Call `handler` at SIGTERM, without interrupting system calls."""
    signal.signal(signal.SIGTERM, handler)
    signal.siginterrupt(signal.SIGTERM, False)
