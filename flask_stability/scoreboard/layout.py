"""Which word of the shared memory is where, what it means, and which process writes it.

One line adds a word: ``W_NAME = WORKER.word("meaning, unit")``. Its index, the sizes, the version of the format and
the page of the documentation follow. A word that only grows is a `counter`: the sums keep it when its worker is gone.

Numbers are 8-byte aligned words, written in one store each. Other values are blobs (`primitives.Blob`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from .areas import Area, Part, Words, blob_area
from .primitives import BUCKETS, ENTRY_WORDS, KEY_BYTES
from .reasons import REASONS
from .times import times_words

FORMAT = 6  #: to be raised when something changes that the names and sizes below do not show

# -- a worker's words --------------------------------------------------------------------------------------------

WORKER = Words("A worker's words", "W_", writer="the worker", room=128)

W_PID = WORKER.word("process id; 0 = the worker has not begun")
W_AGE = WORKER.word("number of this worker since the master started")
W_STARTED_NS = WORKER.word("when the worker began, monotonic ns")
W_READY_NS = WORKER.word("when it became ready, monotonic ns; 0 = not yet")
W_HEARTBEAT_NS = WORKER.word("the guard's latest look, monotonic ns")
W_STATE = WORKER.word("state, index into STATE_NAMES")
W_RETIRE_REASON = WORKER.word("why the worker asks for its replacement, code of a Reason; 0 = it does not")
W_RETIRE_SINCE_NS = WORKER.word("since when it asks, monotonic ns")
W_THREADS = WORKER.word("threads that serve requests, spare ones included")
W_BUSY = WORKER.word("requests in flight")
W_QUEUE = WORKER.word("requests that wait for a thread")
W_STUCK = WORKER.word("gthread: how often all threads were stuck; sync: 1 = the same request has lasted long")
W_N_ENDPOINTS = WORKER.word("entries in use in the table of endpoints")
W_RSS = WORKER.word("resident memory, bytes")
W_MEMORY_LIMIT = WORKER.word("memory at which the worker retires, bytes")
W_WARM_FLOOR = WORKER.word("memory once the app is warm, bytes")
W_LEAK_VERDICT = WORKER.word("1 = the memory grows like a leak")
W_N_THREADS = WORKER.word("Python threads")
W_N_TIMERS = WORKER.word("threading.Timer objects")
W_N_FDS = WORKER.word("open file descriptors")
W_N_RECEIVERS = WORKER.word("receivers of blinker signals")
W_N_GC_OBJECTS = WORKER.word("objects that the garbage collector tracks")
W_N_GARBAGE = WORKER.word("objects in gc.garbage")
W_GROWING = WORKER.word("bits of the counts that grow without end")
W_DB_SIZE = WORKER.word("connections of the pool")
W_DB_AVAILABLE = WORKER.word("idle connections")
W_DB_IN_USE = WORKER.word("connections that are checked out")
W_DB_WAITING = WORKER.word("requests that wait for a connection")
W_DB_BREAKER = WORKER.word("state of the breaker")
W_DB_HELD = WORKER.word("requests that are held while the database is away")
W_DB_MAX = WORKER.word("most connections that the pool may open")
W_DB_FULL_NS = WORKER.word("since when all connections are in use, monotonic ns; 0 = they are not")
W_OWN_MEMORY = WORKER.word("memory that replacing the worker would give back, bytes")
W_COMMON_MEMORY = WORKER.word("part of W_RSS that the processes of a preloaded app share, bytes")
W_SLOW_CLIENTS = WORKER.word("threads that wait for a client")
W_EXCEPTIONS = WORKER.counter("exceptions recorded")
W_LOG_DROPS = WORKER.counter("log records dropped")
W_LOG_SAMPLED = WORKER.counter("log records left out as repetitions")
W_OVERDUE = WORKER.counter("requests past their deadline")
W_GC_RUNS = WORKER.counter("garbage collections that were asked for")
W_GC_FREED = WORKER.counter("memory that they freed, bytes")
W_DB_REQUESTS = WORKER.counter("checkouts")
W_DB_QUEUED = WORKER.counter("checkouts that waited")
W_DB_WAIT_MS = WORKER.counter("time they waited, ms")
W_DB_ERRORS = WORKER.counter("checkouts that failed")
W_DB_USAGE_MS = WORKER.counter("time that connections were checked out, ms")
W_DB_CONNECTIONS = WORKER.counter("connections opened")
W_DB_CONNECT_MS = WORKER.counter("time that opening them took, ms")
W_DB_CONNECT_ERRORS = WORKER.counter("connections that could not be opened")
W_DB_LOST = WORKER.counter("connections lost")
W_DB_BAD_RETURNS = WORKER.counter("connections closed at check-in because they could not be reset")
W_DB_LEAKS = WORKER.counter("connections that were probably leaked")
W_DB_RETRIES = WORKER.counter("units of work run again")
W_ALERTS_LOST = WORKER.counter("alerts that could not be sent")
W_ALERTS_SENT = WORKER.counter("alerts sent")
W_ENGINE_ERRORS = WORKER.counter("checkouts of an SQLAlchemy engine that failed")
W_STREAMS = WORKER.counter("answers that were streamed for long")
W_STREAM_MS = WORKER.counter("time that they were streamed, ms")
W_ABANDONED = WORKER.counter("requests that were not begun, since their client had left")
W_PARKED = WORKER.word("1 = the worker accepts no connection, as O_PARK asks")
W_KEPT_FRESH = WORKER.counter("kept answers that were given while fresh")
W_KEPT_STALE = WORKER.counter("kept answers that were given while stale")
W_KEPT_MADE = WORKER.counter("answers of views with keep that were computed")
W_WAITS_25MS = WORKER.counter("requests that waited for a thread for 10 to 25 ms")
W_WAITS_50MS = WORKER.counter("for 25 to 50 ms")
W_WAITS_100MS = WORKER.counter("for 50 to 100 ms")
W_WAITS_250MS = WORKER.counter("for 100 to 250 ms")
W_WAITS_500MS = WORKER.counter("for 250 to 500 ms")
W_WAITS_1S = WORKER.counter("for 0.5 to 1 s")
W_WAITS_2S = WORKER.counter("for 1 to 2.5 s")
W_WAITS_5S = WORKER.counter("for 2.5 to 5 s")
W_WAITS_10S = WORKER.counter("for 5 to 10 s")
W_WAITS_LONGER = WORKER.counter("for longer")
W_OVERLOADED = WORKER.word("1 = there is overload")
W_OVERLOADS = WORKER.counter("overloads that began")

FIGURES = Words("A worker's floating-point words", "F_", writer="the worker", room=16)

F_MEMORY_TREND = FIGURES.word("growth of the memory, bytes per minute")
F_SECONDS_TO_LIMIT = FIGURES.word("time until the limit at this growth, s; nan = none in sight")
F_THREADS_TREND = FIGURES.word("growth of W_N_THREADS, per hour")
F_TIMERS_TREND = FIGURES.word("growth of W_N_TIMERS, per hour")
F_FDS_TREND = FIGURES.word("growth of W_N_FDS, per hour")
F_RECEIVERS_TREND = FIGURES.word("growth of W_N_RECEIVERS, per hour")
F_GC_OBJECTS_TREND = FIGURES.word("growth of W_N_GC_OBJECTS, per hour")
F_GARBAGE_TREND = FIGURES.word("growth of W_N_GARBAGE, per hour")

STATE_FREE, STATE_BOOTING, STATE_READY, STATE_RETIRING, STATE_STOPPING = range(5)
STATE_NAMES = ("free", "booting", "ready", "retiring", "stopping")

# -- the master's words about one worker -------------------------------------------------------------------------

ABOUT_WORKER = Words("The master's words about a worker", "O_", writer="the master", room=32)

O_ALLOCATED = ABOUT_WORKER.word("1 = a worker has this row")
O_AGE = ABOUT_WORKER.word("number of this worker since the master started")
O_RETIRE_STATE = ABOUT_WORKER.word("STATE_RETIRING = the worker is being replaced")
O_RETIRE_SINCE_NS = ABOUT_WORKER.word("when the master sent SIGTERM, monotonic ns; 0 = not yet")
O_RETIRE_REASON = ABOUT_WORKER.word("why the master replaces it, code of a Reason")
O_TRIAL = ABOUT_WORKER.word("1 = a release on trial: the worker takes few connections at a time")
O_PARK = ABOUT_WORKER.word("1 = the worker is to accept no connection until it is told to")
O_FOLDED = ABOUT_WORKER.word("number of the fold, plus 1, that added this row to the sums; 0 = none")

# -- the master's own words --------------------------------------------------------------------------------------

MASTER = Words("The master's own words", "M_", writer="the master", room=64)

M_PID = MASTER.word("process id")
M_STARTED_NS = MASTER.word("when the master started, monotonic ns")
M_TICK_NS = MASTER.word("latest tick, monotonic ns")
M_BASE_WORKERS = MASTER.word("workers that are configured")
M_TARGET = MASTER.word("workers that there should be now")
M_SURGE = MASTER.word("1 = a worker is being replaced")
M_HOLD_UNTIL_NS = MASTER.word("until when no worker is started, monotonic ns; 0 = no hold")
M_CRASHES = MASTER.word("crashes within the window of the restart limit")
M_DEGRADED = MASTER.word("1 = more crashes than the restart limit allows")
M_RELOADS = MASTER.word("reloads since the start")
M_DRAINING = MASTER.word("DRAINING or ENDING; 0 = neither")
M_WARM_FLOOR = MASTER.word("W_WARM_FLOOR as learned from workers that are gone, bytes")
M_FOLDS = MASTER.word("rows added to the sums; its lowest bit says which of the two sums is valid")
M_BOOTS = MASTER.word("workers started")
M_N_ENDPOINTS = MASTER.word("entries in use in the table of endpoints")
M_UNSUPERVISED = MASTER.word("1 = supervision is off: a worker retires without a replacement")
M_GROWTH_AFTER_NS = MASTER.word("before that no worker is replaced for its growth, monotonic ns")
M_KEEP_CODE = MASTER.word("1 = no worker leaves for max_requests: its replacement would have other code")
M_GROWTH_PATIENCE = MASTER.word("1 = the worker replaced last for its growth was young: the others wait longer")

DRAINING, ENDING = 1, 2  #: in M_DRAINING: still serving; no longer listening

# -- areas -------------------------------------------------------------------------------------------------------

ENDPOINTS = 129  # of a worker; the last is "other"
TOTAL_ENDPOINTS = 513
HISTORY_BYTES = 1 << 20
ENDED_LOGINS = 32  #: of the dashboard, remembered in a row
SUMS_WORDS = WORKER.room + BUCKETS + TOTAL_ENDPOINTS * ENTRY_WORDS

ROW = Part(
    "A worker's row",
    Area("words", 8 * WORKER.room, WORKER.writer, "the constants ``W_…``"),
    Area("floats", 8 * FIGURES.room, FIGURES.writer, "the constants ``F_…``"),
    Area("orders", 8 * ABOUT_WORKER.room, ABOUT_WORKER.writer, "the constants ``O_…``"),
    Area("numbers", 8 * (BUCKETS + ENDPOINTS * ENTRY_WORDS), "the worker",
         "the latency histogram, and an entry for each endpoint: durations, slowest, answers by status class"),
    Area("endpoints", ENDPOINTS * KEY_BYTES, "the worker", "method and endpoint of each entry"),
    blob_area("checks", 16384, "the worker's monitor", "results of the worker's own checks, JSON"),
    blob_area("exceptions", 8192, "the worker", "latest exceptions by class and route, JSON"),
    blob_area("hung", 8192, "the worker's guard", "requests in flight that have lasted long, JSON"),
    blob_area("release", 1024, "the worker", "its release, and what its probes found, JSON"),
    Area("times", 8 * times_words(ENDPOINTS), "the worker", "requests of each endpoint by octave of their duration"),
    # from here on what a row keeps when its worker is gone
    Area("ended", 8 * (2 + 2 * ENDED_LOGINS), "the worker", "logins to the dashboard that were ended"),
)
CLEARED = ROW.starts["ended"]  #: bytes of a row that a new worker finds empty

MASTER_PART = Part(
    "The master's part",
    Area("words", 8 * MASTER.room, MASTER.writer, "the constants ``M_…``"),
    Area("reasons", 8 * len(REASONS), "the master", "ended workers by reason"),
    Area("sums 0", 8 * SUMS_WORDS, "the master", "counters, histogram and endpoints of workers that are gone"),
    Area("sums 1", 8 * SUMS_WORDS, "the master", "the same; ``M_FOLDS`` says which of the two is valid"),
    Area("endpoints", TOTAL_ENDPOINTS * KEY_BYTES, "the master", "method and endpoint of each entry of the sums"),
    blob_area("restarts", 24576, "the master", "latest ends of workers, JSON"),
    blob_area("shared", 16384, "the leader", "results of the shared checks, JSON"),
    blob_area("exceptions", 8192, "the master", "latest exceptions of workers that are gone, JSON"),
    blob_area("mutes", 8192, "the master", "checks whose alerts are muted, JSON"),
    blob_area("releases", 16384, "the master", "the release that serves, the one refused, the latest verdicts, JSON"),
    Area("history", HISTORY_BYTES, "the leader", "samples of the dashboard"),
)

COUNTERS = tuple(WORKER.counters)  #: indices of the words that the sums keep
TABLES = (WORKER, FIGURES, ABOUT_WORKER, MASTER)
PARTS = (MASTER_PART, ROW)


def named(table: Words) -> list[tuple[str, str]]:
    """Return the name of each word's constant, and its meaning."""
    names = {index: name for name, index in globals().items() if name.startswith(table.prefix)}
    return [(names[index], meaning) for index, meaning in enumerate(table.meanings)]


