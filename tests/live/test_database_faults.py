"""A real gunicorn on a real database that is frozen, killed, full or leaked away, under 120 requests a second."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
from supervised import Supervised, starting

from flask_stability.operate.loadgen import Load, Result
from flask_stability.scoreboard import W_DB_BREAKER, W_DB_IN_USE, W_DB_SIZE, W_THREADS
from support import Standstills, wait_until
from support_db import MariaDB

pytestmark = [pytest.mark.long, pytest.mark.mysql_too, pytest.mark.pymysql_too]

SOURCE = '''
import os, threading, uuid
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)
kept = []

@app.get("/")
def index():
    return {"pid": os.getpid()}

@app.get("/threads")
def threads():
    return {"pid": os.getpid(), "names": [thread.name for thread in threading.enumerate()]}

@app.get("/setup")
def setup():
    with stability.connection() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS note (id VARCHAR(32) NOT NULL)")
        connection.execute("CREATE TABLE IF NOT EXISTS counted (number INTEGER NOT NULL)")
        connection.execute("INSERT INTO counted VALUES (0)")
    return {}

@app.get("/count")
@stability.transaction
def count(connection):
    connection.execute("UPDATE counted SET number = number + 1")
    return {}

@app.get("/read")
def read():
    with stability.connection() as connection:
        return {"notes": connection.execute("SELECT COUNT(*) FROM note").fetchone()[0]}

@app.get("/read-here")
def read_here():
    return {"pid": os.getpid(), **read()}

@app.get("/write")
def write():
    return {"id": note()}

@stability.transaction
def note(connection):
    number = uuid.uuid4().hex
    connection.execute("INSERT INTO note VALUES (%s)", (number,))
    return number

@app.get("/keep")
def keep():
    kept.append(stability.connection())
    kept[-1].execute("SELECT 1")
    return {}

@app.get("/keep-in-thread")
def keep_in_thread():
    def run():
        kept.append(stability.pool.connection())
        kept[-1].execute("SELECT 1")
        threading.Event().wait()
    threading.Thread(target=run, daemon=True).start()
    return {}

@app.get("/keep-in-thread-of/<pids>")
def keep_in_thread_of(pids):
    return keep_in_thread() if str(os.getpid()) in pids.split(",") else {}
'''
#: Two in five need the database.
PATHS = ("/", "/read", "/", "/write", "/")
NEED_NONE = "/"
RATE = 120
#: Threads of a gthread worker.
THREADS = 4

Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers with that app and a table, everyone ready; they end with the test."""
    with starting(tmp_path) as begin:
        def ready(url: str, worker_class: str = "gthread", *, workers: int | None = None, **env: str) -> Supervised:
            number = workers or (2 if worker_class == "gthread" else 4)
            server = begin(source=SOURCE, worker_class=worker_class, workers=number,
                           env={"STABILITY_DB_URL": url, "STABILITY_REQUEST_TIMEOUT": "15", **env})
            server.full(number)
            assert server.get("/setup").status_code == 200
            return server

        yield ready


@dataclass
class Campaign:
    """A load with a fault in the middle. Times are `time.monotonic` seconds.

    :ivar back: when the fault was over for every worker: no breaker is open any more.
    """

    result: Result
    standstills: Standstills
    began: float = 0.0
    ended: float = 0.0
    back: float = 0.0

    def of(self, *, database: bool, since: float = 0.0, until: float = float("inf")) -> Result:
        """Requests that need the database, or those that need none, by when they were due."""
        return Result([outcome for outcome in self.result.between(since, until).outcomes
                       if (outcome.path != NEED_NONE) == database])

    def after(self, seconds: float) -> Result:
        """Requests that need the database, due so long after the end of the fault, and after that of its effects."""
        return self.of(database=True, since=max(self.ended + seconds, self.back))

    def slow(self) -> int:
        """Of the requests that need no database, how many took more than three seconds."""
        return _slow(self.of(database=False), self.standstills)

    def print(self, name: str) -> None:
        """The figures."""
        plain, needy = self.of(database=False), self.of(database=True)
        last = needy.last_failure()
        print(f"\n{name}: without database {plain.total}, failed {plain.failed}, worst {plain.worst:.2f} s, more than "
              f"3 s {self.slow()}; with {needy.total}, {needy.errors()}, worst {needy.worst:.2f} s, last failure "
              + (f"{last - self.ended:+.2f} s after the end of the fault" if last else "none"))


