"""The stacks of a worker's threads, at the master's request, even while the worker's interpreter hangs.

When `TELL_STACKS` arrives, faulthandler writes them in C, without the interpreter's lock, into a memory file that the
master created before it forked the worker. This needs neither ptrace nor a disk, and the master can still read the file
after the worker has ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from .. import logs
from ..scoreboard import STATE_NAMES, W_STATE
from .workers import Child

#: The signal that makes a worker write its stacks. A process that does not expect it ignores it.
TELL_STACKS = signal.SIGURG
MOST = 200  #: maximum number of workers in one answer: a message carries at most 253 descriptors
LARGEST = 1 << 20  #: maximum bytes of one worker's stacks


def make() -> int:
    """Create the memory file for a worker's stacks, in the master before the fork; -1 without support. Never raise."""
    try:
        return os.memfd_create("flask_stability-stacks", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        return -1


def drop(descriptor: int) -> None:
    """Close a memory file. Never raise."""
    if descriptor >= 0:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def register(descriptor: int) -> None:
    """Register the signal in a worker: write the stacks to the memory file, or to error.log without one."""
    faulthandler.register(TELL_STACKS, file=descriptor if descriptor >= 0 else logs.error_file(), all_threads=True)


def ask(child: Child) -> None:
    """Have a worker write its stacks, after discarding earlier ones. Never raise."""
    if child.dump >= 0:
        with contextlib.suppress(OSError):
            os.ftruncate(child.dump, 0)
            os.lseek(child.dump, 0, os.SEEK_SET)  # the worker shares the open file, and so its position
    child.send(TELL_STACKS)


def read(descriptor: int) -> str:
    """Return the stacks that a worker has written so far. Never raise."""
    with contextlib.suppress(OSError):
        return os.pread(descriptor, LARGEST, 0).decode("utf-8", "replace")
    return ""


def log(child: Child) -> None:
    """Append a worker's stacks to error.log, as text. Never raise."""
    text = read(child.dump) if child.dump >= 0 else ""
    if text:
        with contextlib.suppress(OSError, ValueError):
            os.write(logs.error_file().fileno(), f"Stacks of worker {child.pid}:\n{text}\n".encode())


def answer(children: Iterable[Child], requests: Callable[[Child], list[dict[str, Any]]]) -> dict[str, Any]:
    """Ask workers for their stacks, and return the control socket's answer: descriptors to read the stacks from.

    The first descriptor is a JSON list with an object for each worker; the others are the workers' files in that order.

    :param requests: returns the requests that a worker serves.
    :raises OSError: if a descriptor cannot be opened.
    """
    found = [child for child in children if child.pid and child.dump >= 0]
    asked = found[:MOST]
    workers = [{"pid": child.pid, "slot": child.row.slot if child.row is not None else -1,
                "state": STATE_NAMES[min(max(int(child.row.words[W_STATE]), 0), len(STATE_NAMES) - 1)]
                if child.row is not None else "unknown", "requests": requests(child)} for child in asked]
    for child in asked:
        ask(child)
    about = os.memfd_create("flask_stability-workers", os.MFD_CLOEXEC)
    opened = [about]
    try:
        os.write(about, json.dumps(workers).encode())
        opened += [os.open(f"/proc/self/fd/{child.dump}", os.O_RDONLY | os.O_CLOEXEC) for child in asked]
    except OSError:
        for descriptor in opened:
            drop(descriptor)
        raise
    return {"pids": [child.pid for child in asked], "left_out": len(found) - len(asked), "descriptors": opened}


def collect(descriptors: list[int], until: float) -> list[str]:
    """Return the stacks that the workers write, waiting until each file is complete.

    :param until: monotonic seconds, after which the wait for a worker that has written nothing ends.
    """
    texts = [""] * len(descriptors)
    while True:
        before, texts = texts, [read(descriptor) for descriptor in descriptors]
        if (all(texts) and texts == before) or time.monotonic() > until:
            return texts
        time.sleep(0.03)
