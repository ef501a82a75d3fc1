"""The black box: what each thread of each worker is doing, in memory that survives the worker.

The master creates one mapping before it forks. A worker notes each request in a slot of its own part when the request
begins, and clears the slot when it ends. If anything kills the worker in between, the master reads which requests were
in flight.

A slot is packed in one call. `struct` clears the whole slot first and stores the fields in order, the request's start
last: that word is the slot's sequence number. It is 0 while the slot is being written and while it is free, and it
differs from request to request. A reader that finds the same start before and after its copy therefore has a whole
slot.

The address, the query and the body are never stored. Query, content type and body length enter a hash: Python's own
SipHash, whose key only this process and those forked from it know.
"""

from __future__ import annotations

import hashlib
import mmap
import secrets
import struct
import threading
import time
from typing import Any, NamedTuple

from .primitives import Blob

SLOTS = 64  #: threads of a worker whose requests are noted; requests of further threads are served without
SLOT_BYTES = 384
COUNTS = 256  #: counters of a worker for answers to watched requests
_PREFIX_BYTES, _EXACT_AT, _BEAT_AT = 64, 48, 56
HEAD_BYTES = _PREFIX_BYTES + COUNTS * 8
ROW_BYTES = HEAD_BYTES + SLOTS * SLOT_BYTES
ID_BYTES = 128
ROUTES_BYTES = 2 * 65536 + Blob.HEAD
QUARANTINE_BYTES = 2 * 65536 + Blob.HEAD
_COMMON_BYTES = (64 + ROUTES_BYTES + QUARANTINE_BYTES + 63) & ~63

# A slot's words. The first sixteen, two cache lines, are packed; the others are written when needed.
(_KEY, _KIND, _ANSWERING, _BEFORE, _GROWN, _BODY, _PATH) = range(7)
STARTED, _REST, _THREAD, _ID = 15, 16, 31, 32
_SHORT = (STARTED - _PATH) * 8  #: bytes of the path within the packed words
PATH_BYTES = _SHORT + (_THREAD - _REST) * 8
_WORDS = SLOT_BYTES // 8
_PACKED = struct.Struct(f"@q{(_PATH - _KIND) * 8}x{_SHORT}sq")

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "OTHER")
METHOD_CODES: dict[str | None, int] = {name: code for code, name in enumerate(_METHODS)}
_EXACT = frozenset({"REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE", "CONTENT_LENGTH"})
#: Headers that differ between attempts: proxies add them, and browsers when they reload a page.
_OF_PROXIES = ("HTTP_X_FORWARDED", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_X_REQUEST_", "HTTP_X_CORRELATION_",
               "HTTP_X_AMZN_", "HTTP_X_CLOUD_TRACE", "HTTP_X_B3_", "HTTP_X_ENVOY_", "HTTP_TRACEPARENT",
               "HTTP_TRACESTATE", "HTTP_CF_", "HTTP_VIA", "HTTP_X_STABILITY_", "HTTP_CACHE_CONTROL", "HTTP_PRAGMA")
_LONG, _GIVEN = 256, 512  #: flags in the kind's word: the path continues, and an id is, behind the packed words


class InFlight(NamedTuple):
    """A request in flight.

    :ivar request_id: as in its log records.
    :ivar thread_id: `threading.get_ident` of the thread that serves it.
    :ivar method: one of those counted by name, else OTHER.
    :ivar path: below the server's root, without the query; cut at `PATH_BYTES` bytes.
    :ivar fingerprint: keyed hash of method, path, query, content type and body length; the key is the master's.
    :ivar started_ns: `time.monotonic_ns` of its arrival.
    :ivar answering: its answer has begun: a stream, a download, a WebSocket.
    :ivar grown_bytes: growth of the worker's memory meanwhile; 0 for a request shorter than about a second.
    :ivar body_bytes: announced length of its body.
    """

    request_id: str
    thread_id: int
    method: str
    path: str
    fingerprint: int
    started_ns: int
    answering: bool = False
    grown_bytes: int = 0
    body_bytes: int = 0

    def seconds(self, now_ns: int | None = None) -> float:
        """Return the seconds since it arrived."""
        return ((time.monotonic_ns() if now_ns is None else now_ns) - self.started_ns) / 1e9


