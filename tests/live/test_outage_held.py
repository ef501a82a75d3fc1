"""An outage of the database is a pause: requests that need it wait for it, on a real gunicorn and a real database."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from supervised import Supervised, starting

from flask_stability.scoreboard import W_DB_HELD, W_THREADS
from support import wait_until
from support_db import MariaDB

pytestmark = pytest.mark.long

POOL = '''
import os
from flask import Flask
from flask_stability import StabilityExt
from flask_stability.exceptions import DatabaseUnavailable

app = Flask(__name__)
stability = StabilityExt(app)

@app.get("/")
def index():
    return {"pid": os.getpid()}

@app.get("/read")
def read():
    with stability.connection() as connection:
        return {"notes": connection.execute("SELECT COUNT(*) FROM note").fetchone()[0]}

@app.get("/fallback")
def fallback():
    try:
        with stability.connection(wait=False) as connection:
            connection.execute("SELECT 1")
            return {"from": "the database"}
    except DatabaseUnavailable:
        return {"from": "the fallback"}

@app.get("/write/<number>")
@stability.transaction
def write(connection, number):
    connection.execute("INSERT INTO note VALUES (%s)", (number,))
    return {}
'''
ENGINE = '''
import os
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_stability import StabilityExt
from flask_stability.sqlalchemy import StabilityPool
from sqlalchemy import text

app = Flask(__name__)
app.config.update(SQLALCHEMY_DATABASE_URI=os.environ["ENGINE_URL"],
                  SQLALCHEMY_ENGINE_OPTIONS={"poolclass": StabilityPool, "pool_timeout": 1})
stability = StabilityExt(app)
db = SQLAlchemy(app)

@app.get("/")
def index():
    return {"pid": os.getpid()}

@app.get("/read")
def read():
    return {"notes": db.session.execute(text("SELECT COUNT(*) FROM note")).scalar()}

@app.get("/write/<number>")
@stability.transaction(session=db.session)
def write(session, number):
    session.execute(text("INSERT INTO note VALUES (:number)"), {"number": number})
    return {}
'''
#: Threads of a gthread worker.
THREADS = 4
Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path, mariadb: MariaDB) -> Iterator[Start]:
    """Starts a service on a database with a table; its requests wait for a minute, so that no test depends on how fast
    the machine is.
    """
    mariadb.admin(f"CREATE TABLE {mariadb.name}.note (number VARCHAR(32) NOT NULL)")
    with starting(tmp_path) as begin:
        def ready(source: str = POOL, worker_class: str = "gthread", workers: int = 2, config: str = "",
                  **env: str) -> Supervised:
            url = mariadb.url if "+" in mariadb.scheme else mariadb.url.replace("mysql:", "mysql+mysqldb:")
            where = {"ENGINE_URL": url} if source == ENGINE else {"STABILITY_DB_URL": mariadb.url}
            server = begin(source=source, worker_class=worker_class, workers=workers, config=config,
                           env={**where, "STABILITY_DB_OUTAGE_PATIENCE": "90", "STABILITY_REQUEST_TIMEOUT": "120",
                                "STABILITY_DB_TIMEOUT": "60", **env})
            server.full(workers)
            wait_until(lambda: server.get("/read").status_code == 200)
            return server

        yield ready


@contextlib.contextmanager
def asking(server: Supervised, paths: list[str]) -> Iterator[list[Future[requests.Response]]]:
    """Requests under way, each on a connection of its own."""
    with ThreadPoolExecutor(len(paths)) as clients:
        yield [clients.submit(server.get, path, timeout=120) for path in paths]


def held(server: Supervised) -> int:
    """Requests that are held, as the workers show it."""
    return sum(row.words[W_DB_HELD] for row in server.board().live())


def stored(database: MariaDB) -> list[str]:
    """What is in the table."""
    return sorted(row[0] for row in database.admin(f"SELECT number FROM {database.name}.note"))


@pytest.mark.mysql_too
@pytest.mark.pymysql_too
@pytest.mark.parametrize("source", [POOL, ENGINE], ids=["pool", "engine"])
def test_requests_wait_for_a_database_that_is_away(start: Start, mariadb: MariaDB, source: str) -> None:
    """More than the workers have threads; the rest is served, /health says fail, and each write is stored once."""
    server = start(source)
    mariadb.kill9()
    paths = [f"/write/{number:02}" for number in range(10)] + ["/read"] * 10
    with asking(server, paths) as answers:
        wait_until(lambda: held(server) == 20, 60, message="all are held")
        assert not any(one.done() for one in answers)
        assert {server.get("/").status_code for _ in range(20)} == {200}
        assert server.get("/health/live").status_code == 200
        wait_until(lambda: server.get("/health").status_code == 503, 60, message="/health says fail")
        if source == POOL:
            wait_until(lambda: server.health()["detailed"]["database"]["pool"]["held"] == 20, message="it says so")
            assert "flask_stability_db_requests_held 20.0" in server.get("/health/metrics").text
        mariadb.start()
        assert [one.result(120).status_code for one in answers] == [200] * 20
    assert stored(mariadb) == [f"{number:02}" for number in range(10)]
    wait_until(lambda: held(server) == 0)
    wait_until(lambda: {row.words[W_THREADS] for row in server.board().live()} == {THREADS}, 60,
               message="spare threads have ended")
    lines = wait_until(lambda: (found := server.records("error", "database_back")) and sum(
        line["held"] for line in found) >= 20 and found, message="the outage's end is told")
    assert sum(line["served"] for line in lines) == sum(line["held"] for line in lines)
    assert not server.records("error", "worker_stuck")


def test_a_table_that_is_locked_is_waited_for(start: Start, mariadb: MariaDB) -> None:
    """By more requests than there are connections."""
    server = start(STABILITY_DB_MAX_SIZE="3")
    workers = server.worker_pids()
    with contextlib.closing(mariadb.connect()) as other:
        other.cursor().execute("LOCK TABLES note WRITE")
        with asking(server, [f"/write/{number:02}" for number in range(30)]) as answers:
            wait_until(lambda: sum(row.words[W_THREADS] for row in server.board().live()) > 30, 60,
                       message="spare threads have come")
            assert {server.get("/").status_code for _ in range(20)} == {200}
            assert not any(one.done() for one in answers)
            other.cursor().execute("UNLOCK TABLES")
            assert [one.result(120).status_code for one in answers] == [200] * 30
    assert stored(mariadb) == [f"{number:02}" for number in range(30)]
    assert server.worker_pids() == workers


def test_a_sync_worker_holds_a_request_only_while_another_one_serves(start: Start, mariadb: MariaDB) -> None:
    """Of three workers two at the most; the third one refuses what needs the database, and serves the rest."""
    server = start(worker_class="sync", workers=3)
    mariadb.kill9()
    with asking(server, ["/read"] * 6) as answers:
        wait_until(lambda: sum(one.done() for one in answers) >= 4, 60, message="the others are refused")
        assert held(server) <= 2
        assert {server.get("/").status_code for _ in range(20)} == {200}
        mariadb.start()
        statuses = [one.result(120).status_code for one in answers]
    assert set(statuses) <= {200, 503}
    assert statuses.count(503) >= 4
    assert len(server.worker_pids()) == 3
    wait_until(lambda: server.get("/read").status_code == 200)


def test_a_request_whose_client_leaves_is_not_held_on(start: Start, mariadb: MariaDB) -> None:
    """Its thread is free again while the database is still away."""
    server = start()
    mariadb.kill9()
    with contextlib.ExitStack() as clients:
        for _ in range(12):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
            client.sendall(b"GET /read HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: held(server) == 12, 60, message="all are held")
    wait_until(lambda: held(server) == 0, 60, message="none is held for nobody")
    assert server.get("/").status_code == 200
    mariadb.start()
    wait_until(lambda: server.get("/read").status_code == 200)


def test_no_more_are_held_than_there_may_be_threads(start: Start, mariadb: MariaDB) -> None:
    """STABILITY_DB_OUTAGE_THREADS: the others get 503 at once, the rest is served, and those that are held are too."""
    server = start(workers=1, STABILITY_DB_OUTAGE_THREADS="8")
    mariadb.kill9()
    with asking(server, [f"/write/{number:02}" for number in range(30)]) as answers:
        wait_until(lambda: held(server) >= 8 and sum(one.done() for one in answers) >= 30 - 8 - THREADS, 60,
                   message="as many are held as may be, the others are refused")
        assert held(server) <= 8 + THREADS
        assert {server.get("/").status_code for _ in range(20)} == {200}
        mariadb.start()
        statuses = [one.result(120).status_code for one in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 8
    assert len(stored(mariadb)) == statuses.count(200)


def test_patience_ends_and_code_with_a_fallback_does_not_wait(start: Start, mariadb: MariaDB) -> None:
    """503 once the outage is older than STABILITY_DB_OUTAGE_PATIENCE, then at once."""
    server = start(STABILITY_DB_OUTAGE_PATIENCE="3")
    assert server.get("/fallback").json() == {"from": "the database"}
    mariadb.kill9()
    assert server.get("/fallback").json() == {"from": "the fallback"}
    with asking(server, ["/read"] * 8) as answers:
        found = [one.result(120) for one in answers]
    assert {one.status_code for one in found} == {503}
    assert all("Retry-After" in one.headers for one in found)
    wait_until(lambda: server.get("/read").status_code == 503 and held(server) == 0)
    mariadb.start()
    wait_until(lambda: server.get("/read").status_code == 200)


def test_a_service_that_ends_answers_what_it_holds(start: Start, mariadb: MariaDB, worker_class: str) -> None:
    """With 503, before graceful_timeout is over, instead of cutting it."""
    server = start(worker_class=worker_class, config="graceful_timeout = 10")
    mariadb.kill9()
    with asking(server, ["/read"] * (6 if worker_class == "gthread" else 1)) as answers:
        wait_until(lambda: held(server) == len(answers), 60, message="they are held")
        server.signal(signal.SIGTERM)
        assert {one.result(120).status_code for one in answers} == {503}
    mariadb.start()
    assert not server.records("error", "request_cut")


def test_two_outages_in_a_row_lose_nothing(start: Start, mariadb: MariaDB) -> None:
    """A restart, and one more as soon as it is back, under writes: each that was acknowledged is stored, none twice."""
    server = start()
    acknowledged: list[str] = []
    done = threading.Event()

    def ten_more() -> None:
        before = len(acknowledged)
        wait_until(lambda: len(acknowledged) > before + 10, 60, message="writes are acknowledged")

    def client(name: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            key = f"{name}-{number}"
            if server.get(f"/write/{key}", timeout=120).status_code == 200:
                acknowledged.append(key)

    clients = [threading.Thread(target=client, args=(name,)) for name in range(6)]
    for one in clients:
        one.start()
    try:
        for _ in range(2):
            ten_more()
            mariadb.restart()
        ten_more()
    finally:
        done.set()
        for one in clients:
            one.join(120)
    found: list[Any] = stored(mariadb)
    assert len(found) == len(set(found)), "stored twice"
    assert set(acknowledged) <= set(found), "acknowledged and lost"
