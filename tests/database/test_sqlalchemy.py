"""`StabilityPool`: an SQLAlchemy engine on the pool of this package."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flask_stability import DatabaseUnavailable, DeadlineExceeded, StabilityExt, request, scoreboard
from flask_stability.extension import start_process, stop_process
from flask_stability.sqlalchemy import CircuitOpen, PoolTimeout, StabilityPool
from support import wait_until
from support_db import MariaDB

Make = Callable[..., Engine]


@pytest.fixture(params=["mysqldb", "pymysql"])
def make(mariadb: MariaDB, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes engines on the test's MariaDB, by either driver; they are disposed of with the test."""
    made: list[Engine] = []

    def engine(**options: Any) -> Engine:
        url = mariadb.url.replace("mysql://", f"mysql+{request.param}://")
        made.append(create_engine(url, poolclass=StabilityPool, **options))
        return made[-1]

    yield engine
    for one in made:
        one.dispose()


@pytest.fixture
def board() -> Iterator[None]:
    """A scoreboard of the test's own."""
    scoreboard.forget()
    yield
    stop_process()


def pool_of(engine: Engine) -> StabilityPool:
    """Of an engine."""
    assert isinstance(engine.pool, StabilityPool)
    return engine.pool


def connection_id(connection: Any) -> int:
    """Of the session on the server."""
    return int(connection.execute(text("SELECT CONNECTION_ID()")).scalar())


def a_request(timeout: float = 0.0) -> request.RequestRecord:
    """A request that this thread serves from now on."""
    record = request.RequestRecord({"SERVER_SOFTWARE": "gunicorn"}, time.monotonic_ns(), timeout)
    request.inflight[threading.get_ident()] = record
    return record


@pytest.fixture(autouse=True)
def no_request() -> Iterator[None]:
    """None is left over."""
    yield
    request.inflight.pop(threading.get_ident(), None)


def test_a_connection_is_used_again_and_limits_hold(make: Make) -> None:
    """pool_size + max_overflow are open at the most, pool_size are kept, who waits too long gets both TimeoutErrors."""
    engine = make(pool_size=1, max_overflow=1)
    with engine.connect() as connection:
        first = connection_id(connection)
    with engine.connect() as connection, engine.connect():
        assert connection_id(connection) == first
        pool_of(engine)._timeout = 0.3
        with pytest.raises(PoolTimeout, match="in use 2") as waited:
            engine.connect()
        assert isinstance(waited.value, sqlalchemy.exc.TimeoutError)
        assert isinstance(waited.value, DatabaseUnavailable)
        assert pool_of(engine).checkedout() == 2
    assert (pool_of(engine).checkedin(), pool_of(engine).size(), pool_of(engine).overflow()) == (1, 1, 0)


def test_who_waits_is_served_in_the_order_of_arrival(make: Make) -> None:
    """Twenty threads on one connection."""
    engine, order = make(pool_size=1, max_overflow=0), []
    held = engine.connect()

    def use(number: int) -> None:
        with engine.connect():
            order.append(number)

    threads = []
    for number in range(20):
        threads.append(threading.Thread(target=use, args=(number,)))
        threads[-1].start()
        wait_until(lambda: pool_of(engine).stats()["requests_waiting"] == len(threads))
    held.close()
    for thread in threads:
        thread.join(30)
    assert order == list(range(20))


def test_a_killed_connection_is_replaced_before_it_is_used(make: Make, mariadb: MariaDB) -> None:
    """Without pre-ping: its end is seen on its socket."""
    engine = make(pool_size=3)
    with engine.connect() as connection:
        first = connection_id(connection)
    mariadb.kill_sessions()
    with engine.connect() as connection:
        assert connection_id(connection) != first
    assert pool_of(engine).stats()["connections_lost"] == 1


def test_a_server_that_is_gone_opens_the_breaker(make: Make, mariadb: MariaDB) -> None:
    """At once for all others: OperationalError as ever, and 503; it closes when the server is back."""
    engine = make(pool_timeout=20)
    with engine.connect():
        pass
    mariadb.kill9()
    with pytest.raises(CircuitOpen, match="does not answer") as gone:
        wait_until(lambda: engine.connect().close())
    assert isinstance(gone.value, sqlalchemy.exc.OperationalError)
    assert pool_of(engine).stats()["breaker_state"] == "open"
    mariadb.start()

    def answers() -> bool:
        try:
            with engine.connect() as connection:
                return connection.execute(text("SELECT 1")).scalar() == 1
        except CircuitOpen:
            return False

    wait_until(answers, message="it is asked again")


