"""Ways to break the service, for tests and drills; registered only with SAMPLE_FAULTS=1."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time

from flask import Blueprint, abort, request
from flask.typing import ResponseReturnValue

from . import stability

blueprint = Blueprint("faults", __name__, url_prefix="/faults")

_kept: list[object] = []


class LeakedThing:
    """What the memory leak is made of."""

    def __init__(self, size: int) -> None:
        self.data = os.urandom(1024) * (size // 1024)


def _number(name: str, default: float, most: float) -> float:
    try:
        number = float(request.args.get(name, default))
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        abort(400, description=f"{name}: give a number between 0 and {most:g}")
    return number


@blueprint.get("/raise")
def fail() -> ResponseReturnValue:
    """An exception that nobody catches."""
    raise ValueError("raised on request")


@blueprint.get("/exit")
def leave() -> ResponseReturnValue:
    """sys.exit in a view."""
    sys.exit(int(_number("code", 3, 255)))


@blueprint.get("/die")
def die() -> ResponseReturnValue:
    """os._exit: nothing can catch it."""
    os._exit(int(_number("code", 1, 255)))


@blueprint.get("/segfault")
def segfault() -> ResponseReturnValue:
    """A crash in C."""
    ctypes.string_at(0)
    return "not reached"


@blueprint.get("/hang")
def hang() -> ResponseReturnValue:
    """A view that does not return for an hour."""
    end = time.monotonic() + _number("seconds", 3600, 3600)
    while time.monotonic() < end:
        time.sleep(0.2)
    return "done"


@blueprint.get("/leak")
def leak() -> ResponseReturnValue:
    """Memory that is never given back."""
    _kept.append(LeakedThing(int(_number("mb", 2, 500) * 1e6)))
    return "leaked"


@blueprint.get("/transient")
def transient() -> ResponseReturnValue:
    """Much memory for a moment."""
    data = bytearray(int(_number("mb", 300, 2000) * 1e6))
    data[::4096] = b"x" * len(data[::4096])
    return str(len(data))


@blueprint.get("/leak-connection")
def leak_connection() -> ResponseReturnValue:
    """A connection that the view forgets to give back, and that something keeps alive."""
    connection = stability.connection()
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    _kept.append(connection)
    return "kept"


@blueprint.get("/thread")
def thread() -> ResponseReturnValue:
    """An exception in a thread."""
    def work() -> None:
        raise RuntimeError("raised in a thread")

    threading.Thread(target=work).start()
    return "started"


@blueprint.get("/slow-query")
def slow_query() -> ResponseReturnValue:
    """A statement that takes its time (MariaDB)."""
    with stability.connection() as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT SLEEP(%s)", (_number("seconds", 1, 600),))
        return str(cursor.fetchone()[0])
