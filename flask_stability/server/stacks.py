"""The stacks of a worker's threads, asked for by the master, also while the worker's interpreter hangs.

faulthandler writes them in C when `TELL_STACKS` arrives, without the interpreter's lock, into a memory file that the
master made before it forked the worker: there is no ptrace, no disk, and the master can read what a worker told that is
gone by now.
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

#: Has a worker write its stacks. Sent to a process that does not expect it, this signal does nothing.
TELL_STACKS = signal.SIGURG
MOST = 200  #: workers that one answer has the stacks of: a message carries 253 descriptors at the most
LARGEST = 1 << 20  #: bytes of one worker's stacks


def make() -> int:
    """In the master, before a fork: a memory file for the worker's stacks; -1 where there are none. Never raises."""
    try:
        return os.memfd_create("flask_stability-stacks", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        return -1


def drop(descriptor: int) -> None:
    """Close a memory file. Never raises."""
    if descriptor >= 0:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def register(descriptor: int) -> None:
    """In a worker: write stacks there from now on; to error.log if there is no memory file."""
    faulthandler.register(TELL_STACKS, file=descriptor if descriptor >= 0 else logs.error_file(), all_threads=True)


def ask(child: Child) -> None:
    """Have a worker write its stacks: what it wrote before is forgotten. Never raises."""
    if child.dump >= 0:
        with contextlib.suppress(OSError):
            os.ftruncate(child.dump, 0)
            os.lseek(child.dump, 0, os.SEEK_SET)  # the worker has the same file, and so the same place in it
    child.send(TELL_STACKS)


def read(descriptor: int) -> str:
    """What a worker has written so far. Never raises."""
    with contextlib.suppress(OSError):
        return os.pread(descriptor, LARGEST, 0).decode("utf-8", "replace")
    return ""


def log(child: Child) -> None:
    """Append what a worker told to error.log, as text. Never raises."""
    text = read(child.dump) if child.dump >= 0 else ""
    if text:
        with contextlib.suppress(OSError, ValueError):
            os.write(logs.error_file().fileno(), f"Stacks of worker {child.pid}:\n{text}\n".encode())


def answer(children: Iterable[Child], requests: Callable[[Child], list[dict[str, Any]]]) -> dict[str, Any]:
    """Ask workers for their stacks, and return what the control socket sends: descriptors to read them from.

    The first descriptor is a list in JSON, an object for each worker; the others are the workers' files in that order.

    :param requests: what a worker is doing.
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
    """What the workers write, each waited for until it is complete.

    :param until: monotonic seconds, after which a worker that has written nothing is given up.
    """
    texts = [""] * len(descriptors)
    while True:
        before, texts = texts, [read(descriptor) for descriptor in descriptors]
        if (all(texts) and texts == before) or time.monotonic() > until:
            return texts
        time.sleep(0.03)
