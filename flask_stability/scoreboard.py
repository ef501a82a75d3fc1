"""One truth over all workers: a mapping in shared memory, one row per worker, one writer per word.

The master makes the board before it forks; each worker writes its own row, the master its own words, and whoever
answers ``/health`` reads all of them without a lock and without I/O. Numbers are 8-byte aligned words, written in
one store each. What is no number is a `Blob` under a sequence lock with a checksum. When a worker dies its counters
are folded into totals, so that what is exported never falls.

The mapping is backed by a file where that is possible, so that the command line can read it while HTTP is stuck.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import stat
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAGIC = b"FSTABLE1"
FILE_PREFIX = "flask_stability-"
PAGE = 4096



# -- a worker's words; the worker is their only writer -----------------------------------------------------------

(W_PID, W_AGE, W_STARTED_NS, W_READY_NS, W_HEARTBEAT_NS, W_STATE, W_RETIRE_REASON, W_RETIRE_SINCE_NS,
 W_CLOSE_KEEPALIVE, W_COMMAND_ACK, W_THREADS, W_BUSY, W_QUEUE, W_STUCK, W_N_ENDPOINTS,
 W_RSS, W_PSS, W_MEMORY_LIMIT, W_WARM_FLOOR, W_LEAK_VERDICT,
 W_N_THREADS, W_N_TIMERS, W_N_FDS, W_N_RECEIVERS, W_N_GC_OBJECTS, W_N_GARBAGE,
 W_DB_SIZE, W_DB_AVAILABLE, W_DB_IN_USE, W_DB_WAITING, W_DB_BREAKER, W_DB_MAX,
 # counters: folded into the totals when the worker is gone
 W_CLASS_0, W_CLASS_1XX, W_CLASS_2XX, W_CLASS_3XX, W_CLASS_4XX, W_CLASS_5XX,
 W_EXCEPTIONS, W_LOG_DROPS, W_LOG_SAMPLED, W_OVERDUE, W_GC_RUNS, W_GC_FREED,
 W_DB_REQUESTS, W_DB_QUEUED, W_DB_WAIT_MS, W_DB_ERRORS, W_DB_USAGE_MS, W_DB_CONNECTIONS, W_DB_CONNECT_MS,
 W_DB_CONNECT_ERRORS, W_DB_LOST, W_DB_BAD_RETURNS, W_DB_LEAKS, W_DB_RETRIES, W_ALERTS_LOST, W_ALERTS_SENT,
 ) = range(58)
COUNTERS = range(W_CLASS_0, 58)
WORDS = 128

(F_MEMORY_TREND, F_SECONDS_TO_LIMIT, F_CPU_SHARE) = range(3)
FLOATS = 16

STATE_FREE, STATE_BOOTING, STATE_READY, STATE_RETIRING, STATE_STOPPING = range(5)
STATE_NAMES = ("free", "booting", "ready", "retiring", "stopping")

# -- the master's words about a row; the last two are the command line's -----------------------------------------

(O_ALLOCATED, O_AGE, O_PID, O_COMMAND, O_COMMAND_SEQ, O_RETIRE_STATE, O_RETIRE_SINCE_NS, O_RETIRE_REASON,
 O_BOOTED_NS, O_CLI_RETIRE, O_CLI_GC) = range(11)
ORDERS = 32
CMD_NONE, CMD_GC, CMD_RETIRE, CMD_CLOSE_KEEPALIVE = range(4)

# -- the master's own words --------------------------------------------------------------------------------------

(M_PID, M_STARTED_NS, M_TICK_NS, M_BASE_WORKERS, M_TARGET, M_SURGE, M_HOLD_UNTIL_NS, M_CRASHES, M_DEGRADED,
 M_RELOADS, M_DRAINING, M_WARM_FLOOR, M_GENERATION, M_FOLD_SEQ, M_BOOTS, M_EVER_READY, M_LIMIT, M_N_ENDPOINTS,
 M_UNSUPERVISED) = range(19)
MASTER_WORDS = 64

#: Why a worker was or is to be replaced; the index is the code in the words.
REASONS = ("none", "asked", "memory", "memory_hard", "memory_growth", "memory_pressure", "deadline", "stuck",
           "crash_signal", "out_of_memory", "boot_failure", "timeout", "exit_code", "reload", "scale", "shutdown",
           "max_requests", "frozen", "unknown")
CODE = {name: code for code, name in enumerate(REASONS)}
#: Reasons that are a worker's own failure; only they count towards the restart limit.
CRASHES = frozenset({"crash_signal", "out_of_memory", "boot_failure", "timeout", "exit_code", "frozen", "unknown"})

# -- latency histogram: four buckets an octave from 2**16 ns (66 µs) to 2**37 ns (137 s) --------------------------

_FIRST = 17  # bit length of the first octave with buckets of its own
_LAST = 37
BUCKETS = (_LAST - _FIRST + 1) * 4 + 2  # and one below, one above


def bucket_of(duration_ns: int) -> int:
    """Number of the histogram's bucket for a duration in nanoseconds."""
    bits = duration_ns.bit_length()
    if bits < _FIRST:
        return 0
    if bits > _LAST:
        return BUCKETS - 1
    return ((bits - _FIRST) << 2) + ((duration_ns >> (bits - 3)) & 3) + 1


