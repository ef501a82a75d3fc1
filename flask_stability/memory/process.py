"""This process's memory: measured, and given back to the system."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from typing import Any

import psutil

from ..runtime import Part, runtime

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class _Statm(Part):
    """An open descriptor of this process's /proc/self/statm; -1 = not opened yet."""

    def __init__(self) -> None:
        self.descriptor = -1

    def read(self) -> list[bytes]:
        """Return its fields.

        :raises OSError: where there is no such file.
        """
        if self.descriptor < 0:
            self.descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self.descriptor, 128, 0).split()

    def reset_after_fork(self) -> None:
        """The descriptor leads to the parent's figures."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


_statm = runtime.add("memory", _Statm())


def resident() -> int:
    """Bytes of this process in memory now; 2 µs by an open descriptor of /proc, psutil where there is none; 0 where
    neither tells.
    """
    try:
        return int(_statm.read()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        pass
    try:
        return int(psutil.Process().memory_info().rss)
    except Exception:  # without memory figures the rest of the guard goes on
        return 0


def sizes() -> tuple[int, int]:
    """Resident bytes, and those of them that are no file's and no shared memory's (anonymous); as cheap as `resident`.
    Both are the same where /proc does not tell.
    """
    rss = resident()
    try:
        fields = _statm.read()
        return int(fields[1]) * _PAGE, max(0, int(fields[1]) - int(fields[2])) * _PAGE
    except (OSError, IndexError, ValueError):
        return rss, rss


def confirmed() -> tuple[int, int]:
    """Proportional bytes, and those that the end of this process would give back: anonymous, and shared with no other
    process. By smaps_rollup: 0.3 to 17 ms, so only asked before a decision.

    The kernel does not count exactly those: the least of three figures that are never below them is taken.
    """
    found: dict[str, int] = {}
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            for line in file:
                name, colon, rest = line.partition(":")
                if colon and rest.endswith("kB\n"):
                    found[name] = int(rest.split()[0]) * 1024
        private = found["Private_Clean"] + found["Private_Dirty"]
        return found["Pss"], min(private, found.get("Anonymous", private), found.get("Pss_Anon", private))
    except (OSError, ValueError, IndexError, KeyError):
        return sizes()


def collect() -> int:
    """Collect garbage and give free memory back to the system; the bytes of resident memory that this freed."""
    before = resident()
    gc.collect()
    trim()
    return before - resident()


def trim() -> None:
    """Give free memory back to the system, without looking for garbage; milliseconds, in which other threads run."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def _find_trim() -> Callable[[int], Any] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None  # another C library: nothing to trim


_malloc_trim = _find_trim()
