"""Spare threads of a gthread worker: they take work from its pool's queue, and end when they are no longer needed.

`concurrent.futures` never ends a thread of its pool. These are threads of our own that read the same queue, so a worker
that needed two hundred of them during an outage is back at its own few some seconds later.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

#: Seconds after the last addition during which none ends.
LINGER = 4.0
#: Seconds between two looks of an idle thread.
LOOK = 1.0


class SpareThreads:
    """The spare threads of one worker. Thread-safe.

    :param busy: returns how many threads of the worker are in a request.
    :param changed: called with the change of their number.
    :ivar number: how many there are.
    """

    def __init__(self, worker: Any, busy: Callable[[], int], changed: Callable[[int], None]) -> None:
        self._worker, self._busy, self._changed = worker, busy, changed
        self._lock = threading.Lock()
        self._until = 0.0
        self.number = 0

    def add(self, number: int) -> int:
        """Start threads, and raise the worker's connection limit by as many.

        :returns: how many were started; 0 where this Python's pool lacks the attributes that they need.
        :raises RuntimeError: if no thread can be started.
        """
        pool = getattr(self._worker, "tpool", None)
        work = getattr(pool, "_work_queue", None)
        if work is None:
            return 0
        # since Python 3.14 a work item runs with a context
        make = getattr(pool, "_create_worker_context", None)
        arguments = (make(),) if callable(make) else ()
        started = 0
        self._until = time.monotonic() + LINGER
        for _ in range(number):
            try:
                threading.Thread(target=self._serve, args=(work, arguments), name="stability-spare",
                                 daemon=True).start()
            except RuntimeError:
                if not started:
                    raise
                break
            started += 1
            self._count(1)
        if started:
            with contextlib.suppress(AttributeError, OSError):
                self._worker.method_queue.defer(int)  # the main loop reads the connection limit after each event
        return started

    def _count(self, number: int) -> None:
        with self._lock:
            self.number += number
            with contextlib.suppress(AttributeError):
                self._worker.worker_connections += number
        self._changed(number)

    def _serve(self, work: Any, arguments: tuple[Any, ...]) -> None:
        while True:
            try:
                item = work.get(timeout=LOOK)
            except queue.Empty:
                pass
            else:
                if item is None:  # the pool is shut down: pass the end on to the next thread
                    work.put(None)
                    self._count(-1)
                    return
                item.run(*arguments)
                del item
            if self._may_end():
                return

    def _may_end(self) -> bool:
        """Return whether this thread ends: as many threads as the worker's own are free without it."""
        if time.monotonic() < self._until:
            return False
        with self._lock:
            if self.number - 1 < self._busy():
                return False
            self.number -= 1
            with contextlib.suppress(AttributeError):
                self._worker.worker_connections -= 1
        self._changed(-1)
        return True
