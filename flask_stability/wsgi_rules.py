"""What PEP 3333 and gunicorn ask of an app's status line and headers, checked before the server sees them.

gunicorn checks too, but keeps the headers it took before the one it refused: an answer could not be given any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_STATUS = re.compile(r"[1-9]\d\d(?: [\t \x21-\x7e\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t \x21-\x7e\x80-\xff]*")
_CACHE = 1000
#: Headers whose values repeat: worth remembering, and no secrets.
_REPEATING = frozenset({"content-type", "content-length", "vary", "cache-control", "x-content-type-options"})


class InvalidResponse(RuntimeError):
    """The app broke the rules of WSGI (PEP 3333)."""


class _Heads(dict[tuple[Any, ...], tuple[int, int]]):
    """`check_head` of a status line and headers, in one tuple. What repeats is remembered: it costs one look then."""

    def __missing__(self, key: tuple[Any, ...]) -> tuple[int, int]:
        status, *headers = key
        head = check_head(status, headers)
        if all(name.lower() in _REPEATING and len(value) < 100 for name, value in headers):
            if len(self) >= _CACHE:
                self.clear()
            self[key] = head
        return head


known_heads = _Heads()


def check_head(status: Any, headers: Iterable[tuple[Any, Any]]) -> tuple[int, int]:
    """The status and the Content-Length, -1 without one, of a head.

    :raises InvalidResponse: naming the header; its value may carry a secret and is not shown.
    """
    if type(status) is not str or not _STATUS.fullmatch(status):
        raise InvalidResponse(f"invalid status {str(status)[:100]!r}")
    length = -1
    for name, value in headers:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidResponse("a response header has an invalid name")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise InvalidResponse(f"the response header {name} has an invalid value")
        if name.lower() == "content-length":
            if not value.strip().isdecimal():
                raise InvalidResponse("Content-Length is no number")
            length = int(value) if length < 0 else length
    return int(status[:3]), length


def forbids_body(code: int) -> bool:
    """Whether an answer of this status has no body."""
    return code < 200 or code in (204, 304)