def test_a_wrong_password_is_the_drivers_error(mariadb: MariaDB) -> None:
    """SQLAlchemy's OperationalError with the server's number, at once."""
    engine = create_engine(mariadb.url.replace("mysql://", "mysql+pymysql://").replace(mariadb.password, "wrong"),
                           poolclass=StabilityPool)
    with pytest.raises(sqlalchemy.exc.OperationalError, match="1045"):
        engine.connect()


@pytest.mark.usefixtures("board")
def test_a_call_ends_at_its_requests_deadline(make: Make, mariadb: MariaDB) -> None:
    """It alone: the pool's other connections are kept; the session that was cut is ended on the server too."""
    engine = make(pool_size=2)
    with engine.connect() as one, engine.connect() as other:
        kept, cut = connection_id(one), connection_id(other)
    a_request(2.0)
    began = time.monotonic()
    with engine.connect() as connection:
        assert connection_id(connection) in (kept, cut)
        cut = connection_id(connection)
        with pytest.raises(DeadlineExceeded, match="cut off"):
            connection.execute(text("SELECT SLEEP(30)"))
    assert time.monotonic() - began < 20
    request.inflight.pop(threading.get_ident())
    wait_until(lambda: cut not in mariadb.sessions(), message="the server has ended it")
    with engine.connect() as one, engine.connect() as other:
        ids = {connection_id(one), connection_id(other)}
    assert cut not in ids
    assert len(ids) == 2
    assert pool_of(engine).stats()["connections_num"] == 3


def test_what_a_session_holds_at_the_requests_end_is_invalidated(make: Make) -> None:
    """Nobody else gets it, the Session gets an error, and its late close harms nobody."""
    engine = make(pool_size=1, max_overflow=0)
    record = a_request()
    session = Session(engine)
    first = session.execute(text("SELECT CONNECTION_ID()")).scalar()
    for resource in record.resources or []:
        resource.release()
    record.leave()
    with engine.connect() as connection:
        assert connection_id(connection) != first
        with pytest.raises(sqlalchemy.exc.DBAPIError, match="over"):
            session.execute(text("SELECT 1"))
        session.close()
        assert pool_of(engine).checkedout() == 1
    assert pool_of(engine).checkedin() == 1


def test_what_is_forgotten_comes_back(make: Make) -> None:
    """A finalizer found it: rolled back before the next one gets it, without a word in the finalizer."""
    engine = make(pool_size=1, max_overflow=0, pool_timeout=20)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS forgotten (number INTEGER NOT NULL)"))
        connection.execute(text("DELETE FROM forgotten"))
    lost: Any = engine.connect()
    lost.execute(text("INSERT INTO forgotten VALUES (1)"))
    del lost
    gc.collect()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM forgotten")).scalar() == 0


@pytest.mark.usefixtures("board")
def test_a_leak_is_told_with_who_took_it(make: Make, monkeypatch: pytest.MonkeyPatch,
                                         capfd: pytest.CaptureFixture[str]) -> None:
    """The app's own line, not SQLAlchemy's."""
    monkeypatch.setenv("STABILITY_DB_LEAK_DETECTION_THRESHOLD", "0.2")
    engine = make()
    a_request()
    with engine.connect():
        wait_until(lambda: pool_of(engine).stats()["leaks_suspected"] == 1)
    told = next(line for line in capfd.readouterr().err.splitlines() if "connection_leak_suspected" in line)
    assert os.path.basename(__file__) in told
    assert "sqlalchemy/" not in told


