"""One worker's row of the board, and how it counts requests."""

from __future__ import annotations

import sys
import threading
from bisect import bisect_right

from .layout import CLEARED, ENDPOINTS, ROW, W_N_ENDPOINTS, W_PID, W_STREAM_MS, W_STREAMS
from .primitives import BUCKET_OF_STEP, BUCKET_STARTS, BUCKETS, ENTRY_WORDS, STEP_BITS, Blob, EndpointTable
from .times import OCTAVE_OF_BUCKET, place_of
from .totals import WAIT_BOUNDS, WAITS, by_class

#: Whether no other thread, and no signal's handler, can run between the read and the store of one statement that calls
#: no Python code. CPython with its global lock switches only after calls, at the head of functions and at backward
#: jumps; this holds for 3.11 to 3.13 (``CHECK_EVAL_BREAKER`` in Python/ceval.c). Later versions and other interpreters
#: take the lock.
WHOLE_STATEMENTS = (sys.implementation.name == "cpython" and sys.version_info < (3, 14)
                    and getattr(sys, "_is_gil_enabled", lambda: True)())

PLACES = 4096  #: maximum number of kinds of requests whose places a worker remembers

#: Methods that are counted by name; a client may invent any number of others.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "OTHER"

#: Passed to `Row.observe` instead of 503 for a deliberate refusal (database away, overload, drain).
REFUSED = 600


_TIMELESS = place_of(ENDPOINTS * ENTRY_WORDS)


class _Places(dict[tuple[str, str, int], tuple[int, int, int, int]]):
    """The words that count a request of (method, endpoint, status).

    They hold the sum of durations, the slowest, the answers, the times.

    The time of a deliberate refusal says nothing about the route.
    """

    def __init__(self, endpoints: EndpointTable, lock: threading.RLock) -> None:
        self._endpoints, self._lock = endpoints, lock

    def __missing__(self, key: tuple[str, str, int]) -> tuple[int, int, int, int]:
        method, endpoint, status = key
        kind = status // 100
        known = method if method in METHODS else OTHER_METHOD
        with self._lock:
            entry = self._endpoints.find((known, endpoint))
        base = BUCKETS + entry
        place = (base, base + 1, base + 2 + (kind if 0 <= kind <= 6 else 0),
                 _TIMELESS if status == REFUSED else place_of(entry))
        if known == method and len(self) < PLACES:  # never remember methods that a client may invent
            self[key] = place
        return place