def bucket_bound(bucket: int) -> float:
    """Upper bound in seconds of a bucket; infinite for the last."""
    if bucket >= BUCKETS - 1:
        return float("inf")
    octave, quarter = divmod(bucket - 1, 4) if bucket else (-1, 3)
    return ((5 + quarter) << (_FIRST + octave - 3)) / 1e9


def percentile(histogram: list[int], share: float) -> float:
    """Seconds below which `share` of the observations lie, interpolated inside the bucket; 0.0 without any."""
    total = sum(histogram)
    if not total:
        return 0.0
    wanted, seen = share * total, 0
    for bucket, number in enumerate(histogram):
        if number and seen + number >= wanted:
            low = bucket_bound(bucket - 1) if bucket else 0.0
            high = bucket_bound(bucket)
            return low if high == float("inf") else low + (high - low) * (wanted - seen) / number
        seen += number
    return bucket_bound(BUCKETS - 2)


# -- endpoint tables ---------------------------------------------------------------------------------------------

ENDPOINTS = 129  # per worker; the last is "other"
TOTAL_ENDPOINTS = 513
KEY_BYTES = 96
ENTRY_WORDS = 8  # duration_ns, slowest_ns, answers by status class 0..5
OTHER = ("", "other")

CHECKS_BYTES, EXCEPTIONS_BYTES, INFO_BYTES, RESTARTS_BYTES, SHARED_BYTES = 24576, 8192, 8192, 24576, 65536
HISTORY_BYTES = 1 << 19


