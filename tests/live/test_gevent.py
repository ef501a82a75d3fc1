"""gunicorn's gevent worker: a hundred greenlets of one thread, each with its own transaction and connection.

mysqlclient holds up all greenlets while it waits, PyMySQL lets them take turns in the middle of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import Server, wait_until
from support_db import MariaDB

pytestmark = [pytest.mark.long, pytest.mark.pymysql_too]

APP = """
import contextvars

import gevent
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)

@app.get("/stores/<int:number>")
def stores(number):
    with stability.transaction() as connection:
        connection.execute("INSERT INTO kept VALUES (%s)", (number,))
        gevent.sleep(0.01 * (number % 5))
        with stability.transaction() as inner:  # joins its own, never another greenlet's
            assert inner is connection
    return "stored"

@app.get("/fails/<int:number>")
def fails(number):
    with stability.transaction() as connection:
        connection.execute("INSERT INTO kept VALUES (%s)", (number,))
        gevent.sleep(0.01 * (number % 7))
        raise ValueError(number)

@app.get("/forgets/<int:number>")
def forgets(number):
    connection = stability.connection()
    connection.execute("SELECT 1")
    gevent.sleep(0.01)
    return "forgotten"

@app.get("/spawns")
def spawns():
    with stability.transaction() as connection:
        connection.execute("INSERT INTO kept VALUES (-1)")
        child = gevent.spawn(contextvars.copy_context().run, stores, -2)
        child.join()
        assert "another thread, greenlet or task" in str(child.exception), child.exception
        gevent.spawn(stores, -3).get()  # without the context it has a transaction of its own
        raise LookupError("nothing of this one is stored")

@app.errorhandler(LookupError)
def refused(error):
    return "refused"

@app.get("/out")
def out():
    return str(stability.pool.stats()["pool_in_use"])
"""


def test_a_hundred_greenlets_keep_apart(server: Callable[..., Server], mariadb: MariaDB) -> None:
    """What was answered "stored" is there, nothing of what failed is, and every connection was given back."""
    mariadb.admin("CREATE TABLE app.kept (id INT PRIMARY KEY) ENGINE=InnoDB")
    one = server(source=APP, worker_class="gevent", workers=1,
                 env={"STABILITY_DB_URL": mariadb.url, "STABILITY_DB_MAX_SIZE": "10", "STABILITY_DB_TIMEOUT": "60",
                      "STABILITY_REQUEST_TIMEOUT": "0"})
    assert one.get("/forgets/0").text == "forgotten"

    def ask(number: int) -> int:
        kind = ("stores", "fails", "forgets")[number % 3]
        answer = one.get(f"/{kind}/{number}")
        assert answer.status_code == (500 if kind == "fails" else 200), answer.text
        return number if answer.text == "stored" else -1

    with ThreadPoolExecutor(100) as clients:
        stored = sorted(set(clients.map(ask, range(300))) - {-1})
    assert stored == list(range(0, 300, 3))
    assert [row[0] for row in mariadb.admin("SELECT id FROM app.kept ORDER BY id")] == stored
    assert one.get("/spawns").text == "refused"
    assert mariadb.admin("SELECT id FROM app.kept WHERE id < 0") == [(-3,)]
    wait_until(lambda: one.get("/out").text == "0", message="every connection was given back")
    assert len(mariadb.sessions()) <= 10 + 1  # and the one of the check
