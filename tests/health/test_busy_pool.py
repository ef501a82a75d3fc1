"""A pool whose connections are all in use is no database that is gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool

from flask_stability import StabilityExt, scoreboard
from flask_stability.config import Settings
from flask_stability.database import Pool
from flask_stability.database.engine import engine_probe
from flask_stability.database.probe import round_trip
from flask_stability.extension import stop_process
from flask_stability.health import checks
from flask_stability.health.checks import Worry, builtin, database_check
from flask_stability.scoreboard import W_DB_FULL_NS, W_DB_SIZE, W_ENGINE_ERRORS
from support import wait_until
from support_db import FaultProxy, MariaDB, full


@pytest.fixture(autouse=True)
def board() -> Iterator[None]:
    """A scoreboard of the test's own."""
    scoreboard.forget()
    yield
    stop_process()


def _pool_check() -> Any:
    row = scoreboard.my_row()
    return next(check for check in builtin(Settings(), scoreboard.current(), row) if check.name == "pool")


def test_the_database_passes_while_the_pool_is_full(make_pool: Callable[..., Pool],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The check asks on a connection of its own; that all are in use for long is the warning of `pool`."""
    monkeypatch.setattr(checks, "FULL", 0.2)
    pool = make_pool(db_max_size=1)
    pool.start()
    check, sign = _pool_check(), _pool_check().sign
    with pool.connection():
        assert database_check(pool, pool.settings, shared=True).function()["latency_ms"] >= 0  # type: ignore[index]
        wait_until(lambda: sign()[0], message="its sign wakes the check")
        with pytest.raises(Worry, match="all connections have been in use"):
            check.function()
    wait_until(lambda: not scoreboard.my_row().words[W_DB_FULL_NS], message="there is room again")
    assert check.function()["waiting"] == 0


def test_a_server_without_a_free_connection_is_a_warning_while_the_pools_have_some(
        make_pool: Callable[..., Pool], mariadb: MariaDB) -> None:
    """Requests are served on those; without any of them it is a failure."""
    pool = make_pool()
    check = database_check(pool, Settings(), shared=True)
    with full(mariadb):
        with pytest.raises(pool.driver.dbapi.OperationalError):
            check.function()
        scoreboard.my_row().words[W_DB_SIZE] = 1
        with pytest.raises(Worry, match="no more connections"):
            check.function()


def test_a_silent_server_is_asked_no_longer_than_that(make_pool: Callable[..., Pool], mariadb: MariaDB,
                                                      proxy: FaultProxy) -> None:
    """The link is there and nothing comes back: the question ends, and its connection with it."""
    pool = make_pool(db_url=proxy.url_for(mariadb))
    proxy.delay(0.0)
    assert round_trip(pool.driver, 30) >= 0
    connect = pool.driver.connect

    def connect_and_lose(timeout: float | None = None) -> Any:
        raw = connect(30)
        proxy.blackhole(forget=True)
        return raw

    pool.driver.connect = connect_and_lose  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(pool.driver.dbapi.Error):
        round_trip(pool.driver, 0.5)
    assert time.monotonic() - began < 20  # not the driver's read_timeout of 35 s
    proxy.heal()


def test_an_engine_whose_pool_is_full_passes(mariadb: MariaDB) -> None:
    """A bounded pool of SQLAlchemy's is left alone; the round trip takes nothing from it."""
    engine = create_engine(mariadb.url.replace("mysql://", "mysql+mysqldb://"), poolclass=QueuePool, pool_size=1,
                           max_overflow=0, pool_timeout=30)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        assert engine_probe(engine)["pool"] == {"size": 1, "checkedin": 0, "checkedout": 1, "overflow": 0}
    engine.dispose()
    wait_until(lambda: not mariadb.sessions(), message="its own connection is closed")


def test_an_error_of_an_engine_wakes_its_check(mariadb: MariaDB, tmp_path: Path) -> None:
    """With a round of ten minutes, health tells of the outage that requests meet, also if the app handles the error."""
    engine = create_engine(mariadb.url.replace("mysql://", "mysql+mysqldb://"), pool_pre_ping=False)
    app = Flask("app", instance_path=str(tmp_path))
    app.config.update(STABILITY_HEALTH_DETAILS="always", STABILITY_HEALTH_INTERVAL=600, STABILITY_HEALTH_TIMEOUT=30)
    StabilityExt(app).register_engine(engine)

    @app.get("/use")
    def use() -> str:
        with contextlib.suppress(Exception), engine.connect() as connection:
            connection.execute(text("SELECT 5"))
        return "handled"

    client = app.test_client()

    def status() -> str:
        found: str = client.get("/health").get_json()["detailed"]["checks"].get("sqlalchemy", {}).get("status", "")
        return found

    wait_until(lambda: client.get("/use").text == "handled" and status() == "pass", message="the first round")
    mariadb.stop()
    assert client.get("/use").text == "handled"
    wait_until(lambda: status() == "fail", message="the check ran at once")
    counted = scoreboard.my_row().words[W_ENGINE_ERRORS]
    assert counted > 0
    with pytest.raises(Exception, match=r"200[23]"):
        engine_probe(engine)
    assert scoreboard.my_row().words[W_ENGINE_ERRORS] == counted, "what the check finds does not wake it"
    engine.dispose()
