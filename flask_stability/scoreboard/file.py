"""The scoreboard's file in the run directory: created so that neither a full disk nor another user's file can do harm.

It exists so that the command line can read the board while HTTP is stuck; the service runs as well without it. The file
belongs to the workers' user, so a reader that is another user must not trust its content.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
import stat
import struct
import tempfile

from .. import files, processes

PREFIX = "flask_stability-"
SUFFIX = ".board"
ISOLATION = ".isolation"  #: suffix of the isolation worker's socket, beside the board
CONTROL = ".control"  #: suffix of the master's control socket, beside the board
SHARED = "/dev/shm"
_NAME = re.compile(rf"{PREFIX}(\d{{1,9}})(?:-[0-9a-f]{{8}})?{re.escape(SUFFIX)}")
#: After the board's head: when the master that created it started, in the kernel's clock ticks; 0 in older files.
_STARTED, _STARTED_AT = struct.Struct("=q"), 24


def default_run_dir(uid: int = -1) -> str | None:
    """Return the directory for a new board, creating it if needed.

    It is XDG_RUNTIME_DIR, else one of this user's own in /dev/shm, else None. The name in /dev/shm is not fixed,
    because another user could take a fixed name first; the owner identifies the directory.

    :param uid: the workers' user if it differs from ours, else -1; then all users may look into the directory, but only
        this one may write it.
    """
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(given) and files.own_directory(given, readers=uid != -1):
        return given
    for path in _in_shared():
        if files.own_directory(path, readers=uid != -1):
            return path
    try:
        made = tempfile.mkdtemp(prefix=PREFIX, dir=SHARED)
        if uid != -1:
            os.chmod(made, 0o755)
    except OSError:
        return None
    return made


def default_run_dirs() -> list[str]:
    """Return where `default_run_dir` may have put boards, and /dev/shm itself, which older versions used."""
    own = [path for path in _in_shared() if _owner(path) in (0, os.geteuid()) or os.geteuid() == 0]
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    return [*([given] if os.path.isabs(given) else []), *own, SHARED]


def _in_shared() -> list[str]:
    with contextlib.suppress(OSError):
        return [os.path.join(SHARED, name) for name in sorted(os.listdir(SHARED))
                if name.startswith(PREFIX) and not name.endswith(SUFFIX)]
    return []


def _owner(path: str) -> int:
    """Return the owner of a directory that is not a link, -1 for anything else."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        return status.st_uid if stat.S_ISDIR(status.st_mode) else -1
    return -1


def make(run_dir: str, head: bytes, size: int, uid: int, gid: int) -> tuple[mmap.mmap, str]:
    """Create a file of `size` bytes that begins with `head`; return its mapping and its path.

    :raises OSError: if that fails; it leaves no file then.
    """
    _remove_stale(run_dir)
    folder = files.open_directory(run_dir)
    try:
        name, descriptor = _new(folder)
        try:
            # a page of a sparse file on a full disk means SIGBUS at the first store
            os.posix_fallocate(descriptor, 0, size)
            if uid != -1 or gid != -1:
                os.fchown(descriptor, uid, gid)
            mapping = mmap.mmap(descriptor, size)
            mapping[:len(head)] = head
            me = processes.look(os.getpid())
            _STARTED.pack_into(mapping, _STARTED_AT, me.started if me is not None else 0)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
            raise
        finally:
            os.close(descriptor)
    finally:
        os.close(folder)
    return mapping, os.path.join(run_dir, name)


def _new(folder: int) -> tuple[str, int]:
    """Return a new file's name and descriptor.

    Leave another user's file in its place alone, and choose another name then.
    """
    name = f"{PREFIX}{os.getpid()}{SUFFIX}"
    with contextlib.suppress(OSError):
        if _is_ours(os.stat(name, dir_fd=folder, follow_symlinks=False)):
            os.unlink(name, dir_fd=folder)  # left by an earlier process with this process id
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return name, os.open(name, flags, 0o600, dir_fd=folder)
    except FileExistsError:
        name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        return name, os.open(name, flags, 0o600, dir_fd=folder)


