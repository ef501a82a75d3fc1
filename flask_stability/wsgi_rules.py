"""What PEP 3333 and gunicorn ask of an app's status line and headers, checked before the server sees them.

gunicorn checks too, but keeps the headers it took before the one it refused: an answer could not be given any more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_STATUS = re.compile(r"[1-9]\d\d(?: [\t \x21-\x7e\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t \x21-\x7e\x80-\xff]*")
_CACHE = 1000
#: Headers whose values repeat: worth remembering, and no secrets.
_REPEATING = frozenset({"content-type", "content-length", "vary", "cache-control", "x-content-type-options"})

#: Status lines known to be well formed, with their numbers.
known_statuses: dict[str, int] = {}
_known: set[tuple[str, str]] = set()
#: Whether all of these headers were checked before.
are_known = _known.issuperset


class InvalidResponse(RuntimeError):
    """The app broke the rules of WSGI (PEP 3333)."""


def check_status(status: Any) -> int:
    """The number of a status line.

    :raises InvalidResponse: for what is no status line.
    """
    if type(status) is not str or not _STATUS.fullmatch(status):
        raise InvalidResponse(f"invalid status {str(status)[:100]!r}")
    if len(known_statuses) >= _CACHE:
        known_statuses.clear()
    code = known_statuses[status] = int(status[:3])
    return code


def check_headers(headers: Sequence[tuple[Any, Any]], id_header: str) -> bool:
    """Whether the app gave `id_header` itself.

    :raises InvalidResponse: naming the header; its value may carry a secret and is not shown.
    """
    found = False
    for name, value in headers:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidResponse("a response header has an invalid name")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise InvalidResponse(f"the response header {name} has an invalid value")
        lower = name.lower()
        if lower == "content-length" and not value.strip().isdigit():
            raise InvalidResponse("Content-Length is no number")
        if lower == id_header.lower():
            found = True
        elif lower in _REPEATING and len(value) < 100:
            if len(_known) >= _CACHE:
                _known.clear()
            _known.add((name, value))
    return found


def content_length(headers: Sequence[tuple[str, str]]) -> int:
    """The Content-Length of checked headers, -1 without one."""
    return next((int(value) for name, value in headers if name.lower() == "content-length"), -1)


def forbids_body(code: int) -> bool:
    """Whether an answer of this status has no body."""
    return code < 200 or code in (204, 304)
