"""error.log, health.log and process-manager.log: one line a record, and no record can hurt.

A line is written with one ``write`` to a descriptor in append mode, so lines of several processes do not mix, and a
file that was renamed is noticed at the next line. A disk that fails is replaced by stderr, a stderr that blocks or
fails by a count of what was dropped, which ``/health`` shows. Control characters never reach a log.
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
from typing import IO, Any

from pythonjsonlogger.json import JsonFormatter

from . import scoreboard
from .config import Settings

NAMES = {"error": "error.log", "health": "health.log", "process": "process-manager.log"}
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_STDERR_PATIENCE_MS = 1000
_LINE = 64 * 1024

_drops = 0
_role = ""
_directory: str | None = None
_settings = Settings()


class _TextFormatter(logging.Formatter):
    """The same record as one readable line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = dict(getattr(record, "fields", {}))
        head = f"{fields.pop('ts')} {fields.pop('level')} {fields.pop('event')}"
        return head + "".join(f" {name}={value!r}" for name, value in fields.items())


class _JsonLine(JsonFormatter):
    """The fields of a record in the order they were given, with everything beyond ASCII escaped."""

    def __init__(self) -> None:
        super().__init__(json_ensure_ascii=True, json_default=_safe)

    def format(self, record: logging.LogRecord) -> str:
        return self.serialize_log_record(dict(getattr(record, "fields", {})))


def _safe(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


class _LineHandler(logging.Handler):
    """Appends lines to a file, else to stderr, else counts them."""

    def __init__(self, path: str | None) -> None:
        super().__init__()
        self.path = path
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        data = line.encode("utf-8", "backslashreplace")[:_LINE] + b"\n"
        if self.path is not None and self._to_file(data):
            return
        if not _to_stderr(data):
            _count_drop()

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
        try:
            found = os.stat(self.path or "")
            identity: tuple[int, int] | None = (found.st_dev, found.st_ino)
        except FileNotFoundError:
            identity = None
        if identity is None or identity != self._identity:
            self.release()
            descriptor = os.open(self.path or "", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            status = os.fstat(descriptor)
            self._descriptor, self._identity = descriptor, (status.st_dev, status.st_ino)

    def release(self) -> None:
        """Close the descriptor; the next line opens it again."""
        descriptor, self._descriptor, self._identity = self._descriptor, -1, None
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _to_stderr(data: bytes) -> bool:
    """Write without waiting for ever for whoever reads the other end."""
    try:
        descriptor = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return os.write(descriptor, data) == len(data)
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        for start in range(0, len(data), 4096):
            if not poll.poll(_STDERR_PATIENCE_MS):
                return False
            os.write(descriptor, data[start:start + 4096])
        return True
    except (OSError, ValueError):
        return False


def _count_drop() -> None:
    global _drops
    _drops += 1
    scoreboard.my_row().add(scoreboard.W_LOG_DROPS)


def drops() -> int:
    """Records of this process that could be written nowhere."""
    return _drops


def _logger(name: str) -> logging.Logger:
    return logging.getLogger(f"flask_stability.{name}")


def setup(settings: Settings, role: str = "worker") -> str:
    """Open the logs of this process.

    :param role: "worker" or "master".
    :returns: why the directory cannot be used, or "".
    """
    global _role, _directory, _settings
    _role, _settings, problem = role, settings, ""
    directory = settings.log_dir
    if directory is not None:
        try:
            os.makedirs(directory, exist_ok=True)
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            problem = (f"STABILITY_LOG_DIR={directory!r}: {error.strerror}; logging to stderr: "
                       "make it a directory that the service's user may write to")
            directory = None
    _directory = os.path.abspath(directory) if directory is not None else None
    for name, file in NAMES.items():
        logger = _logger(name)
        for handler in list(logger.handlers):
            if isinstance(handler, _LineHandler):
                logger.removeHandler(handler)
                handler.release()
        handler = _LineHandler(os.path.join(_directory, file) if _directory is not None else None)
        handler.setFormatter(_JsonLine() if settings.log_format == "json" else _TextFormatter())
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.DEBUG if name == "error" else logging.INFO)
    return problem


def teardown() -> None:
    """Take the handlers out again."""
    for name in NAMES:
        logger = _logger(name)
        for handler in list(logger.handlers):
            if isinstance(handler, _LineHandler):
                logger.removeHandler(handler)
                handler.release()
        logger.propagate = True


def reopen() -> None:
    """Close the files; the next line opens them by name."""
    for name in NAMES:
        for handler in _logger(name).handlers:
            if isinstance(handler, _LineHandler):
                handler.release()


def event(log: str, level: str, name: str, fields: dict[str, Any]) -> None:
    """Write one record; never raises."""
    try:
        logger = _logger(log)
        if not logger.handlers:
            if not logger.isEnabledFor(_LEVELS[level]):
                return
            handler = _LineHandler(None)
            handler.setFormatter(_JsonLine())
            logger.addHandler(handler)
            logger.propagate = False
        number = _LEVELS[level]
        if not logger.isEnabledFor(number):
            return
        record = logger.makeRecord(logger.name, number, "", 0, name, (), None)
        row = scoreboard._row
        head = {"ts": _timestamp(), "level": level, "event": name, "pid": os.getpid(),
                "worker": row.slot if row is not None and _role == "worker" else _role or None}
        record.fields = {**head, **fields}
        logger.handle(record)
    except Exception:
        _count_drop()


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
    """A file with a descriptor for faulthandler: error.log, else stderr. Kept open for the process's life."""
    global _crash_file
    if _directory is not None:
        with contextlib.suppress(OSError):
            _crash_file = open(os.path.join(_directory, NAMES["error"]), "a")  # noqa: SIM115
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


def _after_fork() -> None:
    global _storm_lock
    _storm_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
