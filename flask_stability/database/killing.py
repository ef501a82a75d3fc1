"""End on the server a statement that was cut off here: closing the socket leaves it running, with its locks held.

The pool withdrew the connection before, so no borrower uses it. `identity` explains why this never ends another
session.
"""

from __future__ import annotations

import collections
import threading
import time

from .drivers import Driver
from .identity import Identity

#: Give up on a session that has waited in the queue for longer than this: the server does not answer, seconds.
TOO_LATE = 5.0


class Killer:
    """Ends sessions of one pool on the server, one after the other, each through a separate short connection.

    :ivar ended: number of ended sessions.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._waiting: collections.deque[tuple[float, Identity]] = collections.deque()
        self._running = False
        self.ended = 0

    def condemn(self, identity: Identity | None) -> None:
        """End a session soon in a background thread, if its identity is certain. Never blocks, never raises."""
        if identity is None or not identity.direct:
            return
        with self._lock:
            self._waiting.append((time.monotonic(), identity))
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._run, name="stability-kill", daemon=True).start()
        except RuntimeError:  # no more threads
            with self._lock:
                self._running = False
                self._waiting.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return
                since, identity = self._waiting.popleft()
            if time.monotonic() - since > TOO_LATE:
                continue
            try:
                self.ended += self._driver.kill(identity)
            except Exception as error:
                error.__traceback__ = None  # best effort: without it, only the server's own limits apply
