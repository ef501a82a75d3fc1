"""Asking a database whether it answers, on a connection of its own, whatever the pool's are busy with."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..dberrors import ErrorClass

if TYPE_CHECKING:
    from .drivers import Driver


def round_trip(driver: Driver, patience: float) -> float:
    """Connect, execute one statement and close. Return the seconds that the statement took.

    :param patience: seconds to connect, and seconds for the statement; a whole number of seconds is used to connect.
    :raises Exception: the driver's, with a note of what to do about it; also where there was no answer in time.
    """
    try:
        return _timed(driver, patience)
    except Exception as error:
        if remedy := driver.remedy(error):
            error.add_note(remedy)
        raise


def _timed(driver: Driver, patience: float) -> float:
    raw = driver.connect(patience)
    link = driver.link(raw)
    watch = threading.Timer(patience, driver.interrupt, (raw, link))
    watch.daemon = True
    try:
        with suppress(RuntimeError):  # no more threads: the driver's own timeouts are left
            watch.start()
        started = time.monotonic()
        cursor = raw.cursor()
        cursor.execute("SELECT 1")
        cursor.fetchone()
        cursor.close()
        return time.monotonic() - started
    finally:
        watch.cancel()
        raw.close()
        if link is not None:
            link.close()


def is_busy(driver: Driver, error: BaseException) -> bool:
    """Whether the database lives and only has no room for one more: no connection left, or a file that is locked."""
    return driver.classify(error) in (ErrorClass.FULL, ErrorClass.LOCK_WAIT)
