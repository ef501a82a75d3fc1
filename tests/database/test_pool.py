"""The pool against a real MariaDB: taking, waiting, giving back."""

from __future__ import annotations

import gc
import inspect
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dbutils import steady_db
from dbutils.steady_db import SteadyDBConnection

from flask_stability import scoreboard
from flask_stability.database import guarded_calls, inventory, waiters
from flask_stability.database.pool import Pool
from flask_stability.exceptions import CircuitOpen, DatabaseUnavailable, PoolClosed, PoolTimeout, TooManyRequests
from flask_stability.runtime import runtime
from support import wait_until
from support_db import FaultProxy, MariaDB, dbapi, full, serving

pytestmark = pytest.mark.pymysql_too

MakePool = Callable[..., Pool]


@pytest.fixture
def four_threads() -> Iterator[None]:
    """This process says that it serves with four threads."""
    words = runtime.my_row().words
    before, words[scoreboard.W_THREADS] = words[scoreboard.W_THREADS], 4
    yield
    words[scoreboard.W_THREADS] = before


def connection_id(connection: Any) -> int:
    """As the server sees it."""
    return int(connection.execute("SELECT CONNECTION_ID()").fetchone()[0])


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run a function beside; the list gets its result or its exception."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_what_is_used_of_dbutils_is_there() -> None:
    """What the pool relies on in DBUtils exists and means what it meant."""
    assert isinstance(SteadyDBConnection.dbapi_connection, property)
    assert {"creator", "failures", "ping", "kwargs"} <= set(inspect.signature(steady_db.connect).parameters)


def test_nothing_is_opened_before_it_is_asked_for(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy) -> None:
    """A pool, started or not, does not touch the database."""
    pool = make_pool(db_url=proxy.url_for(mariadb))
    pool.start()
    watch = pool.housekeeper
    assert watch is not None
    wait_until(lambda: watch.looked, message="the keeper has looked once")
    assert proxy.connections == 0


def test_one_round_trip(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy) -> None:
    """Checkout, SELECT and check-in in autocommit cost one round trip."""
    pool = make_pool(db_url=proxy.url_for(mariadb), db_alive_bypass_window=1000.0)
    pool.connection().close()
    before = proxy.commands
    for _ in range(10):
        with pool.connection() as connection:
            assert connection.execute("SELECT 1").fetchall() == ((1,),)
    assert proxy.commands - before == 10


def test_what_is_not_provably_clean_is_rolled_back(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy) -> None:
    """An open transaction costs a rollback at check-in, and nothing of it stays; a finished one costs nothing."""
    mariadb.admin("CREATE TABLE app.t (a INT)")
    pool = make_pool(db_url=proxy.url_for(mariadb))
    with pool.connection() as connection:
        connection.begin()
        connection.execute("INSERT INTO t VALUES (1)")
        before = proxy.commands
    assert proxy.commands == before + 1
    with pool.connection() as connection:
        connection.begin()
        connection.execute("INSERT INTO t VALUES (2)")
        connection.commit()
        before = proxy.commands
    assert proxy.commands == before
    assert mariadb.admin("SELECT a FROM app.t") == [(2,)]
    assert len(mariadb.sessions()) == 1


def test_without_autocommit_everything_is_rolled_back(make_pool: MakePool, mariadb: MariaDB) -> None:
    """With STABILITY_DB_AUTOCOMMIT off, what was not committed is gone, whatever ran."""
    mariadb.admin("CREATE TABLE app.t (a INT)")
    pool = make_pool(db_autocommit=False)
    with pool.connection() as connection:
        connection.execute("INSERT INTO t VALUES (1)")
    with pool.connection() as connection:
        assert connection.execute("SELECT * FROM t").fetchall() == ()


def test_switched_autocommit_does_not_reach_the_next(make_pool: MakePool) -> None:
    """Autocommit switched off, and a commit after it, stay with the borrower who wanted that."""
    pool = make_pool()
    with pool.connection() as connection:
        connection.autocommit(False)
        connection.execute("SELECT 1")
        connection.commit()
    with pool.connection() as connection:
        assert connection.execute("SELECT @@autocommit, @@max_statement_time").fetchall() == ((1, 30.0),)


