"""The store of answers: one file per answer, in a directory that only this process's user may enter.

All workers share the store, and it outlives them. It holds no state in memory, so a fork or SIGKILL at any moment
leaves it intact: a file is written under another name and renamed, and the kernel frees the locks of a process that
ends. Each file carries a checksum; the store removes a damaged file and treats it as missing.

The size is bounded. To make room for a new answer the store removes expired answers, then answers that were requested
only once, then answers not used for `IN_USE` seconds. It never removes answers in use, so a flood of keys that are
requested once takes no room from them; if all are in use it does not store the new answer.

Times are seconds of CLOCK_MONOTONIC, which all processes share until the machine restarts. A file's modification time
is when its answer expires, its access time when it was last used (0 = never since it was first stored). A lock file's
modification time, if it lies in the near future, is the end of a hold-off, during which no request computes that key.
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
IN_USE = 60.0  #: seconds since its last use during which an answer is never removed to make room
_MAGIC = b"FSA1"
_HEAD = struct.Struct("<4sII")  # magic, checksum of the rest, bytes of the head in JSON
_TOTALS = struct.Struct("<qqd")  # bytes, stores since the last count, no sweep before this time
_PAGE = 4096
_LONGEST_HOLD = 3600.0
_PATIENCE = 0.2  # seconds to wait for another process that changes the totals
_RECOUNT = 1000
_LARGEST_SHARE = 8  # an answer may take this fraction of the store
_LEFT_FREE = 64 << 20  # bytes of the file system that the store leaves free; a tenth of the file system if that is less
_TEMPORARY, _LOCK = ".new", ".lock"
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK



class Answer(NamedTuple):
    """A stored answer, status 200.

    :ivar created: when its view ran, CLOCK_MONOTONIC seconds.
    :ivar fresh: seconds for which it is served without running the view.
    :ivar stale: further seconds for which it is served while a new one is computed.
    """

    created: float
    fresh: float
    stale: float
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def age(self) -> float:
        """Return the seconds since its view ran."""
        return time.monotonic() - self.created


class AnswerStore:
    """See the module. Any method may raise OSError: then the store is unusable for now.

    :param parent: the directory that holds the store's own, which is created with mode 0700.
    :param most: maximum bytes of disk or memory that it may take.
    :raises OSError: if the directory cannot be created, or another user owns or may read it.
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
        except FileNotFoundError:  # another process has removed the directory
            self._open_folder()
            return os.open(name, flags | os.O_CREAT | _FLAGS, 0o600, dir_fd=self._folder)

    # -- answers -------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Answer | None:
        """Return the answer under a key, or None if there is none or it has expired."""
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
                with contextlib.suppress(OSError):  # a read-only file still serves
                    os.utime(descriptor, ns=(_ns(now), status.st_mtime_ns))
            return answer
        finally:
            os.close(descriptor)

    def put(self, key: str, answer: Answer) -> bool:
        """Store an answer; return False if it is too large, or all others are in use."""
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
        """Remove all answers whose key begins with a release's; return their number."""
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
        """Raise OSError if the disk is nearly full: the service's logs and its database need the space more."""
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize
        if free - size < min(_LEFT_FREE, found.f_blocks * found.f_frsize // 10):
            raise OSError(errno.ENOSPC, "the file system is nearly full", self.path)

    def _folder_to_list(self) -> str:
        return f"/proc/self/fd/{self._folder}"

    # -- one computation a key -----------------------------------------------------------------------------------------

    def lock(self, key: str) -> KeyLock | None:
        """Take a key's lock without waiting; return None if a thread of this or another process holds it."""
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
            os.close(descriptor)  # its last holder has removed the file
        return None

    def held_off(self, key: str) -> bool:
        """Return whether no request should compute that key now."""
        try:
            return _in_future(os.stat(key + _LOCK, dir_fd=self._folder, follow_symlinks=False).st_mtime)
        except FileNotFoundError:
            return False

    # -- the bound -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _totals(self) -> Iterator[list[float]]:
        """Lock and yield the store's totals: bytes, stores since the last count, no sweep before. Write changes back.

        :raises OSError: if another process holds the lock for too long.
        """
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
            with contextlib.suppress(OSError):  # a forked child may have a copy of the descriptor
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def charge_lock(self) -> None:
        """Count a lock file that stays for a while as one page, and make room for it if needed."""
        with self._totals() as totals:
            self._make_room(totals, _PAGE)

    def _make_room(self, totals: list[float], needed: int) -> bool:
        """Count `needed` more bytes, after a sweep if the bound requires one; return False if there is no room."""
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
        """Remove expired files and, if room is short, answers not in use; return the remaining bytes."""
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
        """Remove a file that is no longer needed; return whether it was removed."""
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
        """Close the lock in a forked child, since the parent holds it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor != -1:
            os.close(descriptor)

    def release(self, hold_off: float | None = 0.0) -> None:
        """Release the lock. Further calls do nothing.

        :param hold_off: seconds for which no request should compute the key; None = leave the hold-off as it is.
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
    """The locks of the keys that this process computes."""

    def __init__(self) -> None:
        self.held: set[KeyLock] = set()

    def reset_after_fork(self) -> None:
        """Close the parent's locks in the child without releasing them."""
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
    """Return the bytes of disk that a file of `size` takes, in whole pages."""
    return max(1, -(-size // _PAGE)) * _PAGE


def _in_future(moment: float) -> bool:
    """Return whether a time is the end of a current hold-off.

    A new file's time comes from the calendar, far beyond the monotonic clock: no hold-off.
    """
    return 0.0 < moment - time.monotonic() < _LONGEST_HOLD


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
