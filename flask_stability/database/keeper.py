"""The pool's two threads: one that watches and never waits, one that does the waiting.

The keeper cuts off calls past their deadline, tells of leaks and publishes figures. The maintainer opens connections
ahead of need, pings and expires idle ones, and probes a database that does not answer; what it asks is cut off by
the keeper, so neither can hang.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

from .. import scoreboard as board
from ..signals import leak_suspected, send

if TYPE_CHECKING:
    from .connection import Entry
    from .pool import Pool

BUSY_INTERVAL = 0.25
IDLE_INTERVAL = 1.0
PROBE_INTERVAL = 0.5
PROBE_TIMEOUT = 1.0
PROBES = 2

_COUNTERS = (("requests_num", board.W_DB_REQUESTS), ("requests_queued", board.W_DB_QUEUED),
             ("requests_wait_ms", board.W_DB_WAIT_MS), ("requests_errors", board.W_DB_ERRORS),
             ("usage_ms", board.W_DB_USAGE_MS), ("connections_num", board.W_DB_CONNECTIONS),
             ("connections_ms", board.W_DB_CONNECT_MS), ("connections_errors", board.W_DB_CONNECT_ERRORS),
             ("connections_lost", board.W_DB_LOST), ("returns_bad", board.W_DB_BAD_RETURNS),
             ("leaks_suspected", board.W_DB_LEAKS), ("retries_num", board.W_DB_RETRIES))


class Keeper:
    """Looks after one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._stop = False
        self._wake = threading.Event()
        self._work = threading.Event()
        self._published: dict[str, float] = {}
        self._next_publish = self._next_maintenance = 0.0
        self._misses = 0
        self._threads = [threading.Thread(target=target, name=name, daemon=True)
                         for target, name in ((self._watch, "stability-keeper"),
                                              (self._maintain, "stability-maintainer"))]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; does not wait for a call to the database that is under way."""
        self._stop = True
        self.wake()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(1.0)

    def wake(self) -> None:
        """There is something to do now."""
        self._wake.set()
        self._work.set()

    # -- the thread that never waits -----------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop:
            self._wake.wait(BUSY_INTERVAL if self._pool.in_use or self._pool.inside else IDLE_INTERVAL)
            self._wake.clear()
            try:
                self._look(time.monotonic())
            except Exception as error:
                self._pool._tell("keeper_failed", level="ERROR", error=type(error).__name__)
                time.sleep(BUSY_INTERVAL)

    def _look(self, now: float) -> None:
        pool = self._pool
        with pool._lock:
            entries = list(pool.in_use)
        for entry in entries:
            self._cut_if_due(entry, now)
            self._tell_if_leaked(entry, now)
        if self._suspicious(now):
            self._work.set()
        if now >= self._next_publish:
            self._next_publish = now + 1.0
            self._publish()

    def _cut_if_due(self, entry: Entry, now: float) -> None:
        deadline = entry.deadline()
        if entry.inside and deadline and now > deadline and not entry.cut:
            self._cut(entry, "its time was over")

    def _cut(self, entry: Entry, why: str) -> None:
        entry.cut = why
        self._pool.driver.interrupt(entry.raw, entry.link)

    def _tell_if_leaked(self, entry: Entry, now: float) -> None:
        threshold = self._pool.settings.db_leak_detection_threshold
        if not threshold or entry.reported or not entry.since or now - entry.since < threshold:
            return
        entry.reported = True
        self._pool.counters["leaks_suspected"] += 1
        request = entry.request
        detail = {"seconds": round(now - entry.since, 1), "thread": entry.thread_name,
                  "path": request.path[:1024] if request is not None else None,
                  "request_id": request.id if request is not None else None,
                  "taken_at": [f"{file}:{line} {name}" for file, line, name in entry.stack]}
        self._pool._tell("connection_leak_suspected", **detail)
        send(leak_suspected, "flask_stability", kind="connection", detail=detail)

    def _suspicious(self, now: float) -> bool:
        """Whether a thread has been inside a networked database for longer than a second, or the breaker is open."""
        pool = self._pool
        if pool.driver.kind != "mysql":
            return False
        oldest = min(list(pool.inside.values()), default=now)
        return pool.breaker.open or now - oldest > 1.0

    def _publish(self) -> None:
        pool, row = self._pool, board.my_row()
        stats = pool.stats()
        words = row.words
        for word, name in ((board.W_DB_SIZE, "pool_size"), (board.W_DB_AVAILABLE, "pool_available"),
                           (board.W_DB_IN_USE, "pool_in_use"), (board.W_DB_WAITING, "requests_waiting"),
                           (board.W_DB_MAX, "pool_max")):
            words[word] = stats[name]
        words[board.W_DB_BREAKER] = int(pool.breaker.open)
        for name, word in _COUNTERS:  # several pools may share the row: add what is new
            new = int(pool.counters[name])
            row.add(word, new - int(self._published.get(name, 0)))
            self._published[name] = new

    # -- the thread that waits -----------------------------------------------------------------------------------

    def _maintain(self) -> None:
        pool = self._pool
        while not self._stop:
            probing = self._suspicious(time.monotonic())
            if not probing:
                self._misses = 0
            self._work.wait(PROBE_INTERVAL if probing else 5.0)
            self._work.clear()
            if self._stop:
                return
            try:
                pool.adopt()
                if self._suspicious(time.monotonic()):
                    self._probe()
                elif time.monotonic() >= self._next_maintenance:
                    self._next_maintenance = time.monotonic() + 5.0
                    self._expire()
                    self._open_ahead()
            except Exception as error:
                pool._tell("maintainer_failed", level="ERROR", error=type(error).__name__)
                time.sleep(PROBE_INTERVAL)

    def _probe(self) -> None:
        """Ask on a connection of its own; two misses while threads wait inside open the breaker."""
        pool = self._pool
        pool.driver.set_limit(PROBE_TIMEOUT)
        was_open = pool.breaker.open
        try:
            raw = pool.driver.connect()
        except Exception as error:
            code = error.args[0] if error.args else None
            if code in (1040, 1203, 1044, 1045, 1049, 1129, 1130):
                if code in (1040, 1203):
                    self._answered(was_open)  # it is there, only full
                return
            self._missed(code)
            return
        try:
            raw.close()
        except Exception:
            pass
        self._answered(was_open)

    def _answered(self, was_open: bool) -> None:
        self._misses = 0
        if self._pool.breaker.success() and was_open:
            self._pool._tell("database_back", level="INFO")

    def _missed(self, code: Any) -> None:
        pool = self._pool
        self._misses += 1
        if self._misses < PROBES:
            return
        pool.generation += 1
        if pool.breaker.trip(f"error {code}"):
            pool._tell("database_gone", code=code)
            with pool._lock:
                pool._lock.notify_all()  # whoever waits for a connection need not
        self._free_one()

    def _free_one(self) -> None:
        """If every thread of the worker is inside, let the youngest go, so that one is always free."""
        pool = self._pool
        threads = pool.threads
        if not threads or len(pool.inside) < threads:
            return
        with pool._lock:
            stuck = [entry for entry in pool.in_use if entry.inside and not entry.cut]
        if stuck:
            self._cut(max(stuck, key=lambda entry: entry.inside), "the database does not answer")

    def _expire(self) -> None:
        """Close idle connections past their time, ping those that were quiet for long."""
        pool, settings, now = self._pool, self._pool.settings, time.monotonic()
        with pool._lock:
            idle = list(pool._idle_cache)  # the coldest first
            spare = len(idle) - settings.db_min_idle
            chosen = []
            for entry in idle:
                quiet = now - entry.last_used
                if now >= entry.expires or (quiet > settings.db_idle_timeout and spare > 0):
                    spare -= 1
                    entry.expires = 0.0
                elif not settings.db_keepalive_interval or quiet < settings.db_keepalive_interval * random.uniform(
                        0.9, 1.0):
                    continue
                pool._idle_cache.remove(entry)
                pool._connections += 1
                chosen.append(entry)
        for entry in chosen:
            if pool._usable(entry, now + 2.0):
                entry.last_used = time.monotonic()
                with pool._lock:
                    pool._idle_cache.insert(0, entry)
                    pool._connections -= 1
                    pool._lock.notify()
            else:
                pool._discard(entry)

    def _open_ahead(self) -> None:
        pool = self._pool
        while not self._stop and not pool.breaker.open:
            with pool._lock:
                if (len(pool._idle_cache) >= pool.settings.db_min_idle
                        or pool._connections + len(pool._idle_cache) >= pool._maxconnections):
                    return
                pool._connections += 1
            try:
                entry = pool.connect(time.monotonic() + pool.settings.db_connect_timeout)
            except Exception as error:
                pool.last_error = error
                pool.breaker.failure("opening ahead")
                pool._free_slot()
                return
            with pool._lock:
                pool._idle_cache.insert(0, entry)
                pool._connections -= 1
                pool._lock.notify()
