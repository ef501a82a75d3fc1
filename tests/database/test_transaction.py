"""Transactions against a real MariaDB: what is run again, and what never is."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pytest

from flask_stability.config import Settings
from flask_stability.database import Pool, PooledConnection, retries
from flask_stability.database.retries import Budget
from flask_stability.database.statements import stays_within
from flask_stability.database.transaction import Transactions
from flask_stability.exceptions import CommitUnknown, StabilityError
from support_db import FaultProxy, MariaDB, dbapi, serving

pytestmark = [pytest.mark.mysql_too, pytest.mark.pymysql_too]


@pytest.fixture
def pools(mariadb: MariaDB) -> Iterator[Callable[[str], Pool]]:
    """Makes pools that are closed with the test."""
    made: list[Pool] = []

    def make(url: str, **changes: Any) -> Pool:
        # a connection that a busy machine left lying is not pinged, and counts for nobody
        pool = Pool(replace(Settings(), db_url=url, db_max_size=8, db_max_idle=8, db_alive_bypass_window=1000.0,
                            **changes))
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def accounts(mariadb: MariaDB, pools: Callable[[str], Pool]) -> Pool:
    """A pool straight to the server, and ten accounts of 100."""
    pool = pools(mariadb.url)
    with pool.connection() as connection:
        for statement in ("DROP TABLE IF EXISTS done", "DROP TABLE IF EXISTS account",
                          "CREATE TABLE account (id INT PRIMARY KEY, amount INT NOT NULL) ENGINE=InnoDB",
                          "CREATE TABLE done (id INT PRIMARY KEY) ENGINE=InnoDB"):
            connection.execute(statement)
        for number in range(10):
            connection.execute("INSERT INTO account VALUES (%s, 100)", (number,))
    return pool


def _value(pool: Pool, sql: str) -> Any:
    with pool.connection() as connection:
        return connection.execute(sql).fetchone()[0]


def test_a_deadlock_runs_the_whole_unit_again(accounts: Pool) -> None:
    """Two units that lock in opposite order: both are stored, once."""
    transaction = Transactions(lambda: accounts)
    meet = threading.Barrier(2, timeout=20)
    runs: list[int] = []

    @transaction
    def move(connection: PooledConnection, first: int, second: int, tries: list[int]) -> None:
        tries.append(first)
        runs.append(first)
        connection.execute("UPDATE account SET amount = amount - 10 WHERE id = %s", (first,))
        if len(tries) == 1:
            meet.wait()
        connection.execute("UPDATE account SET amount = amount + 10 WHERE id = %s", (second,))

    threads = [threading.Thread(target=move, args=(first, 1 - first, [])) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 3
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1000
    assert accounts.stats()["retries_num"] == 1


def test_after_a_swallowed_deadlock_nothing_more_is_stored(accounts: Pool) -> None:
    """The server rolled back: what the app does after that would be half a unit, stored alone."""
    transaction = Transactions(lambda: accounts)
    meet = threading.Barrier(2, timeout=20)
    failed: list[BaseException] = []

    def careless(first: int) -> None:
        try:
            with transaction() as connection:
                connection.execute("UPDATE account SET amount = amount - 10 WHERE id = %s", (first,))
                meet.wait()
                try:
                    connection.execute("UPDATE account SET amount = amount + 10 WHERE id = %s", (1 - first,))
                except dbapi.OperationalError:
                    with suppress(dbapi.OperationalError):
                        connection.execute("UPDATE account SET amount = amount + 500 WHERE id = 3")
        except dbapi.OperationalError as error:
            failed.append(error)

    threads = [threading.Thread(target=careless, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [error.args[0] for error in failed] == [1213]
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1000


def test_a_link_that_is_lost_before_commit_runs_the_unit_again(accounts: Pool, pools: Callable[[str], Pool],
                                                               mariadb: MariaDB, proxy: FaultProxy) -> None:
    """Nothing of it can be stored."""
    pool = pools(proxy.url_for(mariadb))
    transaction = Transactions(lambda: pool)
    runs: list[int] = []

    @transaction
    def add(connection: PooledConnection) -> None:
        runs.append(1)
        connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 0")
        if len(runs) == 1:
            proxy.cut_all()
        connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 1")

    add()
    assert len(runs) == 2
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1002


def test_a_link_that_is_lost_during_commit_is_never_run_again(accounts: Pool, pools: Callable[[str], Pool],
                                                              mariadb: MariaDB, proxy: FaultProxy) -> None:
    """It may be stored: the caller is told that nobody knows; only an idempotent unit is run again."""
    pool = pools(proxy.url_for(mariadb))
    transaction = Transactions(lambda: pool)
    runs: list[int] = []

    def add(connection: PooledConnection) -> None:
        runs.append(1)
        connection.execute("UPDATE account SET amount = 50 WHERE id = 0")
        if len(runs) == 1:
            proxy.cut_reply_to(1)

    with pytest.raises(CommitUnknown):
        transaction(add)()
    assert len(runs) == 1
    runs.clear()
    proxy.heal()
    transaction(idempotent=True, attempts=5)(add)()
    assert len(runs) == 2
    assert _value(accounts, "SELECT amount FROM account WHERE id = 0") == 50


def test_a_unit_costs_two_round_trips_beside_its_own(accounts: Pool, pools: Callable[[str], Pool], mariadb: MariaDB,
                                                     proxy: FaultProxy) -> None:
    """BEGIN and COMMIT, or BEGIN and ROLLBACK; giving the connection back costs none."""
    pool = pools(proxy.url_for(mariadb))
    pool.connection().close()
    for error in (None, RuntimeError()):
        before = proxy.commands
        with suppress(RuntimeError), Transactions(lambda: pool)() as connection:
            connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 0")
            if error is not None:
                raise error
        assert proxy.commands - before == 3


def test_an_error_of_the_app_rolls_back_and_is_not_run_again(accounts: Pool) -> None:
    """Nor is a statement that the server refuses."""
    transaction = Transactions(lambda: accounts)
    runs: list[int] = []

    @transaction
    def fail(connection: PooledConnection, error: Exception | None) -> None:
        runs.append(1)
        connection.execute("UPDATE account SET amount = 0")
        if error is not None:
            raise error
        connection.execute("SELECT nonsense")

    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    with pytest.raises(dbapi.OperationalError):
        fail(None)
    assert len(runs) == 2
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1000


def test_a_lock_that_is_waited_for_too_long_is_run_again_up_to_the_attempts(accounts: Pool) -> None:
    """Then the server's error is the caller's."""
    transaction = Transactions(lambda: accounts)
    runs: list[int] = []

    @transaction(attempts=2)
    def wait(connection: PooledConnection) -> None:
        runs.append(1)
        connection.execute("SET SESSION innodb_lock_wait_timeout = 1, @mine = 1")
        connection.execute("UPDATE account SET amount = 0 WHERE id = 0")

    with accounts.connection() as holder:
        holder.begin()
        holder.execute("UPDATE account SET amount = 1 WHERE id = 0")
        with pytest.raises(dbapi.OperationalError) as caught:
            wait()
        holder.rollback()
    assert caught.value.args[0] == 1205
    assert len(runs) == 2
    assert _value(accounts, "SELECT @mine IS NULL") == 1


def test_nesting_joins_and_only_the_outermost_is_run_again(accounts: Pool) -> None:
    """One transaction, one connection, one commit."""
    transaction = Transactions(lambda: accounts)

    @transaction
    def inner(connection: PooledConnection) -> int:
        connection.execute("UPDATE account SET amount = amount + 5 WHERE id = 1")
        return id(connection)

    with pytest.raises(RuntimeError), transaction() as outer:
        assert inner() == id(outer)
        with transaction() as same:
            assert same is outer
        raise RuntimeError
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1000


def test_the_budget_runs_out_and_fills_again() -> None:
    """An outage is not multiplied."""
    budget = Budget(share=0.0, rate=0.001, most=3)
    assert not budget.take()
    budget = Budget(share=1.0, rate=0.0, most=2)
    budget.unit()
    budget.unit()
    budget.unit()
    assert [budget.take() for _ in range(3)] == [True, True, False]


def test_a_table_that_is_altered_meanwhile_runs_the_unit_again(accounts: Pool, mariadb: MariaDB) -> None:
    """Its snapshot is older than the table as it is now (1412): only a new transaction can read that."""
    runs: list[int] = []

    @Transactions(lambda: accounts)
    def unit(connection: PooledConnection) -> int:
        runs.append(1)
        connection.execute("SELECT SUM(amount) FROM account").fetchone()
        if len(runs) == 1:
            mariadb.admin("ALTER TABLE app.done ADD COLUMN more INT, ALGORITHM=COPY")
        connection.execute("SELECT more FROM done").fetchall()
        connection.execute("INSERT INTO done VALUES (1, 2)")
        return len(runs)

    assert unit() == 2
    assert _value(accounts, "SELECT COUNT(*) FROM done") == 1


def test_a_row_that_may_not_be_waited_for_runs_the_unit_again(accounts: Pool, mariadb: MariaDB) -> None:
    """NOWAIT: 1205 of MariaDB, 3572 of MySQL."""
    runs: list[int] = []
    with closing(mariadb.connect(autocommit=False)) as other:
        other.query("UPDATE account SET amount = 0 WHERE id = 0")

        @Transactions(lambda: accounts)
        def unit(connection: PooledConnection) -> None:
            runs.append(1)
            if len(runs) == 2:
                other.rollback()
            connection.execute("SELECT amount FROM account WHERE id = 0 FOR UPDATE NOWAIT").fetchone()
            connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 0")

        unit()
    assert len(runs) == 2
    assert _value(accounts, "SELECT amount FROM account WHERE id = 0") == 101


def test_a_transaction_is_its_thread_s_own(accounts: Pool) -> None:
    """A thread that begins one inside another thread's does not join it: what that rolls back is not its."""
    transaction = Transactions(lambda: accounts)
    seen: list[Any] = []

    def beside() -> None:
        with transaction() as own:
            own.execute("UPDATE account SET amount = amount + 7 WHERE id = 5")
            seen.append(own)

    with suppress(RuntimeError), transaction() as connection:
        connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 0")
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join(30)
        assert seen
        assert seen[0] is not connection
        raise RuntimeError
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1007


