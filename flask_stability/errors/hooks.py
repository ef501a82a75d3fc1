"""Exceptions born outside of a request: threads, finalizers, the main thread, asyncio, warnings, crashes.

Installed once per gunicorn worker, chained to whatever was there, and taken out again by `uninstall`.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
import warnings
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any

from .. import logs
from .report import record

_previous: dict[str, Any] = {}


def installed() -> bool:
    """Whether this process serves, with its exceptions going to error.log."""
    return bool(_previous)


def install() -> None:
    """Chain the hooks of this process. Idempotent."""
    if _previous:
        return
    _previous.update(excepthook=sys.excepthook, threading=threading.excepthook, unraisable=sys.unraisablehook,
                     showwarning=warnings.showwarning)
    sys.excepthook = _on_uncaught
    threading.excepthook = _on_thread
    sys.unraisablehook = _on_unraisable
    warnings.showwarning = _on_warning
    _previous["bridge"] = bridge = _AsyncioBridge(logging.ERROR)
    logging.getLogger("asyncio").addHandler(bridge)
    try:
        faulthandler.enable(logs.error_file(), all_threads=True)
    except (OSError, ValueError, AttributeError):
        logs.error("faulthandler_not_available", level="WARNING")


def uninstall() -> None:
    """Put back what was there."""
    if not _previous:
        return
    sys.excepthook = _previous["excepthook"]
    threading.excepthook = _previous["threading"]
    sys.unraisablehook = _previous["unraisable"]
    warnings.showwarning = _previous["showwarning"]
    logging.getLogger("asyncio").removeHandler(_previous["bridge"])
    faulthandler.disable()
    _previous.clear()


def watch(future: Future[Any]) -> Future[Any]:
    """Log the exception of a future whether or not anyone reads it."""
    future.add_done_callback(_on_done)
    return future


def _on_done(future: Future[Any]) -> None:
    try:
        error = future.exception(timeout=0)
    except (CancelledError, TimeoutError):
        return
    if error is not None:
        record(error, event="future_failed")


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, (SystemExit, KeyboardInterrupt)):
        record(error, event="uncaught", level="CRITICAL")
    _chain("excepthook", sys.__excepthook__, kind, error, trace)


def _on_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        thread = args.thread.name if args.thread is not None else "?"
        level = "WARNING" if isinstance(args.exc_value, SystemExit) else "ERROR"
        record(args.exc_value, event="thread_failed", level=level, thread=thread)
    _chain("threading", threading.__excepthook__, args)


def _on_unraisable(args: Any) -> None:
    if args.exc_value is not None:
        where = getattr(args.object, "__qualname__", type(args.object).__name__)
        record(args.exc_value, event="unraisable", where=str(where), context=args.err_msg)
    _chain("unraisable", sys.__unraisablehook__, args)


def _on_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None,
                line: str | None = None) -> None:
    if file is None and issubclass(category, RuntimeWarning):
        logs.error("warning", level="WARNING", category=category.__name__, message=str(message)[:500],
                   where=f"{filename}:{lineno}")
    previous = _previous.get("showwarning")
    if previous is not None:
        previous(message, category, filename, lineno, file, line)


def _chain(name: str, default: Any, *args: Any) -> None:
    """Call the hook that was there before, unless it is Python's own, whose text our record replaces."""
    previous = _previous.get(name)
    if previous is None or previous is default:
        return
    try:
        previous(*args)
    except Exception as error:
        record(error, event="hook_failed")


class _AsyncioBridge(logging.Handler):
    """Turns the asyncio logger's errors into records of ours."""

    def emit(self, item: logging.LogRecord) -> None:
        error = item.exc_info[1] if item.exc_info else None
        try:
            message = item.getMessage()[:500]
        except Exception:
            message = str(item.msg)[:500]
        if error is not None:
            record(error, event="asyncio", message=message)
        else:
            logs.error("asyncio", message=message)
