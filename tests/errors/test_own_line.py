"""Which line of a stack is the app's own."""

from __future__ import annotations

import json
import sys
import threading
from types import TracebackType

from flask import Flask

from flask_stability.errors import own_line


def _trace(function: object) -> TracebackType | None:
    try:
        function()  # type: ignore[operator]
    except Exception as error:
        return error.__traceback__
    raise AssertionError("it raises")


def test_the_apps_line_is_told_not_the_librarys() -> None:
    """Of an error that the standard library or an installed package raised for it."""
    def parse() -> None:
        json.loads("{")

    def route() -> None:
        Flask("x").url_map.bind("").match("/none")

    for function, name in ((parse, "parse"), (route, "route")):
        told = own_line.of_trace(_trace(function))
        assert "test_own_line.py:" in told
        assert told.endswith(f" {name}")


def test_without_a_line_of_the_apps_the_innermost_is_told() -> None:
    """Better than nothing; "" where there is none at all."""
    trace = _trace(lambda: json.loads("{"))
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    assert "decoder.py" in own_line.of_trace(trace)
    assert own_line.of_trace(None) == own_line.of_thread(0) == ""


def test_a_thread_that_waits_in_a_library_is_told_by_the_line_that_waits() -> None:
    """As one that hangs in a lock or a socket."""
    begun, end = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        end.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        assert begun.wait(60)
        assert thread.ident is not None
        while "threading" not in sys._current_frames()[thread.ident].f_code.co_filename:
            pass
        assert own_line.of_thread(thread.ident).endswith(" hang")
    finally:
        end.set()
        thread.join()
