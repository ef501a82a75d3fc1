"""Threads that wait for a connection: each gets one, or an error, handed over in the order of arrival."""

from __future__ import annotations

import collections
import threading
from contextlib import suppress

from .entry import RESERVED, Entry


class Waiter:
    """A thread that waits for a connection. `entry` or `error` is handed over under the pool's lock."""

    __slots__ = ("entry", "error", "gate", "since", "thread_id")

    def __init__(self, since: float) -> None:
        self.since, self.thread_id = since, threading.get_ident()
        self.entry: Entry | None = None
        self.error: BaseException | None = None
        self.gate = threading.Lock()
        self.gate.acquire()


class Queue(collections.deque[Waiter]):
    """Those who wait, the first to be served first. Every method is called under the pool's lock."""

    def join(self, since: float, *, first: bool) -> Waiter:
        """A place in the queue; the first one for who was served badly."""
        waiter = Waiter(since)
        if first:
            self.appendleft(waiter)
        else:
            self.append(waiter)
        return waiter

    def serve(self, entry: Entry) -> None:
        """Hand a connection to the first."""
        waiter = self.popleft()
        entry.state = RESERVED
        waiter.entry = entry
        waiter.gate.release()

    def send_away(self, waiter: Waiter, error: BaseException) -> bool:
        """Let a waiter fail; False if it has got something meanwhile."""
        try:
            self.remove(waiter)
        except ValueError:
            return False
        waiter.error = error
        waiter.gate.release()
        return True

    def leave(self, waiter: Waiter) -> Entry | None:
        """Out of the queue; what was handed over meanwhile."""
        with suppress(ValueError):
            self.remove(waiter)
        entry, waiter.entry = waiter.entry, None
        return entry
