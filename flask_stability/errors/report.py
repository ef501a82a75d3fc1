"""One record per exception, wherever it was born; never raises.

Messages of exceptions are logged, since developers need them; values of the request never are: no body, cookie,
Authorization, query value or local variable.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from types import TracebackType
from typing import Any

from .. import logs, scoreboard
from ..request import RequestRecord, current

_MARK = "__flask_stability_recorded__"
_CHAIN = 5
_FRAMES = 40
_KEPT = 30
_latest: dict[tuple[str, str], list[Any]] = {}


def recorded(error: BaseException) -> bool:
    """Whether this very exception was recorded before."""
    try:
        return getattr(error, _MARK, False) is True
    except Exception:
        return False


def record(error: BaseException, *, event: str = "exception", level: str = "ERROR",
           request: RequestRecord | None = None, traceback: bool = True, **fields: Any) -> None:
    """Log an exception with its request, once.

    :param request: whose it is; default: the one that this thread serves.
    :param traceback: with its stack.
    """
    try:
        if recorded(error):
            return
        try:
            error.__flask_stability_recorded__ = True  # type: ignore[attr-defined]
        except Exception:
            pass  # an exception with __slots__ or a __setattr__ of its own: it may be recorded twice
        request = request if request is not None else current()
        if request is not None:
            request.recorded = True
        row = scoreboard.my_row()
        row.add(scoreboard.W_EXCEPTIONS)
        _remember(error, request, row)
        left_out = logs.sample(_kind(error))
        if left_out is None:
            return
        details = {**request_fields(request), **fields, "exception": chain(error) if traceback else summary(error)}
        if left_out:
            details["repeated_unlogged"] = left_out
        logs.error(event, level=level, **details)
    except Exception:
        logs._count_drop()


def request_fields(request: RequestRecord | None) -> dict[str, Any]:
    """What a record tells of a request."""
    if request is None:
        return {}
    return {"request_id": request.id, "method": request.method[:32], "path": request.path[:1024],
            "route": request.route, "query_keys": request.query_keys, "client": request.client,
            "duration_ms": round(request.seconds() * 1000, 1), "response_started": request.response_started}


def summary(error: BaseException) -> list[dict[str, Any]]:
    """Class and message."""
    return [{"type": _name(error), "message": _message(error)}]


def chain(error: BaseException) -> list[dict[str, Any]]:
    """The exception and what it came from, newest first, each with its frames."""
    found: list[dict[str, Any]] = []
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and len(found) < _CHAIN and id(link) not in seen:
        seen.add(id(link))
        found.append({"type": _name(link), "message": _message(link), "frames": frames(link.__traceback__)})
        if isinstance(link, BaseExceptionGroup):
            found[-1]["group"] = [part for sub in link.exceptions[:_CHAIN] for part in summary(sub)]
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
    frame = sys._current_frames().get(thread_id)
    return [f"{item.filename}:{item.lineno} {item.name}" for item in traceback.extract_stack(frame, limit=_FRAMES)] \
        if frame is not None else []


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)[:2000]
    except Exception as failure:
        return f"<str() raised {type(failure).__name__}>"


def _kind(error: BaseException) -> tuple[str, str, int]:
    """What makes two exceptions the same story: their class and the line that raised."""
    trace, last = error.__traceback__, None
    while trace is not None:
        last, trace = trace, trace.tb_next
    if last is None:
        return _name(error), "", 0
    return _name(error), last.tb_frame.f_code.co_filename, last.tb_lineno


def _remember(error: BaseException, request: RequestRecord | None, row: scoreboard.Row) -> None:
    """Class, route, count and last time for the health document: no message, no data."""
    key = (_name(error), request.route if request is not None else "")
    entry = _latest.setdefault(key, [0, 0.0])
    entry[0] += 1
    now = time.time()
    due = now - entry[1] >= 1.0
    entry[1] = now
    if not due:
        return
    if len(_latest) > _KEPT:
        del _latest[min(_latest, key=lambda name: _latest[name][1])]
    data = [{"class": name, "route": route, "count": count, "last": round(last, 1)}
            for (name, route), (count, last) in sorted(_latest.items(), key=lambda item: -item[1][1])]
    row.exceptions.write(json.dumps(data).encode())
