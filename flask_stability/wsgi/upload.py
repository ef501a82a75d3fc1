"""The body of a request while it is read: whether a thread waits for the client, and how fast the client sends.

`Meter`, which is pure, also judges how fast a client receives a response.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from typing import Any

from werkzeug.exceptions import RequestTimeout

SMALL, LARGE = 8192, 1 << 20  #: bytes per read: from a slow client, and at most from a fast one
FAST = 0.5  #: seconds in which a piece must arrive for the next piece to be larger
WINDOW = 20.0  #: seconds of waiting for a client after which its rate is judged


class _Again(io.RawIOBase):
    """A stream of some bytes, followed by a file."""

    def __init__(self, first: bytes, body: Any) -> None:
        self._first, self._body = first, body

    def readable(self) -> bool:
        """Return True, as any file opened for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, as a file does; return the number of bytes."""
        size = len(buffer)
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
        else:
            data = self._body.read(size)
        buffer[:len(data)] = data
        return len(data)


class Upload:
    """Replaces ``wsgi.input`` and notes what arrives.

    It splits a large read into pieces, so that the guard can see its progress; the pieces grow as long as the client is
    fast.

    :ivar reading: a thread is in a read now.
    :ivar received: bytes so far.
    :ivar cut_at: when the guard cut the connection for its slow body, monotonic seconds; 0.0 = it was not cut.
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
        """Make the next reads begin with all the bytes read so far."""
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
            raise RequestTimeout("The request's body arrived too slowly.")  # the body is incomplete
        return data

    def read(self, size: int | None = -1) -> bytes:
        """Read as a file does.

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
        """Read a line as a file does.

        :raises RequestTimeout: as `read`.
        """
        return self._take(self._body.readline, *size)

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """Read lines as a file does.

        :raises RequestTimeout: as `read`.
        """
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
    """Judges one client's rate, by the bytes that passed while a thread waited for it. Pure."""

    __slots__ = ("_before", "_waited")

    def __init__(self) -> None:
        self._waited = 0.0
        self._before = 0

    def look(self, waited: float, total: int, rate: float) -> bool:
        """Return whether the client is too slow: fewer than `rate` bytes per second in `WINDOW` seconds of waiting.

        :param waited: seconds that a thread has waited for it since the last look.
        :param total: bytes so far.
        :param rate: minimum bytes per second.
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
