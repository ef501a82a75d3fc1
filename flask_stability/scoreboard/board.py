"""One truth over all workers: a mapping in shared memory, one row per worker, one writer per word.

The master makes the board before it forks; each worker writes its own row, the master its own words, and whoever
answers ``/health`` reads all of them without a lock and without I/O. Numbers are 8-byte aligned words, written in
one store each. What is no number is a `Blob`. When a worker dies its counters are folded into totals, so that
what is exported never falls.

The mapping is backed by a file where that is possible, so that the command line can read it while HTTP is stuck.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import add
from typing import Any

from . import file as scoreboard_file
from .primitives import (
    BUCKET_OF_STEP,
    BUCKET_STARTS,
    BUCKETS,
    ENTRY_WORDS,
    KEY_BYTES,
    STEP_BITS,
    Blob,
    EndpointTable,
    Entry,
    add_entry,
)

MAGIC = b"FSTABLE5"
HEAD_BYTES = 24
PAGE = 4096

# -- a worker's words; the worker is their only writer -----------------------------------------------------------

(W_PID, W_AGE, W_STARTED_NS, W_READY_NS, W_HEARTBEAT_NS, W_STATE, W_RETIRE_REASON, W_RETIRE_SINCE_NS,
 W_CLOSE_KEEPALIVE, W_COMMAND_ACK, W_THREADS, W_BUSY, W_QUEUE, W_STUCK, W_N_ENDPOINTS,
 W_RSS, W_PSS, W_MEMORY_LIMIT, W_WARM_FLOOR, W_LEAK_VERDICT,
 W_N_THREADS, W_N_TIMERS, W_N_FDS, W_N_RECEIVERS, W_N_GC_OBJECTS, W_N_GARBAGE, W_GROWING,
 W_DB_SIZE, W_DB_AVAILABLE, W_DB_IN_USE, W_DB_WAITING, W_DB_BREAKER, W_DB_MAX,
 # counters: folded into the totals when the worker is gone
 W_EXCEPTIONS, W_LOG_DROPS, W_LOG_SAMPLED, W_OVERDUE, W_GC_RUNS, W_GC_FREED,
 W_DB_REQUESTS, W_DB_QUEUED, W_DB_WAIT_MS, W_DB_ERRORS, W_DB_USAGE_MS, W_DB_CONNECTIONS, W_DB_CONNECT_MS,
 W_DB_CONNECT_ERRORS, W_DB_LOST, W_DB_BAD_RETURNS, W_DB_LEAKS, W_DB_RETRIES, W_ALERTS_LOST, W_ALERTS_SENT,
 W_ENGINE_ERRORS, W_STREAMS, W_STREAM_MS,
 # no counter: bytes that replacing the worker would give back
 W_OWN_MEMORY,
 # no counter: threads that wait for a client
 W_SLOW_CLIENTS,
 # no counter: since when all connections are in use (monotonic), 0: they are not
 W_DB_FULL_NS,
 # no counter: bytes of W_RSS that a preloaded app's processes have together
 W_COMMON_MEMORY,
 ) = range(60)
COUNTERS = range(W_EXCEPTIONS, W_STREAM_MS + 1)
WORDS = 128

(F_MEMORY_TREND, F_SECONDS_TO_LIMIT, F_CPU_SHARE,
 # per hour
 F_THREADS_TREND, F_TIMERS_TREND, F_FDS_TREND, F_RECEIVERS_TREND, F_GC_OBJECTS_TREND, F_GARBAGE_TREND) = range(9)
FLOATS = 16

STATE_FREE, STATE_BOOTING, STATE_READY, STATE_RETIRING, STATE_STOPPING = range(5)
DRAINING, ENDING = 1, 2  #: what M_DRAINING says: still serving; listening no more
STATE_NAMES = ("free", "booting", "ready", "retiring", "stopping")

# -- the master's words about a row; the last two are of old command lines -----------------------------------------

(O_ALLOCATED, O_AGE, O_PID, O_COMMAND, O_COMMAND_SEQ, O_RETIRE_STATE, O_RETIRE_SINCE_NS, O_RETIRE_REASON,
 O_BOOTED_NS, O_FOLDED, O_CLI_RETIRE, O_CLI_GC) = range(12)
ORDERS = 32
CMD_NONE, CMD_GC, CMD_RETIRE, CMD_CLOSE_KEEPALIVE = range(4)

# -- the master's own words --------------------------------------------------------------------------------------

(M_PID, M_STARTED_NS, M_TICK_NS, M_BASE_WORKERS, M_TARGET, M_SURGE, M_HOLD_UNTIL_NS, M_CRASHES, M_DEGRADED,
 M_RELOADS, M_DRAINING, M_WARM_FLOOR, M_GENERATION, M_FOLDS, M_BOOTS, M_EVER_READY, M_LIMIT, M_N_ENDPOINTS,
 M_UNSUPERVISED, M_GROWTH_AFTER_NS, M_GROWTH_PATIENCE) = range(21)
MASTER_WORDS = 64

#: Why a worker was or is to be replaced; the index is the code in the words.
REASONS = ("none", "asked", "memory", "memory_hard", "memory_growth", "memory_pressure", "deadline", "stuck",
           "crash_signal", "out_of_memory", "boot_failure", "timeout", "exit_code", "reload", "scale", "shutdown",
           "max_requests", "frozen", "unknown", "open_files", "leaked_connections")
CODE = {name: code for code, name in enumerate(REASONS)}
#: Reasons that are a worker's own failure; only they count towards the restart limit.
CRASHES = frozenset({"crash_signal", "out_of_memory", "boot_failure", "timeout", "exit_code", "frozen", "unknown"})

# -- sizes ------------------------------------------------------------------------------------------------------

ENDPOINTS = 129  # per worker; the last is "other"
TOTAL_ENDPOINTS = 513
CHECKS_BYTES, EXCEPTIONS_BYTES, RESTARTS_BYTES, SHARED_BYTES, MUTES_BYTES = (2 * size + Blob.HEAD for size in (
    16384, 8192, 24576, 16384, 8192))  # a blob has two sides
HUNG_BYTES = 2 * 8192 + Blob.HEAD
HISTORY_BYTES = 1 << 20
MAX_ROWS = 4096
EXCEPTIONS_KEPT = 20  #: kinds of exceptions of workers that are gone
PLACES = 4096  #: of requests of one kind, remembered by a worker
ENDED_LOGINS = 32  #: of the dashboard, remembered in a row
_ENDED_WORDS = 2 + 2 * ENDED_LOGINS

#: Whether no other thread, and no signal's handler, can come between the reading and the storing of one statement that
#: calls no Python code. CPython with its global lock looks for them after calls, at the head of functions and at jumps
#: backward only: so in 3.11 to 3.13 (``CHECK_EVAL_BREAKER`` in Python/ceval.c); later ones and others take the lock.
WHOLE_STATEMENTS = (sys.implementation.name == "cpython" and sys.version_info < (3, 14)
                    and getattr(sys, "_is_gil_enabled", lambda: True)())

#: Methods that are counted under their names; a client may invent any number of others.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "OTHER"

#: Passed to `Row.observe` in place of 503 for an answer that we refuse on purpose (database away, overload, drain).
REFUSED = 600


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

    def since(self, start: int) -> memoryview:
        return self._view[start:self.offset]


class _Places(dict[tuple[str, str, int], tuple[int, int, int]]):
    """Where a request of (method, endpoint, status) is counted: the sum of durations, the slowest, the answers."""

    def __init__(self, endpoints: EndpointTable, lock: threading.RLock) -> None:
        self._endpoints, self._lock = endpoints, lock

    def __missing__(self, key: tuple[str, str, int]) -> tuple[int, int, int]:
        method, endpoint, status = key
        kind = status // 100
        known = method if method in METHODS else OTHER_METHOD
        with self._lock:
            base = BUCKETS + self._endpoints.find((known, endpoint))
        place = base, base + 1, base + 2 + (kind if 0 <= kind <= 6 else 0)
        if known == method and len(self) < PLACES:  # what a client may choose is not remembered
            self[key] = place
        return place


class Row:
    """One worker's part of the board.

    :ivar words: the worker's words, by the constants ``W_…``.
    :ivar floats: the worker's floating-point words, by ``F_…``.
    :ivar orders: the master's words about this worker, by ``O_…``.
    :ivar entries: words of each endpoint, found by the table `endpoints`.
    :ivar checks, exceptions, hung: the worker's blobs.
    :ivar ended: logins that were ended, as `health.sessions` keeps them; it outlives the worker.
    """

    def __init__(self, slot: int, layout: _Layout) -> None:
        self.slot = slot
        start = layout.offset
        self.words = layout.words(WORDS)
        self.floats: Any = layout.words(FLOATS, "d")  # memoryview's types know no float
        self.orders = layout.words(ORDERS)
        self._numbers = layout.words(BUCKETS + ENDPOINTS * ENTRY_WORDS)
        self.histogram = self._numbers[:BUCKETS]
        self.entries = self._numbers[BUCKETS:]
        self.endpoints = EndpointTable(layout.area(ENDPOINTS * KEY_BYTES), self.words, W_N_ENDPOINTS)
        self.checks = layout.blob(CHECKS_BYTES)
        self.exceptions = layout.blob(EXCEPTIONS_BYTES)
        self.hung = layout.blob(HUNG_BYTES)
        self._all = layout.since(start)
        self.ended = layout.words(_ENDED_WORDS)
        if not WHOLE_STATEMENTS:
            self.observe = self._observe_locked  # type: ignore[method-assign]
        self.renew_locks()

    def observe(self, method: str, endpoint: str, status: int, duration_ns: int) -> None:
        """Count one answered request; `status` 0 is an answer that was cut off, `REFUSED` a 503 given on purpose.

        It is on the path of every request, so it takes no lock where a statement that reads, adds and stores cannot
        be interrupted (`WHOLE_STATEMENTS`); each of the sums is one. Elsewhere it is called under the lock.
        """
        duration, slowest, answers = self._places[method, endpoint, status]
        try:
            bucket = BUCKET_OF_STEP[duration_ns >> STEP_BITS]
        except IndexError:
            bucket = bisect_right(BUCKET_STARTS, duration_ns)
        numbers = self._numbers
        numbers[duration] = numbers[duration] + duration_ns  # (+= would take more steps)
        if duration_ns > numbers[slowest]:
            numbers[slowest] = duration_ns
        numbers[answers] = numbers[answers] + 1
        numbers[bucket] = numbers[bucket] + 1

    def _observe_locked(self, method: str, endpoint: str, status: int, duration_ns: int) -> None:
        """`observe` for an interpreter whose threads may be switched at any moment."""
        with self.lock:
            Row.observe(self, method, endpoint, status, duration_ns)

    def add(self, index: int, number: int = 1) -> None:
        """Add to one of the worker's words, safely among the threads of the worker."""
        with self.lock:
            self.words[index] += number

    def add_stream(self, milliseconds: int) -> None:
        """Count an answer whose body took that long after its first chunk."""
        with self.lock:
            self.words[W_STREAMS] += 1
            self.words[W_STREAM_MS] += milliseconds

    @property
    def by_class(self) -> list[int]:
        """Answers of this worker by status class 0 (cut off), 1, 2, 3, 4, 5."""
        return _by_class(words for _, words in self.endpoints.items(self.entries))

    @property
    def requests(self) -> int:
        """Requests answered by this worker."""
        return sum(self.histogram.tolist())

    @property
    def duration_ns(self) -> int:
        """Sum of all durations of this worker."""
        return sum(words[0] for _, words in self.endpoints.items(self.entries))

    @property
    def errors(self) -> int:
        """Server errors, and answers that were cut off, of this worker."""
        by_class = self.by_class
        return by_class[0] + by_class[5]

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
        self.lock = threading.RLock()  # a signal's handler may interrupt its own thread's count
        self.endpoints.forget()
        self._places = _Places(self.endpoints, self.lock)
        self.checks.renew_lock()
        self.exceptions.renew_lock()
        self.hung.renew_lock()


