"""The forms of a log record: one JSON object, or one readable text line."""

from __future__ import annotations

import json
import logging
from typing import Any

from pythonjsonlogger.json import JsonFormatter

_MOST_FIELDS = 100


class TextLine(logging.Formatter):
    """A record as one readable line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = dict(record.fields)  # type: ignore[attr-defined]
        head = f"{fields.pop('ts')} {fields.pop('level')} {fields.pop('event')}"
        return head + "".join(f" {name}={value!r}" for name, value in fields.items())


class JsonLine(JsonFormatter):
    """The fields of a record in the order they were given, with everything but printable ASCII escaped."""

    def __init__(self) -> None:
        super().__init__(json_ensure_ascii=True, json_default=_safe)

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = dict(record.fields)  # type: ignore[attr-defined]
        return self.serialize_log_record(fields).replace("\x7f", "\\u007f")


def _safe(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def cut(fields: dict[str, Any], longest: int) -> dict[str, Any]:
    """The fields of a record that is too long, each value that is longer than `longest` characters cut."""
    found: dict[str, Any] = {}
    for number, (name, value) in enumerate(fields.items()):
        if number == _MOST_FIELDS:
            found["fields_left_out"] = len(fields) - number
            break
        if isinstance(value, (int, float)) or value is None:
            found[name[:_MOST_FIELDS]] = value
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=_safe, skipkeys=True)
        found[name[:_MOST_FIELDS]] = value if len(text) <= longest else (
            f"{text[:longest]}… ({len(text) - longest} characters left out)")
    return found
