"""What plain DBUtils does to an app, each shown beside what the pool does instead."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from flask_stability.database import housekeeper
from flask_stability.database.pool import Pool
from flask_stability.exceptions import DatabaseUnavailable, PoolTimeout
from support import wait_until
from support_db import FaultProxy, MariaDB, dbapi

pytestmark = [pytest.mark.mysql_too, pytest.mark.pymysql_too]

MakePool = Callable[..., Pool]
#: Keeps any server at work for long. (MySQL's SLEEP, ended by a time limit, says 1 and no error.)
LONG = "COUNT(*) FROM " + " JOIN ".join(f"information_schema.columns c{number}" for number in range(4))


@pytest.fixture
def plain(mariadb: MariaDB) -> Iterator[Callable[..., PooledDB]]:
    """Make a plain `PooledDB`; keywords that DBUtils does not know go to the driver."""
    pools: list[PooledDB] = []

    def make(port: int | None = None, **options: Any) -> PooledDB:
        options = {"host": "127.0.0.1", "port": port or mariadb.port, "user": mariadb.user,
                   "password": mariadb.password, "database": mariadb.name, "charset": "utf8mb4",
                   "connect_timeout": 30, "ping": 0, **options}
        pools.append(PooledDB(MySQLdb, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def table(mariadb: MariaDB) -> Callable[[], list[Any]]:
    """An empty table t(a); the function gives what is stored in it."""
    mariadb.admin("CREATE TABLE app.t (a LONGTEXT) ENGINE=InnoDB")
    return lambda: sorted(row[0] for row in mariadb.admin("SELECT a FROM app.t"))


def execute(connection: Any, sql: str, *parameters: Any) -> Any:
    """Execute; the rows."""
    cursor = connection.cursor()
    cursor.execute(sql, parameters or None)
    rows = cursor.fetchall()
    cursor.close()
    return rows


def outcome(function: Callable[..., Any], *args: Any) -> str:
    """"done", or the error's number or name."""
    try:
        function(*args)
    except dbapi.Error as error:
        return str(error.args[0])
    except Exception as error:
        return type(error).__name__
    return "done"


def test_a_lost_reply_does_not_insert_twice(plain: Any, make_pool: MakePool, proxy: FaultProxy, mariadb: MariaDB,
                                            table: Any) -> None:
    """The reply to an INSERT in autocommit is lost: DBUtils stores two rows and says "done"; the pool says 2013."""
    connection = plain(proxy.port, autocommit=True).connection()
    proxy.cut_reply_to(1)
    assert outcome(execute, connection, "INSERT INTO t VALUES ('plain')") == "done"
    assert table() == ["plain", "plain"]

    connection = make_pool(db_url=proxy.url_for(mariadb)).connection()
    proxy.cut_reply_to(1)
    assert outcome(execute, connection, "INSERT INTO t VALUES ('ours')") == "2013"
    assert table() == ["ours", "plain", "plain"]


@pytest.mark.mysqlclient_only  # PyMySQL sends all rows in one statement
def test_executemany_does_not_send_batches_twice(plain: Any, make_pool: MakePool, proxy: FaultProxy,
                                                 mariadb: MariaDB, table: Any) -> None:
    """executemany in three batches, the second reply is lost: DBUtils stores 40 rows of 24; the pool stops at 16."""
    rows = [(f"{number:02}" + "x" * 8000,) for number in range(24)]

    def insert(connection: Any) -> None:
        connection.cursor().executemany("INSERT INTO t VALUES (%s)", rows)

    connection = plain(proxy.port, autocommit=True).connection()
    proxy.cut_reply_to(2)
    assert outcome(insert, connection) == "done"
    assert len(table()) == 40

    mariadb.admin("TRUNCATE app.t")
    connection = make_pool(db_url=proxy.url_for(mariadb)).connection()
    proxy.cut_reply_to(2)
    assert outcome(insert, connection) == "2013"
    assert len(table()) == len(set(table())) == 16


