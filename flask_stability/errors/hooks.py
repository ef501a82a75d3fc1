"""Record exceptions outside requests: threads, finalizers, the main thread, asyncio, warnings, crashes.

`install` runs once in each gunicorn worker and chains to the hooks that were there; `uninstall` puts them back.
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
from ..config import Settings
from ..request import current
from .report import record

_previous: dict[str, Any] = {}
_python_showwarning = warnings.showwarning


def installed() -> bool:
    """Return whether `install` was called in this process."""
    return bool(_previous)


def install(settings: Settings | None = None) -> None:
    """Chain the hooks of this process. Idempotent. Call `logs.setup` first."""
    if _previous:
        return
    _previous.update(excepthook=sys.excepthook, threading=threading.excepthook, unraisable=sys.unraisablehook,
                     showwarning=warnings.showwarning, faulthandler=faulthandler.is_enabled())
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
    """Restore the previous hooks."""
    if not _previous:
        return
    sys.excepthook = _previous["excepthook"]
    threading.excepthook = _previous["threading"]
    sys.unraisablehook = _previous["unraisable"]
    warnings.showwarning = _previous["showwarning"]
    logging.getLogger("asyncio").removeHandler(_previous["bridge"])
    faulthandler.disable()
    if _previous["faulthandler"]:
        faulthandler.enable(sys.__stderr__ or sys.stderr)
    _previous.clear()


def watch(future: Future[Any]) -> Future[Any]:
    """Log the exception of a future even if no code reads it; return the future."""
    request = current()
    request_id = request.id if request is not None else None

    def on_done(done: Future[Any]) -> None:
        if done.cancelled():
            return
        try:
            error = done.exception()
        except CancelledError:
            return
        if error is not None:
            record(error, event="future_failed", started_by=request_id)

    future.add_done_callback(on_done)
    return future


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, (SystemExit, KeyboardInterrupt)):
        record(error, event="uncaught", level="CRITICAL")
    _chain("excepthook", sys.__excepthook__, kind, error, trace)


def _on_thread(args: threading.ExceptHookArgs) -> None:
    error = args.exc_value
    if error is not None and not (isinstance(error, SystemExit) and error.code in (None, 0)):
        thread = args.thread.name if args.thread is not None else "?"
        level = "WARNING" if isinstance(error, SystemExit) else "ERROR"
        record(error, event="thread_failed", level=level, thread=thread)
    _chain("threading", threading.__excepthook__, args)


def _on_unraisable(args: Any) -> None:
    if record is None:  # the interpreter ends, and has cleared this module: what fails now is its tidying up
        return
    if args.exc_value is not None:
        where = getattr(args.object, "__qualname__", type(args.object).__name__)
        record(args.exc_value, event="unraisable", where=str(where), context=args.err_msg)
    _chain("unraisable", sys.__unraisablehook__, args)


def _on_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None,
                line: str | None = None) -> None:
    if file is None and _tells_of_loss(message, category):
        logs.error("warning", level="WARNING", category=category.__name__, message=str(message)[:500],
                   where=f"{filename}:{lineno}")
        _chain("showwarning", _python_showwarning, message, category, filename, lineno, file, line)
    else:
        _previous.get("showwarning", _python_showwarning)(message, category, filename, lineno, file, line)


def _tells_of_loss(message: Warning | str, category: type[Warning]) -> bool:
    """Record warnings of something left open or never awaited. Other warnings go their usual way."""
    return issubclass(category, ResourceWarning) or (
        issubclass(category, RuntimeWarning) and "never awaited" in str(message))


def _chain(name: str, default: Any, *args: Any) -> None:
    """Call the previous hook, unless it is Python's own, whose text our record replaces."""
    previous = _previous.get(name)
    if previous is None or previous is default:
        return
    try:
        previous(*args)
    except Exception as error:
        record(error, event="hook_failed")


class _AsyncioBridge(logging.Handler):
    """Turn the asyncio logger's errors into our records."""

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
