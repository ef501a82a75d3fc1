"""The scoreboard's file in the run directory: made so that neither a full disk nor a foreign file can do harm.

It exists so that the command line can read the board while HTTP is stuck; the service runs as well without it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat

PREFIX = "flask_stability-"
SUFFIX = ".board"
CONTROL = ".control"  #: of the master's control socket, beside the board


def default_run_dir() -> str | None:
    """XDG_RUNTIME_DIR, else /dev/shm, else None."""
    for path in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):
        if path and os.path.isdir(path) and os.access(path, os.W_OK):
            return path
    return None


def make(run_dir: str, head: bytes, size: int, uid: int, gid: int) -> tuple[mmap.mmap, str]:
    """A new file of `size` bytes that begins with `head`, mapped; and its path.

    :raises OSError: if that cannot be; nothing is left then.
    """
    _remove_stale(run_dir)
    path = os.path.join(run_dir, f"{PREFIX}{os.getpid()}{SUFFIX}")
    with contextlib.suppress(FileNotFoundError):
        if _is_ours(os.lstat(path)):
            os.unlink(path)  # of an earlier process with this number
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        # a page of a sparse file that the disk has no room for is SIGBUS at the first store
        os.posix_fallocate(descriptor, 0, size)
        if uid != -1 or gid != -1:
            os.fchown(descriptor, uid, gid)
        mapping = mmap.mmap(descriptor, size)
        mapping[:len(head)] = head
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    return mapping, path


def attach(path: str, head_size: int, *, write: bool) -> tuple[mmap.mmap, bytes]:
    """A file that is there, mapped as a whole; and its first `head_size` bytes.

    :raises OSError: if there is no such file, or it is another user's.
    :raises ValueError: if it is empty.
    """
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    try:
        if not _is_ours(os.fstat(descriptor)):
            raise PermissionError(f"{path} belongs to another user")
        try:
            mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)
        except ValueError:
            raise ValueError(f"{path} is no scoreboard: it is empty") from None
    finally:
        os.close(descriptor)
    return mapping, mapping[:head_size]


def board_files(run_dir: str) -> list[tuple[int, str]]:
    """(pid of the master, path) of the boards in a directory that are this user's, whether alive or not."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(run_dir):
            number = name.removeprefix(PREFIX).removesuffix(SUFFIX)
            if name.startswith(PREFIX) and name.endswith(SUFFIX) and number.isdecimal():
                path = os.path.join(run_dir, name)
                with contextlib.suppress(OSError):
                    if _is_ours(os.lstat(path)):
                        found.append((int(number), path))
    return sorted(found)


def _remove_stale(run_dir: str) -> None:
    """Files of masters that were killed."""
    for pid, path in board_files(run_dir):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            for one in (path, path.removesuffix(SUFFIX) + CONTROL):
                with contextlib.suppress(OSError):
                    os.unlink(one)
        except (OSError, OverflowError):
            pass


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and (status.st_uid == os.geteuid() or os.geteuid() == 0)
