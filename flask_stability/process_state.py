"""Whether another process runs. Where process 1 does not reap, as in some containers, zombies stay: they do not run."""

from __future__ import annotations

import os


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    return state(pid) not in ("", "Z", "X")


def stopped(pid: int) -> bool:
    """Whether it was stopped by a signal: then it does nothing, however long one waits."""
    return state(pid) == "T"


def state(pid: int) -> str:
    """The process's state letter, "" if it is gone; "?" where that cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return "" if os.path.isdir("/proc/self") else "?"
    except (OSError, IndexError):
        return "?"
