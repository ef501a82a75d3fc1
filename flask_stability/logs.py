"""error.log, health.log and process-manager.log: one line a record, and no record can hurt.

A line is written with one ``write`` to a descriptor in append mode, so lines of several processes do not mix, and a
file that was renamed is noticed at the next line. A disk that fails is replaced by stderr, a stderr that blocks or
fails by a count of what was dropped, which ``/health`` shows. Control characters never reach a log. The directory is
opened once and used by its descriptor, and what is opened there is judged (`files`): the master may be root, and the
directory the workers'.

The handlers are logging's own kind (so a fork renews their locks), but hang on no logger: an app that configures
logging with ``disable_existing_loggers`` does not silence them. There is no buffer whose lock a fork could inherit.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from pythonjsonlogger.json import JsonFormatter

from . import files, scoreboard
from .config import Settings
from .console import ConsoleLine
from .patient import Patient
from .runtime import runtime

NAMES = {"error": "error.log", "health": "health.log", "process": "process-manager.log"}
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_LONGEST = 128 * 1024  #: bytes of a line; a longer record is cut
#: Characters of a value at the most, in turn until the line fits: in ASCII a character takes up to 12 bytes.
_CUTS = (16384, 4096, 512, 64)
_MOST_FIELDS = 100
_LOCK_PATIENCE = 2.0

_drops = 0
_role = ""
_directory: _Directory | None = None
_settings = Settings()


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


class _Directory:
    """The directory of the logs, by a descriptor that stays; asked for it, the next line opens it anew by name.

    :param mode: of new files, None = 0640 less the umask.
    :param owner: who gets what is made here.
    :ivar asked: how often `reopen` was called; files opened before the last time are opened anew as well.
    """

    def __init__(self, path: str, mode: int | None, owner: tuple[int, int]) -> None:
        self.path, self._mode, self._owner = os.path.abspath(path), mode, owner
        self.descriptor = files.make_directory(self.path, 0o750, owner)
        self.asked = self._done = 0
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


class _LineHandler(logging.Handler):
    """Appends lines to a file of the directory, else to stderr, else counts them."""

    def __init__(self, directory: _Directory | None, file: str, log_format: str = "auto", *,
                 echo: bool = False) -> None:
        super().__init__()
        self._directory, self._file = directory, file
        self.setFormatter(_TextLine() if log_format == "text" else _JsonLine())
        self._for_people = log_format == "auto"
        self._echo = echo and self._for_people and directory is not None  # a person at the terminal sees no file
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None
        self._asked = 0
        self._torn = False
        self._refused = ""

    def write(self, record: logging.LogRecord) -> None:
        """Write one record, waiting for other threads no longer than a while."""
        if self._shown(record) and self._directory is None:
            return
        data = self._line(record)
        if not self._locked(lambda: (self._directory is not None and self._to_file(data)) or (
                not _lacks_stderr() and _stderr.write(data))):
            count_drop()

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
        if self.lock is None or not self.lock.acquire(timeout=_LOCK_PATIENCE):
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
            record.fields = _cut(record.fields, longest)  # type: ignore[attr-defined]
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
            if _crash_file is not None and _crash_file.name == directory.path_of(self._file):
                os.dup2(descriptor, _crash_file.fileno(), inheritable=False)

    def _tell_refused(self, why: str) -> None:
        """Say once on stderr why the lines come there."""
        if self._directory is None or why == self._refused:
            return
        self._refused = why
        record = _record("log_refused", "ERROR", {
            "file": self._directory.path_of(self._file), "error": why,
            "remedy": "remove what is there; links have to be root's or the service's own"})
        _stderr.write(self.format(record).encode("ascii", "backslashreplace") + b"\n")

    def forget(self) -> None:
        """Close the descriptor; the next line opens it again."""
        descriptor, self._descriptor, self._identity = self._descriptor, -1, None
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _cut(fields: dict[str, Any], longest: int) -> dict[str, Any]:
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


def _lacks_stderr() -> bool:
    """Whether descriptor 2 was closed when Python started: whatever has that number now is no place for a log."""
    return sys.__stderr__ is None


def _is_terminal() -> bool:
    """Whether a person may be looking at stderr."""
    return not _lacks_stderr() and os.isatty(2)


_stderr = Patient(2)
_console = ConsoleLine()
_handlers: dict[str, _LineHandler] = {name: _LineHandler(None, file) for name, file in NAMES.items()}


def count_drop() -> None:
    """One more record that could be written nowhere."""
    global _drops
    _drops += 1
    runtime.my_row().add(scoreboard.W_LOG_DROPS)


def drops() -> int:
    """Records of this process that could be written nowhere."""
    return _drops


def setup(settings: Settings, role: str = "worker", *, uid: int = -1, gid: int = -1) -> str:
    """Open the logs of this process.

    :param role: "worker" or "master".
    :param uid: with `gid`, the owner of what is created: the workers', where the master is root.
    :returns: why the directory cannot be used, or "".
    """
    global _role, _directory, _settings
    problem, directory = "", None
    if settings.log_dir is not None:
        try:
            directory = _Directory(settings.log_dir, settings.log_mode,
                                   (uid, gid) if os.geteuid() == 0 else files.NOBODY)
        except OSError as failure:
            remedy = ("name the directory itself, or have root make the link" if failure.errno == errno.EPERM else
                      "make it a directory that the service's user may write to")
            problem = f"STABILITY_LOG_DIR={settings.log_dir!r}: {failure.strerror}; logging to stderr: {remedy}"
    for handler in _handlers.values():
        handler.forget()
    if _directory is not None:
        _directory.close()
    _role, _settings, _directory = role, settings, directory
    for name, file in NAMES.items():
        _handlers[name] = _LineHandler(directory, file, settings.log_format, echo=name == "error")
    return problem


def teardown() -> None:
    """Back to how it was before `setup`: lines go to stderr."""
    setup(Settings(), "")


def reopen() -> None:
    """The next line opens directory and file anew by their names. May be called in a signal's handler."""
    if _directory is not None:
        _directory.asked += 1