def test_the_warmest_comes_first(make_pool: MakePool) -> None:
    """Last in, first out."""
    pool = make_pool()
    first, second = pool.connection(), pool.connection()
    latest = connection_id(first)
    second.close()
    first.close()
    assert connection_id(pool.connection()) == latest


def test_who_waits_longest_is_served_first(make_pool: MakePool) -> None:
    """A connection that comes back goes to the thread that has waited longest, and is not taken from it."""
    pool = make_pool(db_max_size=1, db_max_idle=1, db_timeout=60)
    held, order = pool.connection(), []

    def wait(name: int) -> None:
        with pool.connection():
            order.append(name)

    threads = []
    for name in range(5):
        threads.append(threading.Thread(target=wait, args=(name,)))
        threads[-1].start()
        wait_until(lambda: len(pool.inventory.waiters) == len(threads), interval=0.001)
    held.close()
    for thread in threads:
        thread.join(20)
    assert order == [0, 1, 2, 3, 4]


def test_a_request_waits_no_longer_than_it_may(make_pool: MakePool) -> None:
    """The deadline of a checkout is what is left of the request's less one second, not STABILITY_DB_TIMEOUT."""
    pool = make_pool(db_max_size=1, db_max_idle=1, db_timeout=60)
    with pool.connection(), serving(timeout=1.3):
        started = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.connection()
        assert time.monotonic() - started < 30


def test_an_error_of_the_pool_leaves_no_trace(make_pool: MakePool) -> None:
    """Whoever gave up waiting takes nothing with him: the connection goes to the next."""
    pool = make_pool(db_max_size=1, db_max_idle=1)
    held = pool.connection()
    for _ in range(20):
        with pytest.raises(PoolTimeout):
            pool.connection(timeout=0.0)
    held.close()
    assert not pool.inventory.waiters
    with pool.connection(timeout=30):
        assert pool.stats()["pool_in_use"] == 1
    assert pool.stats()["requests_errors"] == 20


def test_what_is_handed_over_too_late_goes_to_the_next(make_pool: MakePool) -> None:
    """A connection that reaches a waiter in the moment in which he gives up is not lost."""
    pool = make_pool(db_max_size=1, db_max_idle=1, db_timeout=60)
    held = pool.connection()
    _, waiter, _ = pool.inventory.take_or_join(None, 0.0, time.monotonic() + 60, lambda: None)
    held.close()
    assert waiter.record is not None
    thread, results = in_thread(lambda: connection_id(pool.connection()))
    wait_until(lambda: pool.inventory.waiters)
    late = pool.inventory.leave(waiter)
    assert late is not None
    pool.connector.publish(late)
    thread.join(20)
    assert isinstance(results[0], int)


def test_a_killed_connection_is_noticed_without_a_round_trip(make_pool: MakePool, mariadb: MariaDB) -> None:
    """The server ended 20 idle connections: none is handed out, although all were used a moment ago."""
    pool = make_pool(db_max_idle=20)
    held = [pool.connection() for _ in range(20)]
    for connection in held:
        connection.close()
    assert mariadb.kill_sessions() == 20
    wait_until(lambda: all(record.hung_up() for record in pool.inventory.records), message="the links' ends arrived")
    for _ in range(20):
        with pool.connection() as connection:
            connection.execute("SELECT 1")
    assert pool.stats()["connections_lost"] == 20


def test_after_a_failure_older_connections_are_asked(make_pool: MakePool, mariadb: MariaDB,
                                                     proxy: FaultProxy) -> None:
    """A lost link makes the pool ping what was checked before it, though it was used a moment ago."""
    pool = make_pool(db_url=proxy.url_for(mariadb), db_alive_bypass_window=60)
    first, second = pool.connection(), pool.connection()
    second.close()
    proxy.cut_reply_to(1)
    with pytest.raises(dbapi.OperationalError):
        first.execute("SELECT 1")
    first.close()
    before = proxy.commands
    with pool.connection() as connection:
        connection.execute("SELECT 1")
    assert proxy.commands - before == 2
    before = proxy.commands
    with pool.connection() as connection:
        connection.execute("SELECT 1")
    assert proxy.commands - before == 1
    assert pool.stats()["returns_bad"] == 1


