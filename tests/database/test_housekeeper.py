"""The keeper: what happens to calls, connections and requests while nobody asks for anything."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_stability import logs, scoreboard
from flask_stability.config import Settings
from flask_stability.database import availability, guarded_calls, housekeeper
from flask_stability.database.pool import Pool
from flask_stability.exceptions import (
    CircuitOpen,
    DatabaseUnavailable,
    DeadlineExceeded,
    PoolTimeout,
    TooManyRequests,
)
from flask_stability.runtime import runtime
from flask_stability.signals import POOL, leak_suspected
from support import wait_until
from support_db import FaultProxy, MariaDB, dbapi, full, serving

pytestmark = pytest.mark.pymysql_too

MakePool = Callable[..., Pool]


@pytest.fixture
def serving_threads() -> Iterator[Callable[[int], None]]:
    """Say with how many threads this process serves."""
    words = runtime.my_row().words
    before = words[scoreboard.W_THREADS]

    def say(count: int) -> None:
        words[scoreboard.W_THREADS] = count

    yield say
    say(before)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the pool logs."""
    lines: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(logs, "error", lambda event, **fields: lines.append((event, fields)))
    return lines


class Request(threading.Thread):
    """A thread that serves a request: takes a connection and executes a statement."""

    def __init__(self, pool: Pool, sql: str, timeout: float = 0.0, patience: float | None = None) -> None:
        super().__init__(daemon=True)
        self.pool, self.sql, self.timeout, self.patience = pool, sql, timeout, patience
        self.result: Any = None
        self.start()

    def run(self) -> None:
        with serving(self.timeout, "/report"):
            try:
                self.result = self.pool.connection(self.patience).execute(self.sql).fetchall()
            except Exception as error:
                self.result = error


def inside(pool: Pool) -> int:
    """Connections in a call."""
    return sum(bool(entry.inside) for entry in list(pool.inventory.records))


def warm(make_pool: MakePool, count: int = 1, **settings: Any) -> Pool:
    """A pool with open connections that are not pinged: where little time is left, a call is what it ends in."""
    pool = make_pool(db_alive_bypass_window=1000.0, **settings)
    for connection in [pool.connection() for _ in range(count)]:
        connection.close()
    return pool


@pytest.mark.usefixtures("patient_keeper")
def test_a_call_ends_before_its_request(make_pool: MakePool, mariadb: MariaDB) -> None:
    """One second before the request's deadline the statement ends with an error that answers 503."""
    pool = warm(make_pool)
    pool.start()
    request = Request(pool, "SELECT SLEEP(100)", timeout=2.0)
    request.join(30)
    assert isinstance(request.result, DeadlineExceeded)
    assert isinstance(request.result.__cause__, dbapi.OperationalError)
    assert pool.stats()["pool_size"] == 0
    assert pool.stats()["connections_lost"] == 0
    assert pool.availability.breaker.state == "closed"
    with pool.connection() as connection:
        connection.execute("SELECT 1")


def test_a_cut_connection_does_nothing_more(make_pool: MakePool) -> None:
    """A view that swallows the error cannot go on with the connection that was cut off."""
    pool = warm(make_pool)
    pool.start()
    with serving(2.0):
        connection = pool.connection()
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                connection.execute("SELECT SLEEP(100)")


@pytest.mark.usefixtures("patient_keeper")
def test_a_response_that_has_begun_has_no_deadline(make_pool: MakePool) -> None:
    """A streaming view's statements are not cut off."""
    pool = make_pool()
    pool.start()
    with serving(1.1) as record:
        record.response_started = True
        assert pool.connection().execute("SELECT SLEEP(1)").fetchall() == ((0,),)