def attach(path: str, head_size: int, *, write: bool) -> tuple[mmap.mmap, bytes, int]:
    """Return an existing file mapped as a whole, its first `head_size` bytes, and its owner.

    :raises OSError: if there is no such file, or it belongs to another user.
    :raises ValueError: if it is empty.
    """
    descriptor, owner = _open(path, os.O_RDWR if write else os.O_RDONLY)
    try:
        try:
            mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)
        except ValueError:
            raise ValueError(f"{path} is no scoreboard: it is empty") from None
    finally:
        os.close(descriptor)
    return mapping, mapping[:head_size], owner


def copied(path: str, largest: int) -> tuple[mmap.mmap, int]:
    """Return a copy of a file's content in this process's memory, and its owner.

    The owner of a mapped file could truncate it, and the first access to a missing page would end this process.

    :raises OSError: as `attach`.
    :raises ValueError: if it is empty or larger than `largest` bytes.
    """
    descriptor, owner = _open(path, os.O_RDONLY)
    with open(descriptor, "rb") as file:
        data = file.read(largest + 1)
    if not 0 < len(data) <= largest:
        raise ValueError(f"{path} is no scoreboard")
    mapping = mmap.mmap(-1, len(data))
    mapping[:] = data
    return mapping, owner


def _open(path: str, flags: int) -> tuple[int, int]:
    descriptor = files.open_existing(path, flags)
    status = os.fstat(descriptor)
    if not _is_ours(status):
        os.close(descriptor)
        raise PermissionError(f"{path} belongs to another user")
    return descriptor, status.st_uid


def board_files(run_dir: str) -> list[tuple[int, str]]:
    """Return (pid of the master, path) of this user's boards in a directory, whether their masters live or not."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(run_dir):
            match = _NAME.fullmatch(name)
            if match is not None:
                path = os.path.join(run_dir, name)
                with contextlib.suppress(OSError):
                    if _is_ours(os.lstat(path)):
                        found.append((int(match[1]), path))
    return sorted(found)


def master_of(pid: int, path: str) -> processes.Process | None:
    """Return the master that created a board, if it still exists; its process id may belong to another process by now.
    """
    process = processes.look(pid)
    if process is None:
        return None
    started = _started(path)
    if started:
        return process if process.started == started else None
    return process if process.maps(path) is not False else None  # created by a version that did not store it


def _started(path: str) -> int:
    with contextlib.suppress(OSError, struct.error):
        descriptor, _ = _open(path, os.O_RDONLY)
        try:
            return int(_STARTED.unpack(os.pread(descriptor, _STARTED.size, _STARTED_AT))[0])
        finally:
            os.close(descriptor)
    return 0


def running(run_dirs: list[str], *, master: int | None = None) -> list[tuple[int, str]]:
    """Return (pid of the master, path) of the boards of running services, as far as they concern this user.

    Any user can put a board with any process id into a directory that this user can write. So boards whose master runs
    as this user take precedence. Of the others only those count whose master belongs to root or to the directory's
    owner, and has mapped the board as far as this user may check.

    :param master: look for this process id only.
    """
    own, others = [], []
    for run_dir in run_dirs:
        for pid, path in board_files(run_dir):
            process = master_of(pid, path) if master in (None, pid) else None
            if process is None or process.maps(path) is False:
                continue
            user = _owner(f"/proc/{pid}")
            if user == os.geteuid():
                own.append((pid, path))
            elif master is not None or user in (0, _owner(run_dir)):
                others.append((pid, path))
    return sorted(dict.fromkeys(own or others))


def _remove_stale(run_dir: str) -> None:
    """Remove the files of masters that were killed."""
    for pid, path in board_files(run_dir):
        process, started = processes.look(pid), _started(path)
        try:
            os.kill(pid, 0)  # /proc may hide other users' processes
            # no process found here: a zombie, where process 1 does not reap, or hidden
            gone = started not in (0, process.started) if process else os.path.exists(f"/proc/{pid}/stat")
        except ProcessLookupError:
            gone = True
        except (OSError, OverflowError):
            gone = False
        if gone:
            for one in (path, *(path.removesuffix(SUFFIX) + end for end in (CONTROL, ISOLATION))):
                with contextlib.suppress(OSError):
                    os.unlink(one)


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and (status.st_uid == os.geteuid() or os.geteuid() == 0)
