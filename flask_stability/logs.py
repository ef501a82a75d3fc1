"""error.log, health.log and process-manager.log: one line a record, and no record can hurt.

A line is written with one ``write`` to a descriptor in append mode, so lines of several processes do not mix, and a
file that was renamed is noticed at the next line. A disk that fails is replaced by stderr, a stderr that blocks or
fails by a count of what was dropped, which ``/health`` shows. Control characters never reach a log.

The handlers are logging's own kind (so a fork renews their locks), but hang on no logger: an app that configures
logging with ``disable_existing_loggers`` does not silence them. There is no buffer whose lock a fork could inherit.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from pythonjsonlogger.json import JsonFormatter

from . import scoreboard
from .config import Settings
from .console import ConsoleLine

NAMES = {"error": "error.log", "health": "health.log", "process": "process-manager.log"}
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_LONGEST = 128 * 1024
_LOCK_PATIENCE = 2.0
_STDERR_PATIENCE_MS = 500
_PIPE_BUF = 4096

_drops = 0
_role = ""
_directory: str | None = None
_settings = Settings()
_owner = (-1, -1)


class _TextLine(logging.Formatter):
    """A record as one readable line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = dict(record.fields)  # type: ignore[attr-defined]
        head = f"{fields.pop('ts')} {fields.pop('level')} {fields.pop('event')}"
        return head + "".join(f" {name}={value!r}" for name, value in fields.items())


class _JsonLine(JsonFormatter):
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


class _LineHandler(logging.Handler):
    """Appends lines to a file, else to stderr, else counts them."""

    def __init__(self, path: str | None, log_format: str = "auto", *, echo: bool = False) -> None:
        super().__init__()
        self.path = path
        self.setFormatter(_TextLine() if log_format == "text" else _JsonLine())
        self._for_people = log_format == "auto"
        self._echo = echo and self._for_people and path is not None  # a person at the terminal sees no file
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None
        self._torn = False

    def write(self, record: logging.LogRecord) -> None:
        """Write one record, waiting for other threads no longer than a while."""
        if self._shown(record) and self.path is None:
            return
        data = self.format(record).encode("ascii", "backslashreplace") + b"\n"
        if len(data) > _LONGEST:
            raise ValueError("record too long")
        if not self._locked(lambda: (self.path is not None and self._to_file(data)) or _stderr.write(data)):
            count_drop()

    def _shown(self, record: logging.LogRecord) -> bool:
        """Whether a person at the terminal was shown it; what fails here loses no record."""
        try:
            if not (self._for_people and (self.path is None or self._echo) and _stderr.is_terminal()):
                return False
            shown = _console.format(record).encode("utf-8", "backslashreplace") + b"\n"
            return len(shown) <= _LONGEST and self._locked(lambda: _stderr.write(shown))
        except Exception:
            return False

    def _locked(self, write: Callable[[], bool]) -> bool:
        """Write while no other thread does.

        :raises TimeoutError: if that cannot be had.
        """
        if self.lock is None or not self.lock.acquire(timeout=_LOCK_PATIENCE):
            raise TimeoutError("another thread is stuck in this log")
        try:
            return write()
        finally:
            self.lock.release()

    def _to_file(self, data: bytes) -> bool:
        try:
            self._follow()
            if self._torn:
                data = b"\n" + data
            written = os.write(self._descriptor, data)
            self._torn = written != len(data)
            return not self._torn
        except OSError:
            return False

    def _follow(self) -> None:
        """Open the file, anew if it was renamed or removed."""
        path = self.path or ""
        try:
            found = os.stat(path)
            identity: tuple[int, int] | None = (found.st_dev, found.st_ino)
        except FileNotFoundError:
            identity = None
        if identity is None or identity != self._identity:
            self.forget()
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            status = os.fstat(descriptor)
            self._descriptor, self._identity = descriptor, (status.st_dev, status.st_ino)
            if identity is None:
                _give(descriptor)
            if _crash_file is not None and _crash_file.name == path:
                os.dup2(descriptor, _crash_file.fileno(), inheritable=False)

    def forget(self) -> None:
        """Close the descriptor; the next line opens it again."""
        descriptor, self._descriptor, self._identity = self._descriptor, -1, None
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _give(file: int | str) -> None:
    """To the user that the workers run as."""
    if _owner != (-1, -1):
        with contextlib.suppress(OSError):
            os.chown(file, *_owner)


