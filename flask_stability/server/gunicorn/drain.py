"""A worker that leaves lets go of the listening sockets at once; at the service's end it first takes what waits there.

gunicorn's workers hold them until their last request is done. At the end of a service that is a trap: as long as one
request is in flight the kernel goes on accepting connections that no worker will serve, and resets them when the last
worker is gone (150 requests a second, one of 6 s in flight: 720 lost). Let go of, a new connection is refused, and a
proxy takes the next instance, whatever the method.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

MOST = 4096  #: connections taken from one queue at the most
WORD = 2.0  #: seconds for the master to say what it is that ends, the service or this worker
#: Whether the service ends, and no other worker will accept what waits; None until the master says.
Last = Callable[[], bool | None]


def awaited(last: Last) -> bool:
    """The word, waited for; False if none comes."""
    until = time.monotonic() + WORD
    while (known := last()) is None and time.monotonic() < until:
        time.sleep(0.01)
    return bool(known)


def on_sigterm(handler: Callable[[int, Any], None]) -> None:
    """Have `handler` called; system calls go on."""
    signal.signal(signal.SIGTERM, handler)
    signal.siginterrupt(signal.SIGTERM, False)