def _by_class(entries: Iterable[Entry]) -> list[int]:
    """Answers by status class 0..5 over all entries; what was refused on purpose is among 5."""
    *found, refused = [sum(one) for one in zip(*(words[2:] for words in entries), strict=True)] or [0] * 7
    found[5] += refused
    return found


class _Sums:
    """What was counted by workers that are gone."""

    SIZE = WORDS + BUCKETS + TOTAL_ENDPOINTS * ENTRY_WORDS

    def __init__(self, layout: _Layout) -> None:
        self.all = layout.words(self.SIZE)
        self.counters = self.all[:WORDS]
        self.histogram = self.all[WORDS:WORDS + BUCKETS]
        self.entries = self.all[WORDS + BUCKETS:]


class MasterArea:
    """What only the master writes, and the areas that the leading worker writes for all.

    :ivar words: by the constants ``M_…``.
    :ivar sums: two sides; the number of folds says which is valid.
    :ivar restarts: the latest restarts, a JSON list, newest last.
    :ivar exceptions: the latest exceptions of workers that are gone.
    :ivar shared: results of the shared checks, handed on from leader to leader (written by the leader).
    :ivar mutes: checks whose alerts are muted: a list of check, until, since, by (written by the master).
    :ivar history: for `flask_stability.health.history` (written by the leader).
    """

    def __init__(self, layout: _Layout) -> None:
        self.words = layout.words(MASTER_WORDS)
        self.reasons = layout.words(len(REASONS))
        self.sums = _Sums(layout), _Sums(layout)
        self.endpoints = EndpointTable(layout.area(TOTAL_ENDPOINTS * KEY_BYTES), self.words, M_N_ENDPOINTS)
        self.restarts = layout.blob(RESTARTS_BYTES)
        self.shared = layout.blob(SHARED_BYTES)
        self.exceptions = layout.blob(EXCEPTIONS_BYTES)
        self.mutes = layout.blob(MUTES_BYTES)
        self.history = layout.area(HISTORY_BYTES)


