"""What else leaks in a Python process: threads, timers, open descriptors, receivers of signals, objects, garbage.

Elsewhere these are timers and listeners. Each is counted, has a trend, and is warned of once when it grows steadily.
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
    """One count: its history, its trend, and whether it grows steadily.

    :param word, trend_word: where it is published.
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
        """Steadily, now."""
        return self._verdict.leaking

    def add(self, row: Row, number: int) -> None:
        """One more look."""
        row.words[self.word] = number
        self._lowest = number if self._lowest is None else min(self._lowest, number)

    def end_minute(self, row: Row, loads: Sequence[float]) -> dict[str, Any] | None:
        """Trend and verdict; returns what to tell when it is first seen to grow steadily."""
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
    """All of them, for one worker's row."""

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
        """Count what is cheap to count: some 50 µs."""
        for tracker, count in self._counts:
            tracker.add(self._row, count())
        if not self._next_objects:
            self._costly(now)

    def _costly(self, now: float) -> None:
        """A large heap takes 12 ns an object, so the larger, the more seldom."""
        self._receivers.add(self._row, receivers())
        if now >= self._next_objects:
            started = time.perf_counter()
            self._objects.add(self._row, len(gc.get_objects()))
            self._next_objects = now + 3000 * (time.perf_counter() - started)

    def end_minute(self, now: float, loads: Sequence[float] = ()) -> list[dict[str, Any]]:
        """Once a minute: trends, and what has been seen to grow.

        :param loads: requests of each minute so far.
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
    """What grows steadily, from the word W_GROWING."""
    return [name for bit, name in enumerate(KINDS) if bits >> bit & 1]


def timers() -> int:
    """Started `threading.Timer`s that have not fired."""
    return sum(map(is_timer, threading.enumerate()))


def is_timer(thread: threading.Thread) -> bool:
    """Whether it is a `threading.Timer`, by what it is and not by what it says of itself."""
    return issubclass(type(thread), threading.Timer)


def names_in_modules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each module's name and its names, live: list them before a look. Runs no code, however a module was made."""
    for module, found in list(sys.modules.items()):
        if issubclass(type(found), ModuleType) and type(module) is str:
            yield module, _names_of(found)


def descriptors() -> int:
    """Open descriptors."""
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
    """blinker's default signals, and all that stand in a module under a name; some 3 ms."""
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
    """Receivers connected to the signals."""
    return sum(len(signal.receivers) for _, signal in signals())
