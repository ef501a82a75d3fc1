"""What clients see of an outage of the database: gunicorn under 120 requests/s, half of which need the database.

``python tests/benchmarks/bench_outage.py [--worker-class gthread|sync] [--sqlalchemy] [--patience SECONDS] [fault …]``
with the faults restart (3 s), killed (kill -9, away for 5 s), frozen (8 s) and locked (its table, 6 s). A real MariaDB.
For each fault: the share of requests that failed and when they were due, the p99 of requests without database, and
threads and memory of the workers before and 10 s after it. It ends with an error if a write was stored twice, or
acknowledged and lost. ``--patience 0`` refuses at once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_TESTS / "live"), str(_TESTS), str(_TESTS.parent)]

from supervised import Supervised, starting  # noqa: E402

from flask_stability.operate.loadgen import Load, Outcome, Result  # noqa: E402
from support import wait_until  # noqa: E402
from support_db import MariaDB  # noqa: E402

OWN = '''
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)

@app.get("/")
def index():
    return {}

@app.get("/read")
def read():
    with stability.connection() as connection:
        return {"notes": connection.execute("SELECT id FROM note LIMIT 1").fetchall()}

@app.get("/insert/<number>")
def insert(number):
    with stability.connection() as connection:
        connection.execute("INSERT INTO note VALUES (%s)", (number,))
    return {}

@app.get("/write/<number>")
def write(number):
    note(number)
    return {}

@stability.transaction
def note(connection, number):
    connection.execute("INSERT INTO note VALUES (%s)", (number,))
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
                  SQLALCHEMY_ENGINE_OPTIONS={"poolclass": StabilityPool, "pool_size": 10, "max_overflow": 10})
stability = StabilityExt(app)
db = SQLAlchemy(app)

@app.get("/")
def index():
    return {}

@app.get("/read")
def read():
    return {"notes": [list(row) for row in db.session.execute(text("SELECT id FROM note LIMIT 1"))]}

@app.get("/insert/<number>")
@app.get("/write/<number>")
def write(number):
    note(number)
    return {}

@stability.transaction(session=db.session)
def note(session, number):
    session.execute(text("INSERT INTO note VALUES (:number)"), {"number": number})
'''
RATE = 120
BEFORE, AFTER = 3.0, 6.0  #: seconds of load around the fault


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


@contextlib.contextmanager
def table_lock(database: MariaDB) -> Iterator[None]:
    with contextlib.closing(database.connect()) as other:
        other.cursor().execute("LOCK TABLES note WRITE")
        yield


def restart(database: MariaDB) -> None:
    database.stop()
    pause(3.0)
    database.start()


def killed(database: MariaDB) -> None:
    database.kill9()
    pause(5.0)
    database.start()


def frozen(database: MariaDB) -> None:
    database.freeze()
    pause(8.0)
    database.thaw()


def locked(database: MariaDB) -> None:
    with table_lock(database):
        pause(6.0)


FAULTS: dict[str, Callable[[MariaDB], None]] = {"restart": restart, "killed": killed, "frozen": frozen,
                                                "locked": locked}


def paths(number: int) -> list[str]:
    """Half without database, a quarter reads, an eighth each writes in autocommit and in a unit of work."""
    kinds = ("/", "/read", "/", "/write/{}", "/", "/read", "/", "/insert/{}")
    return [kinds[index % len(kinds)].format(uuid.uuid4().hex) for index in range(number)]


def size(server: Supervised) -> str:
    workers = server.workers()
    return (f"{sum(worker.num_threads() for worker in workers)} threads, "
            f"{sum(worker.memory_full_info().uss for worker in workers) >> 20} MiB")


def p99(result: Result) -> float:
    times = sorted(outcome.latency for outcome in result.outcomes)
    return times[len(times) * 99 // 100] * 1000 if times else 0.0


def needs_none(outcome: Outcome) -> bool:
    return outcome.path == "/"


def stored(database: MariaDB, result: Result) -> None:
    """Nothing twice, nothing acknowledged lost.

    :raises SystemExit: if it is otherwise.
    """
    rows = {row[0]: row[1] for row in database.admin(f"SELECT id, COUNT(*) FROM {database.name}.note GROUP BY id")}
    twice = [number for number, times in rows.items() if times > 1]
    lost = [outcome.path for outcome in result.outcomes if outcome.status == 200
            and outcome.path.startswith(("/write", "/insert")) and outcome.path.rpartition("/")[2] not in rows]
    if twice or lost:
        raise SystemExit(f"stored twice: {twice}, acknowledged and lost: {lost}")


def run(name: str, server: Supervised, database: MariaDB) -> None:
    load = Load(server.url, paths(RATE * 60), RATE, timeout=60).start()
    pause(BEFORE)
    before = size(server)
    began = time.monotonic()
    FAULTS[name](database)
    ended = time.monotonic()
    pause(AFTER)
    peak = size(server)
    result = load.stop()
    pause(10.0 - AFTER)
    failed = [outcome for outcome in result.outcomes if not outcome.ok]
    plain = Result([outcome for outcome in result.outcomes if needs_none(outcome)])
    needy = Result([outcome for outcome in result.outcomes if not needs_none(outcome)])
    print(f"{name}, {ended - began:.1f} s: {len(failed)} of {result.total} failed "
          f"({100 * len(failed) / result.total:.2f} %) {result.errors() or ''}; without database {plain.failed} of "
          f"{plain.total} failed, p99 {p99(plain.between(began, ended + 2)):.0f} ms, worst "
          f"{plain.worst * 1000:.0f} ms; "
          f"with it worst {needy.worst:.1f} s; {before} before, {peak} {AFTER:g} s after, {size(server)} 10 s after")
    slow = sorted(plain.between(began, ended + 2).outcomes, key=lambda outcome: -outcome.latency)[:10]
    print("    the slowest without database, due before or after the end of the fault: "
          + ", ".join(f"{outcome.due - ended:+.2f} s {outcome.latency * 1000:.0f} ms" for outcome in slow))
    for outcome in failed[:8]:
        print(f"    {outcome.path[:14]} {outcome.error or outcome.status} due {outcome.due - began:+.3f} s, after "
              f"{outcome.latency:.3f} s")
    for event in ("database_gone", "database_back"):
        for record in server.records("error", event)[-len(server.workers()):]:
            print("   ", event, {key: value for key, value in record.items()
                                 if key in ("pid", "reason", "held", "served", "refused", "seconds")})
    stored(database, result)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker-class", default="gthread")
    parser.add_argument("--sqlalchemy", action="store_true")
    parser.add_argument("--patience", type=float)
    parser.add_argument("faults", nargs="*", default=list(FAULTS))
    given = parser.parse_args()
    database = MariaDB()
    database.admin(f"CREATE TABLE {database.name}.note (id VARCHAR(32) NOT NULL, KEY (id))")
    env = {"ENGINE_URL": database.url.replace("mysql:", "mysql+mysqldb:")} if given.sqlalchemy else {
        "STABILITY_DB_URL": database.url}
    if given.patience is not None:
        env["STABILITY_DB_OUTAGE_PATIENCE"] = str(given.patience)
    workers = 2 if given.worker_class == "gthread" else 8
    try:
        with tempfile.TemporaryDirectory() as folder, starting(Path(folder)) as start:
            server = start(source=ENGINE if given.sqlalchemy else OWN, worker_class=given.worker_class,
                           workers=workers, env=env)
            server.full(workers)
            wait_until(lambda: server.get("/read").status_code == 200)
            for name in given.faults:
                run(name, server, database)
    finally:
        database.destroy()


if __name__ == "__main__":
    main()
