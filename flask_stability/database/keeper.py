"""The pool's watchman: a thread that looks and never waits, and short-lived helpers for whatever may wait.

It cuts off calls past their deadline, finds a database that does not answer and notices when it is back, tells of
leaks, looks after idle connections and publishes figures.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..dberrors import proves_alive
from ..exceptions import TooManyRequests
from ..signals import POOL, leak_suspected, send
from .calls import cut
from .entry import IDLE, IN_USE, RESERVED, Entry
from .opening import open_ahead

if TYPE_CHECKING:
    from .pool import Pool

#: Between looks while a thread is in the database, while a connection is in use, and else, seconds.
BUSY_INTERVAL, USED_INTERVAL, IDLE_INTERVAL = 0.1, 0.25, 1.0
#: A call this long raises the question whether the database answers at all, seconds.
SUSPICIOUS = 1.0
PROBE_INTERVAL, PROBE_TIMEOUT = 0.5, 1.0
#: Probes in a row without an answer that open the breaker.
MISSES = 2
#: Probes under way at once: a slow one must not delay the one that finds the database back.
PROBES = 3
#: What a call of before the outage gets to end by itself once the database is back, seconds.
GRACE = 0.25
#: A statement that takes so much longer than it may is one that the server does not end by itself, seconds.
LATE = 1.0
MAINTENANCE_INTERVAL = 5.0
#: A database file that seems to be replaced that often is on a file system whose inodes are not to be relied on.
MOVES = 10


class Keeper:
    """Looks after one pool, and ends when that is gone."""

    def __init__(self, pool: Pool) -> None:
        self._pool = weakref.ref(pool)
        self._stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stability-keeper", daemon=True)
        self._lock = threading.Lock()
        self._probes = self._misses = 0
        self._probed = self._answered = self._published = self._maintained = 0.0
        self._maintaining = False
        self._moves = 0
        self._exhausted = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; does not wait for helpers."""
        self._stopped = True
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def wake(self) -> None:
        """There is something to do now."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stopped:
            pool = self._pool()
            if pool is None:
                return
            pause = BUSY_INTERVAL
            try:
                pause = self._look(pool, time.monotonic())
            except Exception as error:
                pool.tell("keeper_failed", level="ERROR", error=type(error).__name__)
            del pool
            self._wake.wait(pause)
            self._wake.clear()

    def _look(self, pool: Pool, now: float) -> float:
        """One look; seconds until the next."""
        with pool._lock:
            entries = list(pool.entries)
        for entry in entries:
            self._cut_if_due(pool, entry, now)
            self._tell_if_leaked(pool, entry, now)
        self._tell_if_exhausted(pool, entries, now)
        if pool._in_use() < pool.settings.db_max_size:
            pool.full_since = 0.0
        elif not pool.full_since:
            pool.full_since = now
        self._leave_moved(pool, entries, now)
        self._keep_one_free(pool, now)
        self._probe_if_due(pool, entries, now)
        self._maintain_if_due(pool, entries, now)
        if now - self._published >= 1.0:
            self._published = now
            pool.publish_figures()
        if pool.inside or pool.waiters or pool.breaker.open or any(entry.inside for entry in entries):
            return BUSY_INTERVAL
        return USED_INTERVAL if any(entry.state is not IDLE for entry in entries) else IDLE_INTERVAL

    def _help(self, pool: Pool, job: Callable[[Pool], None]) -> bool:
        """Do what may wait in a thread of its own."""
        try:
            threading.Thread(target=job, args=(pool,), name="stability-keeper-helper", daemon=True).start()
            return True
        except RuntimeError:  # no more threads: at the next look
            return False

    # -- calls past their deadline -------------------------------------------------------------------------------

    def _cut_if_due(self, pool: Pool, entry: Entry, now: float) -> None:
        inside = entry.inside
        if not inside:
            return
        deadline, limit = entry.deadline(), entry.query_timeout
        if deadline and now > deadline:
            cut(pool, entry, inside, "its time was over")
        elif not limit:
            return
        elif pool.driver.kind == "sqlite":
            if now - inside > limit:
                pool.driver.interrupt(entry.raw, None)
        elif (began := entry.statement_began()) and now - began > limit + LATE:  # MySQL's server ends SELECT only
            cut(pool, entry, inside, f"the statement took longer than {limit:g} s")

    def _keep_one_free(self, pool: Pool, now: float) -> None:
        """If every thread of the worker is inside, one of them for long, the latest of them to wait is sent away."""
        if not pool.bulkhead.full(now, room=pool.has_room()):
            return
        with pool._lock:
            latest = next((waiter for waiter in reversed(pool.waiters) if waiter.thread_id in pool.inside), None)
            if latest is not None:
                pool.waiters.send_away(latest, TooManyRequests(pool.bulkhead.why()))
                pool.inside.pop(latest.thread_id, None)  # on its way, however long that takes: no other has to go

    # -- a database that does not answer -------------------------------------------------------------------------

    def _probe_if_due(self, pool: Pool, entries: list[Entry], now: float) -> None:
        """Ask while a thread has been inside a networked database for long, and from a miss on until an answer."""
        if pool.driver.kind != "mysql":
            return
        oldest = min([entry.inside for entry in entries if entry.inside] + list(pool.inside.values()), default=now)
        if not pool.breaker.open and not self._misses and now - oldest <= SUSPICIOUS:
            return
        with self._lock:
            if now - self._probed < PROBE_INTERVAL or self._probes >= PROBES:
                return
            self._probed = now
            self._probes += 1
        if not self._help(pool, self._probe):
            self._probes -= 1

    def _probe(self, pool: Pool) -> None:
        """Ask on a connection of its own."""
        started = time.monotonic()
        code: Any = None
        try:
            pool.driver.connect(PROBE_TIMEOUT).close()
            answered = True
        except Exception as error:
            code = error.args[0] if error.args else type(error).__name__
            answered = proves_alive(error)
        finally:
            with self._lock:
                self._probes -= 1
        if answered:
            self._answer(pool)
        else:
            self._miss(pool, started, code)

    def _answer(self, pool: Pool) -> None:
        with self._lock:
            self._answered, self._misses = time.monotonic(), 0
            pool.bulkhead.silent = False
        if not pool.breaker.open:
            return
        limit = time.monotonic() + GRACE
        with pool._lock:
            for entry in pool.entries:  # a link that was cut off without a reset may never answer
                if entry.inside and entry.request is not None:
                    entry.limit = limit
        pool.answered()

    def _miss(self, pool: Pool, started: float, code: Any) -> None:
        with self._lock:
            if started < self._answered:
                return
            self._misses += 1
            misses = self._misses
            pool.bulkhead.silent = True
        if misses >= MISSES and pool.breaker.trip(f"error {code}", started):
            pool.gone(f"error {code}")
        threads = pool.bulkhead.threads
        if threads and len(pool.inside) >= threads:
            self._release_youngest(pool)

    def _release_youngest(self, pool: Pool) -> None:
        """Every thread of the worker waits for a database that does not answer: one has to be free for the rest."""
        stuck = [(entry.inside, entry) for entry in list(pool.entries) if entry.inside and entry.request is not None]
        if any(entry.cut and entry.link is not None for _, entry in stuck):
            return  # that one's thread is on its way
        for inside, entry in sorted(stuck, key=lambda pair: pair[0], reverse=True):
            if cut(pool, entry, inside, "the database does not answer"):
                return

    # -- connections that nobody uses, or nobody gives back ------------------------------------------------------

    def _tell_if_leaked(self, pool: Pool, entry: Entry, now: float) -> None:
        threshold = pool.settings.db_leak_detection_threshold
        if threshold and entry.state is IN_USE and now - entry.since >= threshold:
            self._tell_leak(pool, entry, now)

    def _tell_leak(self, pool: Pool, entry: Entry, now: float) -> None:
        if entry.reported:
            return
        request = entry.request
        entry.reported = True
        pool.counters.add("leaks_suspected")
        detail: dict[str, Any] = {
            "seconds": round(now - entry.since, 1), "thread": entry.thread_name(),
            "path": request.path[:1024] if request is not None else None,
            "request_id": request.id if request is not None else None,
            "taken_at": entry.taken_at()}
        pool.tell("connection_leak_suspected", **detail)
        send(leak_suspected, "flask_stability", kind="connection", detail=detail)

    def _tell_if_exhausted(self, pool: Pool, entries: list[Entry], now: float) -> None:
        """Requests wait, and every connection that there may be is held by somebody who does not give back: known for
        long, or threads of no request let all of them lie for half of the time that a request may wait for one.
        """
        threshold = pool.settings.db_leak_detection_threshold
        if self._exhausted or not threshold or len(entries) < pool.settings.db_max_size:
            return
        with pool._lock:
            since = min((waiter.since for waiter in pool.waiters), default=0.0)
        if not since:
            return
        quiet = pool.settings.db_timeout / 2
        lying = now - since > quiet
        if not all(entry.state is IN_USE and (entry.reported or (lying and _lies(entry, now, quiet)))
                   for entry in entries):
            return
        self._exhausted = True
        for entry in entries:
            self._tell_leak(pool, entry, now)
        pool.tell("pool_exhausted", level="ERROR", remedy="connection_leak_suspected names who holds them")
        send(leak_suspected, "flask_stability", kind=POOL, detail={"connections": len(entries)})

    def _leave_moved(self, pool: Pool, entries: list[Entry], now: float) -> None:
        """A database file was removed or replaced: what is open goes on writing to the one that is gone."""
        if self._moves < MOVES and any(
                now < entry.expires and entry.state is not RESERVED and pool.driver.moved(entry.raw)
                for entry in entries) and pool.renew():
            self._moves += 1
            pool.tell("database_replaced", level="ERROR", remedy="stop the service before its database file is "
                      "replaced: what was written meanwhile is lost")

    def _maintain_if_due(self, pool: Pool, entries: list[Entry], now: float) -> None:
        if self._maintaining or (now - self._maintained < MAINTENANCE_INTERVAL and not pool.lost):
            return
        self._maintained = now
        missing = len(pool._idle_cache) < pool.settings.db_min_idle
        if pool.lost or missing or any(self._due(pool, entry, now) for entry in entries):
            self._maintaining = True
            if not self._help(pool, self._maintain):
                self._maintaining = False

    def _due(self, pool: Pool, entry: Entry, now: float) -> bool:
        """An idle connection whose time is over, or that has to be kept alive."""
        if entry.state is not IDLE:
            return False
        interval = pool.settings.db_keepalive_interval
        return (now >= entry.expires or now - entry.last_used > pool.settings.db_idle_timeout
                or 0 < interval * (1.0 - 0.1 * entry.jitter) < now - entry.checked)

    def _maintain(self, pool: Pool) -> None:
        try:
            pool.adopt()
            for entry, unwanted in self._reserve_due(pool, time.monotonic()):
                if not unwanted and pool.ping(entry, time.monotonic() + PROBE_TIMEOUT):
                    pool.publish(entry, cold=True)
                else:
                    pool.discard(entry)
            open_ahead(pool)
        except Exception as error:
            pool.tell("keeper_failed", level="ERROR", error=type(error).__name__)
        finally:
            self._maintaining = False

    def _reserve_due(self, pool: Pool, now: float) -> list[tuple[Entry, bool]]:
        """Take what is due out of the pool, the warmest first; True for what is to be closed."""
        chosen: list[tuple[Entry, bool]] = []
        with pool._lock:
            spare = len(pool._idle_cache) - pool.settings.db_min_idle
            for entry in [entry for entry in pool._idle_cache if self._due(pool, entry, now)]:
                unwanted = now >= entry.expires or (
                    spare > 0 and now - entry.last_used > pool.settings.db_idle_timeout)
                spare -= unwanted
                entry.state = RESERVED
                pool._idle_cache.remove(entry)
                pool._connections += 1
                chosen.append((entry, unwanted))
        return chosen[::-1]


def _lies(entry: Entry, now: float, quiet: float) -> bool:
    """Whether a thread of no request has had a connection for `quiet` seconds without a word."""
    return entry.request is None and not entry.inside and now - max(entry.since, entry.used) > quiet
