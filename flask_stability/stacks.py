"""Find out where a thread is now, without hanging any Python version.

`sys._current_frames` of Python before 3.12 holds a lock of the interpreter while it makes objects. If that triggers a
garbage collection, and the collected objects let another thread run that starts or ends a thread, both threads
deadlock, and the whole process hangs (python/cpython#106883). So garbage collection is off during the call.
"""

from __future__ import annotations

import gc
import sys
import threading
from types import FrameType

from .runtime import Part, runtime

_HANGS = sys.version_info < (3, 12)
#: Seconds to wait for another thread in here; after that the frame counts as unknown.
PATIENCE = 1.0


class _Stacks(Part):
    """One thread at a time switches garbage collection off and on again.

    :ivar paused: it is off because of that.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.paused = False

    def reset_after_fork(self) -> None:
        """Switch garbage collection on again if it is off, since the thread that would have done it is not in the
        child.
        """
        self.lock = threading.Lock()
        if self.paused:
            self.paused = False
            gc.enable()


_stacks = runtime.add("stacks", _Stacks())


def frame_of(thread_id: int) -> FrameType | None:
    """Return the innermost frame of a thread; None if it has ended. Wait at most `PATIENCE` seconds."""
    if not _HANGS:
        return sys._current_frames().get(thread_id)
    lock = _stacks.lock
    if not lock.acquire(timeout=PATIENCE):
        return None
    try:
        _stacks.paused = gc.isenabled()
        gc.disable()
        return sys._current_frames().get(thread_id)
    finally:
        if _stacks.paused:
            _stacks.paused = False
            gc.enable()
        lock.release()