class Blob:
    """A few bytes in shared memory with one writing process; a reader gets all of one write or b"".

    A sequence lock (odd while being written) with a checksum, so that a writer killed in the middle and processors
    that reorder stores are both noticed.
    """

    HEAD = 24

    def __init__(self, area: memoryview) -> None:
        self._head = area[:self.HEAD].cast("q")
        self._data = area[self.HEAD:]
        self._lock = threading.Lock()

    @property
    def capacity(self) -> int:
        """Bytes that fit."""
        return len(self._data)

    @property
    def version(self) -> int:
        """Changes with every write."""
        return int(self._head[0])

    def write(self, data: bytes) -> bool:
        """Store; False, with nothing changed, if `data` is too long."""
        if len(data) > len(self._data):
            return False
        head = self._head
        with self._lock:
            sequence = head[0] | 1
            head[0] = sequence
            self._data[:len(data)] = data
            head[1] = len(data)
            head[2] = zlib.crc32(data)
            head[0] = sequence + 1
        return True

    def read(self) -> bytes:
        """What was written last; b"" before the first write or if a writer died in the middle."""
        head = self._head
        for _ in range(200):
            sequence = head[0]
            if not sequence & 1:
                length = head[1]
                if not 0 < length <= len(self._data):
                    return b""
                data = bytes(self._data[:length])
                if head[0] == sequence and zlib.crc32(data) == head[2]:
                    return data
            time.sleep(0)
        return b""

    def write_json(self, value: Any) -> bool:
        """`write` of a value as JSON."""
        return self.write(json.dumps(value, separators=(",", ":"), default=str).encode())

    def read_json(self, default: Any = None) -> Any:
        """`read` of what `write_json` wrote."""
        data = self.read()
        try:
            return json.loads(data) if data else default
        except ValueError:
            return default

    def renew_lock(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here."""
        self._lock = threading.Lock()


class EndpointTable:
    """Answers and durations by method and endpoint, in a fixed number of entries."""

    def __init__(self, keys: memoryview, words: memoryview, counter: memoryview, index: int) -> None:
        self._keys, self.words, self._counter, self._index = keys, words, counter, index
        self._entries = len(keys) // KEY_BYTES
        self._known: dict[tuple[str, str], int] = {}

    def find(self, key: tuple[str, str]) -> int:
        """First word of the entry of (method, endpoint), made if there is room, else that of "other"."""
        base = self._known.get(key)
        if base is None:
            number = self._counter[self._index]
            if number >= self._entries - 1:
                return (self._entries - 1) * ENTRY_WORDS
            name = f"{key[0]} {key[1]}".encode()[:KEY_BYTES]
            self._keys[number * KEY_BYTES:(number + 1) * KEY_BYTES] = name.ljust(KEY_BYTES, b"\0")
            base = self._known[key] = number * ENTRY_WORDS
            self._counter[self._index] = number + 1
        return base

    def items(self) -> Iterator[tuple[tuple[str, str], list[int]]]:
        """All entries in use: (method, endpoint) and their words."""
        for number in range(min(self._counter[self._index], self._entries - 1)):
            raw = bytes(self._keys[number * KEY_BYTES:(number + 1) * KEY_BYTES]).rstrip(b"\0")
            method, _, endpoint = raw.decode(errors="replace").partition(" ")
            yield (method, endpoint), self.words[number * ENTRY_WORDS:(number + 1) * ENTRY_WORDS].tolist()
        last = self.words[(self._entries - 1) * ENTRY_WORDS:].tolist()
        if any(last):
            yield OTHER, last

    def forget(self) -> None:
        """The table was cleared: what was known of it is void."""
        self._known = {}


class _Layout:
    """Cuts areas off a mapping, each aligned to 8 bytes."""

    def __init__(self, view: memoryview, offset: int) -> None:
        self._view, self.offset = view, offset

    def area(self, size: int) -> memoryview:
        start = self.offset
        self.offset += (size + 7) & ~7
        return self._view[start:start + size]

    def words(self, number: int, kind: str = "q") -> memoryview:
        return self.area(number * 8).cast(kind)  # type: ignore[call-overload, no-any-return]

    def blob(self, size: int) -> Blob:
        return Blob(self.area(size))


_ROW_BYTES = ((WORDS + FLOATS + ORDERS + BUCKETS + ENDPOINTS * ENTRY_WORDS) * 8 + ENDPOINTS * KEY_BYTES
              + CHECKS_BYTES + EXCEPTIONS_BYTES + INFO_BYTES + PAGE) // PAGE * PAGE
_MASTER_BYTES = ((MASTER_WORDS + WORDS + len(REASONS) + BUCKETS + TOTAL_ENDPOINTS * ENTRY_WORDS) * 8
                 + TOTAL_ENDPOINTS * KEY_BYTES + RESTARTS_BYTES + SHARED_BYTES + HISTORY_BYTES + PAGE) // PAGE * PAGE


class Row:
    """One worker's part of the board.

    :ivar words: the worker's words, by the constants ``W_…``.
    :ivar floats: the worker's floating-point words, by ``F_…``.
    :ivar orders: the master's words about this worker, by ``O_…``.
    :ivar checks, exceptions, info: the worker's blobs.
    """

    def __init__(self, slot: int, layout: _Layout) -> None:
        self.slot = slot
        start = layout.offset
        self.words = layout.words(WORDS)
        self.floats: Any = layout.words(FLOATS, "d")  # memoryview's types know no float
        self.orders = layout.words(ORDERS)
        self.histogram = layout.words(BUCKETS)
        entries = layout.words(ENDPOINTS * ENTRY_WORDS)
        keys = layout.area(ENDPOINTS * KEY_BYTES)
        self.endpoints = EndpointTable(keys, entries, self.words, W_N_ENDPOINTS)
        self.checks = layout.blob(CHECKS_BYTES)
        self.exceptions = layout.blob(EXCEPTIONS_BYTES)
        self.info = layout.blob(INFO_BYTES)
        self._all = layout._view[start:layout.offset]
        self.lock = threading.Lock()

    def observe(self, method: str, endpoint: str, status: int, duration_ns: int) -> None:
        """Count one answered request; `status` 0 is an answer that was cut off."""
        kind = status // 100
        if not 0 <= kind <= 5:
            kind = 0
        bits = duration_ns.bit_length()
        bucket = (((bits - 17) << 2) + ((duration_ns >> (bits - 3)) & 3) + 1 if 17 <= bits <= 37
                  else bucket_of(duration_ns))
        with self.lock:
            base = self.endpoints.find((method, endpoint))
            entry = self.endpoints.words
            entry[base] += duration_ns
            if duration_ns > entry[base + 1]:
                entry[base + 1] = duration_ns
            entry[base + 2 + kind] += 1
            self.words[W_CLASS_0 + kind] += 1
            self.histogram[bucket] += 1

    def add(self, index: int, number: int = 1) -> None:
        """Add to one of the worker's words, safely among the threads of the worker."""
        with self.lock:
            self.words[index] += number

    @property
    def requests(self) -> int:
        """Requests answered by this worker."""
        return sum(self.words[W_CLASS_0:W_CLASS_5XX + 1].tolist())

    @property
    def pid(self) -> int:
        """The worker's process id, 0 if the row is free or its worker has not begun."""
        return int(self.words[W_PID])

    def clear(self) -> None:
        """Everything zero. Only by the master, while no worker owns the row."""
        self._all[:] = bytes(len(self._all))
        self.renew_locks()

    def renew_locks(self) -> None:
        """In a forked child: locks that other threads of the parent may have held."""
        self.lock = threading.Lock()
        self.endpoints.forget()
        for blob in (self.checks, self.exceptions, self.info):
            blob.renew_lock()


class MasterArea:
    """What only the master writes, and the blobs that the leading worker writes for all.

    :ivar words: by the constants ``M_…``.
    :ivar restarts: the latest restarts, a JSON list, newest last.
    :ivar shared: state of the shared checks, handed on from leader to leader (written by the leader).
    """

    def __init__(self, layout: _Layout) -> None:
        self.words = layout.words(MASTER_WORDS)
        self.folded = layout.words(WORDS)
        self.reasons = layout.words(len(REASONS))
        self.histogram = layout.words(BUCKETS)
        entries = layout.words(TOTAL_ENDPOINTS * ENTRY_WORDS)
        keys = layout.area(TOTAL_ENDPOINTS * KEY_BYTES)
        self.endpoints = EndpointTable(keys, entries, self.words, M_N_ENDPOINTS)
        self.restarts = layout.blob(RESTARTS_BYTES)
        self.shared = layout.blob(SHARED_BYTES)
        self.history = layout.area(HISTORY_BYTES)


@dataclass
class Totals:
    """Sums over all workers, living and gone.

    :ivar counters: the words of `COUNTERS`, by index.
    :ivar endpoints: words of each (method, endpoint): duration_ns, slowest_ns, answers by class 0..5.
    """

    counters: dict[int, int]
    histogram: list[int]
    endpoints: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)

    @property
    def by_class(self) -> list[int]:
        """Answers by status class 0 (cut off), 1, 2, 3, 4, 5."""
        return [self.counters[index] for index in range(W_CLASS_0, W_CLASS_5XX + 1)]

    @property
    def requests(self) -> int:
        """All answers."""
        return sum(self.by_class)

    @property
    def errors(self) -> int:
        """Server errors and answers that were cut off."""
        return self.counters[W_CLASS_5XX] + self.counters[W_CLASS_0]

    @property
    def duration_ns(self) -> int:
        """Sum of all durations."""
        return sum(words[0] for words in self.endpoints.values())