class _Stderr:
    """Writes to descriptor 2 without waiting for ever for whoever reads the other end.

    A pipe is opened a second time, non-blocking: making descriptor 2 itself non-blocking would change it for
    everyone who shares it. Where that is refused, it is written in pieces that fit once ``poll`` says so.
    """

    def __init__(self) -> None:
        self._own = -1
        self._identity: tuple[int, int] | None = None
        self._stalled = False
        self._torn = False

    def write(self, data: bytes) -> bool:
        """Whether all of it was taken."""
        try:
            status = os.fstat(2)
            if stat.S_ISREG(status.st_mode):
                return os.write(2, data) == len(data)
            if (status.st_dev, status.st_ino) != self._identity:
                self._open(status)
            return self._write_slowly(b"\n" + data if self._torn else data)
        except OSError:
            return False

    def is_terminal(self) -> bool:
        """Whether a person may be looking."""
        try:
            return os.isatty(2)
        except OSError:
            return False

    def _open(self, status: os.stat_result) -> None:
        if self._own >= 0:
            os.close(self._own)
        self._own, self._identity = -1, (status.st_dev, status.st_ino)
        with contextlib.suppress(OSError):
            self._own = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

    def _write_slowly(self, data: bytes) -> bool:
        descriptor = self._own if self._own >= 0 else 2
        size = len(data) if self._own >= 0 else _PIPE_BUF
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        start = 0
        while start < len(data):
            written = 0
            if poll.poll(0 if self._stalled else _STDERR_PATIENCE_MS):
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


_stderr = _Stderr()
_console = ConsoleLine()
_handlers: dict[str, _LineHandler] = {name: _LineHandler(None) for name in NAMES}


def count_drop() -> None:
    """One more record that could be written nowhere."""
    global _drops
    _drops += 1
    scoreboard.my_row().add(scoreboard.W_LOG_DROPS)


def drops() -> int:
    """Records of this process that could be written nowhere."""
    return _drops


def setup(settings: Settings, role: str = "worker", *, uid: int = -1, gid: int = -1) -> str:
    """Open the logs of this process.

    :param role: "worker" or "master".
    :param uid: with `gid`, the owner of what is created: the workers', where the master is root.
    :returns: why the directory cannot be used, or "".
    """
    global _role, _directory, _settings, _owner
    problem, directory = "", settings.log_dir
    _owner = (uid, gid) if os.geteuid() == 0 else (-1, -1)
    if directory is not None:
        try:
            if not os.path.isdir(directory):
                os.makedirs(directory)
                _give(directory)
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as failure:
            problem = (f"STABILITY_LOG_DIR={directory!r}: {failure.strerror}; logging to stderr: "
                       "make it a directory that the service's user may write to")
            directory = None
    _role, _settings = role, settings
    _directory = os.path.abspath(directory) if directory is not None else None
    reopen()
    for name, file in NAMES.items():
        path = os.path.join(_directory, file) if _directory is not None else None
        _handlers[name] = _LineHandler(path, settings.log_format, echo=name == "error")
    return problem


def teardown() -> None:
    """Back to how it was before `setup`: lines go to stderr."""
    setup(Settings(), "")


def reopen() -> None:
    """Close the files; the next line opens them by name."""
    for handler in _handlers.values():
        handler.forget()


