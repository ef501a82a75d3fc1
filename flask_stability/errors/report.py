"""One record per exception, wherever it was born; never raises.

Messages of exceptions are logged, since developers need them; values of the request never are: no body, cookie,
Authorization, query value or local variable.
"""

from __future__ import annotations

import threading
import time
import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .. import logs, scoreboard
from ..request import RequestRecord, current
from ..runtime import Part, runtime
from ..stacks import frame_of
from . import own_line

_MARK = "__flask_stability_recorded__"
_CHAIN = 5
_FRAMES = 40
_KEPT = 20


@dataclass(slots=True)
class _Seen:
    """Exceptions of one class and route: how many, when the last one was, where it came from, whose it was."""

    count: int = 0
    last: float = 0.0
    where: str = ""
    request_id: str = ""


class _Latest(Part):
    """The exceptions that this process recorded last, by class and route.

    :ivar unwritten: the board does not have all of it.
    :ivar written: monotonic seconds of the last write.
    """

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """The parent's exceptions are counted in the parent's row."""
        self.seen: dict[tuple[str, str], _Seen] = {}
        self.unwritten, self.written = False, -1.0


_latest = runtime.add("exceptions", _Latest())


def mark(error: BaseException, request: RequestRecord | None) -> None:
    """Remember that it needs no (further) record in this request."""
    if request is not None:
        request.recorded = _kind(error)
    try:
        error.__dict__[_MARK] = _owner(request)
    except Exception:
        pass  # an exception that hides its __dict__: `recorded` goes by its kind then


def recorded(error: BaseException, request: RequestRecord | None = None) -> bool:
    """Whether it was recorded in this request, or in this thread outside of any.

    The same object raised again by a later request is another event; another object of the same class from the same
    line in the same request is the same one (Flask runs ``after_request`` twice).
    """
    request = request if request is not None else current()
    try:
        if error.__dict__.get(_MARK) == _owner(request):
            return True
    except Exception:
        pass
    return request is not None and request.recorded is not None and request.recorded == _kind(error)


def _owner(request: RequestRecord | None) -> object:
    return request.id if request is not None else threading.get_ident()


def record(error: BaseException, *, event: str = "exception", level: str = "ERROR",
           request: RequestRecord | None = None, **fields: Any) -> None:
    """Log an exception with its request, once.

    :param request: whose it is; default: the one that this thread serves.
    :param fields: more for the record.
    """
    try:
        request = request if request is not None else current()
        if recorded(error, request):
            return
        mark(error, request)
        row = runtime.my_row()
        row.add(scoreboard.W_EXCEPTIONS)
        _remember(error, request, row)
        left_out = logs.sample(_kind(error))
        if left_out is None:
            return
        details = {**request_fields(request), **fields, "exception": chain(error)}
        if left_out:
            details["repeated_unlogged"] = left_out
        logs.error(event, level=level, **details)
    except Exception:
        logs.count_drop()


def request_fields(request: RequestRecord | None) -> dict[str, Any]:
    """What a record tells of a request."""
    if request is None:
        return {}
    return {"request_id": request.id, "method": request.method[:32], "path": request.path[:1024],
            "route": request.route, "query_keys": request.query_keys, "client": request.client,
            "duration_ms": round(request.seconds() * 1000, 1), "response_started": request.response_started}


def chain(error: BaseException) -> list[dict[str, Any]]:
    """The exception and what it came from, newest first, each with class, message and frames."""
    found: list[dict[str, Any]] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and len(found) < _CHAIN and id(link) not in seen:
        seen.add(id(link))
        found.append({"type": _name(link), "message": _message(link), "frames": frames(link.__traceback__)})
        if isinstance(link, BaseExceptionGroup):
            found[-1]["group"] = [{"type": _name(part), "message": _message(part)}
                                  for part in link.exceptions[:_CHAIN]]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return found


def frames(trace: TracebackType | None) -> list[str]:
    """``file:line function`` of each frame, the innermost last; a deep recursion is cut in the middle."""
    lines: list[str] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{code.co_filename}:{trace.tb_lineno} {code.co_name}")
        if len(lines) > 4 * _FRAMES:
            del lines[_FRAMES // 2:-_FRAMES]
        trace = trace.tb_next
    if len(lines) > _FRAMES:
        lines[_FRAMES // 2:-_FRAMES // 2] = ["…"]
    return lines


def stack_of(thread_id: int) -> list[str]:
    """Where a thread is now; empty if it has ended."""
    frame = frame_of(thread_id)
    if frame is None:
        return []
    return [f"{item.f_code.co_filename}:{line} {item.f_code.co_name}"
            for item, line in list(traceback.walk_stack(frame))[:_FRAMES]][::-1]


def server_handler(error: BaseException) -> str | None:
    """Name of gunicorn's signal handler that raised it inside the view, or None if the app raised it."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if str(frame.f_globals.get("__name__", "")).startswith("gunicorn.workers."):
            name = frame.f_code.co_name
            if name.startswith("handle_"):
                return name
        trace = trace.tb_next
    return None


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return "; ".join([str(error), *getattr(error, "__notes__", ())])[:2000]
    except Exception as failure:
        return f"<str() raised {type(failure).__name__}>"


def _kind(error: BaseException) -> tuple[type, str, int]:
    """What makes two exceptions the same story: their class and the line that raised."""
    trace, last = error.__traceback__, None
    while trace is not None:
        last, trace = trace, trace.tb_next
    if last is None:
        return type(error), "", 0
    return type(error), last.tb_frame.f_code.co_filename, last.tb_lineno


def _remember(error: BaseException, request: RequestRecord | None, row: scoreboard.Row) -> None:
    """Class, route, count and last time for the health document: no message, no data."""
    key = (_name(error), request.route if request is not None else "")
    entry = _latest.seen.setdefault(key, _Seen())
    entry.count, entry.last = entry.count + 1, time.time()
    entry.where, entry.request_id = own_line.of_trace(error.__traceback__), request.id if request is not None else ""
    _latest.unwritten = True
    write_latest(row, at_once=entry.count == 1)


def write_latest(row: scoreboard.Row, *, at_once: bool = False) -> None:
    """Put what was remembered on the board, at most once a second: the monitor writes what a burst left.

    :param at_once: what is new is not to be lost with a process that dies of it.
    """
    now = time.monotonic()
    if not _latest.unwritten or (now - _latest.written < 1.0 and not at_once):
        return
    _latest.unwritten, _latest.written = False, now
    known = sorted(_latest.seen.items(), key=lambda item: -item[1].last)
    for name, _ in known[_KEPT:]:
        _latest.seen.pop(name, None)
    entries = [{"class": name, "route": route, "count": seen.count, "last": round(seen.last, 1), "where": seen.where,
                "request_id": seen.request_id} for (name, route), seen in known[:_KEPT]]
    while entries and not row.exceptions.write_json(entries):
        entries.pop()