class Scoreboard:
    """The shared mapping.

    :ivar rows: all slots, in use or not.
    :ivar path: the backing file, or None.
    """

    def __init__(self, mapping: mmap.mmap, rows: int, path: str | None = None) -> None:
        self._mapping = mapping
        view = memoryview(mapping)
        layout = _Layout(view, PAGE)
        self.path = path
        self.master = MasterArea(layout)
        self.rows = []
        for slot in range(rows):
            layout.offset = PAGE + _MASTER_BYTES + slot * _ROW_BYTES
            self.rows.append(Row(slot, layout))

    # -- made and opened -----------------------------------------------------------------------------------------

    @classmethod
    def anonymous(cls, rows: int = 1) -> Scoreboard:
        """A board without a file, for the processes forked from this one."""
        mapping = mmap.mmap(-1, _size(rows))
        mapping[:24] = _head(rows)
        return cls(mapping, rows)

    @classmethod
    def create(cls, rows: int, run_dir: str | None = None, uid: int = -1, gid: int = -1) -> tuple[Scoreboard, str]:
        """A board backed by a file in `run_dir`; anonymous, with the reason in words, where that cannot be.

        :param uid, gid: the workers' user and group, who get the file; -1 = as they are.
        """
        if not run_dir:
            return cls.anonymous(rows), ""
        path = os.path.join(run_dir, f"{FILE_PREFIX}{os.getpid()}.board")
        try:
            _remove_stale(run_dir)
            with contextlib.suppress(FileNotFoundError):
                if _is_ours(os.lstat(path)):
                    os.unlink(path)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            return cls.anonymous(rows), f"no scoreboard file in {run_dir}: {error.strerror}"
        try:
            # a page of a sparse file that the disk has no room for is SIGBUS at the first store
            os.posix_fallocate(descriptor, 0, _size(rows))
            if uid != -1 or gid != -1:
                os.fchown(descriptor, uid, gid)
            mapping = mmap.mmap(descriptor, _size(rows))
            mapping[:24] = _head(rows)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(path)
            return cls.anonymous(rows), f"no scoreboard file in {run_dir}: {error.strerror}"
        finally:
            os.close(descriptor)
        return cls(mapping, rows, path), ""

    @classmethod
    def attach(cls, path: str, *, write: bool = False) -> Scoreboard:
        """The board of another process of the same user.

        :raises OSError: if there is no such file, or it is another user's.
        :raises ValueError: if it is no board of this version.
        """
        descriptor = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not _is_ours(status):
                raise PermissionError(f"{path} belongs to another user")
            head = os.pread(descriptor, 24, 0)
            if len(head) < 24 or head[:8] != MAGIC:
                raise ValueError(f"{path} is no scoreboard of this version")
            rows = struct.unpack("=qq", head[8:])[0]
            if status.st_size != _size(rows):
                raise ValueError(f"{path} is no scoreboard of this version")
            mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        return cls(mapping, rows, path)

    def unlink(self) -> None:
        """Remove the file; the mapping stays. Never raises."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    # -- the master's part ---------------------------------------------------------------------------------------

    def allocate(self, age: int) -> Row | None:
        """A cleared row for the worker about to be forked; None if all are taken."""
        for row in self.rows:
            if not row.orders[O_ALLOCATED]:
                row.clear()
                row.orders[O_AGE] = age
                row.words[W_STATE] = STATE_BOOTING
                row.orders[O_ALLOCATED] = 1
                return row
        return None

    def release(self, row: Row) -> None:
        """The worker is gone: its counters go to the totals, its row is free."""
        master = self.master
        master.words[M_FOLD_SEQ] |= 1
        try:
            for index in COUNTERS:
                master.folded[index] += row.words[index]
            for bucket, number in enumerate(row.histogram.tolist()):
                if number:
                    master.histogram[bucket] += number
            for key, words in row.endpoints.items():
                base = master.endpoints.find(key)
                table = master.endpoints.words
                for offset, number in enumerate(words):
                    table[base + offset] = (max(table[base + 1], number) if offset == 1
                                            else table[base + offset] + number)
            row.orders[O_ALLOCATED] = 0
            row.words[W_PID] = 0
            row.words[W_STATE] = STATE_FREE
        finally:
            master.words[M_FOLD_SEQ] += 1

    def add_restart(self, reason: str, pid: int, uptime: float, slot: int, detail: str = "") -> None:
        """Count an exit and keep it among the latest 50."""
        self.master.reasons[CODE.get(reason, CODE["unknown"])] += 1
        latest = self.master.restarts.read_json([])[-49:]
        latest.append({"time": round(time.time(), 3), "reason": reason, "pid": pid, "uptime_s": round(uptime, 1),
                       "slot": slot, "detail": detail[:200]})
        self.master.restarts.write_json(latest)

    # -- anyone's part -------------------------------------------------------------------------------------------

    def live(self) -> list[Row]:
        """Rows whose worker has begun."""
        return [row for row in self.rows if row.orders[O_ALLOCATED] and row.words[W_PID]]

    def leader(self, now_ns: int | None = None) -> Row | None:
        """The worker that runs the shared checks: the lowest ready row with a heartbeat younger than 3 s."""
        now = time.monotonic_ns() if now_ns is None else now_ns
        for row in self.rows:
            words = row.words
            if (row.orders[O_ALLOCATED] and words[W_STATE] == STATE_READY
                    and now - words[W_HEARTBEAT_NS] < 3_000_000_000):
                return row
        return None

    def totals(self) -> Totals:
        """Sums that never fall, even while a dead worker's row is being folded in."""
        words = self.master.words
        for _ in range(500):
            before = words[M_FOLD_SEQ]
            if not before & 1:
                totals = self._sum()
                if words[M_FOLD_SEQ] == before:
                    return totals
            time.sleep(0)
        return self._sum()  # the master was killed in the middle of a fold

    def _sum(self) -> Totals:
        master = self.master
        counters = {index: master.folded[index] for index in COUNTERS}
        histogram = master.histogram.tolist()
        endpoints = dict(master.endpoints.items())
        for row in self.rows:
            if not row.orders[O_ALLOCATED]:
                continue
            for index in COUNTERS:
                counters[index] += row.words[index]
            histogram = [a + b for a, b in zip(histogram, row.histogram.tolist(), strict=True)]
            for key, numbers in row.endpoints.items():
                known = endpoints.get(key)
                if known is None:
                    endpoints[key] = numbers
                else:
                    slowest = max(known[1], numbers[1])
                    endpoints[key] = [a + b for a, b in zip(known, numbers, strict=True)]
                    endpoints[key][1] = slowest
        restarts = {name: number for name, number in zip(REASONS, master.reasons.tolist(), strict=True) if number}
        return Totals(counters, histogram, endpoints, restarts)


