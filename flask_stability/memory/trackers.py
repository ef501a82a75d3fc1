"""Track what else leaks in a Python process: threads, timers, open descriptors, signal receivers, objects, garbage.

Each is counted and has a trend. Steady growth of one is reported once.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import blinker
import psutil

from .. import scoreboard as shared
from ..scoreboard import Row
from .trend import Verdict, gated_slope

DAY = 1440  #: minutes
TREND = 60  #: minutes that the trend is told from
_SIGNALS = frozenset(map(id, (blinker.Signal, blinker.NamedSignal)))
_names_of: Callable[[ModuleType], dict[str, Any]] = vars(ModuleType)["__dict__"].__get__


class Tracker:
    """One count with its history, its trend, and whether it grows steadily.

    :param word, trend_word: the words of the row that publish count and trend.
    :param least, share: growth that is worth a warning, see `trend.leaks`.
    """

    def __init__(self, name: str, word: int, trend_word: int, least: int, share: float = 0.0) -> None:
        self.name, self.word, self.trend_word = name, word, trend_word
        self._verdict = Verdict(least, share)
        self._told = False
        self._lows: deque[int] = deque(maxlen=DAY)
        self._lowest: int | None = None

    @property
    def growing(self) -> bool:
        """Return whether the count grows steadily now."""
        return self._verdict.leaking

    def add(self, row: Row, number: int) -> None:
        """Record and publish one more count."""
        row.words[self.word] = number
        self._lowest = number if self._lowest is None else min(self._lowest, number)

    def end_minute(self, row: Row, loads: Sequence[float]) -> dict[str, Any] | None:
        """Update trend and verdict; return a report when steady growth is first seen, else None."""
        number = int(row.words[self.word])
        self._lows.append(number if self._lowest is None else self._lowest)
        self._lowest = None
        lows = list(self._lows)
        recent = lows[-TREND:]
        row.floats[self.trend_word] = gated_slope(range(len(recent)), recent) * 60 if len(recent) >= 10 else 0.0
        if not self._verdict.look(lows, loads) or self._told:
            return None
        self._told = True
        return {"kind": self.name, "now": number, "growth": number - lows[0], "minutes": len(lows),
                "per_hour": round(row.floats[self.trend_word], 1)}


class Trackers:
    """All trackers of one worker."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._counts: list[tuple[Tracker, Callable[[], int]]] = [
            (Tracker("threads", shared.W_N_THREADS, shared.F_THREADS_TREND, 10), threading.active_count),
            (Tracker("timers", shared.W_N_TIMERS, shared.F_TIMERS_TREND, 10), timers),
            (Tracker("open_files", shared.W_N_FDS, shared.F_FDS_TREND, 20), descriptors),
            (Tracker("garbage", shared.W_N_GARBAGE, shared.F_GARBAGE_TREND, 10), lambda: len(gc.garbage))]
        self._receivers = Tracker("receivers", shared.W_N_RECEIVERS, shared.F_RECEIVERS_TREND, 10)
        self._objects = Tracker("gc_objects", shared.W_N_GC_OBJECTS, shared.F_GC_OBJECTS_TREND, 50_000, 0.05)
        self._next_objects = 0.0

    def look(self, now: float) -> None:
        """Count what is cheap to count, in about 50 µs."""
        for tracker, count in self._counts:
            tracker.add(self._row, count())
        if not self._next_objects:
            self._costly(now)

    def _costly(self, now: float) -> None:
        """Count objects: 12 ns each, so the larger the heap, the less often."""
        self._receivers.add(self._row, receivers())
        if now >= self._next_objects:
            started = time.perf_counter()
            self._objects.add(self._row, len(gc.get_objects()))
            self._next_objects = now + 3000 * (time.perf_counter() - started)

    def end_minute(self, now: float, loads: Sequence[float] = ()) -> list[dict[str, Any]]:
        """Update the trends; call it once a minute. Return a report for each count that began to grow steadily.

        :param loads: requests in each minute so far.
        """
        self._costly(now)
        every = self._every()
        found = [tracker.end_minute(self._row, loads) for tracker in every]
        self._row.words[shared.W_GROWING] = sum(tracker.growing << bit for bit, tracker in enumerate(every))
        return [told for told in found if told is not None]

    def _every(self) -> list[Tracker]:
        return [*(tracker for tracker, _ in self._counts), self._receivers, self._objects]


#: The bits of the word W_GROWING.
KINDS = ("threads", "timers", "open_files", "garbage", "receivers", "gc_objects")


def growing(bits: int) -> list[str]:
    """Return the names of what grows steadily, from the word W_GROWING."""
    return [name for bit, name in enumerate(KINDS) if bits >> bit & 1]


def timers() -> int:
    """Count the started `threading.Timer` objects that have not fired."""
    return sum(map(is_timer, threading.enumerate()))


def is_timer(thread: threading.Thread) -> bool:
    """Return whether an object is a `threading.Timer`, by its type and not by its own ``__class__``."""
    return issubclass(type(thread), threading.Timer)


def names_in_modules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each module's name and its live namespace; list it before looking. Runs no code of the modules."""
    for module, found in list(sys.modules.items()):
        if issubclass(type(found), ModuleType) and type(module) is str:
            yield module, _names_of(found)


def descriptors() -> int:
    """Count the open descriptors."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # its own
    except OSError as error:
        if error.errno == errno.EMFILE:  # all that there may be
            return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        return int(psutil.Process().num_fds())
    except (psutil.Error, AttributeError):
        return 0


def signals() -> list[tuple[str, blinker.Signal]]:
    """Return blinker's default signals and every signal that a module has under a name, in about 3 ms."""
    found: dict[int, tuple[str, blinker.Signal]] = {
        id(signal): (name if type(name) is str else "unnamed", signal)
        for name, signal in list(getattr(blinker.signal, "__self__", {}).items())}
    for module, names in names_in_modules():
        if _SIGNALS.isdisjoint(map(id, map(type, list(names.values())))):
            continue  # nearly all: tens of thousands of names, with no loop of Python's over them
        for name, value in list(names.items()):
            if id(type(value)) in _SIGNALS:
                found.setdefault(id(value), (f"{module}.{name}", value))
    return list(found.values())


def receivers() -> int:
    """Count the receivers connected to the signals."""
    return sum(len(signal.receivers) for _, signal in signals())
