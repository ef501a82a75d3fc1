"""What a worker that grew was holding: a record that a developer can act on. Bounded in time and objects."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import tracemalloc
from collections import Counter
from typing import Any

MOST_OBJECTS = 2_000_000
SECONDS = 2.0
TOP = 10

_baseline: Counter[str] = Counter()
_bytes: Counter[str] = Counter()


def _census() -> tuple[Counter[str], Counter[str]]:
    """Objects that the collector tracks, and their shallow bytes with those of their plain contents, by type."""
    number: Counter[str] = Counter()
    size: Counter[str] = Counter()
    deadline = time.monotonic() + SECONDS
    for index, thing in enumerate(gc.get_objects()):
        if index >= MOST_OBJECTS or (not index & 0xFFF and time.monotonic() > deadline):
            break
        kind = type(thing)
        name = f"{kind.__module__}.{kind.__qualname__}"
        number[name] += 1
        try:
            size[name] += sys.getsizeof(thing) + _held(thing)
        except Exception:
            continue
    return number, size


def _held(thing: Any) -> int:
    """Bytes of the plain values directly inside: big ones hide in small containers."""
    values = getattr(thing, "__dict__", None)
    inside = values.values() if isinstance(values, dict) else thing if type(thing) in (list, tuple, set) else ()
    total = 0
    for number, value in enumerate(inside):
        if number >= 1000:
            break
        if type(value) in (bytes, bytearray, str):
            total += sys.getsizeof(value)
    return total


def baseline() -> None:
    """Remember what there is now that the worker is warm."""
    global _baseline, _bytes
    _baseline, _bytes = _census()


def report(reason: str) -> dict[str, Any]:
    """What grew since the baseline (or is there, without one), and what is held open."""
    number, size = _census()
    grown = Counter({name: size[name] - _bytes.get(name, 0) for name in size})
    types = [{"type": name, "bytes": held, "objects": number[name] - _baseline.get(name, 0)}
             for name, held in grown.most_common(TOP) if held > 0]
    threads = threading.enumerate()
    found: dict[str, Any] = {
        "reason": reason, "since_warm": bool(_baseline), "grown_types": types,
        "threads": len(threads), "timers": sum(isinstance(thread, threading.Timer) for thread in threads),
        "thread_names": sorted(thread.name for thread in threads)[:30],
        "open_files": _open_files(), "garbage": [type(thing).__qualname__ for thing in gc.garbage[:TOP]],
    }
    if tracemalloc.is_tracing():
        statistics = tracemalloc.take_snapshot().statistics("lineno")[:TOP]
        found["allocated_at"] = [f"{item.traceback[0].filename}:{item.traceback[0].lineno} {item.size} bytes"
                                 for item in statistics]
    return found


def _open_files() -> dict[str, int]:
    """Open descriptors by kind."""
    kinds: Counter[str] = Counter()
    try:
        for name in os.listdir("/proc/self/fd")[:4096]:
            try:
                kinds[os.readlink(f"/proc/self/fd/{name}").split(":")[0].split("/")[0] or "file"] += 1
            except OSError:
                continue
    except OSError:
        pass
    return dict(kinds)
