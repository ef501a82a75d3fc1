"""The scoreboard's building blocks: a latency histogram, blobs for anything but numbers, tables of endpoints.

Each has one writing process and any number of readers. No reader waits for a writer: a reader never reads the part
being written, so neither a descheduled nor a killed writer blocks it.
"""

from __future__ import annotations

import functools
import itertools
import json
import struct
import threading
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

# -- latency histogram: four buckets an octave from 2**16 ns (66 µs) to 2**37 ns (137 s) --------------------------

FIRST_BITS = 17  # bit length of the first octave with its own buckets
LAST_BITS = 37
BUCKETS = (LAST_BITS - FIRST_BITS + 1) * 4 + 2  # one more below, and one above


#: Nanoseconds from which a duration is in bucket 1, 2, 3 …
BUCKET_STARTS = [(4 + quarter) << (bits - 3) for bits in range(FIRST_BITS, LAST_BITS + 1) for quarter in range(4)]
BUCKET_STARTS.append(1 << LAST_BITS)


#: All starts are multiples of two to this power, in nanoseconds.
STEP_BITS = FIRST_BITS - 3
#: The bucket of each step up to 0.27 s, which covers nearly all requests: one lookup costs less than a search.
BUCKET_OF_STEP = bytes(bisect_right(BUCKET_STARTS, step << STEP_BITS) for step in range(1 << 14))


def bucket_of(duration_ns: int) -> int:
    """Return the number of the histogram's bucket for a duration in nanoseconds."""
    return bisect_right(BUCKET_STARTS, duration_ns)


def bucket_bound(bucket: int) -> float:
    """Return the upper bound of a bucket in seconds; infinite for the last."""
    if bucket >= BUCKETS - 1:
        return float("inf")
    octave, quarter = divmod(bucket - 1, 4) if bucket else (-1, 3)
    return ((5 + quarter) << (FIRST_BITS + octave - 3)) / 1e9


def percentile(histogram: list[int], share: float) -> float:
    """Return the seconds below which `share` of the observations lie, interpolated in the bucket; 0.0 without any."""
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


class Blob:
    """A few bytes in shared memory with one writing process; a reader gets all of one write.

    There are two sides: the writer fills the hidden one and then publishes it with one store. A checksum reveals to a
    reader that two writes overtook its read, or that the processor reordered the stores.
    """

    HEAD = 40  # number of writes; length and checksum of each side

    def __init__(self, area: memoryview) -> None:
        self._head = area[:self.HEAD].cast("q")
        size = (len(area) - self.HEAD) // 2
        self._sides = area[self.HEAD:self.HEAD + size], area[self.HEAD + size:self.HEAD + 2 * size]
        self.renew_lock()

    @property
    def capacity(self) -> int:
        """Return the maximum number of bytes."""
        return len(self._sides[0])

    @property
    def writes(self) -> int:
        """Return the number of writes: a reader that has seen this number has nothing new to read."""
        return int(self._head[0])

    def write(self, data: bytes) -> bool:
        """Store data; return False, without a change, if it is too long."""
        if len(data) > self.capacity:
            return False
        head = self._head
        with self._lock:
            number = head[0] + 1
            side = number & 1
            self._sides[side][:len(data)] = data
            head[1 + 2 * side] = len(data)
            head[2 + 2 * side] = zlib.crc32(data)
            head[0] = number
        return True

    def read(self) -> bytes:
        """Return the latest data; b"" before the first write."""
        head = self._head
        for _ in range(200):
            number = head[0]
            if not number:
                return b""
            side = number & 1
            length, checksum = head[1 + 2 * side], head[2 + 2 * side]
            if 0 <= length <= self.capacity:
                data = bytes(self._sides[side][:length])
                if zlib.crc32(data) == checksum:
                    return data
            time.sleep(0)
        return b""  # two processes wrote at once, and neither has written since

    def write_json(self, value: Any) -> bool:
        """Store a value as JSON, as `write` does."""
        return self.write(json.dumps(value, separators=(",", ":"), default=str).encode())

    def read_json(self, default: Any = None) -> Any:
        """Return the latest value stored by `write_json`, or the default."""
        data = self.read()
        try:
            return json.loads(data) if data else default
        except ValueError:
            return default

    def renew_lock(self) -> None:
        """Renew the lock in a forked child: a thread that does not exist there may have held it."""
        self._lock = threading.RLock()  # reentrant: a signal's handler may interrupt its own thread's write


