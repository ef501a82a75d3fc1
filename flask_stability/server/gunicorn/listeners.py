"""The listening sockets of a worker."""

from __future__ import annotations

import contextlib
import os
import select
from typing import Any


def knocking(listeners: list[Any]) -> bool:
    """Whether a connection waits that no worker has accepted yet."""
    poll = select.poll()
    for listener in listeners:
        poll.register(listener.fileno(), select.POLLIN)
    return bool(poll.poll(0))


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