def test_a_transaction_is_not_continued_on_another_connection(plain: Any, make_pool: MakePool, mariadb: MariaDB,
                                                              table: Any) -> None:
    """An implicit transaction whose connection is killed: DBUtils commits its second half alone; the pool fails."""
    def transaction(connection: Any) -> None:
        execute(connection, "INSERT INTO t VALUES ('first')")
        mariadb.kill_sessions()
        execute(connection, "INSERT INTO t VALUES ('second')")
        connection.commit()

    assert outcome(transaction, plain().connection()) == "done"
    assert table() == ["second"]

    mariadb.admin("TRUNCATE app.t")
    assert outcome(transaction, make_pool(db_autocommit=False).connection()) in ("1927", "2006", "2013")
    assert table() == []


def test_a_deadlock_does_not_lose_the_first_statement(plain: Any, make_pool: MakePool, mariadb: MariaDB,
                                                      table: Any) -> None:
    """The second statement is a deadlock's victim: DBUtils runs it again and commits it alone; the pool fails."""
    mariadb.admin("CREATE TABLE app.k (id INT PRIMARY KEY, v TEXT)")
    mariadb.admin("INSERT INTO app.k VALUES (1, ''), (2, '')")

    def victim(connection: Any, rival: Any) -> None:
        execute(connection, "INSERT INTO t VALUES ('first')")
        execute(connection, "UPDATE k SET v='mine' WHERE id=1")
        thread = threading.Thread(target=lambda: (execute(rival, "UPDATE k SET v='r' WHERE id=1"), rival.commit()))
        thread.start()
        # not innodb_trx: InnoDB answers reads less than 0.1 s apart from a cache, for ever the same to one who polls
        wait_until(lambda: mariadb.admin("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'")[0][1] != "0")
        try:
            execute(connection, "UPDATE k SET v='mine' WHERE id=2")
            connection.commit()
        finally:
            thread.join(20)

    def rival() -> Any:
        connection = mariadb.connect(autocommit=False)
        execute(connection, "UPDATE k SET v='r' WHERE id=2")
        for _ in range(50):  # the heavier transaction survives
            execute(connection, "INSERT INTO t VALUES ('rival')")
        return connection

    assert outcome(victim, plain().connection(), rival()) == "done"
    assert "first" not in table()

    assert outcome(victim, make_pool(db_autocommit=False).connection(), rival()) == "1213"
    assert "first" not in table()


def test_a_usage_limit_does_not_cut_a_transaction(plain: Any, make_pool: MakePool, table: Any) -> None:
    """maxusage=2: of three statements DBUtils stores the last; a lifetime that ends does not cut the pool's off."""
    def three(connection: Any) -> None:
        for name in ("a", "b", "c"):
            execute(connection, "INSERT INTO t VALUES (%s)", name)
        connection.commit()

    assert outcome(three, plain(maxusage=2, isfatal=lambda error: False).connection()) == "done"
    assert table() == ["c"]

    assert outcome(three, make_pool(db_autocommit=False, db_max_lifetime=0.001).connection()) == "done"
    assert table() == ["a", "b", "c", "c"]


def test_a_swallowed_error_does_not_commit_the_rest(plain: Any, make_pool: MakePool, mariadb: MariaDB,
                                                    table: Any) -> None:
    """After begin() an app swallows an error and goes on: DBUtils commits the rest alone; the pool keeps failing."""
    def careless(connection: Any) -> None:
        connection.begin()
        execute(connection, "INSERT INTO t VALUES ('one')")
        mariadb.kill_sessions()
        with suppress(dbapi.Error):
            execute(connection, "INSERT INTO t VALUES ('two')")
        execute(connection, "INSERT INTO t VALUES ('three')")
        connection.commit()

    assert outcome(careless, plain().connection()) == "done"
    assert table() == ["three"]

    mariadb.admin("TRUNCATE app.t")
    assert outcome(careless, make_pool().connection()) in ("1927", "2006", "2013", "0")  # 0: PyMySQL's
    assert table() == []


