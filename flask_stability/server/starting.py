"""A start that cannot succeed ends with its reason: one line, logged by one worker for all, and an exit status."""

from __future__ import annotations

import os

from ..scoreboard import Reason

#: Number of workers that end before they are ready, while none ever was, after which the service ends; at least as many
#: as configured workers.
STILLBORN = 3
BOOT_FAILED = 3  #: exit status with which gunicorn ends if a worker does not boot


class Once:
    """Returns True to the first of the forked processes that asks, and False to all others until `renew`."""

    def __init__(self) -> None:
        self._event = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def first(self) -> bool:
        """Return whether no worker has asked yet."""
        try:
            return bool(os.eventfd_read(self._event))
        except BlockingIOError:
            return False
        except OSError:  # the app has closed it: a line logged twice is better than none
            return True

    def renew(self) -> None:
        """Make the next process that asks the first again."""
        os.eventfd_write(self._event, 1)


def cannot_start(error: Exception) -> str:
    """Return the reason, in words, why a worker cannot be forked."""
    what = f"no worker can be started: {type(error).__name__}: {error}"[:500]
    if "workertmp" in what or "wgunicorn-" in what or "temporary directory" in what:
        what += "; set gunicorn's worker_tmp_dir to a directory that the service may write to, such as /dev/shm"
    return what


def stillborn(ends: list[Reason], workers: int) -> str:
    """Return why to give up a start, or "" to go on.

    :param ends: exit reasons of the workers that were never ready.
    :param workers: the target number.
    """
    if len(ends) < max(STILLBORN, workers):
        return ""
    return f"no worker ever became ready, {len(ends)} ended before: {', '.join(sorted(set(ends)))}"