@dataclass
class Totals:
    """Sums over all workers, living and gone.

    :ivar counters: the words of `COUNTERS`, by index.
    :ivar endpoints: words of each (method, endpoint): duration_ns, slowest_ns, answers by class 0..5, and, not among
        these, answers refused on purpose.
    """

    counters: dict[int, int]
    histogram: list[int]
    endpoints: dict[tuple[str, str], Entry] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)

    @property
    def by_class(self) -> list[int]:
        """Answers by status class 0 (cut off), 1, 2, 3, 4, 5."""
        return _by_class(self.endpoints.values())

    @property
    def requests(self) -> int:
        """All answers."""
        return sum(self.by_class)

    @property
    def errors(self) -> int:
        """Server errors and answers that were cut off."""
        by_class = self.by_class
        return by_class[0] + by_class[5]

    @property
    def refused(self) -> int:
        """Answers of 503 given on purpose; they are among `errors`."""
        return sum(words[8] for words in self.endpoints.values())

    @property
    def duration_ns(self) -> int:
        """Sum of all durations."""
        return sum(words[0] for words in self.endpoints.values())


class Scoreboard:
    """The shared mapping.

    :ivar rows: all slots, in use or not.
    :ivar path: the backing file, or None.
    :ivar owner: the file's owner, when it was opened; who could have written anything into it.
    """

    def __init__(self, mapping: mmap.mmap, rows: int, path: str | None = None, owner: int | None = None) -> None:
        self._mapping = mapping
        self.path = path
        self.owner = os.geteuid() if owner is None else owner
        layout = _Layout(memoryview(mapping), PAGE)
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
        mapping[:HEAD_BYTES] = _head(rows)
        return cls(mapping, rows)

    @classmethod
    def create(cls, rows: int, run_dir: str | None = None, uid: int = -1, gid: int = -1) -> tuple[Scoreboard, str]:
        """A board backed by a file in `run_dir`; anonymous, with the reason in words, where that cannot be.

        :param uid, gid: the workers' user and group, who get the file; -1 = as they are.
        """
        if not run_dir:
            return cls.anonymous(rows), ""
        try:
            mapping, path = scoreboard_file.make(run_dir, _head(rows), _size(rows), uid, gid)
        except OSError as error:
            return cls.anonymous(rows), f"no scoreboard file in {run_dir}: {error.strerror}"
        return cls(mapping, rows, path), ""

    @classmethod
    def attach(cls, path: str, *, write: bool = False) -> Scoreboard:
        """The board of another process of the same user.

        :raises OSError: if there is no such file, or it is another user's.
        :raises ValueError: if it is no board of this version.
        """
        mapping, head, owner = scoreboard_file.attach(path, HEAD_BYTES, write=write)
        return cls._of_file(mapping, head, path, owner)

    @classmethod
    def copy_of(cls, path: str) -> Scoreboard:
        """What the board of another process says now: read, not mapped, since its owner may cut the file at any moment.

        :raises OSError, ValueError: as `attach`.
        """
        mapping, owner = scoreboard_file.copied(path, _size(MAX_ROWS))
        return cls._of_file(mapping, mapping[:HEAD_BYTES], path, owner)

    @classmethod
    def _of_file(cls, mapping: mmap.mmap, head: bytes, path: str, owner: int) -> Scoreboard:
        rows = struct.unpack("=qq", head[8:])[0] if len(head) == HEAD_BYTES and head[:8] == MAGIC else 0
        if not 0 < rows <= MAX_ROWS or head != _head(rows) or len(mapping) != _size(rows):
            raise ValueError(f"{path} is no scoreboard of this version")
        return cls(mapping, rows, path, owner)

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

    def free(self) -> int:
        """How many rows no worker has."""
        return sum(not row.orders[O_ALLOCATED] for row in self.rows)

    def release(self, row: Row) -> None:
        """The worker is gone: its counters go to the totals, its row is free."""
        master = self.master
        folds = master.words[M_FOLDS]
        old, new = master.sums[folds & 1], master.sums[1 - (folds & 1)]
        new.all[:] = old.all
        for index in COUNTERS:
            new.counters[index] += row.words[index]
        for bucket, number in enumerate(row.histogram.tolist()):
            new.histogram[bucket] += number
        for key, words in row.endpoints.items(row.entries):
            base = master.endpoints.find(key)
            total = add_entry(tuple(new.entries[base:base + ENTRY_WORDS]), words)
            for offset, number in enumerate(total):
                new.entries[base + offset] = number
        with contextlib.suppress(Exception):  # what a worker wrote is not the master's risk
            latest = merged_exceptions([row.exceptions, master.exceptions])[:EXCEPTIONS_KEPT]
            while latest and not master.exceptions.write_json(latest):
                latest.pop()
        # one store makes the row's counts the totals': whoever reads sees them once, before as after
        row.orders[O_FOLDED] = folds + 1
        master.words[M_FOLDS] = folds + 1
        row.orders[O_ALLOCATED] = row.words[W_PID] = 0
        row.words[W_STATE] = STATE_FREE

    def add_restart(self, reason: str, pid: int, uptime: float, slot: int, detail: str = "") -> None:
        """Count an exit and keep it among the latest 50."""
        self.master.reasons[CODE.get(reason, CODE["unknown"])] += 1
        latest = self.master.restarts.read_json([])[-49:]
        latest.append({"time": round(time.time(), 3), "reason": reason, "pid": pid, "uptime_s": round(uptime, 1),
                       "slot": slot, "detail": detail[:200]})
        while not self.master.restarts.write_json(latest):
            latest.pop(0)

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
        """Sums that never fall, even while a dead worker's row is being folded in or its master was killed at it."""
        words = self.master.words
        while True:
            folds = words[M_FOLDS]
            totals = self._sum(folds)
            if words[M_FOLDS] == folds:
                return totals

    def _sum(self, folds: int) -> Totals:
        sums = self.master.sums[folds & 1]
        counters = sums.counters[:COUNTERS.stop].tolist()
        histogram = sums.histogram.tolist()
        endpoints = dict(self.master.endpoints.items(sums.entries))
        for row in self.rows:
            if not row.orders[O_ALLOCATED] or 0 < row.orders[O_FOLDED] <= folds:
                continue
            counters = list(map(add, counters, row.words[:COUNTERS.stop].tolist()))
            histogram = list(map(add, histogram, row.histogram.tolist()))
            for key, numbers in row.endpoints.items(row.entries):
                known = endpoints.get(key)
                endpoints[key] = numbers if known is None else add_entry(known, numbers)
        reasons = zip(REASONS, self.master.reasons.tolist(), strict=True)
        restarts = {name: number for name, number in reasons if number}
        return Totals({index: counters[index] for index in COUNTERS}, histogram, endpoints, restarts)