def test_a_forked_child_has_connections_of_its_own(make: Make) -> None:
    """And the parent's are left alone, without a dispose."""
    engine = make(pool_size=1, max_overflow=0)
    with engine.connect() as connection:
        first = connection_id(connection)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            with engine.connect() as connection:
                os.write(writer, str(connection_id(connection)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        assert int(answer.read()) != first
    with engine.connect() as connection:
        assert connection_id(connection) == first


def test_events_mean_what_they_do(make: Make) -> None:
    """In their order, once each."""
    engine, seen = make(), []
    for name in ("connect", "first_connect", "checkout", "checkin", "reset", "invalidate", "close"):
        event.listen(engine, name, lambda *_, name=name: seen.append(name))
    with engine.connect():
        pass
    with engine.connect() as connection:
        connection.invalidate()
    engine.dispose()
    assert seen == ["first_connect", "connect", "checkout", "reset", "checkin", "checkout", "invalidate", "close",
                    "checkin"]


def test_a_checkout_event_may_ask_for_another_connection(make: Make) -> None:
    """DisconnectionError: it is opened anew in place, and the pool knows it."""
    engine = make(pool_size=1, max_overflow=0)
    refused: list[int] = []

    @event.listens_for(engine, "checkout")
    def checkout(raw: Any, record: Any, proxy: Any) -> None:
        if not refused:
            refused.append(raw.thread_id())
            raise sqlalchemy.exc.DisconnectionError("not this one")

    for _ in range(2):
        with engine.connect() as connection:
            assert connection_id(connection) != refused[0]
    assert (pool_of(engine).checkedin(), pool_of(engine).checkedout()) == (1, 0)


def test_a_detached_connection_is_the_apps(make: Make) -> None:
    """It goes on, and its slot is free."""
    engine = make(pool_size=1, max_overflow=0, pool_timeout=20)
    with engine.connect() as connection:
        first = connection_id(connection)
        connection.detach()
        with engine.connect() as other:
            assert connection_id(other) != first
        assert connection_id(connection) == first


def test_dispose_closes_what_is_idle_and_then_what_comes_back(make: Make, mariadb: MariaDB) -> None:
    """The engine goes on with new connections."""
    engine = make()
    with engine.connect() as connection, engine.connect() as idle:
        first = connection_id(connection)
        idle.close()
        engine.dispose()
        assert connection_id(connection) == first
        wait_until(lambda: len(mariadb.sessions()) == 1)
    wait_until(lambda: not mariadb.sessions())
    with engine.connect() as connection:
        assert connection_id(connection) != first


def test_first_in_first_out_unless_lifo(make: Make) -> None:
    """As `pool_use_lifo` says."""
    for lifo in (False, True):
        engine = make(pool_use_lifo=lifo)
        with engine.connect() as one, engine.connect() as other:
            first, last = connection_id(one), connection_id(other)
            one.close()
        with engine.connect() as connection:
            assert connection_id(connection) == (last if lifo else first)


def test_two_phases(make: Make) -> None:
    """A transaction that is prepared and then committed."""
    engine = make()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS phases (number INTEGER NOT NULL)"))
        connection.execute(text("DELETE FROM phases"))
    with engine.connect() as connection:
        both = connection.begin_twophase()
        connection.execute(text("INSERT INTO phases VALUES (1)"))
        both.prepare()
        both.commit()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT COUNT(*) FROM phases")).scalar() == 1


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_one_connection_for_all_threads(url: str) -> None:
    """Which may use it at the same time."""
    engine = create_engine(url, poolclass=StabilityPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE one (number INTEGER)"))
    found: list[Any] = []

    def use() -> None:
        with engine.connect() as one, engine.connect() as other:
            found.extend(each.execute(text("SELECT COUNT(*) FROM one")).scalar() for each in (one, other))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    engine.dispose()
    assert found == [0, 0]


@pytest.mark.usefixtures("board")
def test_engines_of_flask_sqlalchemy_are_found(tmp_path: Path) -> None:
    """Binds too, with the figures of their pools, without a word."""
    app = Flask("app", instance_path=str(tmp_path))
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/a.db", SQLALCHEMY_BINDS={"logs": f"sqlite:///{tmp_path}/b.db"},
        SQLALCHEMY_ENGINE_OPTIONS={"poolclass": StabilityPool}, STABILITY_HEALTH_DETAILS="always",
        STABILITY_HEALTH_INTERVAL=0.2, STABILITY_HEALTH_TIMEOUT=30)
    db = SQLAlchemy()
    StabilityExt(app)
    db.init_app(app)
    start_process()

    def checks() -> dict[str, Any]:
        found: dict[str, Any] = app.test_client().get("/health").get_json()["detailed"]["checks"]
        return found

    wait_until(lambda: checks().get("sqlalchemy", {}).get("pool", {}).get("pool_max") == 15)
    wait_until(lambda: checks().get("sqlalchemy-logs", {}).get("pool"))
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()