def _slow(result: Result, standstills: Standstills) -> int:
    """How many took more than three seconds, a standstill of the machine and as long to make up for it left out."""
    return sum(outcome.latency - 2 * standstills.seconds(outcome.due, outcome.due + outcome.latency) > 3
               for outcome in result.outcomes if outcome.latency > 3)


def _wait(seconds: float) -> None:
    """Let the load go on."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, seconds + 5)


@contextlib.contextmanager
def campaign(server: Supervised, name: str) -> Iterator[Campaign]:
    """Load, the block is the fault, then load until both kinds of request are served again, and a little longer."""
    with Standstills() as standstills:
        load = Load(server.url, PATHS, RATE, timeout=40).start()
        found = Campaign(load.result, standstills)
        try:
            _wait(2)
            found.began = time.monotonic()
            yield found
            found.ended = time.monotonic()
            wait_until(lambda: server.get("/write").status_code == server.get("/read").status_code == 200, 30,
                       message="the database is used again")
            wait_until(lambda: not _words(server, W_DB_BREAKER), message="every worker uses it again")
            found.back = time.monotonic()
            _wait(4)
        finally:
            load.stop()
    found.print(name)


def _threads(server: Supervised) -> dict[int, list[str]]:
    """Names of the threads of each worker by process id."""
    found: dict[int, list[str]] = {}

    def ask() -> bool:
        answer = server.get("/threads").json()
        found[answer["pid"]] = answer["names"]
        return set(found) >= set(server.worker_pids())

    wait_until(ask, message="every worker has answered")
    return found


def _left_over(server: Supervised) -> list[str]:
    """Threads that only a fault calls for: of the pool, to connect or to ask, and spare ones for requests."""
    return [name for names in _threads(server).values() for name in names
            if name.startswith(("stability-connect", "stability-housekeeper-helper", "stability-spare"))]


def _words(server: Supervised, word: int) -> int:
    return sum(row.words[word] for row in server.board().live())


def _all_is_well(server: Supervised, database: MariaDB, before: list[int]) -> None:
    """The same workers, no thread too many, no connection in use, none that the server has and the pools do not.

    While all sync workers waited for the database a spare one may have helped: then an old one went for it, no other.
    """
    wait_until(lambda: len(server.worker_pids()) == len(before), message="as many workers as before")
    if all(row.words[W_THREADS] > 1 for row in server.board().live()):
        assert server.worker_pids() == before, "a worker was replaced"
    assert set(server.exits()) <= {"asked", "scale"}, "a worker ended for the database's sake"
    wait_until(lambda: _words(server, W_DB_IN_USE) == 0, message="no connection is in use")
    wait_until(lambda: len(database.sessions()) == _words(server, W_DB_SIZE), 40,
               message="the server has as many sessions as the pools have connections")
    try:
        wait_until(lambda: not _left_over(server), 40)
    except AssertionError:
        raise AssertionError(f"threads are left over: {_left_over(server)}") from None


def _stored(server: Supervised, result: Result) -> None:
    """Each write that was acknowledged is there, and none twice."""
    acknowledged = sum(outcome.path == "/write" and outcome.status == 200 for outcome in result.outcomes)
    uncertain = sum(outcome.path == "/write" and outcome.status != 200 for outcome in result.outcomes)
    notes = server.get("/read").json()["notes"]
    assert acknowledged <= notes <= acknowledged + uncertain + 20, (acknowledged, notes, uncertain)


def _served(fault: Campaign) -> int:
    """How many of the requests without database were answered that came while the fault lasts."""
    return fault.of(database=False, since=fault.began + 1).ok


def _refused(result: Result, server: Supervised) -> None:
    """503 for whoever needs the database; 500 only where a COMMIT was under way, which nobody can answer better."""
    errors = result.errors()
    unknown = [record for record in server.records("error", "exception")
               if record["exception"][0]["type"].endswith(".CommitUnknown")]
    assert errors["HTTP 503"] > 0
    assert sum(errors.values()) - errors["HTTP 503"] == errors.get("HTTP 500", 0) <= len(unknown)


def test_a_frozen_database_holds_up_only_who_needs_it(start: Start, mariadb: MariaDB) -> None:
    """gthread: what needs none is served throughout, the rest waits until the database is back, nothing lost."""
    # as much time and as many threads as it takes where this takes longer
    server = start(mariadb.url, STABILITY_DB_OUTAGE_PATIENCE="60", STABILITY_REQUEST_TIMEOUT="120",
                   STABILITY_DB_TIMEOUT="60", STABILITY_DB_OUTAGE_THREADS="1500", STABILITY_SPARE_MAX="1500")
    before = server.worker_pids()
    with campaign(server, "frozen for 8 s, gthread") as fault:
        mariadb.freeze()
        _wait(8)
        wait_until(lambda: _served(fault) > 100, 60, message="what needs no database is served meanwhile")
        mariadb.thaw()
    plain, needy = fault.of(database=False), fault.of(database=True)
    assert plain.failed == 0, plain.errors()
    assert set(needy.errors()) <= {"HTTP 503", "HTTP 500"}
    assert needy.failed <= needy.total // 10, needy.errors()  # 0 on a machine that does nothing else
    assert fault.after(3).failed == 0
    _all_is_well(server, mariadb, before)
    _stored(server, fault.result)


def test_a_frozen_database_is_outlived_by_sync_workers(start: Start, mariadb: MariaDB) -> None:
    """One thread each: a request that waits holds up its worker, until all but a few are refused; all is well after."""
    server = start(mariadb.url, "sync")
    before = server.worker_pids()
    with campaign(server, "frozen for 8 s, sync") as fault:
        mariadb.freeze()
        _wait(8)
        mariadb.thaw()
    plain = fault.of(database=False)
    assert plain.failed == 0, plain.errors()
    _refused(fault.of(database=True), server)
    assert fault.after(3).failed == 0
    _all_is_well(server, mariadb, before)
    _stored(server, fault.result)


def test_a_killed_database_comes_back(start: Start, mariadb: MariaDB, worker_class: str) -> None:
    """kill -9, three seconds of nothing, a start: 503 at the worst, nothing else ever, and no request after that."""
    server = start(mariadb.url, worker_class)
    before = server.worker_pids()
    with campaign(server, f"killed, away for 3 s, {worker_class}") as fault:
        mariadb.kill9()
        _wait(3)
        mariadb.start()
    plain, needy = fault.of(database=False), fault.of(database=True)
    assert plain.failed == 0, plain.errors()
    assert set(needy.errors()) <= {"HTTP 503", "HTTP 500"}
    assert needy.errors().get("HTTP 500", 0) <= 8  # a COMMIT under way: CommitUnknown, one a thread at the most
    assert fault.after(3).failed == 0
    _all_is_well(server, mariadb, before)


def test_killed_connections_are_hardly_noticed(start: Start, mariadb: MariaDB, worker_class: str) -> None:
    """KILL of all sessions, ten times: only what was under way in autocommit or in COMMIT may fail."""
    server = start(mariadb.url, worker_class)
    before = server.worker_pids()
    killed = 0
    with campaign(server, f"all connections killed 10 times, {worker_class}") as fault:
        for _ in range(10):
            killed += mariadb.kill_sessions()
            _wait(0.4)
    assert killed >= 10
    assert fault.of(database=False).failed == 0
    assert fault.of(database=True).failed <= 20
    assert fault.after(1).failed == 0
    _all_is_well(server, mariadb, before)
    _stored(server, fault.result)


def test_a_server_without_a_free_connection(start: Start, mariadb: MariaDB, worker_class: str) -> None:
    """Others took them all: 503 after the pool's time, the rest is served; back as soon as there is one."""
    server = start(mariadb.url, worker_class, STABILITY_DB_TIMEOUT="0.5")
    before = server.worker_pids()
    others: list[Any] = []
    # one connection for all: the place that the server keeps for root is now and then taken by whom it is turning away
    with (contextlib.closing(mariadb.root()) as root, contextlib.closing(root.cursor()) as cursor,
          campaign(server, f"max_connections exhausted for 5 s, {worker_class}") as fault):
        cursor.execute("SET @most = @@max_connections")
        cursor.execute("SET GLOBAL max_connections = 10")
        try:
            until = time.monotonic() + 5
            # a sync worker has no thread to keep free
            while time.monotonic() < until or (worker_class == "gthread" and _served(fault) < 100):
                assert time.monotonic() < until + 60, "what needs no database is not served meanwhile"
                cursor.execute("SELECT id FROM information_schema.processlist WHERE user=%s", (mariadb.user,))
                ours = {other.thread_id() for other in others}
                for (number,) in cursor.fetchall():
                    if number not in ours:  # the service may have been quicker than this test
                        with contextlib.suppress(MySQLdb.OperationalError):  # gone by itself meanwhile
                            cursor.execute(f"KILL {number}")
                with contextlib.suppress(MySQLdb.OperationalError):
                    while True:
                        others.append(mariadb.connect())
                _wait(0.1)
        finally:
            cursor.execute("SET GLOBAL max_connections = @most")
            for other in others:
                other.close()
    plain = fault.of(database=False)
    assert plain.failed == 0, plain.errors()
    assert fault.of(database=True).errors().get("HTTP 503", 0) > 0
    assert fault.after(3).failed == 0
    _all_is_well(server, mariadb, before)


