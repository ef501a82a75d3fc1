"""Opening connections: by short-lived threads of the pool, so that a request waits no longer than it may.

A slot is reserved under the pool's lock, the connect happens outside of it, the slot is given back whatever happens.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from ..dberrors import CONSEQUENCES, COUNTS, WAITS, proves_alive
from ..exceptions import CircuitOpen, DatabaseUnavailable, PoolTimeout
from .entry import Entry

if TYPE_CHECKING:
    from .pool import Pool

#: Between attempts to connect at the most, seconds.
LONGEST_PAUSE = 0.25


def reserve_slots(pool: Pool, ahead: int = 0) -> int:
    """Reserve slots for the connections that waiters need, or `ahead` of need; how many. The lock is held."""
    room = pool._maxconnections - pool._connections - len(pool._idle_cache)
    count: int = max(0, min(room, max(len(pool.waiters), ahead) - pool.connecting))
    pool._connections += count
    pool.connecting += count
    return count


def open_ahead(pool: Pool) -> None:
    """Open what is missing of STABILITY_DB_MIN_IDLE."""
    with pool._lock:
        if pool.closed or pool.breaker.open:
            return
        count = reserve_slots(pool, pool.settings.db_min_idle - len(pool._idle_cache))
    fill(pool, count)


def fill(pool: Pool, count: int) -> None:
    """Open connections for reserved slots, in the background."""
    for number in range(count):
        try:
            threading.Thread(target=_connect, args=(pool,), name="stability-connect", daemon=True).start()
        except RuntimeError:  # whoever waits must not wait for this one
            with pool._lock:
                pool.connecting -= count - number
                pool._connections -= count - number
            pool.send_all_away(lambda: DatabaseUnavailable("cannot connect to the database: no more threads"))
            return


def _connect(pool: Pool) -> None:
    """Open a connection for a reserved slot; again while somebody waits and it may help. Never raises."""
    attempt = 0
    while True:
        started = time.monotonic()
        try:
            entry = _new_entry(pool, started)
            break
        except BaseException as error:
            attempt += 1
            error.__traceback__ = None
            again = _failed(pool, error, started)
        with pool._lock:
            if not again or pool.closed or not pool.waiters:
                pool.connecting -= 1
                pool._connections -= 1
                return
        time.sleep(random.uniform(0.02, min(LONGEST_PAUSE, 0.05 * 2 ** attempt)))
    with pool._lock:
        pool.connecting -= 1
    pool.publish(entry)


def open_instead(pool: Pool, entry: Entry, query_timeout: float, deadline: float) -> Entry:
    """Exchange a borrowed connection for a new one whose statements may take `query_timeout` seconds (0 = no limit).

    :raises PoolTimeout: if there is none by the deadline.
    :raises DatabaseUnavailable: if it cannot be opened.
    """
    pool.remove(entry)  # its slot is ours now
    done = threading.Event()
    found: list[Entry | BaseException] = []
    late: list[bool] = []

    def work() -> None:
        try:
            made: Entry | BaseException = _new_entry(pool, time.monotonic(), query_timeout)
        except BaseException as error:
            made = error
        with pool._lock:
            wanted = not late
            found.append(made)
        if not wanted:
            pool.discard(made) if isinstance(made, Entry) else pool.free_slot()
        done.set()

    try:
        threading.Thread(target=work, name="stability-connect", daemon=True).start()
    except RuntimeError:
        pool.free_slot()
        raise DatabaseUnavailable("cannot connect to the database: no more threads") from None
    result: Entry | BaseException | None = None
    try:
        done.wait(max(0.0, deadline - time.monotonic()))
    finally:
        with pool._lock:
            result = found[0] if found else None
            if result is None:
                late.append(True)
    if isinstance(result, Entry):
        return result
    if result is None:
        raise PoolTimeout("no connection with another limit for its statements was opened in time")
    pool.free_slot()
    raise _caused(DatabaseUnavailable(f"cannot connect to the database: {type(result).__name__}"), result)


def _new_entry(pool: Pool, started: float, query_timeout: float | None = None) -> Entry:
    generation, seconds = pool.generation, pool.settings.db_query_timeout if query_timeout is None else query_timeout
    try:
        steady = pool.steady_connection(query_timeout)
    except BaseException:
        pool.counters.add("connections_errors")
        raise
    finally:
        pool.counters.add("connections_num")
        pool.counters.add("connections_ms", (time.monotonic() - started) * 1000)
    pool.answered()
    pool.last_error = None
    entry = Entry(steady, pool.driver.link(steady.dbapi_connection), pool.settings.db_max_lifetime, generation,
                  seconds, pool.driver.backstop(seconds) if seconds else 0.0)
    with pool._lock:
        pool.entries.add(entry)
    return entry


def _failed(pool: Pool, error: BaseException, started: float) -> bool:
    """Whether to try again; if not, the waiters have been told."""
    pool.last_error = error
    kind = pool.driver.classify(error)
    code = error.args[0] if error.args else "?"
    remedy = pool.driver.remedy(error)
    if pool.driver.kind != "sqlite" and proves_alive(error):
        pool.answered()
    connecting = CONSEQUENCES[kind].connecting
    if connecting is COUNTS:
        reason = f"error {code}: {remedy}" if remedy else f"error {code}"
        if pool.breaker.failure(reason, started):
            pool.gone(reason)
        elif pool.breaker.open:
            pool.send_all_away(lambda: CircuitOpen(f"the database does not answer ({reason})"))
        return not pool.breaker.open
    if connecting is WAITS:
        return True
    text = f"{type(error).__name__} {error if pool.driver.kind == 'sqlite' else code}"
    if remedy:
        text = f"{text}: {remedy}"
    pool.send_all_away(lambda: _caused(DatabaseUnavailable(f"cannot connect to the database: {text}"), error))
    return False


def _caused(error: DatabaseUnavailable, cause: BaseException) -> DatabaseUnavailable:
    error.__cause__ = cause
    return error