def test_attempts_below_one_are_refused() -> None:
    """With what to give."""
    with pytest.raises(StabilityError, match="at least 1"):
        Transactions(lambda: None)(attempts=0)  # type: ignore[arg-type, return-value]


@pytest.fixture
def failing(accounts: Pool) -> Pool:
    """A server function ``fail(code)`` that ends a statement with that error."""
    with accounts.connection() as connection:
        connection.execute("DROP FUNCTION IF EXISTS fail")
        connection.execute("CREATE FUNCTION fail(code INT) RETURNS INT BEGIN SIGNAL SQLSTATE '45000' "
                           "SET MYSQL_ERRNO = code, MESSAGE_TEXT = 'the --read-only option'; RETURN 0; END")
    return accounts


@pytest.mark.parametrize(("codes", "runs"), [
    pytest.param((1213, 3101, 1020), 3, id="rolled back by the server"),
    pytest.param((1205, 1412, 3058, 3572), 3, id="lock wait"),
    pytest.param((1290, 1792, 1836), 3, id="read-only"),
    pytest.param((1927, 4031, 1053), 3, id="link lost"),
    pytest.param((1044, 1045, 1049, 1129, 1130), 1, id="refused"),
    pytest.param((1969, 3024, 1317), 1, id="time limit"),
    pytest.param((1054, 1062, 1146, 1406), 1, id="anything else"),
])
def test_the_table_of_retries(failing: Pool, codes: tuple[int, ...], runs: int) -> None:
    """Each error number that the server can end a statement with: run three times, or once."""
    transaction = Transactions(lambda: failing)

    @transaction
    def unit(connection: PooledConnection, code: int, seen: list[int]) -> None:
        seen.append(code)
        connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 0")
        connection.execute("SELECT fail(%s)", (code,))

    for code in codes:
        seen: list[int] = []
        with pytest.raises(dbapi.Error) as caught:
            unit(code, seen)
        assert caught.value.args[0] == code
        assert seen == [code] * runs
    assert _value(failing, "SELECT SUM(amount) FROM account") == 1000


