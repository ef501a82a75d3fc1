"""Ask a database for an answer, on a connection outside the pool."""

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

    :param patience: maximum seconds to connect (rounded up to whole ones), and again for the statement.
    :raises Exception: the driver's error, with the remedy as a note; also if no answer came in time.
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
        with suppress(RuntimeError):  # no more threads: only the driver's own timeouts apply
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
    """Return whether the database works and only lacks room: no connection left, or a locked file."""
    return driver.classify(error) in (ErrorClass.FULL, ErrorClass.LOCK_WAIT)
