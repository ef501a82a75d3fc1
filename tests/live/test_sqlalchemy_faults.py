"""The live faults of `test_database_faults` with a Flask-SQLAlchemy app: the same results.

By mysqlclient on gthread workers and by PyMySQL on sync ones; where only gthread can promise it, by both on gthread.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_database_faults
from supervised import Supervised, starting
from test_database_faults import (  # noqa: F401  # collected here again, with the app below
    Start,
    _all_is_well,
    _refused,
    _stored,
    _wait,
    campaign,
    test_a_killed_database_comes_back,
    test_a_locked_row_holds_up_only_who_wants_it,
    test_a_server_that_is_read_only_for_a_while,
    test_a_server_without_a_free_connection,
    test_killed_connections_are_hardly_noticed,
    test_views_that_keep_their_connections,
)

from support_db import FaultProxy, MariaDB

pytestmark = pytest.mark.long

SOURCE = '''
import os, threading, uuid
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from sqlalchemy.orm import Session
from flask_stability import StabilityExt
from flask_stability.sqlalchemy import StabilityPool

app = Flask(__name__)
size = int(os.environ.get("STABILITY_DB_MAX_SIZE", "20"))
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["ENGINE_URL"]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
    "poolclass": StabilityPool, "pool_size": min(10, size), "max_overflow": size - min(10, size),
    "pool_timeout": float(os.environ.get("STABILITY_DB_TIMEOUT", "10")), "connect_args": {"connect_timeout": 5}}
stability = StabilityExt(app)
db = SQLAlchemy(app)
kept = []

@app.get("/")
def index():
    return {"pid": os.getpid()}

@app.get("/threads")
def threads():
    return {"pid": os.getpid(), "names": [thread.name for thread in threading.enumerate()]}

@app.get("/setup")
def setup():
    for sql in ("CREATE TABLE IF NOT EXISTS note (id VARCHAR(32) NOT NULL)",
                "CREATE TABLE IF NOT EXISTS counted (number INTEGER NOT NULL)", "INSERT INTO counted VALUES (0)"):
        db.session.execute(text(sql))
    db.session.commit()
    return {}

@app.get("/count")
@stability.transaction(session=db.session)
def count(session):
    session.execute(text("UPDATE counted SET number = number + 1"))
    return {}

@app.get("/read")
def read():
    return {"notes": db.session.execute(text("SELECT COUNT(*) FROM note")).scalar()}

@app.get("/read-here")
def read_here():
    return {"pid": os.getpid(), **read()}

@app.get("/write")
def write():
    return {"id": note()}

@stability.transaction(session=db.session)
def note(session):
    number = uuid.uuid4().hex
    session.execute(text("INSERT INTO note VALUES (:number)"), {"number": number})
    return number

@app.get("/keep")
def keep():
    kept.append(Session(db.engine))
    kept[-1].execute(text("SELECT 1"))
    return {}
'''


@pytest.fixture(autouse=True)
def _for_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy has its price: fewer requests. Threads that were added because all stood still for a second stay."""
    monkeypatch.setattr(test_database_faults, "RATE", 40)
    if hasattr(test_database_faults, "CONNECTIONS"):
        monkeypatch.setattr(test_database_faults, "CONNECTIONS", 2 * test_database_faults.CONNECTIONS)


@pytest.fixture(params=["mysqldb", "pymysql"])
def driver(request: pytest.FixtureRequest) -> str:
    """Of the engine."""
    return str(request.param)


@pytest.fixture
def worker_class(driver: str) -> str:
    """That goes with it."""
    return {"mysqldb": "gthread", "pymysql": "sync"}[driver]


@pytest.fixture
def start(tmp_path: Path, driver: str) -> Iterator[Start]:
    """Starts servers with that app, everyone ready; they end with the test."""
    with starting(tmp_path) as begin:
        def ready(url: str, worker_class: str = "gthread", *, workers: int | None = None, **env: str) -> Supervised:
            number = workers or (2 if worker_class == "gthread" else 4)
            server = begin(source=SOURCE, worker_class=worker_class, workers=number,
                           env={"ENGINE_URL": url.replace("mysql://", f"mysql+{driver}://"),
                                "STABILITY_REQUEST_TIMEOUT": "15", **env})
            server.full(number)
            assert server.get("/setup").status_code == 200
            return server

        yield ready


def test_a_black_hole_holds_up_only_who_needs_the_database(start: Start, mariadb: MariaDB, proxy: FaultProxy) -> None:
    """gthread: packets vanish for 10 s, without a reset: what needs none is served meanwhile, the rest gets 503."""
    server = start(proxy.url_for(mariadb))
    before = server.worker_pids()
    with campaign(server, "a black hole for 10 s, gthread") as fault:
        proxy.blackhole()
        _wait(10)
        proxy.heal()
    plain = fault.of(database=False)
    assert plain.failed == 0, plain.errors()
    # were they held up until the end of it, it would be those of its first four seconds, a fifth of all
    assert sum(outcome.latency > 6 for outcome in plain.outcomes) <= plain.total // 20
    _refused(fault.of(database=True), server)
    assert fault.after(3).failed == 0
    _all_is_well(server, mariadb, before)
    _stored(server, fault.result)


def test_a_slow_database_slows_only_who_needs_it(start: Start, mariadb: MariaDB, proxy: FaultProxy) -> None:
    """gthread: each round trip takes 0.05 s; nothing fails, and what needs none waits for none."""
    server = start(proxy.url_for(mariadb))
    before = server.worker_pids()
    with campaign(server, "round trips of 0.05 s for 5 s, gthread") as fault:
        proxy.delay(0.05)
        _wait(5)
        proxy.delay(0)
    assert fault.result.failed == 0, fault.result.errors()
    slow, plain = (statistics.median(outcome.latency for outcome in fault.of(
        database=needed, since=fault.began, until=fault.ended).outcomes) for needed in (True, False))
    assert slow > plain + 0.05
    _all_is_well(server, mariadb, before)
    _stored(server, fault.result)