def test_an_empty_budget_means_no_second_run(failing: Pool) -> None:
    """Whatever a unit may be run again for, an outage is not multiplied; ten a second come back."""
    transaction = Transactions(lambda: failing)
    runs: list[int] = []

    @transaction
    def unit(connection: PooledConnection) -> None:
        runs.append(1)
        connection.execute("SELECT fail(1213)")

    transaction._budget = Budget(share=0.0, rate=1e-9, most=1)
    for _ in range(5):
        with pytest.raises(dbapi.OperationalError):
            unit()
    assert len(runs) == 5
    assert failing.stats()["retries_num"] == 0
    transaction._budget = Budget()
    with pytest.raises(dbapi.OperationalError):
        unit()
    assert len(runs) == 8


def test_pauses_between_runs_are_random_and_grow(failing: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """uniform(0, min(2, 0.05 · 2ⁿ)) seconds, so that two that collided do not collide again."""
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return 0.0

    monkeypatch.setattr(retries.random, "uniform", uniform)

    @Transactions(lambda: failing)(attempts=8)
    def unit(connection: PooledConnection) -> None:
        connection.execute("SELECT fail(1213)")

    with pytest.raises(dbapi.OperationalError):
        unit()
    assert asked[:7] == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.8), (0, 1.6), (0, 2.0), (0, 2.0)]


