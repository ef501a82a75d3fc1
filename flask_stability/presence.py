"""Whether the client of a request is still there: the kernel knows, without a read and without a wait.

A connection that was reset or has failed is gone for certain (``POLLHUP``, ``POLLERR``). A client that called `close`
has sent a FIN, as one has that only closed its sending half and still reads: the two look the same (``POLLRDHUP``)
until something is sent. Nearly every client that sends a FIN early has left; the rare one that half-closes is served
as long as that costs other clients nothing. So a FIN counts as absence only where a request waits, or others do.
"""

from __future__ import annotations

import select
from typing import Any

from .request import SOCKET, RequestRecord, current

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL if hasattr(select, "poll") else 0
_CLOSED = getattr(select, "POLLRDHUP", 0)  # Linux


def gone(descriptor: int, *, half_closed: bool) -> bool:
    """Return whether the peer of a connected socket has left; never waits.

    :param descriptor: the socket's, open.
    :param half_closed: a peer that sends no more counts as one that has left.
    """
    if not _GONE:
        return False
    poll = select.poll()
    poll.register(descriptor, _CLOSED if half_closed else 0)
    return any(event & (_GONE | (_CLOSED if half_closed else 0)) for _, event in poll.poll(0))


def client_gone(record: RequestRecord | None = None, *, half_closed: bool = True) -> bool:
    """Return whether no client waits for the answer of a request any more; never waits, never raises.

    To be asked by the thread that serves the request: only as long as that runs is the descriptor the client's. Of
    HTTP/2 the connection counts, not the stream. Outside a server the answer is False.

    :param record: None = the request that this thread serves.
    :param half_closed: a client that sends no more counts as one that has left. True is right for a request that waits,
        as one does whose database is away; False where its answer is ready or about to be.
    """
    found = record if record is not None else current()
    while found is not None:
        client: Any = found.environ.get(SOCKET)
        if client is not None:
            try:
                descriptor = client.fileno()
                return descriptor < 0 or gone(descriptor, half_closed=half_closed)
            except (OSError, ValueError):
                return True  # closed on our side
        found = found.outer
    return False