def test_a_server_that_is_read_only_for_a_while(start: Start, mariadb: MariaDB, worker_class: str) -> None:
    """As in a failover: what reads is served, what writes gets 503, never 500, and is not stored."""
    server = start(mariadb.url, worker_class)
    before = server.worker_pids()
    with campaign(server, f"read_only for 4 s, {worker_class}") as fault:
        mariadb.admin("SET GLOBAL read_only = ON")
        try:
            _wait(4)
        finally:
            mariadb.admin("SET GLOBAL read_only = OFF")
    failed = [outcome for outcome in fault.result.outcomes if outcome.status != 200]
    assert {(outcome.path, outcome.status) for outcome in failed} == {("/write", 503)}
    assert fault.after(1).failed == 0
    _all_is_well(server, mariadb, before)
    _stored(server, fault.result)


def test_health_tells_of_a_database_that_is_gone_before_its_next_round(start: Start, mariadb: MariaDB,
                                                                       worker_class: str) -> None:
    """The next round of checks is ten minutes away: that requests cannot connect brings the check forward."""
    server = start(mariadb.url, worker_class, STABILITY_HEALTH_INTERVAL="600")

    def seen() -> str:
        status: str = server.health()["detailed"]["checks"].get("database", {}).get("status", "")
        return status

    wait_until(lambda: seen() == "pass", message="it was checked")
    load = Load(server.url, PATHS, 20, timeout=40).start()
    try:
        mariadb.kill9()
        wait_until(lambda: seen() == "warn", 60, message="health tells of the first failure")
        wait_until(lambda: seen() == "fail", 60, message="and that it lasts")
        mariadb.start()
        wait_until(lambda: seen() == "pass", 60, message="and that it is back")
    finally:
        load.stop()


