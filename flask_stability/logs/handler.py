"""Where the lines of a log go: to a file of its directory, else to stderr.

The handlers are logging's own kind (so a fork renews their locks), but hang on no logger: an app that configures
logging with ``disable_existing_loggers`` does not silence them. There is no buffer whose lock a fork could inherit.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import IO, Any

from .. import files
from .console import ConsoleLine
from .lines import JsonLine, TextLine, cut
from .patient import Patient

_LONGEST = 128 * 1024  #: bytes of a line; a longer record is cut
#: Characters of a value at the most, in turn until the line fits: in ASCII a character takes up to 12 bytes.
_CUTS = (16384, 4096, 512, 64)
LOCK_PATIENCE = 2.0  #: seconds to wait for another thread that writes the same log

MakeRecord = Callable[[str, str, dict[str, Any]], logging.LogRecord]
_stderr = Patient(2)
_console = ConsoleLine()


def lacks_stderr() -> bool:
    """Whether descriptor 2 was closed when Python started: whatever has that number now is no place for a log."""
    return sys.__stderr__ is None


def _is_terminal() -> bool:
    """Whether a person may be looking at stderr."""
    return not lacks_stderr() and os.isatty(2)


class Directory:
    """The directory of the logs, by a descriptor that stays; asked for it, the next line opens it anew by name.

    :param mode: of new files, None = 0640 less the umask.
    :param owner: user and group that get what is made here.
    :ivar crash_file: what faulthandler writes to, by a descriptor that follows a rotation; None = nothing here.
    :ivar asked: how often `reopen` was called; files opened before the last time are opened anew as well.
    """

    def __init__(self, path: str, mode: int | None, owner: tuple[int, int]) -> None:
        self.path, self._mode, self._owner = os.path.abspath(path), mode, owner
        self.descriptor = files.make_directory(self.path, 0o750, owner)
        self.asked = self._done = 0
        self.crash_file: IO[str] | None = None
        try:
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=self.descriptor, effective_ids=True):
                raise PermissionError(errno.EACCES, "Permission denied")
        except OSError:
            self.close()
            raise

    def path_of(self, file: str) -> str:
        """Its path, to be shown."""
        return os.path.join(self.path, file)

    def look(self, file: str) -> tuple[int, int] | None:
        """What a name leads to now: device and inode; None if there is nothing."""
        try:
            found = os.stat(file, dir_fd=self.descriptor)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def open(self, file: str) -> int:
        """Open a log for appending."""
        if self._done != self.asked:
            self._done = self.asked
            with contextlib.suppress(OSError):
                self._open_again()
        try:
            return files.open_append(self.descriptor, file, mode=self._mode, owner=self._owner)
        except FileNotFoundError:  # the directory was removed
            self._open_again()
            return files.open_append(self.descriptor, file, mode=self._mode, owner=self._owner)

    def _open_again(self) -> None:
        found = files.open_directory(self.path)
        try:
            os.dup2(found, self.descriptor, inheritable=False)  # other threads use the number
        finally:
            os.close(found)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.descriptor)


class LineHandler(logging.Handler):
    """Appends lines to a file of the directory, else to stderr, else counts them."""

    def __init__(self, directory: Directory | None, file: str, make_record: MakeRecord, log_format: str = "auto", *,
                 echo: bool = False) -> None:
        super().__init__()
        self._directory, self._file, self._make_record = directory, file, make_record
        self.setFormatter(TextLine() if log_format == "text" else JsonLine())
        self._for_people = log_format == "auto"
        self._echo = echo and self._for_people and directory is not None  # a person at the terminal sees no file
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None
        self._asked = 0
        self._torn = False
        self._refused = ""

    def write(self, record: logging.LogRecord) -> bool:
        """Write one record, waiting for other threads no longer than a while; return False if it is lost.

        :raises TimeoutError: if another thread is stuck in this log.
        """
        if self._shown(record) and self._directory is None:
            return True
        data = self._line(record)
        return self._locked(lambda: (self._directory is not None and self._to_file(data)) or (
            not lacks_stderr() and _stderr.write(data)))

    def _shown(self, record: logging.LogRecord) -> bool:
        """Whether a person at the terminal was shown it; what fails here loses no record."""
        try:
            if not (self._for_people and (self._directory is None or self._echo) and _is_terminal()):
                return False
            shown = _console.format(record).encode("utf-8", "backslashreplace") + b"\n"
            return len(shown) <= _LONGEST and self._locked(lambda: _stderr.write(shown))
        except Exception:
            return False

    def _locked(self, write: Callable[[], bool]) -> bool:
        """Write while no other thread does.

        :raises TimeoutError: if that cannot be had.
        """
        if self.lock is None or not self.lock.acquire(timeout=LOCK_PATIENCE):
            raise TimeoutError("another thread is stuck in this log")
        try:
            return write()
        finally:
            self.lock.release()

    def _line(self, record: logging.LogRecord) -> bytes:
        data = self.format(record).encode("ascii", "backslashreplace") + b"\n"
        for longest in _CUTS:
            if len(data) <= _LONGEST:
                break
            record.fields = cut(record.fields, longest)  # type: ignore[attr-defined]
            data = self.format(record).encode("ascii", "backslashreplace") + b"\n"
        return data

    def _to_file(self, data: bytes) -> bool:
        try:
            self._follow()
            if self._torn:
                data = b"\n" + data
            written = os.write(self._descriptor, data)
            self._torn = written != len(data)
            self._refused = ""
            return not self._torn
        except OSError as error:
            if error.errno == errno.EPERM:
                self._tell_refused(error.strerror or "")
            return False

    def _follow(self) -> None:
        """Open the file, anew if it was renamed or removed, or if that was asked for."""
        directory = self._directory
        assert directory is not None
        identity = directory.look(self._file)
        if identity is None or identity != self._identity or self._asked != directory.asked:
            self.forget()
            self._asked = directory.asked
            descriptor = directory.open(self._file)
            status = os.fstat(descriptor)
            self._descriptor, self._identity = descriptor, (status.st_dev, status.st_ino)
            crash_file = directory.crash_file
            if crash_file is not None and crash_file.name == directory.path_of(self._file):
                os.dup2(descriptor, crash_file.fileno(), inheritable=False)

    def _tell_refused(self, why: str) -> None:
        """Say once on stderr why the lines come there."""
        if self._directory is None or why == self._refused:
            return
        self._refused = why
        record = self._make_record("log_refused", "ERROR", {
            "file": self._directory.path_of(self._file), "error": why,
            "remedy": "remove what is there; links have to be root's or the service's own"})
        _stderr.write(self.format(record).encode("ascii", "backslashreplace") + b"\n")

    def forget(self) -> None:
        """Close the descriptor; the next line opens it again."""
        descriptor, self._descriptor, self._identity = self._descriptor, -1, None
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