def test_a_failover_is_answered_by_new_connections(accounts: Pool, mariadb: MariaDB) -> None:
    """Idle connections may lead to what was the primary as well: the unit is run again on one that is new."""
    transaction = Transactions(lambda: accounts)
    with accounts.connection() as one, accounts.connection() as two:
        before = max(int(one.thread_id()), int(two.thread_id()))
    sessions: list[int] = []

    @transaction
    def unit(connection: PooledConnection) -> None:
        sessions.append(int(connection.thread_id()))
        try:
            connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 0")
        finally:
            mariadb.admin("SET GLOBAL read_only = OFF")

    mariadb.admin("SET GLOBAL read_only = ON")
    try:
        unit()
    finally:
        mariadb.admin("SET GLOBAL read_only = OFF")
    assert len(sessions) == 2
    assert sessions[0] <= before < sessions[1]


@pytest.fixture
def strict_server(mariadb: MariaDB) -> Iterator[MariaDB]:
    """A server that ends the whole transaction when a lock is waited for too long."""
    server = type(mariadb)("--innodb-rollback-on-timeout=ON")
    yield server
    server.destroy()


def test_a_lock_wait_that_ended_the_transaction_takes_nothing_more(strict_server: MariaDB,
                                                                  pools: Callable[..., Pool]) -> None:
    """With innodb_rollback_on_timeout 1205 is like a deadlock; what follows would be stored alone."""
    pool = pools(strict_server.url)
    with pool.connection() as connection:
        connection.execute("CREATE TABLE t (id INT PRIMARY KEY) ENGINE=InnoDB")
        connection.execute("INSERT INTO t VALUES (1)")
    with pool.connection() as holder:
        holder.begin()
        holder.execute("UPDATE t SET id = 1 WHERE id = 1")
        holder.execute("DELETE FROM t WHERE id = 1")
        with pytest.raises(dbapi.OperationalError) as caught, Transactions(lambda: pool)() as connection:
            connection.execute("INSERT INTO t VALUES (2)")
            connection.execute("SET SESSION innodb_lock_wait_timeout = 1")
            with suppress(dbapi.OperationalError):
                connection.execute("DELETE FROM t WHERE id = 1")
            with suppress(dbapi.OperationalError):
                connection.execute("INSERT INTO t VALUES (3)")
        holder.rollback()
    assert caught.value.args[0] == 1205
    assert _value(pool, "SELECT GROUP_CONCAT(id) FROM t") == "1"


