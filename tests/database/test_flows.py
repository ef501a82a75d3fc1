"""Who may use a transaction's connection: the thread, greenlet or task that began it, and nobody else."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import greenlet
import pytest
from asgiref.sync import async_to_sync, sync_to_async

from flask_stability.database import Pool
from flask_stability.database.transaction import Transactions
from flask_stability.exceptions import StabilityError
from support import wait_until
from support_db import MariaDB


@pytest.fixture
def rows(make_pool: Callable[..., Pool]) -> Pool:
    """A pool, and an empty table."""
    pool = make_pool(db_max_size=4)
    with pool.connection() as connection:
        connection.execute("CREATE TABLE kept (id INT PRIMARY KEY) ENGINE=InnoDB")
    return pool


def _kept(pool: Pool) -> list[int]:
    with pool.connection() as connection:
        return [row[0] for row in connection.execute("SELECT id FROM kept ORDER BY id")]


def test_greenlets_of_one_thread_have_a_transaction_each(rows: Pool) -> None:
    """What one of them committed stays, whatever becomes of the other's."""
    transaction = Transactions(lambda: rows)

    def fails() -> None:
        with transaction() as connection:
            connection.execute("INSERT INTO kept VALUES (1)")
            main.switch()
            raise RuntimeError

    def stores() -> None:
        with transaction() as connection:
            connection.execute("INSERT INTO kept VALUES (2)")

    main = greenlet.getcurrent()
    first = greenlet.greenlet(fails)
    first.switch()
    greenlet.greenlet(stores).switch()
    with suppress(RuntimeError):
        first.switch()
    assert _kept(rows) == [2]


def _joins(transaction: Transactions) -> None:
    with transaction() as connection:
        connection.execute("INSERT INTO kept VALUES (2)")


def test_a_copied_context_does_not_carry_a_transaction_to_another_thread(rows: Pool) -> None:
    """A clear error there; the unit itself is stored; afterwards the same context begins a unit of its own."""
    transaction = Transactions(lambda: rows)
    with ThreadPoolExecutor(1) as executor:
        with transaction() as connection:
            connection.execute("INSERT INTO kept VALUES (1)")
            context = contextvars.copy_context()
            with pytest.raises(StabilityError, match=r"another thread, greenlet or task.*contextvars\.Context"):
                executor.submit(context.run, _joins, transaction).result(30)
            executor.submit(contextvars.Context().run, _joins, transaction).result(30)  # as the error advises
        with rows.connection() as connection:
            connection.execute("DELETE FROM kept WHERE id = 2")
        executor.submit(context.run, _joins, transaction).result(30)
    assert _kept(rows) == [1, 2]
    assert rows.stats()["pool_in_use"] == 0


def test_a_greenlet_with_a_copied_context_does_not_join(rows: Pool) -> None:
    """gevent copies the context of whoever spawns a greenlet."""
    transaction = Transactions(lambda: rows)
    seen: list[BaseException] = []

    def spawned() -> None:
        try:
            _joins(transaction)
        except StabilityError as error:
            seen.append(error)

    with transaction() as connection:
        connection.execute("INSERT INTO kept VALUES (1)")
        child = greenlet.greenlet(spawned)
        child.gr_context = contextvars.copy_context()
        child.switch()
    assert len(seen) == 1
    assert _kept(rows) == [1]


def test_tasks_of_one_loop_do_not_share_a_transaction(rows: Pool) -> None:
    """A task that is made inside a unit is another flow; the unit's own task goes on joining it."""
    transaction = Transactions(lambda: rows)

    async def child() -> None:
        _joins(transaction)

    async def parent() -> None:
        with transaction() as connection:
            connection.execute("INSERT INTO kept VALUES (1)")
            with pytest.raises(StabilityError, match="another thread, greenlet or task"):
                await asyncio.create_task(child())
            await child()

    asyncio.run(parent())
    assert _kept(rows) == [1, 2]


def test_asgiref_s_threads_do_not_join(rows: Pool) -> None:
    """An async view runs beside its thread, and hands its context to the threads that it asks."""
    transaction = Transactions(lambda: rows)

    async def view() -> None:
        with transaction() as connection:
            connection.execute("INSERT INTO kept VALUES (1)")
            with pytest.raises(StabilityError, match="another thread, greenlet or task"):
                await sync_to_async(_joins, thread_sensitive=False)(transaction)

    async_to_sync(view)()
    assert _kept(rows) == [1]


def test_a_second_thread_on_a_connection_that_is_in_a_call_is_refused(rows: Pool, mariadb: MariaDB) -> None:
    """Not every driver notices: two that write to one socket read each other's answers."""
    def sleeps() -> None:
        with suppress(rows.driver.dbapi.Error):
            connection.execute("SELECT SLEEP(60)")

    with rows.connection() as connection:
        first = threading.Thread(target=sleeps, daemon=True)
        first.start()
        wait_until(lambda: connection.record.inside, message="the call")
        with pytest.raises(rows.driver.dbapi.ProgrammingError, match="one for each"):
            connection.execute("SELECT 1")
        mariadb.kill_sessions()
        first.join(30)
    assert not first.is_alive()


_PATCHED_LATE = """
import flask_stability.database.waiters, flask_stability.wsgi.middleware
from flask_stability import StabilityExt
from gevent import monkey
monkey.patch_all()
import gevent, threading
from flask import Flask
from flask_stability import request
from flask_stability.database.waiters import Waiter

app = Flask("late")
stability = StabilityExt(app)

@app.get("/<int:number>")
def view(number):
    first = request.current()
    gevent.sleep(0.01)
    assert request.current() is first, "the record of another greenlet"
    assert first.path == f"/{number}", first.path
    assert Waiter(0.0, 1.0).thread_id == threading.get_ident() == first.thread_id
    return str(number)

def get(number):
    return app.test_client().get(f"/{number}", environ_base={"SERVER_SOFTWARE": "test"}).text

greenlets = [gevent.spawn(get, number) for number in range(20)]
found = [greenlet.get() for greenlet in greenlets]
assert found == [str(number) for number in range(20)], found
print("apart")
"""


def test_names_taken_before_gevent_patched_are_looked_up_anew() -> None:
    """The master imports this package, and its workers patch afterwards: no greenlet is taken for another."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _PATCHED_LATE], capture_output=True, text=True,
                          timeout=120)
    assert done.stdout == "apart\n", done.stderr
