"""The rules of PEP 3333 and gunicorn for an app's status line and headers, checked before the server sees them.

gunicorn checks too, but keeps the headers that it took before the one it refused: an error answer would no longer be
possible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_STATUS = re.compile(r"[1-9]\d\d(?: [\t \x21-\x7e\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t \x21-\x7e\x80-\xff]*")
_KEPT = 200
#: Headers whose values repeat, which makes them worth remembering, and which carry no secrets.
_REPEATING = frozenset({"Content-Type", "Content-Length", "Vary", "Cache-Control", "X-Content-Type-Options"})


class InvalidResponse(RuntimeError):
    """The app broke the rules of WSGI (PEP 3333)."""


class _Statuses(dict[str, int]):
    """The code of each status line that was valid before."""

    def __missing__(self, status: Any) -> int:
        if type(status) is not str or not _STATUS.fullmatch(status):
            raise InvalidResponse(f"invalid status {str(status)[:100]!r}")
        if len(self) < _KEPT:
            self[status] = int(status[:3])
        return int(status[:3])


class _Names(dict[str, bool]):
    """For each header name that was valid before, whether it is Content-Length."""

    def __missing__(self, name: Any) -> bool:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidResponse("a response header has an invalid name")
        is_length = name.lower() == "content-length"
        if type(name) is str and len(self) < _KEPT:
            self[name] = is_length
        return is_length


_statuses, _names = _Statuses(), _Names()
#: Results of `check_head`, by status line and headers in one tuple, so that a repeated head costs one lookup. Nothing
#: is ever dropped: replacing entries for heads that do not repeat would cost more than checking these heads.
known_heads: dict[tuple[Any, ...], tuple[int, int]] = {}


def check_head(status: Any, headers: Sequence[tuple[Any, Any]]) -> tuple[int, int]:
    """Return the status and the Content-Length of a head, -1 without one.

    :raises InvalidResponse: naming the header; its value may carry a secret, so the message omits it.
    """
    code, length = _statuses[status], -1
    for name, value in headers:
        is_length = _names[name]
        if not isinstance(value, str) or not ((value.isascii() and value.isprintable()) or _VALUE.fullmatch(value)):
            raise InvalidResponse(f"the response header {name} has an invalid value")
        if is_length:
            if not value.strip().isdecimal():
                raise InvalidResponse("Content-Length is no number")
            if length < 0:
                length = int(value)
    if len(known_heads) < _KEPT and all(name in _REPEATING and len(value) < 100 for name, value in headers):
        known_heads[status, *headers] = code, length
    return code, length


def forbids_body(code: int) -> bool:
    """Return whether an answer of this status has no body."""
    return code < 200 or code in (204, 304)
