"""The queue of gthread's thread pool: it decides which request a thread takes when the thread is free.

A request with no other waiting before it goes straight through, as in the queue that this class derives from; that
costs a fraction of a microsecond. Once several wait they form a line, and the queue holds a `TURN` for each: a thread
that gets a turn takes the next request of the line, whichever that is.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..arrival import WAITED
from ..queue_delay import NORMAL, Line

TURN: Any = object()  #: a request waits in the line

_now = time.monotonic


class Judge(Protocol):
    """Decides about work items. The queue calls the methods that get a line under its lock."""

    def arrival(self, item: Any) -> tuple[int, float]:
        """Return class (`queue_delay`) and monotonic time of arrival of an item."""

    def next(self, line: Line[Any]) -> tuple[float, Any] | None:
        """Take the next item, with its arrival."""

    def overdue(self, line: Line[Any]) -> list[Any]:
        """Take the items that have waited too long."""

    def admit(self, item: Any, arrived: float) -> bool:
        """Return whether to run an item that has waited; else the judge has ended it."""

    def alone(self, item: Any) -> bool:
        """Return the same for an item with no other waiting here before or after it."""

    def nobody_waits(self) -> None:
        """Record that an item was taken at once; called only while the judge is watchful."""

    def watchful(self) -> bool:
        """Return whether to call `nobody_waits`."""


class WorkQueue(queue.SimpleQueue):  # type: ignore[type-arg]
    """The queue for the work of `concurrent.futures.ThreadPoolExecutor`, with the interface that its threads expect.

    :param judge: classifies work items and decides about them. If it fails, requests are served as usual.
    :param tell: called with an exception of the judge.
    :ivar line: the waiting items, under `lock`.
    :ivar watchful: requests have waited lately.
    :ivar age: seconds that the next item has waited before it is put.
    """

    def __init__(self, judge: Judge, tell: Callable[[Exception], object]) -> None:
        super().__init__()
        self._judge, self._tell = judge, tell
        self.line: Line[Any] = Line()
        self.lock = threading.Lock()
        self.watchful = False
        self.age = 0.0
        self._spare_turns = 0  # turns of items that were taken out of the line; under the lock
        self._put, self._get, self._size = super().put, super().get, super().qsize

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put a work item, or None for the end. Items come from one thread, the worker's main thread."""
        if item is None:
            self._put(item)
            return
        item.since = _now() - self.age
        if self.line.number:
            with self.lock:
                self._add(item)
            self._put(TURN)
        elif self._size():
            self._begin_line(item)
        else:
            self._put(item)

    def _begin_line(self, item: Any) -> None:
        """Form the line, since an item waits already: from now on a free thread chooses."""
        ended = False
        with self.lock:
            while True:
                try:
                    one = self._get(False)
                except queue.Empty:
                    break
                if one is None:
                    ended = True
                elif one is not TURN:
                    self._add(one)
            self._add(item)
            self._spare_turns = 0
        for _ in range(self.line.number):
            self._put(TURN)
        if ended:
            self._put(None)

    def _add(self, item: Any) -> None:
        try:
            kind, arrived = self._judge.arrival(item)
        except Exception as error:
            self._tell(error)
            kind, arrived = NORMAL, item.since
        self.line.add(kind, arrived, item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Return the item that a free thread runs next.

        :raises queue.Empty: as in the queue that this class replaces.
        """
        item = self._get(block, timeout)
        if item is None or (item is not TURN and _now() - item.since < WAITED and not self.watchful):
            return item
        until = _now() + timeout if timeout is not None else 0.0
        while (chosen := self._chosen(item)) is None and item is not None:
            item = self._get(block, max(0.0, until - _now()) if timeout is not None else None)
        return chosen

    def _chosen(self, item: Any) -> Any:
        """Return the item to run, given one from the queue; None if there is none."""
        if item is TURN:
            return self._choose()
        if item is None:
            return None
        if _now() - item.since < WAITED:
            try:
                self._judge.nobody_waits()
                self.watchful = self._judge.watchful()
            except Exception as error:
                self._tell(error)
            return item
        self.watchful = True
        return item if self._admits(item, None) else None

    def _choose(self) -> Any:
        """Take the next item of the line whose client is still there; return None if none waits any more."""
        turns = 1
        while True:
            with self.lock:
                before = self.line.number
                try:
                    found = self._judge.next(self.line)
                except Exception as error:
                    self._tell(error)
                    found = self.line.next(newest=False)
                self._spare_turns += before - self.line.number - turns
                turns = 0
                self.watchful = self._judge.watchful()
            if found is None:
                return None
            arrived, item = found
            if self._admits(item, arrived):
                return item

    def _admits(self, item: Any, arrived: float | None) -> bool:
        try:
            return self._judge.alone(item) if arrived is None else self._judge.admit(item, arrived)
        except Exception as error:
            self._tell(error)
            return True

    def overdue(self) -> list[Any]:
        """Take the items that have waited too long."""
        with self.lock:
            try:
                found = self._judge.overdue(self.line)
            except Exception as error:
                self._tell(error)
                found = []
            self._spare_turns += len(found)
        return found

    def get_nowait(self) -> Any:
        """Get an item as `get` does, without waiting."""
        return self.get(False)

    def qsize(self) -> int:
        """Return how many items wait for a thread."""
        return self.line.number or max(0, self._size() - self._spare_turns)

    def empty(self) -> bool:
        """Return whether no item waits."""
        return not self.qsize()


def connection_of(item: Any) -> Any:
    """Return the connection of a work item of Python's pool; in Python 3.14 an item has a task instead of arguments."""
    return item.args[0] if hasattr(item, "args") else item.task[1][0]