class Row:
    """One worker's part of the board.

    :ivar words: the worker's words, by the constants ``W_…``.
    :ivar floats: the worker's floating-point words, by ``F_…``.
    :ivar orders: the master's words about this worker, by ``O_…``.
    :ivar entries: words of each endpoint, found with the table `endpoints`.
    :ivar checks, exceptions, hung, release: the worker's blobs.
    :ivar times: number of requests by endpoint and octave of duration, read by `times.by_route`.
    :ivar ended: ended logins, as `health.sessions` stores them; outlives the worker.
    """

    def __init__(self, slot: int, view: memoryview, start: int) -> None:
        self.slot = slot
        areas = ROW.cut(view, start)
        self.words = areas["words"].cast("q")
        self.floats = areas["floats"].cast("d")
        self.orders = areas["orders"].cast("q")
        self._numbers = areas["numbers"].cast("q")
        self.histogram = self._numbers[:BUCKETS]
        self.entries = self._numbers[BUCKETS:]
        self.endpoints = EndpointTable(areas["endpoints"], self.words, W_N_ENDPOINTS)
        self.checks, self.exceptions, self.hung = Blob(areas["checks"]), Blob(areas["exceptions"]), Blob(areas["hung"])
        self.release = Blob(areas["release"])
        self.times = areas["times"].cast("q")
        self.ended = areas["ended"].cast("q")
        self._cleared = view[start:start + CLEARED]
        if not WHOLE_STATEMENTS:
            self.observe = self._observe_locked  # type: ignore[method-assign]
        self.renew_locks()

    def observe(self, method: str, endpoint: str, status: int, duration_ns: int) -> None:
        """Count one answered request.

        This is on the path of every request. So it takes no lock where no other code can interrupt a statement that
        reads, adds and stores (`WHOLE_STATEMENTS`); each of the sums is such a statement. Elsewhere the caller holds
        the lock.

        :param status: 0 for an answer that was cut off, `REFUSED` for a deliberate 503.
        """
        duration, slowest, answers, timed = self._places[method, endpoint, status]
        try:
            bucket = BUCKET_OF_STEP[duration_ns >> STEP_BITS]
        except IndexError:
            bucket = bisect_right(BUCKET_STARTS, duration_ns)
        numbers = self._numbers
        numbers[duration] = numbers[duration] + duration_ns  # += would take more steps
        if duration_ns > numbers[slowest]:
            numbers[slowest] = duration_ns
        numbers[answers] = numbers[answers] + 1
        numbers[bucket] = numbers[bucket] + 1
        timed += OCTAVE_OF_BUCKET[bucket]
        times = self.times
        times[timed] = times[timed] + 1

    def _observe_locked(self, method: str, endpoint: str, status: int, duration_ns: int) -> None:
        """Count a request as `observe`, for an interpreter that may switch threads at any moment."""
        with self.lock:
            Row.observe(self, method, endpoint, status, duration_ns)

    def forget_requests(self) -> None:
        """Discard the counts of all requests so far; for the worker, before it serves."""
        for area in (self._numbers, self.times):
            area[:] = memoryview(bytes(8 * len(area))).cast("q")

    def add(self, index: int, number: int = 1) -> None:
        """Add to one of the worker's words. Thread-safe within the worker."""
        with self.lock:
            self.words[index] += number

    def add_stream(self, milliseconds: int) -> None:
        """Count an answer whose body took that long after its first chunk."""
        with self.lock:
            self.words[W_STREAMS] += 1
            self.words[W_STREAM_MS] += milliseconds

    def shed(self, method: str, endpoint: str) -> None:
        """Count a request answered with 503 before it had a thread."""
        refused = self._places[method, endpoint, REFUSED][2]
        with self.lock:
            self._numbers[refused] += 1
            self._numbers[refused + 1] += 1

    def abandon(self, method: str, endpoint: str) -> None:
        """Count a request abandoned before it had a thread, since its client had left."""
        refused = self._places[method, endpoint, REFUSED][2]
        with self.lock:
            self._numbers[refused + 2] += 1

    def waited(self, seconds: float) -> None:
        """Count a request that had to wait for a thread."""
        self.add(WAITS[bisect_right(WAIT_BOUNDS, seconds)])

    @property
    def by_class(self) -> list[int]:
        """Return this worker's answers by status class 0 (cut off), 1, 2, 3, 4, 5."""
        return by_class(words for _, words in self.endpoints.items(self.entries))

    @property
    def requests(self) -> int:
        """Return the number of requests that this worker has answered."""
        return sum(self.histogram.tolist())

    @property
    def duration_ns(self) -> int:
        """Return the sum of the durations of the requests that this worker has answered, in nanoseconds."""
        return sum(words[0] for _, words in self.endpoints.items(self.entries))

    @property
    def errors(self) -> int:
        """Return the number of this worker's server errors and cut-off answers."""
        by_class = self.by_class
        return by_class[0] + by_class[5]

    @property
    def pid(self) -> int:
        """Return the worker's process id, 0 if the row is free or its worker has not begun."""
        return int(self.words[W_PID])

    def clear(self) -> None:
        """Set everything but `ended` to zero. Only the master may, while no worker has the row."""
        self._cleared[:] = bytes(CLEARED)
        self.renew_locks()

    def renew_locks(self) -> None:
        """Renew the locks in a forked child: other threads of the parent may have held them."""
        self.lock = threading.RLock()  # reentrant: a signal's handler may interrupt its own thread's count
        self.endpoints.forget()
        self._places = _Places(self.endpoints, self.lock)
        self.checks.renew_lock()
        self.exceptions.renew_lock()
        self.hung.renew_lock()
        self.release.renew_lock()
