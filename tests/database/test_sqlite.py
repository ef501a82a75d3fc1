"""Transactions on SQLite: locks between threads and processes, and errors that end a transaction by themselves."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flask_stability.config import Settings
from flask_stability.database import Pool, PooledConnection
from flask_stability.database.transaction import Transactions
from flask_stability.exceptions import StabilityError
from support import wait_until

_CHILD = '''
import random, sys
from flask_stability.config import Settings
from flask_stability.database import Pool
from flask_stability.database.transaction import Transactions

path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pool = Pool(Settings(db_url=f"sqlite:///{path}"))

@Transactions(lambda: pool)
def transfer(connection, number):
    source, target = random.sample(range(4), 2)
    (amount,) = connection.execute("SELECT amount FROM account WHERE id = %s", (source,)).fetchone()
    connection.execute("UPDATE account SET amount = %s WHERE id = %s", (amount - 1, source))
    connection.execute("UPDATE account SET amount = amount + 1 WHERE id = %s", (target,))
    connection.execute("INSERT INTO done VALUES (%s)", (number,))

print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + count):
    transfer(number)
print(pool.stats()["retries_num"])
'''


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """Makes pools on one file with four accounts of 100."""
    pools: list[Pool] = []

    def pool(**settings: Any) -> Pool:
        pools.append(Pool(Settings(db_url=f"sqlite:///{tmp_path}/bank.db", **settings)))
        return pools[-1]

    with pool().connection() as connection:
        connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER)")
        connection.execute("CREATE TABLE done (id INTEGER)")
        connection.cursor().executemany("INSERT INTO account VALUES (%s, 100)", [(number,) for number in range(4)])
    yield pool
    for one in pools:
        one.close()


def _one(pool: Pool, sql: str) -> Any:
    with pool.connection() as connection:
        return connection.execute(sql).fetchone()[0]


def _impatient(make: Callable[..., Pool]) -> Pool:
    """A pool that waits 0.05 s for a lock; its connection is open, since opening one may take longer."""
    pool = make(db_timeout=0.05, db_max_size=1, db_alive_bypass_window=1000.0)
    pool.connection(timeout=30).close()
    return pool


def test_several_processes_move_money_in_one_file(make: Callable[..., Pool], tmp_path: Path) -> None:
    """Read, then write, 4 × 50 times at once: every transfer is there once, no process gets an error."""
    pool = make()
    children = [subprocess.Popen([sys.executable, "-c", _CHILD, f"{tmp_path}/bank.db", str(number * 50), "50"],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for number in range(4)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    assert _one(pool, "SELECT SUM(amount) FROM account") == 400
    assert _one(pool, "SELECT COUNT(*) FROM done") == _one(pool, "SELECT COUNT(DISTINCT id) FROM done") == 200


def test_a_busy_file_is_a_lock_wait(make: Callable[..., Pool]) -> None:
    """The unit is begun again until the other writer is done."""
    pool = _impatient(make)
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with make().connection() as holder:
            holder.begin()
            holding.set()
            done.wait(30)
            holder.rollback()

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(30)

    @Transactions(lambda: pool)(attempts=1000)
    def unit(connection: PooledConnection) -> None:
        connection.execute("UPDATE account SET amount = 99 WHERE id = 0")

    worker = threading.Thread(target=unit)
    worker.start()
    try:
        wait_until(lambda: pool.stats()["retries_num"] >= 2, message="the unit is begun again")
    finally:
        done.set()
        thread.join()
        worker.join(30)
    assert _one(pool, "SELECT amount FROM account WHERE id = 0") == 99


def test_a_lock_that_stays_is_the_caller_s_error(make: Callable[..., Pool]) -> None:
    """After three attempts; the function itself was never called."""
    pool = _impatient(make)
    runs: list[int] = []

    @Transactions(lambda: pool)
    def unit(connection: PooledConnection) -> None:
        runs.append(1)

    with make().connection() as holder:
        holder.begin()
        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            unit()
        holder.rollback()
    assert not runs
    assert pool.stats()["retries_num"] == 2


@pytest.mark.parametrize(("statement", "error"), [
    ("INSERT OR ROLLBACK INTO account VALUES (0, 5)", sqlite3.IntegrityError),
    ("INSERT INTO done VALUES (zeroblob(1000000))", sqlite3.OperationalError)])
def test_what_sqlite_rolled_back_by_itself_takes_nothing_more(statement: str, error: type[Exception],
                                                             make: Callable[..., Pool]) -> None:
    """All of the unit is stored or nothing: never what came after an error that the app swallowed."""
    pool = make()
    stored = True
    try:
        with Transactions(lambda: pool)() as connection:
            connection.execute("UPDATE account SET amount = amount - 10 WHERE id = 0")
            connection.execute("PRAGMA max_page_count = 10").fetchall()  # SQLite's own way to a full disk
            with pytest.raises(error):
                connection.execute(statement)
            with suppress(error):
                connection.execute("UPDATE account SET amount = amount + 10 WHERE id = 1")
    except error:
        stored = False
    assert _one(pool, "SELECT SUM(amount) FROM account") == 400
    assert _one(pool, "SELECT amount FROM account WHERE id = 1") == (110 if stored else 100)
    assert not (stored and "ROLLBACK" in statement)


def test_a_full_disk_in_a_unit_is_sqlite_s_own_error_and_not_run_again(make: Callable[..., Pool]) -> None:
    """Nothing of it is stored, and the connection is still good."""
    pool = make(db_max_size=1)
    runs: list[int] = []

    @Transactions(lambda: pool)
    def unit(connection: PooledConnection) -> None:
        runs.append(1)
        connection.execute("UPDATE account SET amount = 0")
        connection.execute("PRAGMA max_page_count = 10").fetchall()
        connection.execute("INSERT INTO done VALUES (zeroblob(1000000))")

    with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
        unit()
    assert len(runs) == 1
    assert _one(pool, "SELECT SUM(amount) FROM account") == 400


def test_commit_fails_on_what_is_checked_there(make: Callable[..., Pool]) -> None:
    """A deferred foreign key: the error is known, nothing is stored, and nobody is told "unknown"."""
    pool = make()
    with pool.connection() as connection:
        connection.execute("CREATE TABLE child (id INT REFERENCES account (id) DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"), Transactions(lambda: pool)() as connection:
        connection.execute("INSERT INTO child VALUES (77)")
    assert _one(pool, "SELECT COUNT(*) FROM child") == 0


def test_a_unit_inside_that_failed_dooms_the_outer_one(make: Callable[..., Pool]) -> None:
    """As on MariaDB."""
    pool = make()
    transaction = Transactions(lambda: pool)
    with pytest.raises(StabilityError, match="ZeroDivisionError"), transaction() as connection:
        connection.execute("UPDATE account SET amount = 0 WHERE id = 0")
        with suppress(ZeroDivisionError), transaction() as same:
            same.execute("UPDATE account SET amount = 0 WHERE id = 1")
            raise ZeroDivisionError
    assert _one(pool, "SELECT SUM(amount) FROM account") == 400


def test_a_file_that_may_only_be_read_names_the_remedy(make: Callable[..., Pool], tmp_path: Path) -> None:
    """The driver's exception stays itself, and carries what to do about it."""
    with make().connection() as connection:
        connection.execute("PRAGMA query_only=ON")
        with pytest.raises(sqlite3.OperationalError, match="readonly") as caught:
            connection.execute("DELETE FROM account")
    assert caught.value.__notes__ == [
        f"give the service's user write access to {tmp_path}/bank.db and its directory"]