def _pages(*sizes: int) -> int:
    return (sum((size + 7) & ~7 for size in sizes) + PAGE - 1) // PAGE * PAGE


_MASTER_BYTES = _pages(8 * (MASTER_WORDS + len(REASONS) + 2 * _Sums.SIZE), TOTAL_ENDPOINTS * KEY_BYTES, RESTARTS_BYTES,
                       SHARED_BYTES, EXCEPTIONS_BYTES, MUTES_BYTES, HISTORY_BYTES)
_ROW_BYTES = _pages(8 * (WORDS + FLOATS + ORDERS + BUCKETS + ENDPOINTS * ENTRY_WORDS + _ENDED_WORDS),
                    ENDPOINTS * KEY_BYTES, CHECKS_BYTES, EXCEPTIONS_BYTES, HUNG_BYTES)


def _size(rows: int) -> int:
    return PAGE + _MASTER_BYTES + rows * _ROW_BYTES


def _head(rows: int) -> bytes:
    return MAGIC + struct.pack("=qq", rows, _size(rows))


def merged_exceptions(blobs: Iterable[Blob]) -> list[dict[str, Any]]:
    """What several workers remember of exceptions, by class and route, the latest first: class, route, count,
    and of the last one last, where, request_id.
    """
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for blob in blobs:
        for entry in blob.read_json([]) or []:
            key = str(entry["class"]), str(entry["route"])
            known, last = merged.get(key), float(entry["last"])
            newest = entry if known is None or last >= known["last"] else known
            merged[key] = {"class": key[0], "route": key[1], "count": int(entry["count"]) + (
                known["count"] if known else 0), "last": float(newest["last"]), "where": str(newest.get("where", "")),
                "request_id": str(newest.get("request_id", ""))}
    return sorted(merged.values(), key=lambda entry: -float(entry["last"]))


# -- this process's board ----------------------------------------------------------------------------------------

_board: Scoreboard | None = None
_row: Row | None = None
_making = threading.RLock()


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


def row_or_none() -> Row | None:
    """This process's row, if it has one yet."""
    return _row


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


def forget() -> None:
    """This process has no board until it is asked for one again; for tests."""
    global _board, _row
    with _making:
        _board = _row = None


def after_fork_child() -> None:
    """In a forked child: locks anew; the row was the parent's, the server's hook gives a worker its own."""
    global _making, _row
    _making = threading.RLock()
    _row = None


os.register_at_fork(after_in_child=after_fork_child)