def event(log: str, level: str, name: str, fields: dict[str, Any]) -> None:
    """Write one record; never raises. DEBUG only where logging's logger ``flask_stability`` has that level."""
    try:
        if level == "DEBUG" and not _logger.isEnabledFor(logging.DEBUG):
            return
        _handlers[log].write(_record(name, level, fields))
    except Exception:
        count_drop()


_logger = logging.getLogger("flask_stability")


def _record(name: str, level: str, fields: dict[str, Any]) -> logging.LogRecord:
    row = runtime.row
    worker = row.slot if row is not None and _role == "worker" else _role or None
    record = logging.LogRecord(_logger.name, _LEVELS.get(level, logging.ERROR), "", 0, name, None, None)
    record.fields = {"ts": _timestamp(), "level": level, "event": name, "pid": os.getpid(), "worker": worker, **fields}
    return record


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
        path = _directory.path_of(NAMES["error"])
        if _crash_file is not None and _crash_file.name == path and not _crash_file.closed:
            return _crash_file  # one file for all, so that a rotation is followed for all
        with contextlib.suppress(OSError):
            descriptor = _directory.open(NAMES["error"])
            _crash_file = open(path, "a", opener=lambda *_: descriptor)  # noqa: SIM115
            return _crash_file
    if _lacks_stderr():
        _crash_file = open(os.devnull, "a")  # noqa: SIM115
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
        place = _directory.descriptor
        try:
            found = os.stat(file, dir_fd=place, follow_symlinks=False)
            if found.st_size < _settings.log_max_bytes or not stat.S_ISREG(found.st_mode):
                continue  # where a link leads is the business of who made it
            for number in range(_settings.log_backups, 0, -1):
                source = file if number == 1 else f"{file}.{number - 1}"
                with contextlib.suppress(FileNotFoundError):
                    os.replace(source, f"{file}.{number}", src_dir_fd=place, dst_dir_fd=place)
            if not _settings.log_backups:
                os.unlink(file, dir_fd=place)
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
    runtime.my_row().add(scoreboard.W_LOG_SAMPLED)
    return None


def forget_storms() -> None:
    """Begin to count anew."""
    with _storm_lock:
        _storms.clear()


def _after_fork() -> None:
    global _storm_lock, _drops
    _storm_lock, _drops = threading.Lock(), 0


os.register_at_fork(after_in_child=_after_fork)
