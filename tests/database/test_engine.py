"""An SQLAlchemy engine beside our pool: in /health, and its outages answered with 503."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.pool import QueuePool

from flask_stability import StabilityError, StabilityExt, scoreboard
from flask_stability.database.engine import engine_probe, engine_unavailable
from flask_stability.errors.handlers import is_unavailable
from flask_stability.extension import stop_process
from support import wait_until
from support_db import MariaDB


@pytest.fixture
def engine(mariadb: MariaDB) -> Iterator[Engine]:
    """An engine on the test's MariaDB with a pool of one."""
    made = create_engine(mariadb.url.replace("mysql://", "mysql+mysqldb://"), poolclass=QueuePool, pool_size=1,
                         max_overflow=0, pool_timeout=30)
    yield made
    made.dispose()


def test_its_pool_is_in_the_details(engine: Engine) -> None:
    """After a round trip."""
    assert engine_probe(engine)["pool"]["size"] == 1


def test_what_is_no_engine_is_refused(tmp_path: Path) -> None:
    """At once, with what to give."""
    stability = StabilityExt(Flask("app", instance_path=str(tmp_path)))
    with pytest.raises(StabilityError, match="SQLAlchemy engine"):
        stability.register_engine("mysql://")  # type: ignore[arg-type]


def test_an_exhausted_pool_and_a_server_that_is_gone_mean_unavailable(
        engine: Engine, mariadb: MariaDB, tmp_path: Path) -> None:
    """A wrong statement does not."""
    StabilityExt(Flask("app", instance_path=str(tmp_path))).register_engine(engine)
    assert isinstance(engine.pool, QueuePool)
    engine.pool._timeout = 0.2
    with engine.connect(), pytest.raises(Exception, match="QueuePool limit") as exhausted:
        engine.connect()
    assert engine_unavailable(exhausted.value)
    with engine.connect() as connection, pytest.raises(Exception, match="1146") as wrong:
        connection.execute(text("SELECT * FROM nowhere"))
    assert not engine_unavailable(wrong.value)
    engine.dispose()
    mariadb.stop()
    with pytest.raises(Exception, match=r"200[23]") as gone:
        engine.connect()
    assert is_unavailable(gone.value)


@pytest.fixture
def board() -> Iterator[None]:
    """A scoreboard of the test's own: what its checks say stays there."""
    scoreboard.forget()
    yield
    stop_process()


@pytest.mark.usefixtures("board")
def test_an_engine_in_health_and_in_answers(engine: Engine, mariadb: MariaDB, tmp_path: Path) -> None:
    """Its pool's figures are among the checks; when its server is gone, views answer 503 and the check fails."""
    app = Flask("app", instance_path=str(tmp_path))
    app.config.update(STABILITY_HEALTH_DETAILS="always", STABILITY_HEALTH_INTERVAL=0.2, STABILITY_HEALTH_TIMEOUT=30)
    StabilityExt(app).register_engine(engine)

    @app.get("/use")
    def use() -> str:
        with engine.connect() as connection:
            return str(connection.execute(text("SELECT 5")).scalar())

    client = app.test_client()

    def check() -> dict[str, Any]:
        document: dict[str, Any] = client.get("/health").get_json()
        found: dict[str, Any] = document["detailed"]["checks"].get("sqlalchemy", {})
        return found

    assert client.get("/use").data == b"5"
    assert wait_until(lambda: check().get("pool"))["size"] == 1
    assert wait_until(lambda: check().get("critical"))
    mariadb.stop()
    engine.dispose()
    answer = client.get("/use")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    wait_until(lambda: check().get("status") == "fail", message="the check fails")