def _size(rows: int) -> int:
    return PAGE + _MASTER_BYTES + rows * _ROW_BYTES


def _head(rows: int) -> bytes:
    return MAGIC + struct.pack("=qq", rows, _size(rows))


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and (status.st_uid == os.geteuid() or os.geteuid() == 0)


def board_files(run_dir: str) -> list[tuple[int, str]]:
    """(pid of the master, path) of the boards in a directory that are this user's, whether alive or not."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(run_dir):
            number = name.removeprefix(FILE_PREFIX).removesuffix(".board")
            if name.startswith(FILE_PREFIX) and name.endswith(".board") and number.isdecimal():
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
            with contextlib.suppress(OSError):
                os.unlink(path)
        except OSError:
            pass


def default_run_dir() -> str | None:
    """XDG_RUNTIME_DIR, else /dev/shm, else None."""
    for path in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):
        if path and os.path.isdir(path) and os.access(path, os.W_OK):
            return path
    return None


# -- this process's board ----------------------------------------------------------------------------------------

_board: Scoreboard | None = None
_row: Row | None = None
_making = threading.Lock()


def install(board: Scoreboard, row: Row | None) -> None:
    """The board, and the row, of this process."""
    global _board, _row
    _board, _row = board, row
    if row is not None:
        row.renew_locks()
        row.words[W_PID] = os.getpid()


def current() -> Scoreboard:
    """This process's board: the server's, else one of its own with a single row."""
    if _board is None:
        my_row()
    assert _board is not None
    return _board


def my_row() -> Row:
    """This process's row; a private one where no server gave it any (also when all rows are taken)."""
    global _board, _row
    row = _row
    if row is None:
        with _making:
            if _row is None:
                own = Scoreboard.anonymous(1)
                row = own.allocate(1)
                assert row is not None
                now = time.monotonic_ns()
                row.words[W_PID], row.words[W_STATE] = os.getpid(), STATE_READY
                row.words[W_STARTED_NS] = row.words[W_READY_NS] = now
                if _board is None:
                    _board = own
                _row = row
            row = _row
    return row


def after_fork_child() -> None:
    """In a forked child: locks anew; the row was the parent's, the server's hook gives a worker its own."""
    global _making, _row
    _making = threading.Lock()
    _row = None


os.register_at_fork(after_in_child=after_fork_child)