@contextmanager
def statements(mariadb: MariaDB) -> Iterator[Callable[[str], int]]:
    """The function counts how often the server was given a statement."""
    mariadb.admin("TRUNCATE mysql.general_log")
    mariadb.admin("SET GLOBAL log_output='TABLE', general_log=ON")
    try:
        yield lambda sql: int(mariadb.admin(
            "SELECT COUNT(*) FROM mysql.general_log WHERE command_type='Query' AND argument=%s", sql)[0][0])
    finally:
        mariadb.admin("SET GLOBAL general_log=OFF")


@pytest.mark.parametrize(("code", "sql"), [
    ("1054", "SELECT nothing FROM t"),
    ("1205", "UPDATE k SET v=2 WHERE id=1"),
    ("1969", "SET STATEMENT max_statement_time=0.1 FOR SELECT SLEEP(5)")])
def test_a_failed_statement_is_not_repeated(plain: Any, make_pool: MakePool, mariadb: MariaDB, table: Any, code: str,
                                            sql: str) -> None:
    """An unknown column, a lock wait, a statement timeout: DBUtils executes it three times; the pool once."""
    if code == "1969" and mariadb.product == "MySQL":
        code, sql = "3024", f"SELECT /*+ MAX_EXECUTION_TIME(100) */ {LONG}"
    mariadb.admin("CREATE TABLE app.k (id INT PRIMARY KEY, v INT)")
    mariadb.admin("INSERT INTO app.k VALUES (1, 1)")
    before = mariadb.admin("SELECT @@GLOBAL.innodb_lock_wait_timeout")[0][0]
    mariadb.admin("SET GLOBAL innodb_lock_wait_timeout=1")
    try:
        locker = mariadb.connect(autocommit=False)
        execute(locker, "SELECT * FROM k FOR UPDATE")
        with statements(mariadb) as count:
            assert outcome(execute, plain(autocommit=True).connection(), sql) == code
            assert count(sql) == 3
        with statements(mariadb) as count:
            assert outcome(execute, make_pool().connection(), sql) == code
            assert count(sql) == 1
    finally:  # later tests wait for locks as long as a busy machine holds them
        mariadb.admin("SET GLOBAL innodb_lock_wait_timeout=%s", before)


@pytest.mark.mariadb_only  # MySQL limits SELECT alone
def test_a_timed_out_statement_ends_on_the_server_too(plain: Any, make_pool: MakePool, mariadb: MariaDB,
                                                      table: Any) -> None:
    """A client's read_timeout leaves the server at work and the row appears later; the query timeout ends it there."""
    def quiet() -> bool:
        return not mariadb.admin("SELECT 1 FROM information_schema.processlist WHERE user='app' AND command='Query'")

    mariadb.admin("CREATE TABLE app.k (id INT PRIMARY KEY)")
    mariadb.admin("INSERT INTO app.k VALUES (1)")
    locker = mariadb.connect(autocommit=False)
    sql = "INSERT INTO t SELECT id FROM k WHERE id=1 FOR UPDATE"  # takes as long as the lock is held

    def connected(pool: Any) -> Any:
        with suppress(dbapi.OperationalError):  # its read_timeout holds for connecting too
            return pool.connection()
        return None

    execute(locker, "SELECT * FROM k FOR UPDATE")
    impatient = plain(autocommit=True, read_timeout=1)
    assert outcome(execute, wait_until(lambda: connected(impatient)), sql) == "2013"
    assert table() == []
    locker.rollback()
    wait_until(quiet)
    assert table() != []

    mariadb.admin("TRUNCATE app.t")
    execute(locker, "SELECT * FROM k FOR UPDATE")
    assert outcome(execute, make_pool(db_query_timeout=0.2).connection(), sql) == "1969"
    wait_until(quiet)
    assert table() == []


def test_the_query_timeout_ends_a_select_on_the_server(make_pool: MakePool, mariadb: MariaDB) -> None:
    """In each server's own words: the statement is ended by the server, and the connection is still good."""
    connection = make_pool(db_query_timeout=0.2).connection()
    assert outcome(execute, connection, f"SELECT {LONG}") == ("3024" if mariadb.product == "MySQL" else "1969")
    assert execute(connection, "SELECT 1") == ((1,),)