def test_a_call_that_has_ended_is_not_cut(make_pool: MakePool) -> None:
    """The keeper decided to cut, the call ended meanwhile: neither it nor the next borrower is hit."""
    pool = make_pool()
    connection = pool.connection()
    entry = connection.record
    entry.inside = 1.0
    seen = entry.inside
    entry.inside = 0.0
    assert not pool.calls.cancel(entry, seen, "late")
    connection.execute("SELECT 1")
    connection.close()
    assert not pool.calls.cancel(entry, seen, "late")
    entry.inside = 2.0  # the next call
    assert not pool.calls.cancel(entry, seen, "late")
    entry.inside = 0.0
    with pool.connection() as again:
        assert again.record is entry


def test_a_dead_check_in_is_bounded(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The rollback of a check-in goes into a black hole: it is cut off, and the connection is not kept."""
    monkeypatch.setattr(guarded_calls, "PATIENCE", 0.3)
    pool = make_pool(db_url=proxy.url_for(mariadb))
    pool.start()
    connection = pool.connection()
    connection.begin()
    proxy.blackhole()
    connection.close()
    assert pool.stats()["pool_size"] == 0
    assert pool.stats()["returns_bad"] == 1


@pytest.mark.parametrize("threads", [1, 4])
def test_a_frozen_server(make_pool: MakePool, mariadb: MariaDB, serving_threads: Callable[[int], None],
                         threads: int, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads wait for a frozen server: one is let go, then everybody is refused; after it, all is well."""
    serving_threads(threads)
    pool = warm(make_pool, threads)
    pool.bulkhead._slow = 1000.0  # however long they take to come in, all of them do
    mariadb.freeze()
    requests = [Request(pool, "SELECT 1") for _ in range(threads)]
    wait_until(lambda: inside(pool) == threads)
    pool.start()
    wait_until(lambda: sum(request.is_alive() for request in requests) == threads - 1)
    released = [request for request in requests if not request.is_alive()]
    assert isinstance(released[0].result, DeadlineExceeded)
    wait_until(lambda: pool.availability.breaker.open)
    assert sum(request.is_alive() for request in requests) == threads - 1
    with pytest.raises(CircuitOpen):
        pool.connection()

    monkeypatch.setattr(availability, "GRACE", 30.0)  # those that waited get their answer, and no slow one is cut off
    monkeypatch.setattr(availability, "PROBE_TIMEOUT", 30.0)
    mariadb.thaw()
    for request in requests:
        request.join(20)
    assert [request.result for request in requests if request not in released] == [((1,),)] * (threads - 1)
    wait_until(lambda: not pool.availability.breaker.open)
    for request in [Request(pool, "SELECT 2") for _ in range(threads)]:
        request.join(20)
        assert request.result == ((2,),)
    assert pool.stats()["pool_in_use"] == 0
    assert not pool.bulkhead.inside
    assert [event for event, _ in told if event.startswith("database_")] == ["database_gone", "database_back"]
    wait_until(lambda: len(mariadb.sessions()) == pool.stats()["pool_size"])


def test_the_youngest_is_released(make_pool: MakePool, mariadb: MariaDB,
                                  serving_threads: Callable[[int], None]) -> None:
    """Of the threads that wait for a frozen server the one that waits shortest is let go."""
    serving_threads(3)
    pool = make_pool()
    pool.bulkhead._slow = 1000.0
    requests = []
    for _ in range(3):
        requests.append(Request(pool, "SELECT SLEEP(1000)"))
        wait_until(lambda: inside(pool) == len(requests))
    mariadb.freeze()
    pool.start()
    wait_until(lambda: not all(request.is_alive() for request in requests))
    assert [request.is_alive() for request in requests] == [True, True, False]
    mariadb.thaw()
    mariadb.kill_sessions()
    for request in requests:
        request.join(20)


def test_connections_are_asked_at_different_times(make_pool: MakePool) -> None:
    """Those that were used together are kept alive up to 10 % sooner, each by its own part."""
    pool = make_pool(db_max_size=12, db_max_idle=12, db_keepalive_interval=100.0, db_idle_timeout=1000.0)
    held = [pool.connection() for _ in range(12)]
    for connection in held:
        connection.close()
    entries = list(pool.inventory.records)
    now = max(entry.checked for entry in entries)
    for entry in entries:
        entry.checked = now

    def due(seconds: float) -> int:
        return sum(pool.upkeep.due(entry, now + seconds) for entry in entries)

    assert due(89.9) == 0
    assert due(100.1) == 12
    assert len({due(90 + tenths / 10) for tenths in range(100)}) > 6


@pytest.mark.long
def test_without_a_keeper_the_driver_s_own_limit_ends_a_call(make_pool: MakePool, mariadb: MariaDB) -> None:
    """The query timeout and five seconds: a frozen server holds a script's call no longer than that."""
    pool = make_pool(db_query_timeout=0.5)
    connection = pool.connection()
    mariadb.freeze()
    started = time.monotonic()
    with pytest.raises(dbapi.OperationalError, match="2013"):
        connection.execute("SELECT 1")
    assert time.monotonic() - started >= 5


def test_links_lost_without_a_reset_do_not_outlive_the_outage(make_pool: MakePool, mariadb: MariaDB,
                                                              proxy: FaultProxy,
                                                              serving_threads: Callable[[int], None]) -> None:
    """The way to the server was cut and is back, old links stay silent: their threads are let go, service goes on."""
    serving_threads(8)
    pool = make_pool(db_url=proxy.url_for(mariadb))
    requests = [Request(pool, "SELECT SLEEP(1000)") for _ in range(3)]
    wait_until(lambda: inside(pool) == 3)
    proxy.blackhole(forget=True)
    pool.start()
    wait_until(lambda: pool.availability.breaker.open)
    assert all(request.is_alive() for request in requests)
    proxy.heal()
    for request in requests:
        request.join(20)
        assert isinstance(request.result, DeadlineExceeded)
    wait_until(lambda: not pool.availability.breaker.open)
    with pool.connection() as connection:
        connection.execute("SELECT 1")


@pytest.mark.usefixtures("patient_keeper")
def test_a_slow_statement_is_no_black_hole(make_pool: MakePool, serving_threads: Callable[[int], None]) -> None:
    """As long as the probe is answered, statements take their time and the breaker stays closed."""
    serving_threads(2)
    pool = make_pool()
    pool.bulkhead._slow = 1000.0
    pool.start()
    requests = [Request(pool, "SELECT SLEEP(3)") for _ in range(2)]
    for request in requests:
        request.join(30)
        assert request.result == ((0,),)
    assert pool.availability.breaker.state == "closed"
    assert pool.stats()["connections_lost"] == 0


def test_the_breaker_closes_without_a_request(make_pool: MakePool, proxy: FaultProxy, mariadb: MariaDB) -> None:
    """A server that was down is found by the keeper's probe."""
    pool = make_pool(db_url=proxy.url_for(mariadb), db_timeout=30)
    pool.start()
    proxy.refuse()
    with pytest.raises(CircuitOpen):
        pool.connection()
    proxy.heal()
    wait_until(lambda: not pool.availability.breaker.open)
    with pool.connection() as connection:
        connection.execute("SELECT 1")


def test_links_that_are_lost_at_once_in_their_set_up_close_no_door(make_pool: MakePool, proxy: FaultProxy,
                                                                   mariadb: MariaDB) -> None:
    """A proxy that restarts, or a KILL of all sessions: everybody who was connecting tries again, nobody is refused."""
    pool = make_pool(db_url=proxy.url_for(mariadb), db_timeout=60)
    pool.start()
    proxy.delay(0.5)
    before = proxy.connections
    requests = [Request(pool, "SELECT 1") for _ in range(8)]
    wait_until(lambda: proxy.connections - before >= 8, message="all are connecting")
    proxy.cut_all()
    proxy.delay(0)
    for request in requests:
        request.join(60)
        assert request.result == ((1,),)
    assert pool.availability.breaker.state == "closed"


@pytest.mark.usefixtures("patient_keeper")
def test_a_full_server_counts_as_answering(make_pool: MakePool, mariadb: MariaDB) -> None:
    """max_connections reached is no black hole: the probe's refusal is an answer."""
    pool = make_pool()
    with full(mariadb):
        pool.availability.misses = 1
        pool.availability.breaker.trip("a black hole", time.monotonic())
        pool.availability.probe()
        assert pool.availability.breaker.state == "closed"
        assert pool.availability.misses == 0


def test_waiting_threads_leave_one_free(make_pool: MakePool, serving_threads: Callable[[int], None]) -> None:
    """All threads wait for an exhausted pool: the latest is sent away after a second, not after the timeout.

    Not a thread of no request that came later: that would free none.
    """
    serving_threads(3)
    pool = make_pool(db_max_size=1, db_max_idle=1, db_timeout=60)
    held = pool.connection()  # a background thread's, say
    requests = [Request(pool, "SELECT 1") for _ in range(3)]
    wait_until(lambda: len(pool.inventory.waiters) == 3)
    answers: list[Any] = []
    background = threading.Thread(target=lambda: answers.append(pool.connection().execute("SELECT 2").fetchall()))
    background.start()
    wait_until(lambda: len(pool.inventory.waiters) == 4)
    pool.start()
    wait_until(lambda: not all(request.is_alive() for request in requests))
    wait_until(lambda: len(pool.bulkhead.inside) == 2)
    refused = [request for request in requests if not request.is_alive()]
    assert [type(request.result) for request in refused] == [TooManyRequests]
    held.close()
    for request in requests:
        request.join(20)
    assert [request.result for request in requests].count(((1,),)) == 2
    background.join(20)
    assert answers == [((2,),)]


def test_one_is_sent_away_and_one_let_go_however_long_their_threads_take(
        make_pool: MakePool, mariadb: MariaDB, serving_threads: Callable[[int], None],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has not yet noticed is no reason for the next one."""
    serving_threads(3)
    pool = make_pool(db_max_size=3, db_max_idle=3, db_timeout=120)
    pool.bulkhead._slow = 1000.0
    held = [pool.connection() for _ in range(3)]
    requests = [Request(pool, "SELECT SLEEP(1000)") for _ in range(3)]
    wait_until(lambda: len(pool.inventory.waiters) == 3)
    for _ in range(5):
        pool.availability.keep_one_free(time.monotonic() + 2000)
    assert len(pool.inventory.waiters) == 2
    for connection in held:
        connection.close()
    wait_until(lambda: inside(pool) == 2 and sum(request.is_alive() for request in requests) == 2)
    with monkeypatch.context() as patch:
        patch.setattr(pool.driver, "interrupt", lambda raw, link: None)
        for _ in range(5):
            pool.availability.release_youngest()
        assert sum(bool(entry.cut) for entry in pool.inventory.records) == 1
    mariadb.kill_sessions()
    for request in requests:
        request.join(20)
    assert sorted(type(request.result).__name__ for request in requests) == [
        "DeadlineExceeded", "OperationalError", "TooManyRequests"]


def test_a_leak_is_told_once_with_its_stack(make_pool: MakePool, told: list[Any]) -> None:
    """Where, by which thread and for which request a connection was taken; and that it came back after all."""
    received: list[Any] = []

    def receive(sender: Any, **kwargs: Any) -> None:
        received.append(kwargs)

    leak_suspected.connect(receive)
    pool = make_pool(db_leak_detection_threshold=0.2)
    pool.start()
    with serving(path="/leaky"):
        connection = pool.connection()
        wait_until(lambda: received)
        wait_until(lambda: pool.stats()["leaks_suspected"] == 1)
        connection.close()
    leaks = [fields for event, fields in told if event == "connection_leak_suspected"]
    assert len(leaks) == len(received) == 1
    assert leaks[0]["path"] == "/leaky"
    assert leaks[0]["thread"] == threading.current_thread().name
    assert "test_a_leak_is_told_once_with_its_stack" in leaks[0]["taken_at"][0]
    assert (leaks[0]["total"], leaks[0]["active"], leaks[0]["idle"], leaks[0]["waiting"]) == (1, 1, 0, 0)
    assert [event for event, _ in told if event == "connection_returned_after_all"] == ["connection_returned_after_all"]


def test_what_a_background_thread_holds_is_only_reported(make_pool: MakePool, told: list[Any]) -> None:
    """A leak outside of a request is told; the connection stays usable."""
    pool = make_pool(db_leak_detection_threshold=0.1)
    pool.start()
    connection = pool.connection()
    wait_until(lambda: [event for event, _ in told if event == "connection_leak_suspected"])
    assert connection.execute("SELECT 1").fetchall() == ((1,),)
    connection.close()


def test_pool_whose_connections_are_all_held_for_long_is_told_of_once_a_request_waits(make_pool: MakePool,
                                                                                      told: list[Any]) -> None:
    """Once, in the log and by the signal; not while nobody wants one, and not as long as one comes back."""
    received: list[str] = []

    def receive(sender: Any, kind: str, **more: Any) -> None:
        received.append(kind)

    def exhausted() -> list[str]:
        return [event for event, _ in told if event == "pool_exhausted"]

    leak_suspected.connect(receive)
    pool = make_pool(db_leak_detection_threshold=0.1, db_max_size=2)
    pool.start()
    watch = pool.housekeeper
    assert watch is not None
    kept = [pool.connection(), pool.connection()]
    wait_until(lambda: received == ["connection"] * 2)
    assert not exhausted()
    for _ in range(2):
        waiting = Request(pool, "SELECT 1", patience=120)
        wait_until(lambda: pool.inventory.waiters)
        since = time.monotonic()
        wait_until(lambda since=since: watch.looked > since, message="the keeper has looked")  # type: ignore[misc]
        pool.inventory.send_all_away(lambda: PoolTimeout("long enough"))
        waiting.join(20)
        assert isinstance(waiting.result, PoolTimeout)
    assert exhausted() == ["pool_exhausted"]
    assert received == ["connection"] * 2 + [POOL]
    for connection in kept:
        connection.close()


@pytest.mark.usefixtures("patient_keeper")
def test_pool_whose_connections_all_lie_in_threads_is_told_of_long_before_each_is_a_leak(
        make_pool: MakePool, told: list[Any]) -> None:
    """Half of the time that a request may wait is enough; not if one is used, and not for what a request holds."""
    def events() -> list[str]:
        return [event for event, _ in told if event != "connection_returned_after_all"]

    pool = make_pool(db_leak_detection_threshold=3600, db_max_size=2, db_timeout=2)
    pool.start()
    kept = [pool.connection(timeout=30), pool.connection(timeout=30)]
    used, taken = kept[0].record, kept[0].record.used
    kept[0].execute("SELECT 1")
    assert used.used > taken
    used.used += 3600  # it goes on being used, at whatever pace the machine has
    waiting = Request(pool, "SELECT 1")
    waiting.join(30)
    assert isinstance(waiting.result, PoolTimeout)
    assert events() == []
    used.used = taken
    kept.pop().close()
    with serving(timeout=3600):
        kept.append(pool.connection(timeout=30))
        waiting = Request(pool, "SELECT 1")
        waiting.join(30)
        assert isinstance(waiting.result, PoolTimeout)
        kept.pop().close()
    assert events() == []
    kept.append(pool.connection(timeout=30))
    waiting = Request(pool, "SELECT 1", patience=120)
    wait_until(lambda: "pool_exhausted" in events())
    assert events() == ["connection_leak_suspected"] * 2 + ["pool_exhausted"]
    for connection in kept:
        connection.close()
    waiting.join(20)


def test_lost_proxies_come_back(make_pool: MakePool) -> None:
    """What a finalizer queued is given back without anybody asking."""
    pool = make_pool()
    pool.start()
    pool.connection()  # not kept: collected at once
    wait_until(lambda: pool.stats()["pool_available"] == 1)


@pytest.mark.usefixtures("patient_keeper")
def test_idle_connections_are_kept_alive_and_still_expire(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepalive pings an idle connection again and again; that does not make it any younger."""
    monkeypatch.setattr(housekeeper, "MAINTENANCE_INTERVAL", 0.05)
    monkeypatch.setattr(housekeeper, "IDLE_INTERVAL", 0.05)
    pool = make_pool(db_url=proxy.url_for(mariadb), db_keepalive_interval=0.2, db_idle_timeout=1000.0)
    pool.start()
    pool.connection().close()
    entry, = pool.inventory.records
    last_used = entry.last_used
    before = proxy.commands
    wait_until(lambda: proxy.commands >= before + 3)
    assert pool.inventory.records == {entry}
    assert entry.last_used == last_used
    entry.last_used -= 1000.0
    wait_until(lambda: pool.stats()["pool_size"] == 0)
    assert pool.stats()["connections_num"] == 1


@pytest.mark.usefixtures("patient_keeper")
def test_connections_are_opened_ahead(make_pool: MakePool, mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """STABILITY_DB_MIN_IDLE connections wait before anybody asks, and are replaced when they are lost."""
    monkeypatch.setattr(housekeeper, "MAINTENANCE_INTERVAL", 0.1)
    monkeypatch.setattr(housekeeper, "IDLE_INTERVAL", 0.1)
    pool = make_pool(db_min_idle=3, db_keepalive_interval=0.2)
    pool.start()
    wait_until(lambda: len(mariadb.sessions()) == 3)
    killed = set(mariadb.sessions())
    mariadb.kill_sessions()
    wait_until(lambda: len(set(mariadb.sessions()) - killed) == 3)
    assert pool.stats()["requests_num"] == 0


def test_the_figures_reach_the_scoreboard(make_pool: MakePool) -> None:
    """Counters and gauges of two pools add up in the worker's row."""
    row = runtime.my_row()
    before = row.words[scoreboard.W_DB_REQUESTS]
    for _ in range(2):
        pool = make_pool()
        pool.start()
        for _ in range(5):
            pool.connection().close()
    wait_until(lambda: row.words[scoreboard.W_DB_REQUESTS] == before + 10)
    wait_until(lambda: row.words[scoreboard.W_DB_AVAILABLE] == 2)
    assert row.words[scoreboard.W_DB_MAX] == 40


def test_a_forgotten_pool_ends_with_its_keeper(mariadb: MariaDB) -> None:
    """A pool that nobody holds is collected, its thread ends and its connections are closed."""
    pool = Pool(Settings(db_url=mariadb.url))
    pool.start()
    pool.connection().close()
    assert pool.housekeeper is not None
    thread, gone = pool.housekeeper.thread, weakref.ref(pool)
    del pool

    def collected() -> bool:
        gc.collect()
        return gone() is None and not thread.is_alive()

    wait_until(collected)
    wait_until(lambda: not mariadb.sessions())


def test_a_failing_look_does_not_end_the_keeper(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch,
                                                told: list[Any]) -> None:
    """An error in the keeper is told, and it goes on."""
    pool = make_pool()
    monkeypatch.setattr(pool, "stats", lambda: {}["broken"])
    monkeypatch.setattr(pool.events, "log", lambda event, **fields: told.append((event, fields)))
    pool.start()
    wait_until(lambda: told)
    monkeypatch.undo()
    with serving(2.0), pytest.raises(DatabaseUnavailable):
        pool.connection().execute("SELECT SLEEP(100)")
