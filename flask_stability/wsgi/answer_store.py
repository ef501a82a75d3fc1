"""The store of answers: one file an answer, in a directory that belongs to this process's user alone.

All workers share it, and it outlives them. It holds no state in memory, so a fork or SIGKILL at any moment leaves it
whole: a file is written under another name and renamed, and the kernel frees the locks of a process that ends. Each
file carries a checksum; a damaged one is removed and counts as missing.

The size is bounded. Room for a new answer is made from expired answers, then from those that nobody asked for again,
then from those not used for `IN_USE` seconds. Answers in use are never removed, so a flood of keys that are asked for
once takes no room from them; if all are in use the new answer is not stored.

Times are seconds of CLOCK_MONOTONIC, which all processes share until the machine restarts. A file's modification time
is when its answer expires, its access time when it was last used (0 = never since it was first stored). A lock file's
modification time, if it is in the near future, is until when nobody shall compute that key.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from .. import files, logs
from ..runtime import Part, runtime

NAME = "flask_stability-answers"
IN_USE = 60.0  #: seconds since its last use in which an answer is never removed to make room
_MAGIC = b"FSA1"
_HEAD = struct.Struct("<4sII")  # magic, checksum of the rest, bytes of the head in JSON
_TOTALS = struct.Struct("<qqd")  # bytes, stores since they were counted, no sweep before
_PAGE = 4096
_LONGEST_HOLD = 3600.0
_PATIENCE = 0.2  # seconds, to wait for another process that changes the totals
_RECOUNT = 1000
_LARGEST_SHARE = 8  # an answer may take this part of the store
_LEFT_FREE = 64 << 20  # bytes of the file system that are left to others, or a tenth of it
_TEMPORARY, _LOCK = ".new", ".lock"
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK



class Answer(NamedTuple):
    """A stored answer, status 200.

    :ivar created: when its view was run, CLOCK_MONOTONIC seconds.
    :ivar fresh: seconds for which it is given without running the view.
    :ivar stale: seconds after these in which it is given while a new one is made.
    """

    created: float
    fresh: float
    stale: float
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def age(self) -> float:
        """Seconds since its view was run."""
        return time.monotonic() - self.created


class AnswerStore:
    """See the module. Any method may raise OSError: then the store cannot be used now.

    :param parent: where its directory is, or is made with mode 0700.
    :param most: bytes of disk or memory that it may take.
    :raises OSError: if there can be none, or another user owns or may read it.
    """

    def __init__(self, parent: str, most: int) -> None:
        self.path, self.most = os.path.join(parent, NAME), most
        self._folder = -1
        self._open_folder()

    def _open_folder(self) -> None:
        folder = files.make_directory(self.path, 0o700)
        try:
            status = os.fstat(folder)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise PermissionError(errno.EPERM, f"it belongs to user {status.st_uid} and has mode "
                                      f"{stat.S_IMODE(status.st_mode):04o}: it has to be this user's, with 0700",
                                      self.path)
        except OSError:
            os.close(folder)
            raise
        self._folder, old = folder, self._folder
        if old != -1:
            os.close(old)

    def __del__(self) -> None:
        if self._folder != -1:
            os.close(self._folder)

    def _create(self, name: str, flags: int) -> int:
        try:
            return os.open(name, flags | os.O_CREAT | _FLAGS, 0o600, dir_fd=self._folder)
        except FileNotFoundError:  # somebody removed the directory
            self._open_folder()
            return os.open(name, flags | os.O_CREAT | _FLAGS, 0o600, dir_fd=self._folder)

    # -- answers -------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Answer | None:
        """The answer under a key, unless it has expired."""
        try:
            descriptor = os.open(key, os.O_RDONLY | os.O_NOATIME | _FLAGS, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(descriptor)
            try:
                answer = _unpack(os.read(descriptor, status.st_size + 1))
            except (ValueError, TypeError, KeyError, struct.error):
                logs.error("kept_answer_damaged", level="WARNING", file=os.path.join(self.path, key),
                           remedy="it was removed, and is made again; if this repeats, look at the disk")
                with contextlib.suppress(OSError):
                    os.unlink(key, dir_fd=self._folder)
                return None
            now = time.monotonic()
            if not 0.0 <= now - answer.created <= answer.fresh + answer.stale:
                return None
            if now - status.st_atime >= 1.0:
                with contextlib.suppress(OSError):  # what is read-only still answers
                    os.utime(descriptor, ns=(_ns(now), status.st_mtime_ns))
            return answer
        finally:
            os.close(descriptor)

    def put(self, key: str, answer: Answer) -> bool:
        """Store an answer; False if it is too large, or all others are in use."""
        data = _pack(answer)
        if _cost(len(data)) > self.most // _LARGEST_SHARE:
            return False
        self._check_disk(len(data))
        temporary = f"{key}.{secrets.token_hex(6)}{_TEMPORARY}"
        descriptor = self._create(temporary, os.O_WRONLY | os.O_EXCL)
        try:
            try:
                if os.write(descriptor, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
                used = self._used(key)
                os.utime(descriptor, ns=(used, _ns(answer.created + answer.fresh + answer.stale)))
            finally:
                os.close(descriptor)
            with self._totals() as totals:
                if not self._make_room(totals, _cost(len(data)) - self._size(key)):
                    return False
                os.rename(temporary, key, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                temporary = ""
                return True
        finally:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=self._folder)

    def drop(self, key: str) -> None:
        """Remove an answer."""
        with self._totals() as totals, contextlib.suppress(FileNotFoundError):
            size = self._size(key)
            os.unlink(key, dir_fd=self._folder)
            totals[0] -= size

    def drop_release(self, release: str) -> int:
        """Remove all answers whose key begins with that of a release; how many there were."""
        number = 0
        for name in os.listdir(self._folder_to_list()):
            if name.startswith(f"{release}-") and not name.endswith((_LOCK, _TEMPORARY)):
                self.drop(name)
                number += 1
        return number

    def _used(self, key: str) -> int:
        try:
            return os.stat(key, dir_fd=self._folder, follow_symlinks=False).st_atime_ns
        except FileNotFoundError:
            return 0

    def _size(self, key: str) -> int:
        try:
            return _cost(os.stat(key, dir_fd=self._folder, follow_symlinks=False).st_size)
        except FileNotFoundError:
            return 0

    def _check_disk(self, size: int) -> None:
        """The service's logs and its database need the disk more."""
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize
        if free - size < min(_LEFT_FREE, found.f_blocks * found.f_frsize // 10):
            raise OSError(errno.ENOSPC, "less than a tenth of the file system is free", self.path)

    def _folder_to_list(self) -> str:
        return f"/proc/self/fd/{self._folder}"

    # -- one computation a key -----------------------------------------------------------------------------------------

    def lock(self, key: str) -> KeyLock | None:
        """Take a key's lock without waiting; None if a thread of this or another process has it."""
        name = key + _LOCK
        for _ in range(8):
            descriptor = self._create(name, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:
                    return KeyLock(self, name, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its last holder has removed it
        return None

    def held_off(self, key: str) -> bool:
        """Whether nobody shall compute that key now."""
        try:
            return _in_future(os.stat(key + _LOCK, dir_fd=self._folder, follow_symlinks=False).st_mtime)
        except FileNotFoundError:
            return False

    # -- the bound -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _totals(self) -> Iterator[list[float]]:
        """The store's totals, locked: bytes, stores since they were counted, no sweep before. Changes are written."""
        descriptor = self._create("totals", os.O_RDWR)
        try:
            until = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise TimeoutError(errno.ETIMEDOUT, "another process has it locked", self.path) from None
                    time.sleep(0.002)
            try:
                totals: list[float] = list(_TOTALS.unpack(os.pread(descriptor, _TOTALS.size, 0)))
            except struct.error:
                totals = [-1, 0, 0.0]
            yield totals
            os.pwrite(descriptor, _TOTALS.pack(int(totals[0]), int(totals[1]), totals[2]), 0)
        finally:
            with contextlib.suppress(OSError):  # a forked child may have a copy of it
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def charge_lock(self) -> None:
        """A lock file stays for a while: it counts as a page, and makes room if need be."""
        with self._totals() as totals:
            self._make_room(totals, _PAGE)

    def _make_room(self, totals: list[float], needed: int) -> bool:
        """Count `needed` bytes more, after a sweep if the bound asks for one; False if there is no room."""
        now = time.monotonic()
        known = 0 <= totals[0] <= 2 * self.most and totals[1] < _RECOUNT
        if (not known or totals[0] + needed > self.most) and (
                not known or not now < totals[2] < now + _LONGEST_HOLD):
            totals[0], totals[1] = self._sweep(needed), 0
            totals[2] = now + 1.0 if totals[0] + needed > self.most else 0.0
        if needed > 0 and totals[0] + needed > self.most:
            return False
        totals[0] += needed
        totals[1] += 1
        return True

    def _sweep(self, needed: int) -> int:
        """Remove what has expired and, if there is too little room, what is not in use; the bytes that are left."""
        now, total, removable = time.monotonic(), 0, []
        with os.scandir(self._folder_to_list()) as found:
            for item in found:
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if item.name == "totals" or self._swept(item.name, status, now):
                    continue
                total += _cost(status.st_size)
                if not item.name.endswith((_LOCK, _TEMPORARY)) and now - status.st_atime > IN_USE:
                    removable.append((status.st_atime, status.st_mtime, item.name, _cost(status.st_size)))
        if total + needed > self.most:
            for _, _, name, size in sorted(removable):
                if total + needed <= self.most * 7 // 8:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._folder)
                total -= size
        return total

    def _swept(self, name: str, status: os.stat_result, now: float) -> bool:
        """Remove a file that nobody needs any more."""
        if name.endswith(_LOCK):
            if _in_future(status.st_mtime):
                return False
            lock = self.lock(name.removesuffix(_LOCK))
            if lock is not None:
                lock.release()
            return lock is not None
        temporary = name.endswith(_TEMPORARY)
        gone = time.time() - status.st_ctime > 60.0 if temporary else status.st_mtime < now
        if gone:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._folder)
        return gone


class KeyLock:
    """The right to compute one key; it ends with the process at the latest."""

    def __init__(self, store: AnswerStore, name: str, descriptor: int) -> None:
        self._store, self._name, self._descriptor = store, name, descriptor
        _locks.held.add(self)

    def forget(self) -> None:
        """In a forked child: the parent has it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor != -1:
            os.close(descriptor)

    def release(self, hold_off: float | None = 0.0) -> None:
        """Give it back. Called again it does nothing.

        :param hold_off: seconds in which nobody shall compute the key; None = what was set before stays.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor == -1:
            return
        try:
            if hold_off:
                os.utime(descriptor, ns=(0, _ns(time.monotonic() + hold_off)))
            elif hold_off is not None:
                os.unlink(self._name, dir_fd=self._store._folder)
        finally:
            _locks.held.discard(self)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)
        if hold_off:
            self._store.charge_lock()


class _Locks(Part):
    """The keys that this process computes."""

    def __init__(self) -> None:
        self.held: set[KeyLock] = set()

    def reset_after_fork(self) -> None:
        """The parent's locks end with the parent, not with the child."""
        for lock in list(self.held):
            with contextlib.suppress(OSError):
                lock.forget()
        self.held.clear()


_locks = runtime.add("stored_answers", _Locks())


def _pack(answer: Answer) -> bytes:
    head = json.dumps([answer.created, answer.fresh, answer.stale, answer.headers]).encode()
    rest = struct.pack("<I", len(head)) + head + answer.body
    return _MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest


def _unpack(data: bytes) -> Answer:
    magic, checksum, length = _HEAD.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(memoryview(data)[8:]) != checksum:
        raise ValueError("not what was written")
    created, fresh, stale, headers = json.loads(data[_HEAD.size:_HEAD.size + length])
    return Answer(float(created), float(fresh), float(stale), [(str(name), str(value)) for name, value in headers],
                  data[_HEAD.size + length:])


def _cost(size: int) -> int:
    """Bytes of disk that a file of `size` takes, in whole pages."""
    return max(1, -(-size // _PAGE)) * _PAGE


def _in_future(moment: float) -> bool:
    """A new file's time is the calendar's, far beyond the monotonic clock: no hold."""
    return 0.0 < moment - time.monotonic() < _LONGEST_HOLD


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
