"""A start that cannot work ends with its reason: one line, told by one worker for all, and an exit status."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from gunicorn.errors import AppImportError

from ..exceptions import ConfigError

#: Workers that ended before they were ready, while none ever was, after which the service ends; more for more workers.
STILLBORN = 3
BOOT_FAILED = 3  #: exit status, as gunicorn ends if a worker does not boot
GUESS = " Perhaps out of memory?"


class Once:
    """Among forked processes, the first that asks is told True; all others False, until it is `renew`-ed."""

    def __init__(self) -> None:
        self._event = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def first(self) -> bool:
        """Whether nobody has asked yet."""
        try:
            return bool(os.eventfd_read(self._event))
        except BlockingIOError:
            return False
        except OSError:  # the app has closed it: better told twice than never
            return True

    def renew(self) -> None:
        """The next one is the first again."""
        os.eventfd_write(self._event, 1)


def one_line(load: Callable[[], None], once: Once) -> Callable[[], None]:
    """gunicorn's `load_wsgi`, but settings that cannot be used end the worker with one line a problem, from the first
    worker only, and no traceback.
    """
    def load_wsgi() -> None:
        try:
            load()
        except ConfigError as error:
            lines = [f"flask_stability: {problem}" for problem in error.problems] if once.first() else []
            raise AppImportError("\n".join(lines)) from error

    return load_wsgi


def cannot_start(error: Exception) -> str:
    """The reason in words of a worker that cannot even be forked."""
    what = f"no worker can be started: {type(error).__name__}: {error}"[:500]
    if "workertmp" in what or "wgunicorn-" in what or "temporary directory" in what:
        what += "; set gunicorn's worker_tmp_dir to a directory that the service may write to, such as /dev/shm"
    return what


def stillborn(ends: list[str], workers: int) -> str:
    """Why to give a start up, "" not to.

    :param ends: why each worker ended that was never ready.
    :param workers: how many there are to be.
    """
    if len(ends) < max(STILLBORN, workers):
        return ""
    return f"no worker ever became ready, {len(ends)} ended before: {', '.join(sorted(set(ends)))}"


class Kills:
    """A filter for gunicorn's log: it guesses at lack of memory for each SIGKILL, also for its own and ours.

    :param why: why a worker with that process id was killed by its own service, "" if it was not.
    """

    def __init__(self, why: Callable[[int], str]) -> None:
        self._why = why

    def filter(self, record: Any) -> bool:
        """Keep each record; correct that one."""
        if isinstance(record.msg, str) and GUESS in record.msg:
            text = record.getMessage()
            digits = text.partition("pid:")[2].partition(")")[0]
            why = self._why(int(digits)) if digits.isdecimal() else ""
            if why:
                record.msg, record.args = text.replace(GUESS, f" It was killed by this service: {why}."), ()
        return True