def magic() -> bytes:
    """Return the name of the format: a process never reads the board of a version that has another one."""
    tables = [(table.room, [name for name, _ in named(table)]) for table in TABLES]
    parts = [[(area.name, area.size) for area in part.areas] for part in PARTS]
    described = repr((FORMAT, tables, parts, [str(reason) for reason in REASONS]))
    return b"FSTB" + zlib.crc32(described.encode()).to_bytes(4, "big")


MAGIC = magic()


def documented() -> str:
    """Return areas and words in reStructuredText, for the documentation."""
    lines: list[str] = []

    def table(title: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
        lines.extend([title, "-" * len(title), "", ".. list-table::", "   :header-rows: 1", ""])
        for row in (header, *rows):
            lines.extend(f"   {' ' if number else '*'} - {cell}" for number, cell in enumerate(row))
        lines.append("")

    for part in PARTS:
        table(part.title, ("Area", "Bytes", "Only writer", "Content"),
              [(f"``{area.name}``", f"{area.size:,}", area.writer, area.meaning) for area in part.areas])
    for words in TABLES:
        table(words.title, ("Word", "Meaning"),
              [(f"``{name}``", meaning + (" (counter)" if index in words.counters else ""))
               for index, (name, meaning) in enumerate(named(words))])
    return "\n".join(lines)
