"""error.log, health.log and process-manager.log: one line a record, and no record can hurt.

A line is written with one ``write`` to a descriptor in append mode, so lines of several processes do not mix, and a
file that was renamed is noticed at the next line. A disk that fails is replaced by stderr, a stderr that blocks or
fails by a count of what was dropped, which ``/health`` shows. Control characters never reach a log. The directory is
opened once and used by its descriptor, and what is opened there is judged (`files`): the master may be root, and the
directory the workers'.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import os
import stat
import sys
from typing import IO, Any

from .. import files, scoreboard
from ..config import Settings
from ..runtime import Part, runtime
from .handler import Directory, LineHandler, lacks_stderr
from .storms import Storms

NAMES = {"error": "error.log", "health": "health.log", "process": "process-manager.log"}
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_logger = logging.getLogger("flask_stability")


class Logs(Part):
    """The logs of this process.

    :ivar role: "worker" or "master", "" before `setup`.
    :ivar directory: of the files; None = stderr.
    :ivar drops: records that could be written nowhere.
    :ivar crash_file: what faulthandler writes to; kept here, since faulthandler needs it longer than `setup`.
    """

    def __init__(self) -> None:
        self.role = ""
        self.settings = Settings()
        self.directory: Directory | None = None
        self.drops = 0
        self.crash_file: IO[str] | None = None
        self.storms = Storms()
        self.handlers = {name: LineHandler(None, file, record) for name, file in NAMES.items()}

    def reset_after_fork(self) -> None:
        """Renew the lock, and count anew; logging renews the handlers' locks."""
        self.storms.renew_lock()
        self.drops = 0


def count_drop() -> None:
    """One more record that could be written nowhere."""
    _logs.drops += 1
    runtime.my_row().add(scoreboard.W_LOG_DROPS)


def drops() -> int:
    """Records of this process that could be written nowhere."""
    return _logs.drops


def setup(settings: Settings, role: str = "worker", *, uid: int = -1, gid: int = -1) -> str:
    """Open the logs of this process.

    :param role: "worker" or "master".
    :param uid: with `gid`, the owner of what is created: the workers', where the master is root.
    :returns: why the directory cannot be used, or "".
    """
    problem, directory = "", None
    if settings.log_dir is not None:
        try:
            directory = Directory(settings.log_dir, settings.log_mode,
                                   (uid, gid) if os.geteuid() == 0 else files.NOBODY)
        except OSError as failure:
            remedy = ("name the directory itself, or have root make the link" if failure.errno == errno.EPERM else
                      "make it a directory that the service's user may write to")
            problem = f"STABILITY_LOG_DIR={settings.log_dir!r}: {failure.strerror}; logging to stderr: {remedy}"
    for handler in _logs.handlers.values():
        handler.forget()
    if _logs.directory is not None:
        _logs.directory.close()
    _logs.role, _logs.settings, _logs.directory = role, settings, directory
    for name, file in NAMES.items():
        _logs.handlers[name] = LineHandler(directory, file, record, settings.log_format, echo=name == "error")
    return problem


def teardown() -> None:
    """Back to how it was before `setup`: lines go to stderr."""
    setup(Settings(), "")


def reopen() -> None:
    """The next line opens directory and file anew by their names. May be called in a signal's handler."""
    if _logs.directory is not None:
        _logs.directory.asked += 1


def event(log: str, level: str, name: str, fields: dict[str, Any]) -> None:
    """Write one record; never raises. DEBUG only where logging's logger ``flask_stability`` has that level."""
    try:
        if level == "DEBUG" and not _logger.isEnabledFor(logging.DEBUG):
            return
        if _logs.handlers[log].write(record(name, level, fields)):
            return
    except Exception:
        pass
    count_drop()


def record(name: str, level: str, fields: dict[str, Any]) -> logging.LogRecord:
    """Make a record of an event that happens now."""
    row = runtime.row
    worker = row.slot if row is not None and _logs.role == "worker" else _logs.role or None
    made = logging.LogRecord(_logger.name, _LEVELS.get(level, logging.ERROR), "", 0, name, None, None)
    made.fields = {"ts": _timestamp(), "level": level, "event": name, "pid": os.getpid(), "worker": worker,
                   **({"release": _logs.settings.release_id} if _logs.settings.release_id else {}), **fields}
    return made


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


def error_file() -> IO[str]:
    """A file with a descriptor for faulthandler: error.log, also once it was rotated, else stderr."""
    directory = _logs.directory
    if directory is not None:
        found = directory.crash_file
        if found is not None and not found.closed:
            return found  # one file for all, so that a rotation is followed for all
        with contextlib.suppress(OSError):
            descriptor = directory.open(NAMES["error"])
            path = directory.path_of(NAMES["error"])
            _logs.crash_file = directory.crash_file = open(path, "a", opener=lambda *_: descriptor)  # noqa: SIM115
            return _logs.crash_file
    if lacks_stderr():
        _logs.crash_file = open(os.devnull, "a")  # noqa: SIM115
        return _logs.crash_file
    return sys.__stderr__ or sys.stderr


# -- storms: see `storms` --------------------------------------------------------------------------------------------


def sample(key: object, now: float | None = None) -> int | None:
    """`Storms.sample`, which counts on the scoreboard what is left out."""
    left_out = _logs.storms.sample(key, now)
    if left_out is None:
        runtime.my_row().add(scoreboard.W_LOG_SAMPLED)
    return left_out


def forget_storms() -> None:
    """Begin to count anew."""
    _logs.storms.forget()


# -- rotation: by the master alone, the workers follow -----------------------------------------------------------


def rotate_if_needed() -> list[str]:
    """Rename files above STABILITY_LOG_MAX_BYTES to .1, .2 … and drop what is beyond STABILITY_LOG_BACKUPS.

    A line that a worker writes meanwhile goes to the renamed file: nothing is lost. Never raises.

    :returns: the names that were rotated.
    """
    rotated: list[str] = []
    if _logs.directory is None:
        return rotated
    for file in NAMES.values():
        place = _logs.directory.descriptor
        try:
            found = os.stat(file, dir_fd=place, follow_symlinks=False)
            if found.st_size < _logs.settings.log_max_bytes or not stat.S_ISREG(found.st_mode):
                continue  # where a link leads is its owner's business
            for number in range(_logs.settings.log_backups, 0, -1):
                source = file if number == 1 else f"{file}.{number - 1}"
                with contextlib.suppress(FileNotFoundError):
                    os.replace(source, f"{file}.{number}", src_dir_fd=place, dst_dir_fd=place)
            if not _logs.settings.log_backups:
                os.unlink(file, dir_fd=place)
            rotated.append(file)
        except OSError:
            continue
    return rotated


_logs = runtime.add("logs", Logs())
