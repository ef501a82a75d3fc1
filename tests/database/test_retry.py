"""Transactions against a real MariaDB: what is run again, and what never is."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import MySQLdb
import pytest

from flask_stability.config import Settings
from flask_stability.database import Pool, PooledConnection
from flask_stability.database.retry import Budget, Transactions
from flask_stability.exceptions import CommitUnknown, DatabaseUnavailable, StabilityError
from support_db import FaultProxy, MariaDB


@pytest.fixture
def pools(mariadb: MariaDB) -> Iterator[Callable[[str], Pool]]:
    """Makes pools that are closed with the test."""
    made: list[Pool] = []

    def make(url: str, **changes: Any) -> Pool:
        pool = Pool(replace(Settings(), db_url=url, db_max_size=8, db_max_idle=8, **changes))
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
                except MySQLdb.OperationalError:
                    with suppress(MySQLdb.OperationalError):
                        connection.execute("UPDATE account SET amount = amount + 500 WHERE id = 3")
        except MySQLdb.OperationalError as error:
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
    with pytest.raises(MySQLdb.OperationalError):
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
        with pytest.raises(MySQLdb.OperationalError) as caught:
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


def test_attempts_below_one_are_refused() -> None:
    """With what to give."""
    with pytest.raises(StabilityError, match="at least 1"):
        Transactions(lambda: None)(attempts=0)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_cut_the_sum_is_kept_and_each_acknowledged_transfer_is_there_once(
        seed: int, accounts: Pool, pools: Callable[[str], Pool], mariadb: MariaDB, proxy: FaultProxy) -> None:
    """Random cuts and deadlocks over transfers by four threads; `CommitUnknown` is the only uncertain answer."""
    pool = pools(proxy.url_for(mariadb))
    transaction = Transactions(lambda: pool)
    acknowledged: list[int] = []
    unknown: list[int] = []
    refused: list[int] = []

    @transaction(attempts=5)
    def transfer(connection: PooledConnection, number: int, source: int, target: int) -> None:
        connection.execute("INSERT INTO done VALUES (%s)", (number,))
        connection.execute("UPDATE account SET amount = amount - 1 WHERE id = %s", (source,))
        connection.execute("UPDATE account SET amount = amount + 1 WHERE id = %s", (target,))

    def work(thread: int) -> None:
        rng = random.Random(seed * 100 + thread)
        for index in range(40):
            number = thread * 1000 + index
            source, target = rng.sample(range(4), 2)
            if rng.random() < 0.15:
                rng.choice([proxy.cut_all, lambda: proxy.cut_reply_to(rng.randint(1, 6)),
                            lambda: proxy.cut_after_reply_bytes(rng.randint(1, 60))])()
            try:
                transfer(number, source, target)
                acknowledged.append(number)
            except CommitUnknown:
                unknown.append(number)
            except (MySQLdb.Error, DatabaseUnavailable):
                refused.append(number)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with accounts.connection() as connection:
        stored = {row[0] for row in connection.execute("SELECT id FROM done").fetchall()}
    assert _value(accounts, "SELECT SUM(amount) FROM account") == 1000
    assert set(acknowledged) <= stored
    assert not set(refused) & stored
    assert stored <= set(acknowledged) | set(unknown)
    assert len(acknowledged) > 80, (len(acknowledged), len(unknown), len(refused))
