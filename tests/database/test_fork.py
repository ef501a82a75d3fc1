"""A process that forks while the pool is in use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import MySQLdb
import pytest

from flask_stability.database.pool import Pool
from flask_stability.exceptions import DatabaseUnavailable
from support import wait_until
from support_db import MariaDB

MakePool = Callable[..., Pool]


def in_child(function: Callable[[], Any]) -> str:
    """What a function returns in a forked child, or the name of what it raises."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(function()).encode())
        except BaseException as error:
            os.write(writer, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def connection_id(connection: Any) -> int:
    """As the server sees it."""
    return int(connection.execute("SELECT CONNECTION_ID()").fetchone()[0])


def test_a_child_begins_with_an_empty_pool(make_pool: MakePool) -> None:
    """Idle connections stay the parent's; the child opens its own and gives it back to a pool of its own."""
    pool = make_pool()
    with pool.connection() as connection:
        parents = connection_id(connection)

    def use() -> list[int]:
        before = int(pool.stats()["pool_size"])
        with pool.connection() as connection:
            own = connection_id(connection)
        return [before, own != parents, int(pool.stats()["pool_available"])]

    assert in_child(use) == "[0, True, 1]"
    with pool.connection() as connection:
        assert connection_id(connection) == parents


def test_a_child_cannot_use_the_parents_connection(make_pool: MakePool) -> None:
    """A connection in the hands of the parent fails in the child and, given back there, is nowhere."""
    pool = make_pool()
    connection = pool.connection()

    assert in_child(lambda: connection.execute("SELECT 1")) == "InterfaceError"
    assert in_child(lambda: (connection.close(), pool.stats()["pool_available"], pool.inventory.taken)[1:]) == "(0, 0)"
    assert connection.execute("SELECT 1").fetchall() == ((1,),)
    connection.close()


def test_a_connection_in_the_middle_of_a_call_is_silenced_too(make_pool: MakePool, mariadb: MariaDB) -> None:
    """While another thread waits for an answer, a child ends, finalizers and all, without a byte on that socket."""
    pool = make_pool()
    answers: list[Any] = []
    gate = mariadb.connect()
    gate.cursor().execute("SELECT GET_LOCK('gate', 0)")
    thread = threading.Thread(
        target=lambda: answers.append(pool.connection().execute("SELECT GET_LOCK('gate', 60)").fetchall()))
    thread.start()
    wait_until(lambda: any(entry.inside for entry in pool.inventory.records))
    raw = next(iter(pool.inventory.records)).raw

    def speak() -> str:
        try:
            raw.close()  # says goodbye, to nobody
        except MySQLdb.Error as error:
            return type(error).__name__
        return "closed"

    assert in_child(speak) in ("closed", "ProgrammingError")
    assert not answers
    gate.close()
    thread.join(20)
    assert answers == [((1,),)]


@pytest.mark.parametrize("lock", ["pool", "counters"])
def test_a_lock_held_at_the_fork_does_not_hang_the_child(make_pool: MakePool, lock: str) -> None:
    """Another thread holds the pool's or the counters' lock at the moment of the fork."""
    pool = make_pool()
    pool.connection().close()
    held = pool.inventory.lock if lock == "pool" else pool.counters._lock
    with held:
        assert in_child(lambda: connection_id(pool.connection()) > 0) == "True"


def test_a_child_of_an_outage_asks_for_itself(make_pool: MakePool, mariadb: MariaDB) -> None:
    """An open breaker is the parent's experience."""
    pool = make_pool()
    pool.availability.breaker.trip("somebody said so", 1e12)
    pool.availability.breaker.opened = 1e12  # nobody asks again before that
    with pytest.raises(DatabaseUnavailable):
        pool.connection()
    assert in_child(lambda: connection_id(pool.connection()) > 0) == "True"


def test_the_keeper_belongs_to_one_process(make_pool: MakePool) -> None:
    """A child has no keeper thread; it may start one of its own."""
    pool = make_pool()
    pool.start()

    def start() -> list[bool]:
        before = pool.housekeeper is None
        pool.start()
        return [before, any(thread.name == "stability-housekeeper" for thread in threading.enumerate())]

    assert in_child(start) == "[True, True]"