def event(log: str, level: str, name: str, fields: dict[str, Any]) -> None:
    """Write one record; never raises. DEBUG only where logging's logger ``flask_stability`` has that level."""
    try:
        if level == "DEBUG" and not _logger.isEnabledFor(logging.DEBUG):
            return
        row = scoreboard._row
        worker = row.slot if row is not None and _role == "worker" else _role or None
        record = logging.LogRecord(_logger.name, _LEVELS.get(level, logging.ERROR), "", 0, name, None, None)
        record.fields = {"ts": _timestamp(), "level": level, "event": name, "pid": os.getpid(), "worker": worker,
                         **fields}
        _handlers[log].write(record)
    except Exception:
        count_drop()


_logger = logging.getLogger("flask_stability")


def _timestamp() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error(name: str, *, level: str = "ERROR", **fields: Any) -> None:
    """One record in error.log."""
    event("error", level, name, fields)


def health(name: str, *, level: str = "INFO", **fields: Any) -> None:
    """One record in health.log."""
    event("health", level, name, fields)


def process(name: str, *, level: str = "INFO", **fields: Any) -> None:
    """One record in process-manager.log."""
    event("process", level, name, fields)


_crash_file: IO[str] | None = None


def error_file() -> IO[str]:
    """A file with a descriptor for faulthandler: error.log, also once it was rotated, else stderr."""
    global _crash_file
    if _directory is not None:
        path = os.path.join(_directory, NAMES["error"])
        if _crash_file is not None and _crash_file.name == path and not _crash_file.closed:
            return _crash_file  # one file for all, so that a rotation is followed for all
        with contextlib.suppress(OSError):
            _crash_file = open(path, "a")  # noqa: SIM115
            return _crash_file
    return sys.__stderr__ or sys.stderr


# -- rotation: by the master alone, the workers follow -----------------------------------------------------------


def rotate_if_needed() -> list[str]:
    """Rename files above STABILITY_LOG_MAX_BYTES to .1, .2 … and drop what is beyond STABILITY_LOG_BACKUPS.

    A line that a worker writes meanwhile goes to the renamed file: nothing is lost. Never raises.

    :returns: the names that were rotated.
    """
    rotated: list[str] = []
    if _directory is None:
        return rotated
    for file in NAMES.values():
        path = os.path.join(_directory, file)
        try:
            if os.stat(path).st_size < _settings.log_max_bytes:
                continue
            for number in range(_settings.log_backups, 0, -1):
                source = path if number == 1 else f"{path}.{number - 1}"
                with contextlib.suppress(FileNotFoundError):
                    os.replace(source, f"{path}.{number}")
            if not _settings.log_backups:
                os.unlink(path)
            rotated.append(file)
        except OSError:
            continue
    return rotated


# -- storms: one exception a thousand times a minute is one story ------------------------------------------------

STORM_FIRST = 20
STORM_WINDOW = 60.0
_storms: dict[object, list[float]] = {}
_storm_lock = threading.Lock()


def sample(key: object, now: float | None = None) -> int | None:
    """Whether a record of this kind is to be written: None = no, else how many were left out since the last one.

    The first 20 of a minute are written, then the 40th, 80th, 160th …, and the next minute's first tells the rest.
    """
    now = time.monotonic() if now is None else now
    with _storm_lock:
        state = _storms.get(key)
        if state is None:
            if len(_storms) >= 512:
                _storms.clear()
            state = _storms[key] = [now, 0.0, 0.0]
        if now - state[0] >= STORM_WINDOW:
            state[0], state[1] = now, 0.0
        state[1] += 1
        seen = int(state[1])
        due = seen <= STORM_FIRST or (seen % STORM_FIRST == 0 and (seen // STORM_FIRST).bit_count() == 1)
        if due:
            left_out, state[2] = int(state[2]), 0.0
            return left_out
        state[2] += 1
    scoreboard.my_row().add(scoreboard.W_LOG_SAMPLED)
    return None


def forget_storms() -> None:
    """Begin to count anew."""
    with _storm_lock:
        _storms.clear()


def _after_fork() -> None:
    global _storm_lock, _drops
    _storm_lock, _drops = threading.Lock(), 0


os.register_at_fork(after_in_child=_after_fork)
