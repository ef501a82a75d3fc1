"""Observe the exit statuses that gunicorn collects, since gunicorn does not pass them on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any


class _Listening:
    """The `os` module, with a `waitpid` that reports what it has collected."""

    def __init__(self, tell: Callable[[int, int, int], None]) -> None:
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        """Collect a child as `os.waitpid` does, and report it."""
        found, status, usage = os.wait4(pid, options)
        self._tell(found, status, usage.ru_maxrss * 1024)
        return found, status


@contextlib.contextmanager
def told_of_exits(names: dict[str, Any] | None, tell: Callable[[int, int, int], None], pids: list[int]
                  ) -> Iterator[None]:
    """Call `tell` within the block with process id, status and peak memory (bytes, 0 = unknown) of each collected exit.

    A peek before gunicorn collects would miss children that end in between.

    :param names: the globals of the collecting function; None where its way to collect is unknown: then peek.
    :param pids: the processes to peek at.
    """
    if names is None:
        for pid in pids:
            status = peek(pid)
            if status is not None:
                tell(pid, status, 0)
        yield
        return
    before, names["os"] = names["os"], _Listening(tell)
    try:
        yield
    finally:
        names["os"] = before


def peek(pid: int) -> int | None:
    """Return the status of an ended child that is not collected yet, as `os.waitpid` would return it; else None."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return None
    if found is None:
        return None
    return found.si_status << 8 if found.si_code == os.CLD_EXITED else found.si_status
