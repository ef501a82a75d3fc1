"""gunicorn's own log: an unread pipe must stop neither master nor worker; it says which process killed which."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ... import logs
from ...logs.patient import PatientStream

GUESS = " Perhaps out of memory?"
_streams: dict[int, PatientStream] = {}


def be_patient(log: Any) -> None:
    """Have gunicorn's handlers for stdout and stderr wait half a second at the most; also after each reload, which
    makes new ones.

    :param log: gunicorn's logger, of whatever class.
    """
    for name in ("error_log", "access_log"):
        logger = getattr(log, name, None)
        while isinstance(logger, logging.Logger):
            for handler in logger.handlers:
                _replace(handler)
            logger = logger.parent if logger.propagate else None


def _replace(handler: logging.Handler) -> None:
    if not isinstance(handler, logging.StreamHandler) or isinstance(handler, logging.FileHandler):
        return
    stream = handler.stream
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):  # no real file
        return
    if number in (1, 2) and not isinstance(stream, PatientStream):
        if number not in _streams:
            _streams[number] = PatientStream(stream, logs.count_drop)
        handler.setStream(_streams[number])


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