def test_lifetime(make_pool: MakePool) -> None:
    """An old connection is replaced when it is asked for next."""
    pool = make_pool(db_max_lifetime=0.2)
    with pool.connection() as connection:
        first = connection_id(connection)
    wait_until(lambda: all(entry.expires < time.monotonic() for entry in pool.inventory.records))
    with pool.connection() as connection:
        assert connection_id(connection) != first
    assert pool.stats()["connections_lost"] == 0


def test_idle_connections_are_limited(make_pool: MakePool, mariadb: MariaDB) -> None:
    """More than STABILITY_DB_MAX_IDLE are closed when they come back; none at all with 0."""
    for limit in (2, 0):
        pool = make_pool(db_max_idle=limit)
        held = [pool.connection() for _ in range(5)]
        for connection in held:
            connection.close()
        assert pool.stats()["pool_size"] == limit
        wait_until(lambda limit=limit: len(mariadb.sessions()) == limit)
        pool.close()


def test_closed_connections_and_cursors_are_dead(make_pool: MakePool) -> None:
    """Every use after giving back raises the driver's own kind of error; closing again does not."""
    pool = make_pool()
    connection = pool.connection()
    cursor = connection.execute("SELECT 1")
    open_cursor = connection.cursor()
    connection.close()
    connection.close()
    for use in (connection.cursor, connection.commit, connection.rollback, connection.begin, connection.ping,
                lambda: connection.dbapi_connection, lambda: connection.thread_id(), cursor.fetchone, cursor.fetchall,
                cursor.nextset, lambda: cursor.rowcount, lambda: open_cursor.execute("SELECT 1"),
                lambda: open_cursor.executemany("SELECT %s", [(1,)]), lambda: list(cursor)):
        with pytest.raises(dbapi.Error, match="given back"):
            use()
    cursor.close()
    open_cursor.close()
    assert connection.closed
    assert pool.stats()["pool_available"] == 1


def test_an_unread_result_does_not_reach_the_next(make_pool: MakePool, mariadb: MariaDB) -> None:
    """Rows, further results and unbuffered cursors left open are gone with their borrower."""
    mariadb.admin("CREATE PROCEDURE app.p() BEGIN SELECT 1; SELECT 2; END")
    try:
        pool = make_pool()
        for leave in (lambda c: c.execute("SELECT 1"), lambda c: c.cursor().callproc("p"),
                      lambda c: c.cursor(pool.driver.unbuffered[0]).execute("SELECT 1 UNION SELECT 2"),
                      lambda c: c.execute("CALL p()")):
            with pool.connection() as connection:
                left = leave(connection)
                kept = left
            with pool.connection() as connection:
                assert connection.execute("SELECT 'mine'").fetchall() == (("mine",),)
            del kept, left
    finally:
        mariadb.admin("DROP PROCEDURE app.p")


@pytest.mark.parametrize("how", ["the connection goes back", "cursor and connection are dropped"])
def test_rows_that_nobody_reads_stop_nobody(make_pool: MakePool, mariadb: MariaDB, how: str) -> None:
    """The driver reads an unread result to its end when it is let go and stops all threads: the pool hangs up first."""
    pool = make_pool()
    pool.start()
    started = time.monotonic()
    connection = pool.connection()
    number = connection_id(connection)
    cursor = connection.cursor(pool.driver.unbuffered[0])
    cursor.execute("SELECT SLEEP(0.02), REPEAT('x', 20000) FROM seq_1_to_1000000")  # for the 30 s of its time limit
    assert cursor.fetchone() is not None
    time.sleep(1.0)  # there is no more room at this end: the server does not even try to send
    if how == "the connection goes back":
        connection.close()
    else:
        del cursor, connection
        pool.reclaim_lost()
    wait_until(lambda: pool.stats()["pool_size"] == 0)  # the keeper may have been the one that adopted it
    assert pool.stats()["returns_bad"] == 1
    wait_until(lambda: number not in mariadb.sessions(), message="the server has noticed")
    assert time.monotonic() - started < 25


