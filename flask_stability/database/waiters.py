"""Threads that wait for a connection, in the order of arrival."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from ..request import RequestRecord

R = TypeVar("R")

#: So long a thread that comes by may be faster than one that waits, seconds. To hand each connection over costs a
#: switch of threads for each use of it: a fifth to a third of what a busy pool can do. As in Go's `sync.Mutex`
#: ("normal" and "starvation" mode), only who has waited for long gets it in the hand.
PATIENCE = 0.1
#: Who was called in vain is not called again and again: it looks by itself, so often, seconds.
LOOK_INTERVAL = 0.005


class Waiter(Generic[R]):
    """A thread that waits for a connection. `record` or `error` is set under the inventory's lock.

    :ivar gate: locked; released when there is something to see.
    :ivar since: when it came, `time.monotonic`.
    :ivar in_vain: it was called once, and another was faster.
    :ivar hand_over_from: from then on a connection is handed to it, and to nobody who came later.
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
