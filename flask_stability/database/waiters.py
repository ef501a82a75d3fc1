"""Threads that wait for a connection, in the order of arrival."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from ..request import RequestRecord

R = TypeVar("R")

#: For this long, a newly arrived thread may take a connection before a waiter, seconds. Handing over each connection
#: costs a thread switch at each use: a fifth to a third of a busy pool's throughput. As in Go's `sync.Mutex` ("normal"
#: and "starvation" mode), the pool hands a connection only to a thread that has waited for long.
PATIENCE = 0.1
#: A waiter that was woken in vain is not woken again and again: it looks by itself at this interval, seconds.
LOOK_INTERVAL = 0.005


class Waiter(Generic[R]):
    """A thread that waits for a connection. The inventory sets `record` or `error` under its lock.

    :ivar gate: locked; its release wakes the thread.
    :ivar since: when it arrived, `time.monotonic`.
    :ivar in_vain: it was woken once, and another thread was faster.
    :ivar hand_over_from: from then on, the pool hands it a connection and lets no later thread overtake it.
    :ivar request: the request that may be held while the database is away; None: it fails at once.
    :ivar hasty: it does not wait for a second attempt to connect.
    """

    __slots__ = ("error", "gate", "hand_over_from", "hasty", "in_vain", "record", "request", "since", "thread_id")

    def __init__(self, since: float, deadline: float, request: RequestRecord | None = None, *,
                 hasty: bool = False) -> None:
        self.since, self.thread_id = since, threading.get_ident()
        self.request, self.hasty = request, hasty
        self.hand_over_from = since + min(PATIENCE, (deadline - since) / 4)
        self.in_vain = False
        self.record: R | None = None
        self.error: BaseException | None = None
        self.gate = threading.Lock()
        self.gate.acquire()
