"""Whether the client of a request is still there: the kernel knows, without a read and without a wait.

A connection that was reset or has failed is gone for certain (``POLLHUP``, ``POLLERR``). A client that called `close`
has sent a FIN, as one has that only closed its sending half and still reads: the two look the same (``POLLRDHUP``)
until something is sent. Nearly every client that sends a FIN early has left; the rare one that half-closes is served
as long as that costs other clients nothing. So a FIN counts as absence only where a request waits, or others do.
"""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Any

from .request import SOCKET, RequestRecord, current

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL if hasattr(select, "poll") else 0
_CLOSED = getattr(select, "POLLRDHUP", 0)  # Linux


def gone(descriptor: int, *, half_closed: bool) -> bool:
    """Return whether the peer of a connected socket has left; never waits.

    :param descriptor: the socket's, open.
    :param half_closed: a peer that sends no more counts as one that has left.
    """
    return bool(_gone([descriptor], half_closed=half_closed))


def client_gone(record: RequestRecord | None = None, *, half_closed: bool = True) -> bool:
    """Return whether no client waits for the answer of a request any more; never waits, never raises.

    To be asked by the thread that serves the request: only as long as that runs is the descriptor the client's. Of
    HTTP/2 the connection counts, not the stream. Outside a server the answer is False.

    :param record: None = the request that this thread serves.
    :param half_closed: a client that sends no more counts as one that has left. True is right for a request that waits,
        as one does whose database is away; False where its answer is ready or about to be.
    """
    found = record if record is not None else current()
    return found is not None and bool(clients_gone([found], half_closed=half_closed))


def clients_gone(records: Iterable[RequestRecord], *, half_closed: bool = True) -> list[RequestRecord]:
    """Return those of many requests of which `client_gone` is true, with one system call; never waits, never raises."""
    descriptors = [(record, _descriptor(record)) for record in records]
    try:
        left = _gone([one for _, one in descriptors if one is not None and one >= 0], half_closed=half_closed)
    except (OSError, ValueError):  # of all of them nothing is known
        return []
    return [record for record, one in descriptors if one is not None and (one < 0 or one in left)]


def _gone(descriptors: Iterable[int], *, half_closed: bool) -> set[int]:
    if not _GONE:
        return set()
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, _CLOSED if half_closed else 0)
    wanted = _GONE | (_CLOSED if half_closed else 0)
    return {descriptor for descriptor, event in poll.poll(0) if event & wanted}


def _descriptor(record: RequestRecord) -> int | None:
    """The descriptor of a request's client; -1 = it is closed on our side, None = there is none."""
    found: RequestRecord | None = record
    while found is not None:
        client: Any = found.environ.get(SOCKET)
        if client is not None:
            try:
                return int(client.fileno())
            except (OSError, ValueError):
                return -1
        found = found.outer
    return None