KEY_BYTES = 96
#: Words of an endpoint's entry: duration_ns, slowest_ns, answers by status class 0..5, deliberate 503 answers, and,
#: counted beside these, requests refused before they had a thread, and requests abandoned since their client had left.
ENTRY_WORDS = 11
ANSWERS = slice(2, 9)  #: in an entry: each answer is counted in one of these words
SHED, ABANDONED = 9, 10  #: in an entry
OTHER = ("", "other")
Entry = tuple[int, ...]
_ENTRY = struct.Struct(f"{ENTRY_WORDS}q")  # native: each word is read at once


class EndpointTable:
    """The mapping from method and endpoint to an entry of an area of words, with a fixed number of entries.

    :ivar known: first word of each entry that this process has used.
    """

    def __init__(self, keys: memoryview, counter: memoryview, index: int) -> None:
        self._keys, self._counter, self._index = keys, counter, index
        self._last = len(keys) // KEY_BYTES - 1
        self.known: dict[tuple[str, str], int] = {}

    def find(self, key: tuple[str, str]) -> int:
        """Return the first word of the entry of (method, endpoint), creating it if there is room, else that of "other".
        """
        base = self.known.get(key)
        if base is None:
            if self._counter[self._index] >= self._last or key == OTHER:
                return self._last * ENTRY_WORDS
            # not cut in the middle of a character: all readers must decode the same text
            name = f"{key[0]} {key[1]}".encode(errors="replace")[:KEY_BYTES].decode(errors="ignore").encode()
            name = name.ljust(KEY_BYTES, b"\0")
            # A signal's handler may have created an entry meanwhile. From here on nothing is called, so that no handler
            # can run.
            if key in self.known:
                return self.known[key]
            number = self._counter[self._index]
            if number >= self._last:
                return self._last * ENTRY_WORDS
            self._keys[number * KEY_BYTES:(number + 1) * KEY_BYTES] = name
            base = self.known[key] = number * ENTRY_WORDS
            self._counter[self._index] = number + 1
        return base

    def items(self, words: memoryview) -> Iterator[tuple[tuple[str, str], Entry]]:
        """Return all entries in use: (method, endpoint) and their `words`."""
        number = min(self._counter[self._index], self._last)
        found = zip(_keys(bytes(self._keys[:number * KEY_BYTES])),
                    _ENTRY.iter_unpack(words[:number * ENTRY_WORDS]), strict=True)
        last = tuple(words[self._last * ENTRY_WORDS:].tolist())
        return itertools.chain(found, [(OTHER, last)]) if any(last) else found

    def forget(self) -> None:
        """Forget the known entries, since the table was cleared."""
        self.known = {}


@functools.lru_cache(maxsize=256)
def _keys(raw: bytes) -> list[tuple[str, str]]:
    """Return the keys of a table, cached: they soon stop changing, and each read needs them."""
    found = []
    for start in range(0, len(raw), KEY_BYTES):
        method, _, endpoint = raw[start:start + KEY_BYTES].rstrip(b"\0").decode(errors="replace").partition(" ")
        found.append((method, endpoint))
    return found


def add_entry(one: Entry, other: Entry) -> Entry:
    """Return the sum of two entries, with the larger slowest_ns. (A loop costs three times as much.)"""
    a, b, c, d, e, f, g, h, r, t, v = one
    i, j, k, l, m, n, o, p, s, u, w = other  # noqa: E741
    return a + i, b if b > j else j, c + k, d + l, e + m, f + n, g + o, h + p, r + s, t + u, v + w
