"""The body of a request while it is read: whether a thread waits for the client, and how fast that sends. And the same
question about a client that takes a response: `Meter`, which is pure.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from typing import Any

from werkzeug.exceptions import RequestTimeout

SMALL, LARGE = 8192, 1 << 20  #: bytes read in one go: from a slow client, and from a fast one at the most
FAST = 0.5  #: seconds within which one piece arrives from a client that is given larger ones
WINDOW = 20.0  #: seconds of waiting for a client after which its rate is judged


class _Again(io.RawIOBase):
    """Bytes, then a file."""

    def __init__(self, first: bytes, body: Any) -> None:
        self._first, self._body = first, body

    def readable(self) -> bool:
        """As of a file."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As of a file."""
        size = len(buffer)
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
        else:
            data = self._body.read(size)
        buffer[:len(data)] = data
        return len(data)


class Upload:
    """Stands in for ``wsgi.input`` and notes what arrives.

    A large read is made in pieces, so that it can be told how far it is; they grow as long as the client is fast.

    :ivar reading: a thread is in a read now.
    :ivar received: bytes so far.
    :ivar cut_at: monotonic seconds at which the connection was cut for it; 0.0 = it was not.
    """

    def __init__(self, body: Any) -> None:
        self._body = body
        self._piece = SMALL
        self.reading = False
        self.received = 0
        self.cut_at = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def put_back(self, first: bytes) -> None:
        """Have the next reads begin with what was read already, all of it so far."""
        self._body = io.BufferedReader(_Again(first, self._body))
        self.received -= len(first)

    def _take(self, method: Any, *arguments: Any) -> bytes:
        begun = time.monotonic()
        self.reading = True
        try:
            data: bytes = method(*arguments)
        finally:
            self.reading = False
        self.received += len(data)
        self._piece = min(2 * self._piece, LARGE) if time.monotonic() - begun < FAST else SMALL
        if self.cut_at:
            raise RequestTimeout("The request's body arrived too slowly.")  # what there is of it is not all
        return data

    def read(self, size: int | None = -1) -> bytes:
        """As of a file.

        :raises RequestTimeout: if the connection was cut because the client is too slow.
        """
        left = sys.maxsize if size is None or size < 0 else size
        parts: list[bytes] = []
        while left > 0:
            data = self._take(self._body.read, min(left, self._piece))
            if not data:
                break
            parts.append(data)
            left -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readline(self, *size: Any) -> bytes:
        """As of a file; raises like `read`."""
        return self._take(self._body.readline, *size)

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """As of a file; raises like `read`."""
        lines: list[bytes] = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint and 0 < hint <= total:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line


class Meter:
    """Judges one client's rate, by what passed while a thread waited for it. Pure."""

    __slots__ = ("_before", "_waited")

    def __init__(self) -> None:
        self._waited = 0.0
        self._before = 0

    def look(self, waited: float, total: int, rate: float) -> bool:
        """Whether the client is too slow: waited for `WINDOW` seconds, in which less than `rate` bytes a second passed.

        :param waited: seconds for which it was waited for since the last look.
        :param total: bytes so far.
        """
        if not waited:
            if not self._waited:
                self._before = total
            return False
        self._waited += waited
        if self._waited < WINDOW:
            return False
        slow = total - self._before < rate * self._waited
        self._waited, self._before = 0.0, total
        return slow