def test_an_exhausted_pool_does_not_wait_for_ever(plain: Any, make_pool: MakePool) -> None:
    """With all connections in use, DBUtils waits for ever; the pool says so in time."""
    pool = plain(maxconnections=1, blocking=True)
    held = pool.connection()
    waiting = threading.Thread(target=pool.connection, daemon=True)
    waiting.start()
    waiting.join(1)
    assert waiting.is_alive()
    held.close()

    ours = make_pool(db_max_size=1, db_max_idle=1, db_timeout=0.2)
    held = ours.connection(timeout=30)
    with pytest.raises(PoolTimeout, match="size 1, in use 1, idle 0, waiting 1"):
        ours.connection()
    held.close()


def test_a_slow_connect_holds_nobody_else_up(plain: Any, make_pool: MakePool, proxy: FaultProxy,
                                             mariadb: MariaDB) -> None:
    """While one thread connects into a black hole, others cannot even give back to DBUtils; to the pool they can."""
    def gives_back(pool: Any, patience: float) -> bool:
        held = pool.connection()
        proxy.blackhole()
        connects = proxy.connections
        slow = threading.Thread(target=outcome, args=(pool.connection,), daemon=True)
        slow.start()
        wait_until(lambda: proxy.connections > connects)
        giver = threading.Thread(target=held.close, daemon=True)
        giver.start()
        giver.join(patience)
        done = not giver.is_alive()
        proxy.heal()
        slow.join(20)
        giver.join(20)
        return done

    # neither connect gives up in that time
    assert not gives_back(plain(proxy.port, reset=False, connect_timeout=100), 1)
    assert gives_back(make_pool(db_url=proxy.url_for(mariadb), db_connect_timeout=100), 30)


def test_a_dead_connection_is_never_handed_out(plain: Any, make_pool: MakePool, proxy: FaultProxy,
                                               mariadb: MariaDB) -> None:
    """With the server down DBUtils hands out a dead connection and caches it again; the pool raises."""
    pool = plain(proxy.port, ping=(1, lambda connection: connection.ping()))
    ours = make_pool(db_url=proxy.url_for(mariadb), db_timeout=5)
    pool.connection().close()
    ours.connection().close()
    proxy.refuse()
    wait_until(lambda: all(record.hung_up() for record in ours.inventory.records), message="the links' ends arrived")

    dead = pool.connection()
    assert outcome(execute, dead, "SELECT 1") in ("2006", "2013")
    dead.close()
    assert len(pool._idle_cache) == 1

    with pytest.raises(DatabaseUnavailable):
        ours.connection()
    wait_until(lambda: ours.stats()["pool_size"] == 0, message="the dead connection is thrown away")


def test_a_forked_child_does_not_answer_its_parent(plain: Any, make_pool: MakePool) -> None:
    """A child that uses the inherited pool: DBUtils' parent receives the child's answer; the pool's its own."""
    def parent_receives(pool: Any, raw_of: Callable[[Any], Any]) -> str:
        pool.connection().close()
        raw = raw_of(pool)
        child = os.fork()
        if child == 0:
            try:
                raw.send_query("SELECT 'child'")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return str(execute(pool.connection(), "SELECT 'parent'")[0][0])

    assert parent_receives(plain(reset=False), lambda pool: pool._idle_cache[0].dbapi_connection) == "child"
    assert parent_receives(make_pool(), lambda pool: pool.inventory.idle[0].raw) == "parent"


def test_two_threads_may_close_one_connection(plain: Any, make_pool: MakePool) -> None:
    """Two threads close one proxy: DBUtils has the connection twice and counts −1; the pool has it once."""
    def close_twice(pool: Any, taking_back: str) -> None:
        entered, go, original = [], threading.Event(), getattr(pool, taking_back)

        def slow_cache(connection: Any) -> None:
            entered.append(connection)
            go.wait(20)
            original(connection)

        setattr(pool, taking_back, slow_cache)
        connection = pool.connection()
        first = threading.Thread(target=connection.close)
        first.start()
        wait_until(lambda: entered)
        second = threading.Thread(target=connection.close)
        second.start()
        wait_until(lambda: len(entered) == 2 or not second.is_alive())
        go.set()
        first.join(20)
        second.join(20)

    theirs, ours = plain(), make_pool()
    close_twice(theirs, "cache")
    assert (len(theirs._idle_cache), theirs._connections) == (2, -1)
    close_twice(ours, "take_back")
    assert (ours.stats()["pool_available"], ours.stats()["pool_in_use"]) == (1, 0)


