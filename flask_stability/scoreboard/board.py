"""The shared state of all workers: a mapping in shared memory, one row per worker, one writer per word.

The master creates the board before it forks; each worker writes its own row, the master its own words, and any process
that answers ``/health`` reads all of them without a lock and without I/O. Numbers are 8-byte aligned words, written in
one store each. Anything else is a `Blob`. When a worker dies, the master folds its counters into totals, so that
exported counters never fall.

The mapping is backed by a file where that is possible, so that the command line can read it while HTTP is stuck.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from collections.abc import Iterable
from operator import add
from typing import Any

from . import file as scoreboard_file
from .areas import PAGE
from .layout import (
    COUNTERS,
    M_FOLDS,
    M_N_ENDPOINTS,
    MAGIC,
    MASTER_PART,
    O_AGE,
    O_ALLOCATED,
    O_FOLDED,
    ROW,
    STATE_BOOTING,
    STATE_FREE,
    STATE_READY,
    W_HEARTBEAT_NS,
    W_PID,
    W_STATE,
    WORKER,
)
from .primitives import BUCKETS, ENTRY_WORDS, Blob, EndpointTable, add_entry
from .reasons import REASONS, Reason
from .row import Row
from .totals import Totals

HEAD_BYTES = 24  # `MAGIC`, rows, size
MAX_ROWS = 4096
_USED = max(COUNTERS) + 1
EXCEPTIONS_KEPT = 20  #: kinds of exceptions kept of workers that have ended


class _Sums:
    """The counts of workers that have ended."""

    def __init__(self, area: memoryview) -> None:
        self.all = area.cast("q")
        self.counters = self.all[:WORKER.room]
        self.histogram = self.all[WORKER.room:WORKER.room + BUCKETS]
        self.entries = self.all[WORKER.room + BUCKETS:]


class MasterArea:
    """The areas that only the master writes, and those that the leading worker writes for all.

    :ivar words: by the constants ``M_…``.
    :ivar sums: two sides; the number of folds says which is valid.
    :ivar restarts: the latest restarts, a JSON list, newest last.
    :ivar exceptions: the latest exceptions of workers that have ended.
    :ivar shared: results of the shared checks, handed on from leader to leader (written by the leader).
    :ivar mutes: checks whose alerts are muted: a list of check, until, since, by (written by the master).
    :ivar releases: which release serves, which one was refused, the latest verdicts (written by the master).
    :ivar history: for `flask_stability.health.history` (written by the leader).
    """

    def __init__(self, view: memoryview, start: int) -> None:
        areas = MASTER_PART.cut(view, start)
        self.words = areas["words"].cast("q")
        self.reasons = areas["reasons"].cast("q")
        self.sums = _Sums(areas["sums 0"]), _Sums(areas["sums 1"])
        self.endpoints = EndpointTable(areas["endpoints"], self.words, M_N_ENDPOINTS)
        self.restarts, self.shared = Blob(areas["restarts"]), Blob(areas["shared"])
        self.exceptions, self.mutes = Blob(areas["exceptions"]), Blob(areas["mutes"])
        self.releases = Blob(areas["releases"])
        self.history = areas["history"]


class Scoreboard:
    """The shared mapping.

    :ivar rows: all slots, in use or not.
    :ivar path: the backing file, or None.
    :ivar owner: the file's owner when it was opened; that user could have written anything into it.
    """

    def __init__(self, mapping: mmap.mmap, rows: int, path: str | None = None, owner: int | None = None) -> None:
        self._mapping = mapping
        self.path = path
        self.owner = os.geteuid() if owner is None else owner
        view = memoryview(mapping)
        self.master = MasterArea(view, PAGE)
        self.rows = [Row(slot, view, PAGE + MASTER_PART.size + slot * ROW.size) for slot in range(rows)]

    # -- made and opened -----------------------------------------------------------------------------------------

    @classmethod
    def anonymous(cls, rows: int = 1) -> Scoreboard:
        """Return a board without a file, for the processes forked from this one."""
        mapping = mmap.mmap(-1, _size(rows))
        mapping[:HEAD_BYTES] = _head(rows)
        return cls(mapping, rows)

    @classmethod
    def create(cls, rows: int, run_dir: str | None = None, uid: int = -1, gid: int = -1) -> tuple[Scoreboard, str]:
        """Return a board backed by a file in `run_dir`; if that fails, an anonymous one with the reason in words.

        :param uid, gid: the workers' user and group, which get the file; -1 = unchanged.
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
        """Return the board of another process of the same user.

        :raises OSError: if there is no such file, or it belongs to another user.
        :raises ValueError: if it is not a board of this version.
        """
        mapping, head, owner = scoreboard_file.attach(path, HEAD_BYTES, write=write)
        return cls._of_file(mapping, head, path, owner)

    @classmethod
    def copy_of(cls, path: str) -> Scoreboard:
        """Return a copy of the board of another process.

        It is read, not mapped, since the file's owner may truncate the file at any moment.

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
        """Remove the file; the mapping stays. Never raise."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    # -- the master's part ---------------------------------------------------------------------------------------

    def allocate(self, age: int) -> Row | None:
        """Return a cleared row for the worker about to be forked; None if all are taken."""
        for row in self.rows:
            if not row.orders[O_ALLOCATED]:
                row.clear()
                row.orders[O_AGE] = age
                row.words[W_STATE] = STATE_BOOTING
                row.orders[O_ALLOCATED] = 1
                return row
        return None

    def free(self) -> int:
        """Return how many rows are free."""
        return sum(not row.orders[O_ALLOCATED] for row in self.rows)

    def release(self, row: Row) -> None:
        """Add the counters of a worker that has ended to the totals, and free its row."""
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
        with contextlib.suppress(Exception):  # the master must survive whatever a worker wrote
            latest = merged_exceptions([row.exceptions, master.exceptions])[:EXCEPTIONS_KEPT]
            while latest and not master.exceptions.write_json(latest):
                latest.pop()
        # One store moves the row's counts into the totals: a reader counts them once, before as after.
        row.orders[O_FOLDED] = folds + 1
        master.words[M_FOLDS] = folds + 1
        row.orders[O_ALLOCATED] = row.words[W_PID] = 0
        row.words[W_STATE] = STATE_FREE

    def add_restart(self, reason: Reason, pid: int, uptime: float, slot: int, detail: str = "") -> None:
        """Count an exit and keep it among the latest 50."""
        self.master.reasons[reason.code] += 1
        latest = self.master.restarts.read_json([])[-49:]
        latest.append({"time": round(time.time(), 3), "reason": reason, "pid": pid, "uptime_s": round(uptime, 1),
                       "slot": slot, "detail": detail[:200]})
        while not self.master.restarts.write_json(latest):
            latest.pop(0)

    # -- anyone's part -------------------------------------------------------------------------------------------

    def live(self) -> list[Row]:
        """Return the rows whose worker has begun."""
        return [row for row in self.rows if row.orders[O_ALLOCATED] and row.words[W_PID]]

    def leader(self, now_ns: int | None = None) -> Row | None:
        """Return the worker that runs the shared checks: the lowest ready row with a heartbeat younger than 3 s."""
        now = time.monotonic_ns() if now_ns is None else now_ns
        for row in self.rows:
            words = row.words
            if (row.orders[O_ALLOCATED] and words[W_STATE] == STATE_READY
                    and now - words[W_HEARTBEAT_NS] < 3_000_000_000):
                return row
        return None

    def totals(self) -> Totals:
        """Return sums that never fall, even while the master folds a dead worker's row, or was killed while it did."""
        words = self.master.words
        while True:
            folds = words[M_FOLDS]
            totals = self._sum(folds)
            if words[M_FOLDS] == folds:
                return totals

    def _sum(self, folds: int) -> Totals:
        sums = self.master.sums[folds & 1]
        counters = sums.counters[:_USED].tolist()
        histogram = sums.histogram.tolist()
        endpoints = dict(self.master.endpoints.items(sums.entries))
        for row in self.rows:
            if not row.orders[O_ALLOCATED] or 0 < row.orders[O_FOLDED] <= folds:
                continue
            counters = list(map(add, counters, row.words[:_USED].tolist()))
            histogram = list(map(add, histogram, row.histogram.tolist()))
            for key, numbers in row.endpoints.items(row.entries):
                known = endpoints.get(key)
                endpoints[key] = numbers if known is None else add_entry(known, numbers)
        reasons = zip(REASONS, self.master.reasons.tolist(), strict=True)
        restarts = {str(reason): number for reason, number in reasons if number}
        return Totals({index: counters[index] for index in COUNTERS}, histogram, endpoints, restarts)


def _size(rows: int) -> int:
    return PAGE + MASTER_PART.size + rows * ROW.size


def _head(rows: int) -> bytes:
    return MAGIC + struct.pack("=qq", rows, _size(rows))


def merged_exceptions(blobs: Iterable[Blob]) -> list[dict[str, Any]]:
    """Return the exceptions that several workers have recorded, by class and route, the latest first.

    Each has class, route and count, and of the latest occurrence last, where and request_id.
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
