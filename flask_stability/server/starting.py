"""A start that cannot work ends with its reason: one line, told by one worker for all, and an exit status."""

from __future__ import annotations

import os

from ..scoreboard import Reason

#: Workers that ended before they were ready, while none ever was, after which the service ends; more for more workers.
STILLBORN = 3
BOOT_FAILED = 3  #: exit status, as gunicorn ends if a worker does not boot


class Once:
    """Among forked processes, the first that asks is told True; all others False, until it is `renew`-ed."""

    def __init__(self) -> None:
        self._event = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def first(self) -> bool:
        """Return whether no worker has asked yet."""
        try:
            return bool(os.eventfd_read(self._event))
        except BlockingIOError:
            return False
        except OSError:  # the app has closed it: better told twice than never
            return True

    def renew(self) -> None:
        """The next one is the first again."""
        os.eventfd_write(self._event, 1)


def cannot_start(error: Exception) -> str:
    """The reason in words of a worker that cannot even be forked."""
    what = f"no worker can be started: {type(error).__name__}: {error}"[:500]
    if "workertmp" in what or "wgunicorn-" in what or "temporary directory" in what:
        what += "; set gunicorn's worker_tmp_dir to a directory that the service may write to, such as /dev/shm"
    return what


def stillborn(ends: list[Reason], workers: int) -> str:
    """Why to give a start up, "" not to.

    :param ends: why each worker ended that was never ready.
    :param workers: the target number.
    """
    if len(ends) < max(STILLBORN, workers):
        return ""
    return f"no worker ever became ready, {len(ends)} ended before: {', '.join(sorted(set(ends)))}"
