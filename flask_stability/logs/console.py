"""Format log records for a person at a terminal: exceptions as a traceback, with their request."""

from __future__ import annotations

import linecache
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

_FRAME = re.compile(r"(.+):(\d+) (.+)")
_REQUEST = ("request_id", "method", "path")
_LEFT_OUT = frozenset({"ts", "level", "event", "pid", "worker", "exception", "stack", "frames", *_REQUEST})
_COLOURS = {"WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class ConsoleLine(logging.Formatter):
    """Format one record. Nothing in it can move the cursor or pretend to be another record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as lines of printable text."""
        fields: dict[str, Any] = record.fields  # type: ignore[attr-defined]
        level = str(fields.get("level"))
        head = f"{time.strftime('%H:%M:%S')} {level} {fields.get('event')}"
        if level in _COLOURS:
            head = f"\x1b[{_COLOURS[level]}m{head}\x1b[0m"
        if fields.get("request_id"):
            head += _clean(f"  {fields.get('method', '')} {fields.get('path', '')}  (request {fields['request_id']})")
        rest = [f"{name}={value}" for name, value in fields.items()
                if name not in _LEFT_OUT and value not in (None, "", [], {})]
        lines = [head + _clean("  " + " ".join(rest)) if rest else head]
        lines += map(_clean, _traceback(fields.get("exception")))
        lines += map(_clean, _stack(fields.get("stack") or fields.get("frames")))
        return "\n".join(lines)


def _clean(line: str) -> str:
    """Remove control characters, and those that change the direction of text."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _traceback(chain: Any) -> Iterator[str]:
    """Return a traceback in Python's order: the first exception first."""
    if not isinstance(chain, list):
        return
    for number, link in enumerate(reversed(chain)):
        if number:
            yield "The exception above led to this one:"
        yield "Traceback (most recent call last):"
        yield from _stack(link.get("frames"))
        yield f"{link.get('type')}: {link.get('message')}"
        for part in link.get("group", ()):
            yield f"  - {part.get('type')}: {part.get('message')}"


def _stack(frames: Any) -> Iterator[str]:
    if not isinstance(frames, list):
        return
    for frame in frames:
        found = _FRAME.fullmatch(str(frame))
        if found is None:
            yield f"  {frame}"
            continue
        yield f'  File "{found[1]}", line {found[2]}, in {found[3]}'
        source = linecache.getline(found[1], int(found[2])).strip()
        if source:
            yield f"    {source}"