def test_a_stream_that_was_read_costs_no_connection(make_pool: MakePool) -> None:
    """Read to its end, or dropped and read on by the next statement: an unbuffered result costs no connection."""
    pool = make_pool()
    with pool.connection() as connection:
        first = connection_id(connection)
        assert connection.cursor(pool.driver.unbuffered[0]).execute("SELECT 1 UNION SELECT 2") is not None
        assert connection.execute("SELECT 3").fetchall() == ((3,),)
        connection.begin()
        connection.cursor(pool.driver.unbuffered[0]).execute("SELECT 1 UNION SELECT 2")
        connection.commit()
        cursor = connection.cursor(pool.driver.unbuffered[0])
        cursor.execute("SELECT 1 UNION SELECT 2")
        assert list(cursor) == [(1,), (2,)]
    with pool.connection() as connection:
        assert connection_id(connection) == first
    assert pool.stats()["returns_bad"] == 0


def test_results_that_a_procedure_still_owes_are_waited_for_no_longer_than_they_may(
        make_pool: MakePool, mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cursor left open on a procedure whose second result takes for ever: the check-in is cut off."""
    monkeypatch.setattr(guarded_calls, "PATIENCE", 0.3)
    mariadb.admin("CREATE PROCEDURE app.owes() BEGIN SELECT 1; SELECT SLEEP(1000); END")
    try:
        for kept in (True, False):
            pool = make_pool()
            if kept:
                pool.start()
            connection = pool.connection()
            cursor = connection.cursor()
            cursor.callproc("owes")
            connection.close()
            assert pool.stats()["pool_size"] == 0
            assert cursor is not None
    finally:
        mariadb.kill_sessions()
        mariadb.admin("DROP PROCEDURE app.owes")


def test_cursors_that_were_dropped_are_forgotten(make_pool: MakePool) -> None:
    """A connection that is held for long does not collect them; those that live are dead with its turn."""
    pool = make_pool()
    with pool.connection() as connection:
        cursors = [connection.cursor() for _ in range(500)]
        assert len(connection._cursors) == 500
        del cursors[:490]
        for _ in range(64):
            connection.cursor()
        assert len(connection._cursors) < 200
    for cursor in cursors:
        with pytest.raises(dbapi.ProgrammingError, match="given back"):
            cursor.fetchall()


def test_who_was_silent_for_long_has_not_shown_that_the_link_is_good(make_pool: MakePool, mariadb: MariaDB,
                                                                    proxy: FaultProxy) -> None:
    """Held idle for longer than the bypass window: the next borrower's checkout asks first; else it costs nothing."""
    for window, silence, pings in ((60.0, 0.0, 0), (0.3, 0.5, 1)):
        pool = make_pool(db_url=proxy.url_for(mariadb), db_alive_bypass_window=window)
        pool.connection().close()
        connection = pool.connection()
        connection.execute("SELECT 1")
        time.sleep(silence)
        connection.close()
        before = proxy.commands
        pool.connection().close()
        assert proxy.commands - before == pings


def test_only_what_was_idle_longer_than_the_window_is_pinged(make_pool: MakePool, mariadb: MariaDB,
                                                             proxy: FaultProxy) -> None:
    """One round trip more after STABILITY_DB_ALIVE_BYPASS_WINDOW, none before."""
    for window, pings in ((60.0, 0), (0.0, 1)):
        pool = make_pool(db_url=proxy.url_for(mariadb), db_alive_bypass_window=window)
        pool.connection().close()
        before = proxy.commands
        pool.connection().close()
        assert proxy.commands - before == pings


def test_a_whole_session_can_be_cleared_each_time(make_pool: MakePool) -> None:
    """STABILITY_DB_RESET_ON_RETURN=session: what a stored function left behind too, and the limits hold after it."""
    pool = make_pool(db_reset_on_return="session", db_query_timeout=7.0)
    with pool.connection() as connection:
        first = connection_id(connection)
        connection.record.raw.query("SET @behind_its_back = 1")  # the pool has seen plain statements only
    with pool.connection() as connection:
        assert connection_id(connection) == first
        assert connection.execute("SELECT @behind_its_back, @@max_statement_time, @@character_set_client, @@autocommit"
                                  ).fetchall() == ((None, 7.0, "utf8mb4", 1),)


def test_lifetimes_are_spread(make_pool: MakePool) -> None:
    """Connections opened together do not all end together: up to 2.5 % sooner, each by its own part."""
    pool = make_pool(db_max_lifetime=1000)
    held = [pool.connection() for _ in range(12)]
    opened = time.monotonic()
    ends = [entry.expires - opened for entry in pool.inventory.records]
    assert len({round(end, 3) for end in ends}) > 6
    assert all(975 - 30 < end <= 1000 for end in ends)
    assert max(ends) - min(ends) > 2
    for connection in held:
        connection.close()


def test_a_refused_connect_is_tried_again_in_time(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy) -> None:
    """Connects fail, one in mid-handshake, and then one works: the checkout gets it."""
    pool = make_pool(db_url=proxy.url_for(mariadb), db_timeout=60)
    proxy.cut_after_reply_bytes(10)
    with pool.connection() as connection:
        connection.execute("SELECT 1")
    assert pool.stats()["connections_errors"] == 1
    assert pool.availability.breaker.state == "closed"


def test_without_a_keeper_a_checkout_asks_after_an_outage(make_pool: MakePool, mariadb: MariaDB,
                                                          proxy: FaultProxy) -> None:
    """A script's pool finds a database that is back, and asks one that is not twice a second at the most."""
    pool = make_pool(db_url=proxy.url_for(mariadb), db_timeout=60)
    proxy.refuse()
    with pytest.raises(CircuitOpen):
        pool.connection()
    opened, asked = time.monotonic(), pool.stats()["connections_num"]
    for _ in range(200):
        with pytest.raises(CircuitOpen):
            pool.connection()
    assert pool.stats()["connections_num"] - asked <= 1 + (time.monotonic() - opened) / 0.5
    proxy.heal()

    def back() -> bool:
        try:
            pool.connection().close()
        except CircuitOpen:
            return False
        return True

    wait_until(back)
    assert pool.availability.breaker.state == "closed"


def test_without_a_keeper_the_pool_s_own_calls_are_bounded(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A ping into a black hole is given up at the checkout's deadline, a rollback at the check-in's."""
    monkeypatch.setattr(guarded_calls, "PATIENCE", 0.3)
    pool = make_pool(db_url=proxy.url_for(mariadb), db_alive_bypass_window=0.0, db_query_timeout=1000.0)
    held = pool.connection()
    held.begin()
    pool.connection().close()
    proxy.blackhole()
    with pytest.raises(PoolTimeout):
        pool.connection(timeout=0.6)
    held.close()
    assert pool.stats()["pool_in_use"] == 0
    assert pool.stats()["returns_bad"] == 1


def test_a_forgotten_connection_comes_back_with_its_request(make_pool: MakePool) -> None:
    """What a request took and did not give back is given back at its end, rolled back."""
    pool = make_pool()
    with serving() as record:
        connection = pool.connection()
        connection.begin()
        assert record.resources == [connection]
        with pool.connection():
            assert len(record.resources) == 2
        assert record.resources == [connection]
    assert connection.closed
    assert pool.stats()["pool_in_use"] == 0
    assert pool.stats()["pool_available"] == 2


def test_a_finalizer_only_queues(make_pool: MakePool) -> None:
    """A proxy that is collected gives nothing back by itself, holding any lock or none: the next checkout does."""
    pool = make_pool(db_max_size=1, db_max_idle=1)
    connection = pool.connection()
    with pool.inventory.lock, pool.counters._lock:  # a collection may happen anywhere
        del connection
        gc.collect()
    assert len(pool.lost) == 1
    assert pool.stats()["pool_in_use"] == 1
    with pool.connection(timeout=30) as connection:
        connection.execute("SELECT 1")


def test_a_wrong_password_is_an_error_without_it(make_pool: MakePool, mariadb: MariaDB,
                                                 caplog: pytest.LogCaptureFixture,
                                                 capfd: pytest.CaptureFixture[str]) -> None:
    """Refused credentials fail at once, again and again, and the password is in no text."""
    caplog.set_level(logging.DEBUG)
    pool = make_pool(db_url=f"mysql://app:hunter2@127.0.0.1:{mariadb.port}/app", db_timeout=30)
    for _ in range(7):
        with pytest.raises(DatabaseUnavailable, match="1045") as caught:
            pool.connection()
    assert pool.availability.breaker.state == "closed"
    pool.events.log("something")
    texts = (repr(pool), repr(pool.driver), repr(pool.settings), repr(caught.value), repr(caught.value.__cause__),
             pool.driver.describe(), str(pool.stats()), caplog.text, *capfd.readouterr())
    assert not [text for text in texts if "hunter2" in text]


def test_a_missing_database_is_asked_for_again(make_pool: MakePool, mariadb: MariaDB) -> None:
    """While the database does not exist each checkout says so; as soon as it does, it works."""
    pool = make_pool(db_url=mariadb.url.replace("/app", "/later").replace("//later", "//app"))
    for _ in range(6):
        with pytest.raises(DatabaseUnavailable, match=r"1044|1049"):
            pool.connection()
    mariadb.admin("CREATE DATABASE later")
    try:
        mariadb.admin("GRANT ALL ON later.* TO app@'%'")
        with pool.connection() as connection:
            assert connection.execute("SELECT DATABASE()").fetchall() == (("later",),)
    finally:
        mariadb.admin("DROP DATABASE later")


def test_a_server_that_is_full_is_waited_for(make_pool: MakePool, mariadb: MariaDB) -> None:
    """max_connections reached: checkouts wait and retry; the breaker stays closed; then they get their connection."""
    with full(mariadb) as hogs:
        pool = make_pool()
        thread, results = in_thread(lambda: connection_id(pool.connection(timeout=100)))
        wait_until(lambda: pool.availability.last_error is not None and pool.inventory.waiters)
        with pytest.raises(PoolTimeout) as caught:
            pool.connection(timeout=0.5)
        assert caught.value.__cause__ is not None
        assert caught.value.__cause__.args[0] == 1040
        assert thread.is_alive()
        while hogs:
            hogs.pop().close()
        thread.join(30)
        assert isinstance(results[0], int)
        assert pool.availability.breaker.state == "closed"


def test_a_server_that_is_down_is_not_waited_for(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy) -> None:
    """Five refused connects open the breaker: everyone who waits is told, and the next at once."""
    pool = make_pool(db_url=proxy.url_for(mariadb), db_timeout=60)
    pool.start()
    proxy.refuse()
    with pytest.raises(CircuitOpen):
        pool.connection()
    connects = pool.stats()["connections_num"]
    with pytest.raises(CircuitOpen):
        pool.connection()
    assert pool.stats()["connections_num"] == connects
    assert pool.stats()["breaker_state"] == "open"
    assert not pool.inventory.waiters


def test_connects_happen_at_once_and_only_as_many_as_wanted(make_pool: MakePool, mariadb: MariaDB) -> None:
    """Ten threads that want a connection get one each, and never more than STABILITY_DB_MAX_SIZE are opened."""
    pool = make_pool(db_max_size=4, db_max_idle=4, db_timeout=60)
    barrier, peak = threading.Barrier(10), []

    def use() -> None:
        barrier.wait(30)
        for _ in range(20):
            with pool.connection() as connection:
                connection.execute("SELECT SLEEP(0.002)")
                with pool.inventory.lock:  # else one that is handed over in between counts twice
                    peak.append(pool.inventory.taken + len(pool.inventory.idle))

    threads = [in_thread(use) for _ in range(10)]
    for thread, results in threads:
        thread.join(60)
        assert results == [None]
    assert max(peak) == 4
    # one that a slow thread opens comes when all are done
    wait_until(lambda: len(mariadb.sessions()) == int(pool.stats()["pool_available"]) == 4)


def test_a_crowd_keeps_the_books(make_pool: MakePool, mariadb: MariaDB) -> None:
    """Under errors, kills, timeouts, double closes and lost proxies no slot is lost and none is used twice."""
    pool = make_pool(db_max_size=5, db_max_idle=3, db_timeout=0.5, db_max_lifetime=0.5)
    pool.start()
    stop, holders, doubles = threading.Event(), set(), []

    def use(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            try:
                connection = pool.connection(timeout=chance.choice([0.0, 0.05, 0.5]))
                entry = connection.record
                if entry in holders:
                    doubles.append(entry)
                holders.add(entry)
                connection.execute(chance.choice(["SELECT 1", "SELECT nothing", "SET @x=1", "SELECT SLEEP(0.01)"]))
                if chance.random() < 0.1:
                    connection.begin()
            except (*dbapi.Error, DatabaseUnavailable):
                pass
            finally:
                if "entry" in locals():
                    holders.discard(entry)
                    if chance.random() < 0.9:
                        connection.close()
                        connection.close()
                    del connection, entry

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        stop.wait(0.15)
        mariadb.kill_sessions()
    wait_until(lambda: int(pool.stats()["requests_num"]) > 100)
    stop.set()
    for thread in threads:
        thread.join(30)

    def settled() -> bool:
        books = pool.inventory
        with books.lock:  # the housekeeper goes on replacing what has expired
            return not pool.lost and not books.taken and len(books.records) == len(books.idle) <= 3

    wait_until(settled, message="all connections came back")
    assert not doubles
    assert not pool.inventory.waiters


def test_short_waits_close_the_bulkhead_too(make_pool: MakePool, four_threads: None) -> None:
    """Where nobody waits a whole second for a connection, half of the longest wait counts as slow."""
    pool = make_pool(db_timeout=0.4)
    now = time.monotonic()
    fresh = now + 1000  # on the slowest machine
    with serving():
        pool.bulkhead.inside.update({1: now - 0.3, 2: fresh, 3: fresh})
        with pytest.raises(TooManyRequests):
            pool.connection()
        pool.bulkhead.inside.update({1: fresh})
        pool.connection(timeout=30)


def test_the_bulkhead_keeps_one_thread_free(make_pool: MakePool, four_threads: None) -> None:
    """With three of four threads inside, one for long, the next is sent away, also one that has a connection."""
    pool = make_pool()
    now = time.monotonic()
    fresh = now + 1000  # on the slowest machine
    with serving():
        connection = pool.connection()
        pool.bulkhead.inside.update({1: now - 2, 2: fresh, 3: fresh})
        with pytest.raises(TooManyRequests):
            pool.connection()
        with pytest.raises(TooManyRequests):
            connection.execute("SELECT 1")
        connection.commit()  # what was begun may end
        pool.bulkhead.inside.update({1: fresh})
        connection.execute("SELECT 1")
        pool.connection()
    del pool.bulkhead.inside[1]
    pool.bulkhead.inside.update({1: now - 2})
    pool.connection().close()  # no request's thread


@pytest.mark.parametrize("back", [1000, -1000], ids=["moving", "standing still"])
def test_a_slow_database_gets_spare_threads(make_pool: MakePool, four_threads: None, back: int) -> None:
    """For requests that have a connection, that may have one, and that wait for one, as long as there are more."""
    pool = make_pool(db_max_size=2)
    now = time.monotonic()
    most: list[int] = []

    def give(number: int) -> bool:
        most.append(number)
        return len(most) < 4

    runtime.more_threads = give
    try:
        with serving():
            pool.bulkhead.inside.update({1: now - 2, 2: now, 3: now})
            pool.bulkhead.given_at = lambda: now + back
            connection = pool.connection()
            connection.execute("SELECT 1")
            with pool.connection(), pytest.raises(TooManyRequests):  # both are in use
                pool.connection(timeout=0.01)
            assert most == [256, 256, 256, 256]  # for two connections, a statement, and the last one in vain
            with pytest.raises(TooManyRequests):
                connection.execute("SELECT 1")
            most.clear()
            other = pool.connection()
            with pytest.raises(PoolTimeout):
                pool.connection(timeout=0.01)
            other.close()
            assert most == [256, 256]
    finally:
        runtime.more_threads = None


def test_threads_that_another_request_got_will_do(make_pool: MakePool, four_threads: None) -> None:
    """Two ask at once, and the first one gets all that are to be had."""
    pool = make_pool()

    def give(number: int) -> bool:
        runtime.my_row().words[scoreboard.W_THREADS] = number
        return False

    runtime.more_threads = give
    try:
        with serving():
            pool.bulkhead.inside.update({number: time.monotonic() - 5 for number in (1, 2, 3)})
            pool.connection().close()
    finally:
        runtime.more_threads = None


def test_the_bulkhead_can_be_switched_off(make_pool: MakePool, four_threads: None) -> None:
    """STABILITY_DB_BULKHEAD=off."""
    pool = make_pool(db_bulkhead=False)
    pool.bulkhead.inside.update({number: time.monotonic() - 5 for number in (1, 2, 3)})
    with serving():
        pool.connection()


def test_a_closed_pool_says_so(make_pool: MakePool, mariadb: MariaDB) -> None:
    """After close() who waits and who asks gets PoolClosed; what comes back is closed."""
    pool = make_pool(db_max_size=1, db_max_idle=1)
    held = pool.connection()
    thread, results = in_thread(pool.connection)
    wait_until(lambda: pool.inventory.waiters)
    pool.close()
    thread.join(20)
    assert isinstance(results[0], PoolClosed)
    with pytest.raises(PoolClosed):
        pool.connection()
    assert held.execute("SELECT 1").fetchall() == ((1,),)
    held.close()
    wait_until(lambda: not mariadb.sessions())
    pool.close()
    assert pool.stats()["pool_size"] == 0


def test_the_statistics_have_known_names(make_pool: MakePool) -> None:
    """psycopg_pool's names and the pool's own, all of them numbers but the breaker's state."""
    pool = make_pool()
    with pool.connection():
        stats = pool.stats()
    assert set(stats) >= {
        "pool_size", "pool_available", "requests_num", "requests_queued", "requests_waiting", "requests_wait_ms",
        "requests_errors", "usage_ms", "returns_bad", "connections_num", "connections_ms", "connections_errors",
        "connections_lost", "pool_in_use", "leaks_suspected", "retries_num", "breaker_state"}
    assert (stats["pool_size"], stats["pool_in_use"], stats["breaker_state"]) == (1, 1, "closed")
    assert re.fullmatch(r"<Pool of 127.0.0.1:\d+/app: size 1, in use 0, idle 1, waiting 0>", repr(pool))


def test_an_interruption_in_mid_call_costs_the_connection(make_pool: MakePool) -> None:
    """SystemExit out of a call, as a server's abort raises it, leaves an answer unread: the connection is not kept."""
    pool = make_pool()
    connection = pool.connection()

    def interrupted() -> None:
        connection.record.raw.query("SELECT 'unread'")
        raise SystemExit

    with pytest.raises(SystemExit):
        pool.calls.run(connection.record, interrupted)
    connection.close()
    assert pool.stats()["pool_size"] == 0
    with pool.connection() as connection:
        assert connection.execute("SELECT 1").fetchall() == ((1,),)


def test_an_interrupted_wait_loses_nothing(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception thrown into a waiting thread leaves the queue as if it had never been there."""
    import ctypes

    pool = make_pool(db_max_size=1, db_max_idle=1, db_timeout=60)
    held = pool.connection()
    caught: list[str] = []
    reached, thrown = threading.Event(), threading.Event()

    class Gate:
        """A waiter's gate that tells when somebody is at it."""

        def acquire(self, blocking: bool = True, timeout: float = 0.0) -> bool:
            if timeout:
                reached.set()
                thrown.wait(30)
            return True

    class Slow(waiters.Waiter[Any]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.gate = Gate()  # type: ignore[assignment]

    monkeypatch.setattr(inventory, "Waiter", Slow)

    def wait() -> None:
        try:
            pool.connection()
        except BaseException as error:
            caught.append(type(error).__name__)

    thread = threading.Thread(target=wait)
    thread.start()
    assert reached.wait(30)
    assert len(pool.inventory.waiters) == 1
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt))
    thrown.set()
    thread.join(20)
    assert caught == ["KeyboardInterrupt"]
    assert not pool.inventory.waiters
    held.close()
    assert pool.stats()["pool_available"] == 1
    pool.connection().close()