@pytest.mark.alone("judges how few are refused at a given rate while threads wait: a busy machine's queue is longer")
def test_a_locked_row_holds_up_only_who_wants_it(start: Start, mariadb: MariaDB, worker_class: str) -> None:
    """More requests than there are threads wait for it: spare threads (workers) serve the rest, and when the row is
    free again each of them gets its answer, once.
    """
    # no time that a busy machine could exceed
    server = start(mariadb.url, worker_class, STABILITY_DB_TIMEOUT="60", STABILITY_REQUEST_TIMEOUT="90")
    before = server.worker_pids()
    answers: list[int] = []
    waiting = [threading.Thread(target=lambda: answers.append(server.get("/count", timeout=60).status_code))
               for _ in range(12)]
    with contextlib.closing(mariadb.connect(autocommit=False)) as other:
        other.cursor().execute("UPDATE counted SET number = 100")
        with campaign(server, f"a locked row, {worker_class}") as fault:
            for thread in waiting:
                thread.start()
            _wait(6)
            assert not answers
            if worker_class == "gthread":
                assert max(row.words[W_THREADS] for row in server.board().live()) > THREADS
            other.commit()
    for thread in waiting:
        thread.join(60)
    assert answers == [200] * 12
    assert mariadb.admin("SELECT number FROM app.counted") == [(112,)]
    plain, needy = fault.of(database=False), fault.of(database=True)
    assert plain.failed == 0, plain.errors()
    assert needy.failed <= needy.total // 20, needy.errors()
    _all_is_well(server, mariadb, before)