class BlackBox:
    """The mapping with all workers' parts.

    :param rows: the maximum number of workers, as on the scoreboard.
    :ivar listed: one word: 0 while no request is watched or quarantined, else the version of the list.
    :ivar quarantine: the watched and quarantined requests, as `wsgi.quarantine` reads them; written by the master.
    :ivar routes: the rules of the app, as `wsgi.routes` reads them; written by any worker that has loaded it.
    """

    def __init__(self, rows: int) -> None:
        self._view = memoryview(mmap.mmap(-1, _COMMON_BYTES + max(1, rows) * ROW_BYTES))
        self.rows = rows
        self.listed = self._view[:8].cast("q")
        self.routes = Blob(self._view[64:64 + ROUTES_BYTES])
        start = 64 + (ROUTES_BYTES + 7 & ~7)
        self.quarantine = Blob(self._view[start:start + QUARANTINE_BYTES])
        self._version = 0

    def part(self, row: int) -> memoryview:
        """Return the bytes of a row's part."""
        start = _COMMON_BYTES + row * ROW_BYTES
        return self._view[start:start + ROW_BYTES]

    def clear(self, row: int) -> None:
        """Forget what a worker was doing. Only the master may call this, while no worker has the row."""
        self.part(row)[:] = bytes(ROW_BYTES)

    def answered(self, row: int) -> list[int]:
        """Return how many answers to each watched request the worker of a row has counted."""
        return list(struct.unpack_from(f"@{COUNTS}q", self.part(row), _PREFIX_BYTES))

    def exact(self, row: int) -> int:
        """Return the exact fingerprint of the request that the isolation worker served last, 0 = none."""
        return int(struct.unpack_from("@q", self.part(row), _EXACT_AT)[0])

    def heartbeat(self, row: int) -> int:
        """Return when the worker of a row last called `beat`, as `time.monotonic_ns`; 0 = never."""
        return int(struct.unpack_from("@q", self.part(row), _BEAT_AT)[0])

    def list_quarantine(self, data: bytes, *, empty: bool) -> bool:
        """Make all workers read a new list at their next request; return False if it is too long. Only for the master.

        :param empty: the list has no entries: workers stop looking at requests.
        """
        if not self.quarantine.write(data):
            return False
        self._version += 1
        self.listed[0] = 0 if empty else self._version
        return True

    def read(self, row: int) -> list[InFlight]:
        """Return the requests of a row's worker that are in flight, or were when it ended, the oldest first."""
        area = self.part(row)
        prefix = bytes(area[:16]).rstrip(b"\0").decode("ascii", "replace")
        found = (_read(area[HEAD_BYTES + number * SLOT_BYTES:HEAD_BYTES + (number + 1) * SLOT_BYTES], prefix)
                 for number in range(SLOTS))
        return sorted((one for one in found if one is not None), key=lambda one: one.started_ns)


def _read(slot: memoryview, prefix: str) -> InFlight | None:
    words = slot.cast("q")
    for _ in range(20):
        started = words[STARTED]
        if not started:
            return None
        copy = bytes(slot)
        if words[STARTED] == started:
            break
    else:
        return None
    numbers = struct.unpack(f"@{_WORDS}q", copy)
    kind, started = numbers[_KIND], numbers[STARTED]
    path = copy[_PATH * 8:STARTED * 8].rstrip(b"\0")
    if kind & _LONG:
        path += copy[_REST * 8:_THREAD * 8].rstrip(b"\0")
    code = kind & 0xFF
    method = _METHODS[code] if code < len(_METHODS) else _METHODS[-1]
    given = copy[_ID * 8:].rstrip(b"\0").decode("ascii", "replace") if kind & _GIVEN else ""
    text = readable(path.decode("utf-8", "ignore"))
    return InFlight(given or f"{prefix}-{started:x}", numbers[_THREAD], method, text,
                    fingerprint(method, path, numbers[_KEY]), started, bool(numbers[_ANSWERING]), numbers[_GROWN],
                    numbers[_BODY])


