"""Write to a pipe, a socket or a terminal whose reader may have stopped: it gets half a second, once."""

from __future__ import annotations

import contextlib
import os
import select
import stat
from collections.abc import Callable
from typing import Any

PATIENCE_MS = 500
_PIPE_BUF = 4096


class Patient:
    """Write to a descriptor without waiting for ever for its reader.

    A pipe is opened a second time, non-blocking: making the descriptor itself non-blocking would change it for every
    process that shares it. If that is refused, text is written in pieces that fit once ``poll`` says so.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._own = -1
        self._identity: tuple[int, int] | None = None
        self._stalled = False
        self._torn = False

    def write(self, data: bytes) -> bool:
        """Write `data`; return whether all of it was taken."""
        try:
            status = os.fstat(self._number)
            if stat.S_ISREG(status.st_mode):
                return os.write(self._number, data) == len(data)
            if (status.st_dev, status.st_ino) != self._identity:
                self._open(status)
            return self._write_slowly(b"\n" + data if self._torn else data)
        except OSError:
            return False

    def _open(self, status: os.stat_result) -> None:
        if self._own >= 0:
            os.close(self._own)
        self._own, self._identity = -1, (status.st_dev, status.st_ino)
        with contextlib.suppress(OSError):
            self._own = os.open(f"/proc/self/fd/{self._number}",
                                os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

    def _write_slowly(self, data: bytes) -> bool:
        descriptor = self._own if self._own >= 0 else self._number
        size = len(data) if self._own >= 0 else _PIPE_BUF
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        start = 0
        while start < len(data):
            written = 0
            if poll.poll(0 if self._stalled else PATIENCE_MS):
                with contextlib.suppress(BlockingIOError):
                    written = os.write(descriptor, data[start:start + size])
            elif not self._stalled or start:
                self._stalled = True
            if not written and self._stalled:
                self._torn = self._torn or start > 0
                return False
            start += written
        self._stalled = self._torn = False
        return True


class PatientStream:
    """A text stream for logging: text that cannot be written now is dropped and counted.

    :param stream: the stream that it replaces and asks for everything but writing.
    :param count_drop: called for each dropped text.
    """

    def __init__(self, stream: Any, count_drop: Callable[[], None]) -> None:
        self._stream, self._count_drop = stream, count_drop
        self._patient = Patient(stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        data = text.encode(getattr(self._stream, "encoding", None) or "utf-8", "backslashreplace")
        if not self._patient.write(data):
            self._count_drop()
        return len(text)

    def flush(self) -> None:
        """Do nothing: no text is buffered."""