def test_views_that_keep_their_connections(start: Start, mariadb: MariaDB, worker_class: str) -> None:
    """In a global list: each goes back when its request ends; nobody waits for one."""
    server = start(mariadb.url, worker_class, STABILITY_DB_MAX_SIZE="2")
    before = server.worker_pids()
    load = Load(server.url, ("/keep", "/read", "/"), RATE).start()
    _wait(5)
    result = load.stop()
    print(f"\nkept, {worker_class}: {result.total} requests, {result.errors()}, worst {result.worst:.2f} s")
    assert result.failed == 0, result.errors()
    assert len(mariadb.sessions()) <= 2 * len(before)
    _all_is_well(server, mariadb, before)


def test_threads_that_keep_their_connections(start: Start, mariadb: MariaDB) -> None:
    """What a background thread holds is told of, with where it was taken; when none is left, the rest still
    serves, and a new worker takes its place.
    """
    server = start(mariadb.url, workers=1, STABILITY_DB_MAX_SIZE="4", STABILITY_DB_TIMEOUT="1",
                   STABILITY_DB_LEAK_DETECTION_THRESHOLD="4")
    for _ in range(3):
        assert server.get("/keep-in-thread").status_code == 200
    load = Load(server.url, ("/read", "/"), RATE).start()

    def told() -> list[dict[str, Any]]:  # not of a request that a slow machine holds up
        return [record for record in server.records("error", "connection_leak_suspected") if record["path"] is None]

    wait_until(lambda: len(told()) == 3, message="three leaks told of")
    assert all("app.py" in str(record["taken_at"]) for record in told())
    _wait(2)
    result = load.stop()
    assert result.failed == 0, result.errors()
    assert server.get("/keep-in-thread").status_code == 200
    wait_until(lambda: server.get("/read").status_code == 503, message="there is none left")
    with Standstills() as standstills:
        load = Load(server.url, ("/", "/read"), 40).start()
        _wait(4)
        result = load.stop()
    plain = Result([outcome for outcome in result.outcomes if outcome.path == NEED_NONE])
    print(f"\nall leaked: {result.errors()}, without database worst {plain.worst:.2f} s")
    assert plain.failed == 0, plain.errors()
    assert _slow(plain, standstills) <= plain.total // 20
    wait_until(lambda: server.get("/read").status_code == 200, 60, message="a new worker has connections")
    assert [record["reason"] for record in server.records("process-manager", "replacement_asked")] == [
        "leaked_connections"]


def test_workers_whose_pools_are_all_kept_by_threads_are_replaced_together(start: Start, mariadb: MariaDB,
                                                                           worker_class: str) -> None:
    """Nobody waits for the leaks to be called so, ninety seconds each: back after half of the time that a request may
    wait for a connection, and what needs no database is served throughout.
    """
    server = start(mariadb.url, worker_class, workers=3, STABILITY_DB_MAX_SIZE="4", STABILITY_DB_TIMEOUT="4")
    old = server.worker_pids()
    load = Load(server.url, PATHS, 40, timeout=60).start()

    def all_asked() -> bool:
        assert server.get(f"/keep-in-thread-of/{','.join(map(str, old))}", timeout=60).status_code == 200
        return set(old) <= {record["pid"] for record in server.records("process-manager", "replacement_asked")}

    wait_until(all_asked, 60, message="every worker's pool is kept")
    wait_until(lambda: not set(old) & set(server.worker_pids()), 90, message="all three are replaced")
    server.full(3, 60)
    since = time.monotonic()
    _wait(3)
    result = load.stop()
    print(f"\nall pools leaked, {worker_class}: {result.total} requests, {result.errors()}, worst {result.worst:.2f} s")
    plain = Result([outcome for outcome in result.outcomes if outcome.path == NEED_NONE])
    assert plain.failed == 0, plain.errors()
    assert set(result.errors()) <= {"HTTP 503"}
    assert result.between(since, since + 3).failed == 0
    assert {"leaked_connections"} <= set(server.exits()) <= {"leaked_connections", "asked", "scale"}


EMBEDDED = SOURCE + '''
@app.get("/use/<int:other>")
def use(other):
    if os.getpid() != other:
        with stability.connection() as connection:
            connection.execute("SELECT 1")
    return {"pid": os.getpid()}
'''