def test_a_statement_that_failed_alone_may_be_swallowed(accounts: Pool) -> None:
    """A lock not to be had, a duplicate, a wrong name: the transaction is still there, and the app's to end."""
    with accounts.connection() as holder:
        holder.begin()
        holder.execute("UPDATE account SET amount = 1 WHERE id = 0")
        with Transactions(lambda: accounts)() as connection:
            for statement in ("SELECT * FROM account WHERE id = 0 FOR UPDATE NOWAIT",
                              "INSERT INTO account VALUES (1, 1)", "SELECT nonsense"):
                with pytest.raises(dbapi.Error):
                    connection.execute(statement)
            connection.execute("UPDATE account SET amount = 7 WHERE id = 2")
        holder.rollback()
    assert _value(accounts, "SELECT amount FROM account WHERE id = 2") == 7


def test_the_block_alone_commits(accounts: Pool) -> None:
    """A commit by hand inside would let half a unit be stored, and its other half be run twice."""
    with pytest.raises(dbapi.ProgrammingError, match="at the end of its block"), \
            Transactions(lambda: accounts)() as connection:
        connection.execute("UPDATE account SET amount = 0 WHERE id = 0")
        for by_hand in (connection.begin, connection.rollback, lambda: connection.autocommit(True)):
            with pytest.raises(dbapi.ProgrammingError):
                by_hand()
        connection.commit()
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1000


@pytest.mark.parametrize(("within", "statements"), [
    (True, ["SELECT 1", "/* why */ update t SET a = 1", "(SELECT 1)", "WITH x AS (SELECT 1) SELECT * FROM x",
            "SAVEPOINT s", "ROLLBACK TO s", "rollback work to savepoint s", "RELEASE SAVEPOINT s", "SET @a = 1",
            "SET SESSION sort_buffer_size = 1", "CREATE TEMPORARY TABLE t (a INT)", "DROP TEMPORARY TABLE t"]),
    (False, ["COMMIT", "ROLLBACK", "BEGIN", "START TRANSACTION", "CREATE TABLE t (a INT)", "DROP TABLE t",
             "ALTER TABLE t ADD b INT", "TRUNCATE t", "RENAME TABLE t TO u", "GRANT ALL ON a.* TO b",
             "LOCK TABLES t READ", "CALL p()", "SET autocommit = 1", "SET @a = 1, @@autocommit = 1",
             "SET PASSWORD = ''", "SET STATEMENT max_statement_time = 1 FOR CREATE TABLE t (a INT)",
             "/*!50000 COMMIT */", "", b"SELECT 1"]),
])
def test_which_statements_cannot_end_a_transaction(within: bool, statements: list[str]) -> None:
    """What is not understood may."""
    assert [sql for sql in statements if stays_within(sql) != within] == []


@pytest.mark.parametrize("statement", ["CREATE TABLE IF NOT EXISTS other (id INT)", "COMMIT", "TRUNCATE done",
                                       "SET autocommit = 1", "LOCK TABLES account WRITE", "CALL nothing()"])
def test_what_ended_its_transaction_itself_is_not_run_again(
        statement: str, accounts: Pool, pools: Callable[[str], Pool], mariadb: MariaDB, proxy: FaultProxy) -> None:
    """A part of it may be stored already: a lost link leaves that open, and only the caller may say "again"."""
    pool = pools(proxy.url_for(mariadb))
    with accounts.connection() as connection:
        connection.execute("DROP PROCEDURE IF EXISTS nothing")
        connection.execute("CREATE PROCEDURE nothing() COMMIT")
    runs: list[int] = []

    def unit(connection: PooledConnection) -> None:
        runs.append(1)
        connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 0")
        connection.execute(statement)
        if len(runs) == 1:
            proxy.cut_all()
        connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 0")

    with pytest.raises(CommitUnknown):
        Transactions(lambda: pool)(unit)()
    assert len(runs) == 1
    runs.clear()
    Transactions(lambda: pool)(idempotent=True)(unit)()
    assert len(runs) == 2