def test_an_old_cursor_cannot_commit_the_next_borrowers_work(plain: Any, make_pool: MakePool, table: Any) -> None:
    """A cursor kept after close(): with DBUtils its COMMIT commits the next borrower's work; in the pool it fails."""
    def rolled_back(pool: Any) -> str:
        first = pool.connection()
        cursor = first.cursor()
        cursor.execute("SELECT 1")
        first.close()
        second = pool.connection()
        second.begin()
        execute(second, "INSERT INTO t VALUES ('secret')")
        result = outcome(cursor.execute, "COMMIT")
        second.rollback()
        return result

    assert rolled_back(plain()) == "done"
    assert table() == ["secret"]

    assert "given back" in rolled_back(make_pool())
    assert table() == ["secret"]


STATES = {
    "variable": ("SET @x = 5", "SELECT @x"),
    "assignment": ("SELECT @x := 5", "SELECT @x"),
    "sql_mode": ("SET SESSION sql_mode = ''", "SELECT @@sql_mode"),
    "lock": ("SELECT GET_LOCK('mine', 0)", "SELECT IS_USED_LOCK('mine') IS NOT NULL"),
    "autocommit": ("SET autocommit = 1 - @@autocommit", "SELECT @@autocommit"),
    "temporary table": ("CREATE TEMPORARY TABLE tmp (a INT)",
                        "SELECT COUNT(*) FROM information_schema.columns WHERE table_name = 'tmp'"),
}


@pytest.mark.parametrize("state", STATES)
def test_session_state_does_not_leak(plain: Any, make_pool: MakePool, state: str) -> None:
    """Variables, sql_mode, locks, autocommit and temporary tables reach DBUtils' next borrower, never the pool's."""
    change, look = STATES[state]
    if state == "temporary table":
        look = "SELECT a FROM tmp"  # there is no other way to see one

    def leaks(pool: Any) -> bool:
        def see() -> Any:
            with pool.connection() as connection:
                try:
                    return execute(connection, look)
                except dbapi.Error as error:
                    return error.args[0]

        before = see()
        with pool.connection() as connection:
            execute(connection, change)
        return bool(see() != before)

    assert leaks(plain())
    assert not leaks(make_pool())


def test_a_burst_does_not_keep_connections_for_ever(plain: Any, make_pool: MakePool, mariadb: MariaDB,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """After a burst of 20 DBUtils keeps 20 and uses them in turn; the pool uses the warmest and closes the rest."""
    def burst(pool: Any) -> set[int]:
        held = [pool.connection() for _ in range(20)]
        for connection in held:
            connection.close()
        used = set()
        for _ in range(20):
            with pool.connection() as connection:
                used.add(execute(connection, "SELECT CONNECTION_ID()")[0][0])
        return used

    pool = plain()
    assert len(burst(pool)) == 20
    assert len(mariadb.sessions()) == 20
    pool.close()

    monkeypatch.setattr(housekeeper, "MAINTENANCE_INTERVAL", 0.1)
    ours = make_pool(db_max_idle=20, db_idle_timeout=0.5)
    assert len(burst(ours)) == 1
    ours.start()
    wait_until(lambda: not mariadb.sessions())


def test_checking_a_connection_costs_no_warning(plain: Any, make_pool: MakePool) -> None:
    """`ping(False)`: a DeprecationWarning per checkout, with ``-W error`` a reconnect; the pool pings otherwise."""
    def connections(pool: Any) -> int:
        seen = set()
        for _ in range(5):
            with pool.connection() as connection:
                seen.add(execute(connection, "SELECT CONNECTION_ID()")[0][0])
        return len(seen)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert connections(plain(ping=1)) == 5
        assert connections(make_pool(db_alive_bypass_window=0.0)) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        connections(plain(ping=1))
    assert len([warning for warning in caught if warning.category is DeprecationWarning]) >= 4
