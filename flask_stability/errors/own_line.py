"""Find the app's own line in a stack: an engineer on call looks at it first."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterable
from types import TracebackType

from ..stacks import frame_of

LONGEST = 160  #: characters
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY = tuple({os.path.realpath(path) + os.sep for name in ("stdlib", "platstdlib")
                  if (path := sysconfig.get_paths().get(name))} | {_PACKAGE, "<"})
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def of_trace(trace: TracebackType | None) -> str:
    """Return ``file:line function`` of the app's innermost frame, else of the innermost one; "" without any."""
    return _own((item.f_code.co_filename, line, item.f_code.co_name)
                for item, line in reversed(list(traceback.walk_tb(trace))))


def of_thread(thread_id: int) -> str:
    """Return the same for where a thread is now; "" if it has ended."""
    frame = frame_of(thread_id)
    return _own((item.f_code.co_filename, line, item.f_code.co_name) for item, line in traceback.walk_stack(frame)) if (
        frame is not None) else ""


def _own(innermost_first: Iterable[tuple[str, int | None, str]]) -> str:
    fallback = ""
    for path, line, function in innermost_first:
        text = f"{_short(path)}:{line} {function}"
        if not path.startswith(_LIBRARY) and not any(part in path for part in _INSTALLED):
            return text[-LONGEST:]
        fallback = fallback or text[-LONGEST:]
    return fallback


def _short(path: str) -> str:
    """Shorten a path: relative to the folder that the service was started in, else its last three parts."""
    try:
        here = os.getcwd() + os.sep
    except OSError:
        here = "\0"
    return path.removeprefix(here) if path.startswith(here) else os.sep.join(path.split(os.sep)[-3:])