def readable(path: str) -> str:
    """Return a path in WSGI's form, with bytes as characters, as text."""
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def fingerprint(method: str, path: bytes, key: int) -> int:
    """Return a request's fingerprint.

    :param path: its first `PATH_BYTES` bytes.
    :param key: the hash of everything else, `key_of`.
    """
    return hash((_secret, method, path, key))


def fingerprint_of(environ: dict[str, Any]) -> int:
    """Return the fingerprint of the request of a WSGI environ."""
    path = str(environ.get("SCRIPT_NAME") or "") + str(environ.get("PATH_INFO") or "")
    method = _METHODS[METHOD_CODES.get(environ.get("REQUEST_METHOD"), -1)]
    return fingerprint(method, path.encode("utf-8", "replace")[:PATH_BYTES].rstrip(b"\0"), key_of(environ, path))


def exact_of(environ: dict[str, Any], body: bytes) -> int:
    """Return the exact fingerprint of a request: a keyed hash over everything in it that its sender chooses.

    Two clients have the same one only if they send the same request, including cookies and credentials. Headers that
    proxies add to each request, such as ids and addresses, are left out.

    :param body: the beginning of the request's body.
    """
    made = hashlib.blake2b(key=_secret.encode(), digest_size=8)
    parts = [(name, environ[name]) for name in sorted(environ) if type(environ[name]) is str and (
        name in _EXACT or (name.startswith("HTTP_") and not name.startswith(_OF_PROXIES)))]
    for name, value in parts:
        made.update(b"%b\0%b\0" % (name.encode("utf-8", "replace"), value.encode("utf-8", "replace")))
    made.update(body)
    return int.from_bytes(made.digest(), "big", signed=True) or 1


def key_of(environ: dict[str, Any], path: str) -> int:
    """Return the hash of the other parts of a request; 0 for one without query, body and longer path."""
    query, length = environ.get("QUERY_STRING"), environ.get("CONTENT_LENGTH")
    if length or len(path) > _SHORT:
        return hash((path, query, environ.get("CONTENT_TYPE"), length))
    return hash(query) if query else 0


#: PYTHONHASHSEED may be known; this secret is not.
_secret = secrets.token_hex(16)

# -- this process's part: written by the middleware on the path of each request, so without a call -----------------

#: The part's slots as bytes and as words; private to this process until `install`.
slots: memoryview = memoryview(bytearray(SLOTS * SLOT_BYTES))
words: memoryview = slots.cast("q")
#: The place of each thread's slot: the index in `words` of the slot's last packed word.
places: dict[int, int] = {}
#: `BlackBox.listed` of this process's box.
listed: memoryview = memoryview(bytearray(8)).cast("q")
_counts: memoryview = memoryview(bytearray(COUNTS * 8)).cast("q")
_head: memoryview = memoryview(bytearray(_PREFIX_BYTES)).cast("q")
_pack = _PACKED.pack_into
_BACK = STARTED * 8


def begin(environ: dict[str, Any], path: str, thread: int, started_ns: int, given_id: str | None) -> int:
    """Note a request; return its place, whose word is set to 0 at the request's end; -1 if all slots are taken.

    :param path: its PATH_INFO.
    :param thread: the thread that serves it.
    """
    place = places.get(thread)
    if place is None:
        place = _claim(thread)
        if place < 0:
            return -1
    script, method = environ.get("SCRIPT_NAME"), environ.get("REQUEST_METHOD")
    if script or given_id is not None or method != "GET" or len(path) > _SHORT:
        return _begin_long(environ, f"{script or ''}{path}", place, started_ns, given_id)
    query = environ.get("QUERY_STRING")
    _pack(slots, (place << 3) - _BACK, hash(query) if query else 0, path.encode("utf-8", "replace"), started_ns)
    return place


