"""gunicorn's own log: an unread pipe must block neither master nor worker; it names the process that killed another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ... import logs
from ...logs.patient import PatientStream

GUESS = " Perhaps out of memory?"
_streams: dict[int, PatientStream] = {}


def be_patient(log: Any) -> None:
    """Have gunicorn's handlers for stdout and stderr wait at most half a second. Called again after each reload.

    A reload creates new handlers.

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
    except (AttributeError, OSError, ValueError):  # not a real file
        return
    if number in (1, 2) and not isinstance(stream, PatientStream):
        if number not in _streams:
            _streams[number] = PatientStream(stream, logs.count_drop)
        handler.setStream(_streams[number])


class Kills:
    """A filter for gunicorn's log, which suggests lack of memory for each SIGKILL, even for its own and ours.

    :param why: returns why the service itself killed the worker with that process id, or "" if it did not.
    """

    def __init__(self, why: Callable[[int], str]) -> None:
        self._why = why

    def filter(self, record: Any) -> bool:
        """Keep each record; correct the text of such a suggestion."""
        if isinstance(record.msg, str) and GUESS in record.msg:
            text = record.getMessage()
            digits = text.partition("pid:")[2].partition(")")[0]
            why = self._why(int(digits)) if digits.isdecimal() else ""
            if why:
                record.msg, record.args = text.replace(GUESS, f" It was killed by this service: {why}."), ()
        return True