def test_the_embedded_database_is_checked_as_soon_as_any_worker_uses_it(tmp_path: Path) -> None:
    """Nobody asked for a connection: no check. A worker that does not lead did: /health shows the database."""
    with starting(tmp_path) as begin:
        server = begin(source=EMBEDDED, workers=2, env={"STABILITY_DB_URL": ""})
        server.full(2)
        leader = wait_until(server.board().leader, message="somebody leads")
        wait_until(lambda: "memory" in server.health()["detailed"]["checks"], message="the checks have run")
        assert "database" not in server.health()["detailed"]["checks"]
        wait_until(lambda: server.get(f"/use/{leader.pid}").json()["pid"] != leader.pid)
        found = wait_until(lambda: server.health()["detailed"]["checks"].get("database"), message="it is checked")
        assert (found["status"], found["critical"]) == ("pass", True)
        wait_until(lambda: (leads := server.board().leader()) and leads.pid == leader.pid, message="it leads as before")
        assert leader.words[W_DB_SIZE] == 0, "the leader has no connection of its own"


PRELOADED = SOURCE + '''
kept.append(stability.pool.connection())
masters = [kept[0].execute("SELECT CONNECTION_ID()").fetchone()[0]]
with stability.connection() as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS note (id VARCHAR(32) NOT NULL)")
    masters.append(connection.execute("SELECT CONNECTION_ID()").fetchone()[0])

@app.get("/mine")
def mine():
    with stability.connection() as connection:
        return {"masters": masters, "id": connection.execute("SELECT CONNECTION_ID()").fetchone()[0]}
'''


def test_a_pool_that_the_master_used_before_it_forked(tmp_path: Path, mariadb: MariaDB, worker_class: str) -> None:
    """preload_app: each worker has connections of its own, also one that comes later; the master's live on."""
    with starting(tmp_path) as begin:
        server = begin(source=PRELOADED, worker_class=worker_class, workers=3, config="preload_app = True",
                       env={"STABILITY_DB_URL": mariadb.url})
        server.full(3)
        masters = server.get("/mine").json()["masters"]
        load = Load(server.url, ("/mine", "/write", "/read"), 60).start()
        _wait(2)
        server.retire(server.worker_pids()[0])
        _wait(3)
        result = load.stop()
        assert result.failed == 0, result.errors()
        _stored(server, result)
        assert all(server.get("/mine").json()["id"] not in masters for _ in range(20))
        assert set(masters) <= set(mariadb.sessions())


def test_several_workers_write_to_one_sqlite_file(start: Start, tmp_path: Path, worker_class: str) -> None:
    """Under load, with workers replaced meanwhile: every write that was acknowledged is there once, none fails."""
    server = start(f"sqlite:///{tmp_path}/notes.db", worker_class, workers=3)
    load = Load(server.url, ("/write", "/read"), RATE).start()
    _wait(3)
    server.retire(server.worker_pids()[0])
    _wait(4)
    result = load.stop()
    print(f"\none SQLite file, {worker_class}: {result.total} requests, {result.errors()}, worst {result.worst:.2f} s")
    assert result.failed == 0, result.errors()
    written = sum(outcome.path == "/write" for outcome in result.outcomes)
    assert server.get("/read").json()["notes"] == written


def test_a_sqlite_file_that_is_removed_under_the_service(start: Start, tmp_path: Path, worker_class: str) -> None:
    """The workers leave the file that nobody can see any more, say so, and agree on the new one."""
    server = start(f"sqlite:///{tmp_path}/notes.db", worker_class, workers=3)
    pids = set(server.worker_pids())

    def each(path: str) -> dict[int, dict[str, Any]]:
        """Answers of all workers by process id."""
        found: dict[int, dict[str, Any]] = {}

        def ask() -> bool:
            answer = server.get(path).json()
            found[answer["pid"]] = answer
            return set(found) >= pids

        wait_until(ask, message=f"every worker has answered {path}")
        return found

    each("/read-here")
    # the database last: when a worker notices, none of the others is left that could belong to a new one
    for file in sorted(tmp_path.glob("notes.db*"), reverse=True):
        file.unlink(missing_ok=True)
    wait_until(lambda: len(server.records("error", "database_replaced")) == 3, message="each worker says so")
    assert server.get("/setup").status_code == 200
    for _ in range(10):
        assert server.get("/write").status_code == 200
    assert {answer["notes"] for answer in each("/read-here").values()} == {10}
    with contextlib.closing(sqlite3.connect(tmp_path / "notes.db")) as database:
        assert database.execute("SELECT COUNT(*) FROM note").fetchone() == (10,)
    assert set(server.worker_pids()) == pids