def test_a_unit_inside_that_failed_dooms_the_outer_one(accounts: Pool) -> None:
    """Half a unit is never stored, even if the outer one swallows the exception."""
    transaction = Transactions(lambda: accounts)

    @transaction
    def inner(connection: PooledConnection) -> None:
        connection.execute("UPDATE account SET amount = amount - 5 WHERE id = 1")
        raise KeyError("no such customer")

    with pytest.raises(StabilityError, match="KeyError"), transaction() as connection:
        connection.execute("UPDATE account SET amount = amount - 5 WHERE id = 2")
        with suppress(KeyError):
            inner()
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1000


def test_an_error_of_another_connection_is_not_a_reason(accounts: Pool) -> None:
    """What that one did in autocommit is stored: the unit would do it twice."""
    transaction = Transactions(lambda: accounts)

    @transaction
    def unit(connection: PooledConnection) -> None:
        with accounts.connection() as other:
            other.execute("INSERT INTO done VALUES (NULL)" if runs else "INSERT INTO done VALUES (1)")
            runs.append(1)
            other.execute(f"KILL {other.thread_id()}")

    runs: list[int] = []
    with pytest.raises(dbapi.OperationalError):
        unit()
    assert len(runs) == 1


def test_a_request_s_deadline_ends_the_retries(failing: Pool) -> None:
    """The last second belongs to the answer."""
    runs: list[int] = []

    @Transactions(lambda: failing)(attempts=1000)
    def unit(connection: PooledConnection) -> None:
        runs.append(1)
        if len(runs) == 3:
            record.timeout = record.seconds() + 0.9
        connection.execute("SELECT fail(1213)")

    with serving(3600.0) as record, pytest.raises(dbapi.OperationalError):
        unit()
    assert len(runs) == 3


def test_what_would_commit_before_it_runs_is_refused() -> None:
    """Coroutines and generators."""
    transaction = Transactions(lambda: None)  # type: ignore[arg-type, return-value]

    async def coroutine(connection: PooledConnection) -> None: ...

    def generator(connection: PooledConnection) -> Iterator[int]:
        yield 1

    for function in (coroutine, generator):
        with pytest.raises(StabilityError, match="plain function"):
            transaction(function)


def test_a_block_is_for_one_with_statement(accounts: Pool) -> None:
    """Shared by two, one would commit the other's work."""
    block = Transactions(lambda: accounts)()
    with block, pytest.raises(StabilityError, match="each `with`"):
        block.__enter__()
    with block as connection:
        assert connection.in_transaction


def test_a_block_that_was_never_left_does_not_catch_the_next_request(accounts: Pool) -> None:
    """A generator that nobody closed: its request gave the connection back, the thread begins anew."""
    transaction = Transactions(lambda: accounts)

    def stream() -> Iterator[int]:
        with transaction() as connection:
            connection.execute("UPDATE account SET amount = 0")
            yield 1

    with serving():
        left_open = stream()
        next(left_open)
    with serving(), transaction() as connection:
        connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 0")
    with pytest.raises(dbapi.InterfaceError):
        next(left_open)
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1001


def test_a_forked_child_has_no_part_in_its_parent_s_transaction(accounts: Pool) -> None:
    """It begins one of its own; the parent's is stored by the parent alone."""
    transaction = Transactions(lambda: accounts)
    with transaction() as connection:
        connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 0")
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException), transaction() as own:
                own.execute("UPDATE account SET amount = amount + 10 WHERE id = 1")
                os._exit(0 if own is not connection else 1)
            os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1001
