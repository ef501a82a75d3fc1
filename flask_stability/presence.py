"""Whether the client of a request is still there: the kernel knows, without a read and without a wait.

A reset or failed connection is certainly gone (``POLLHUP``, ``POLLERR``). A client that has called `close` has sent a
FIN; so has a client that only closed its sending half and still reads. The two look the same (``POLLRDHUP``) until the
server sends data. Nearly every client that sends a FIN early has left; the rare half-closing one is served as long as
that costs other clients nothing. So a FIN counts as absence only where a request waits, or others do.
"""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Any

from .request import SOCKET, RequestRecord, current

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL if hasattr(select, "poll") else 0
_CLOSED = getattr(select, "POLLRDHUP", 0)  # Linux


def gone(descriptor: int, *, half_closed: bool) -> bool:
    """Return whether the peer of a connected socket has left; never wait.

    :param descriptor: the socket's, open.
    :param half_closed: a peer that has closed its sending side counts as one that has left.
    """
    return bool(_gone([descriptor], half_closed=half_closed))


def client_gone(record: RequestRecord | None = None, *, half_closed: bool = True) -> bool:
    """Return whether no client waits for a request's answer any more; never wait, never raise.

    Only the thread that serves the request may call it: the descriptor is the client's only while that thread runs.
    With HTTP/2 the connection counts, not the stream. Outside a server the answer is False.

    :param record: None = the request that this thread serves.
    :param half_closed: a client that has closed its sending side counts as one that has left. True is right for a
        waiting request, for example during a database outage; False if its answer is ready or about to be.
    """
    found = record if record is not None else current()
    return found is not None and bool(clients_gone([found], half_closed=half_closed))


def clients_gone(records: Iterable[RequestRecord], *, half_closed: bool = True) -> list[RequestRecord]:
    """Return the records for which `client_gone` is true, with one system call; never wait, never raise."""
    descriptors = [(record, _descriptor(record)) for record in records]
    try:
        left = _gone([one for _, one in descriptors if one is not None and one >= 0], half_closed=half_closed)
    except (OSError, ValueError):  # then nothing is known of any of them
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
    """Return the descriptor of a request's client; -1 = closed on our side, None = there is none."""
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