def _begin_long(environ: dict[str, Any], path: str, place: int, started_ns: int, given_id: str | None) -> int:
    """Note a request that needs more than the packed words, as `begin`; write the further words before its start."""
    first = place - STARTED
    kind = METHOD_CODES.get(environ.get("REQUEST_METHOD"), len(_METHODS) - 1)
    raw, length = path.encode("utf-8", "replace"), str(environ.get("CONTENT_LENGTH") or "")
    words[place] = 0
    if len(raw) > _SHORT:
        kind |= _LONG
        slots[(first + _REST) << 3:(first + _THREAD) << 3] = raw[_SHORT:PATH_BYTES].ljust(PATH_BYTES - _SHORT, b"\0")
    if given_id is not None:
        kind |= _GIVEN
        at = (first + _ID) << 3
        slots[at:at + ID_BYTES] = given_id.encode("ascii", "replace")[:ID_BYTES].ljust(ID_BYTES, b"\0")
    _pack(slots, first << 3, key_of(environ, path), raw[:_SHORT], 0)
    words[first + _KIND] = kind
    words[first + _BODY] = int(length) if length.isdecimal() and len(length) < 19 else 0
    words[place] = started_ns
    return place


def note_exact(exact: int) -> None:
    """Note the request that the isolation worker serves now."""
    _head[_EXACT_AT // 8] = exact


def beat() -> None:
    """Give a sign of life from a worker without a row."""
    _head[_BEAT_AT // 8] = time.monotonic_ns()


def count(index: int) -> None:
    """Count an answer to a watched request."""
    with _claiming:
        _counts[index] += 1


def _claim(thread: int) -> int:
    """Take a slot for a thread: a new one, else that of an ended thread, else of one (a greenlet) without a request."""
    with _claiming:
        taken = dict(places)
        if len(taken) >= SLOTS:
            idle = [other for other, place in taken.items() if not words[place]]
            alive = {thread.ident for thread in threading.enumerate()} if idle else set()
            gone = [other for other in idle if other not in alive]
            for other in gone or idle[:1]:
                places.pop(other, None)
            taken = dict(places)
        unused = set(range(STARTED, SLOTS * _WORDS, _WORDS)).difference(taken.values())
        if not unused:
            return -1
        place = min(unused)
        words[place - STARTED + _THREAD] = thread
        places[thread] = place
        return place


def answering(place: int) -> None:
    """Note that a request's answer has begun."""
    if place >= 0:
        words[place - STARTED + _ANSWERING] = 1


def grown(place: int, started_ns: int, memory: int) -> None:
    """Note how much the worker's memory has grown since the first call for the request.

    :param memory: bytes of the worker's memory now.
    """
    if place < 0 or words[place] != started_ns:
        return
    first = place - STARTED
    if not words[first + _BEFORE]:
        words[first + _BEFORE] = memory
    elif memory - words[first + _BEFORE] > words[first + _GROWN]:
        words[first + _GROWN] = memory - words[first + _BEFORE]


_box: BlackBox | None = None


def make(rows: int) -> BlackBox:
    """Create the mapping that the workers inherit, in the master."""
    global _box
    _box = BlackBox(rows)
    return _box


def current() -> BlackBox | None:
    """Return the mapping that this process inherited or created."""
    return _box


def install(row: int, prefix: str) -> None:
    """Note requests in the part of a worker's row from now on.

    :param prefix: of the ids of its requests.
    """
    global listed, _counts, _head
    if _box is None or not 0 <= row < _box.rows:
        return
    area = _box.part(row)
    area[:16] = prefix.encode("ascii")[:16].ljust(16, b"\0")
    _use(area[HEAD_BYTES:])
    listed, _counts = _box.listed, area[_PREFIX_BYTES:HEAD_BYTES].cast("q")
    _head = area[:_PREFIX_BYTES].cast("q")


def _use(area: memoryview) -> None:
    global slots, words, places, _claiming
    slots, words, places, _claiming = area, area.cast("q"), {}, threading.Lock()


def after_fork() -> None:
    """Replace the slots, which are the parent's, in a forked child. The runtime calls this."""
    global _counts, _head
    _use(memoryview(bytearray(SLOTS * SLOT_BYTES)))
    _counts = memoryview(bytearray(COUNTS * 8)).cast("q")
    _head = memoryview(bytearray(_PREFIX_BYTES)).cast("q")


_claiming = threading.Lock()
