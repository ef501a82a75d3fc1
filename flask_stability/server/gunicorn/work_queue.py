"""The queue of gthread's pool of threads: which request a free thread takes is decided when the thread is free.

A request that finds nobody waiting before it goes straight through, as in the queue that this is made from: that costs
a fraction of a microsecond. Once some wait they are put in order, and the queue holds a `TURN` for each: a thread that
gets one takes whichever request is to be next.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..arrival import WAITED
from ..queue_delay import NORMAL, Line

TURN: Any = object()  #: somebody waits in the line

_now = time.monotonic


class Judge(Protocol):
    """Decides about work items; what it is given a line for is called under the lock."""

    def arrival(self, item: Any) -> tuple[int, float]:
        """Class (`queue_delay`) and monotonic time of arrival of an item."""

    def next(self, line: Line[Any]) -> tuple[float, Any] | None:
        """Take the next item, with its arrival."""

    def overdue(self, line: Line[Any]) -> list[Any]:
        """Take those that have waited too long."""

    def admit(self, item: Any, arrived: float) -> bool:
        """Whether an item that has waited is to be run; else the judge has ended it."""

    def alone(self, item: Any) -> bool:
        """The same for one before and after which nobody waits here."""

    def nobody_waits(self) -> None:
        """An item was taken at once, which is told only while the judge is watchful."""

    def watchful(self) -> bool:
        """Whether it is to be told."""


class WorkQueue(queue.SimpleQueue):  # type: ignore[type-arg]
    """What `concurrent.futures.ThreadPoolExecutor` puts its work into, as far as its threads can tell.

    :param judge: says what a work item is and what becomes of it. Where it fails, requests are served all the same.
    :param tell: told of an exception of its.
    :ivar line: those that wait, under `lock`.
    :ivar watchful: requests have waited of late.
    :ivar age: seconds for which the next item has waited before it is put.
    """

    def __init__(self, judge: Judge, tell: Callable[[Exception], object]) -> None:
        super().__init__()
        self._judge, self._tell = judge, tell
        self.line: Line[Any] = Line()
        self.lock = threading.Lock()
        self.watchful = False
        self.age = 0.0
        self._spare_turns = 0  # of those that were taken out of the line; under the lock
        self._put, self._get, self._size = super().put, super().get, super().qsize

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """A work item, or None for "the end". Items come from one thread, the worker's main one."""
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
        """Somebody waits already: from now on a free thread chooses."""
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
        """What a free thread is to do next.

        :raises queue.Empty: as in the queue that this stands for.
        """
        item = self._get(block, timeout)
        if item is None or (item is not TURN and _now() - item.since < WAITED and not self.watchful):
            return item
        until = _now() + timeout if timeout is not None else 0.0
        while (chosen := self._chosen(item)) is None and item is not None:
            item = self._get(block, max(0.0, until - _now()) if timeout is not None else None)
        return chosen

    def _chosen(self, item: Any) -> Any:
        """What comes of an item out of the queue; None if nothing does."""
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
        """The next of the line whose client is there; None if none waits any more."""
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
        """Take those that have waited too long."""
        with self.lock:
            try:
                found = self._judge.overdue(self.line)
            except Exception as error:
                self._tell(error)
                found = []
            self._spare_turns += len(found)
        return found

    def get_nowait(self) -> Any:
        """As `get`, without a wait."""
        return self.get(False)

    def qsize(self) -> int:
        """How many wait for a thread."""
        return self.line.number or max(0, self._size() - self._spare_turns)

    def empty(self) -> bool:
        """Nobody waits."""
        return not self.qsize()


def connection_of(item: Any) -> Any:
    """Return the connection that a work item of Python's pool is for; Python 3.14 gives it a task, no arguments."""
    return item.args[0] if hasattr(item, "args") else item.task[1][0]
