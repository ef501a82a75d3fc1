"""The options of SQLAlchemy's pools mean with `StabilityPool` what they mean with a `QueuePool`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import create_async_engine

from flask_stability.sqlalchemy import PoolTimeout, StabilityPool
from support import wait_until
from support_db import FaultProxy, MariaDB


class Engines:
    """Makes engines on the test's MariaDB, by way of a proxy that counts their round trips."""

    def __init__(self, database: MariaDB, proxy: FaultProxy) -> None:
        self.database, self.proxy = database, proxy
        self._made: list[Engine] = []

    def make(self, **options: Any) -> Engine:
        """One with a pool of one connection."""
        url = self.proxy.url_for(self.database).replace("mysql://", "mysql+mysqldb://")
        options = {"pool_size": 1, "max_overflow": 0, "poolclass": StabilityPool, **options}
        self._made.append(create_engine(url, **options))
        return self._made[-1]

    def dispose(self) -> None:
        """Of all."""
        for engine in self._made:
            engine.dispose()


@pytest.fixture
def engines(mariadb: MariaDB, proxy: FaultProxy) -> Iterator[Engines]:
    """Are disposed of with the test."""
    made = Engines(mariadb, proxy)
    yield made
    made.dispose()


def session_of(engine: Engine) -> int:
    """Number of the connection's session on the server."""
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT CONNECTION_ID()")).scalar() or 0)


def trips(engines: Engines, engine: Engine, times: int = 10) -> float:
    """Round trips of a checkout, a SELECT and a check-in."""
    session_of(engine)
    before = engines.proxy.commands
    for _ in range(times):
        session_of(engine)
    return (engines.proxy.commands - before) / times


def test_pool_pre_ping_asks_each_time(engines: Engines) -> None:
    """One round trip more than without."""
    plain, asking = trips(engines, engines.make()), trips(engines, engines.make(pool_pre_ping=True))
    assert (plain, asking) == (2.0, 3.0)  # SELECT, ROLLBACK


@pytest.mark.parametrize("how", ["rollback", "commit", None])
def test_pool_reset_on_return(engines: Engines, how: str | None) -> None:
    """What the driver's own connection left open is rolled back, committed or left."""
    engine = engines.make(pool_reset_on_return=how)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE left_open (number INTEGER NOT NULL)"))
    raw = engine.raw_connection()
    raw.cursor().execute("INSERT INTO left_open VALUES (1)")
    raw.close()
    with engine.connect() as connection:
        found = connection.execute(text("SELECT COUNT(*) FROM left_open")).scalar()
    engine.dispose()
    stored = engines.database.admin("SELECT COUNT(*) FROM app.left_open")[0][0]
    assert stored == (1 if how == "commit" else 0)
    assert found == (0 if how == "rollback" else 1)


def test_pool_recycle_limits_a_connections_life(engines: Engines) -> None:
    """In seconds; a younger one is used again."""
    engine = engines.make(pool_recycle=2)
    first = session_of(engine)
    wait_until(lambda: session_of(engine) != first, 30, 0.1, "another connection")
    lasting = engines.make()
    assert session_of(lasting) == session_of(lasting)


def test_pool_size_and_max_overflow(engines: Engines) -> None:
    """No more are open, the overflow is closed when it comes back; -1 is no limit, and so is a size of 0."""
    engine = engines.make(pool_size=1, max_overflow=1, pool_timeout=0.2)
    with engine.connect() as one, engine.connect() as two:
        assert engine.pool.checkedout() == 2  # type: ignore[attr-defined]
        with pytest.raises(PoolTimeout):
            engine.connect()
        assert one.closed is two.closed is False
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    for options in ({"pool_size": 1, "max_overflow": -1}, {"pool_size": 0}):
        unlimited = engines.make(**options)
        held = [unlimited.connect() for _ in range(15)]
        assert unlimited.pool.checkedout() == 15  # type: ignore[attr-defined]
        for connection in held:
            connection.close()


def test_echo_pool_writes_to_the_log(engines: Engines, caplog: pytest.LogCaptureFixture) -> None:
    """Checkouts and check-ins, under SQLAlchemy's names."""
    engine = engines.make(echo_pool="debug", pool_logging_name="orders")
    with caplog.at_level("DEBUG"):
        session_of(engine)
    told = [record.message for record in caplog.records if record.name.endswith("StabilityPool.orders")]
    assert any("checked out from pool" in line for line in told)
    assert any("being returned to pool" in line for line in told)


def test_an_async_engine_is_refused() -> None:
    """When it is made, with the name of the pool. SQLAlchemy does not get as far as its driver."""
    with pytest.raises(exc.ArgumentError, match="StabilityPool cannot be used with asyncio"):
        create_async_engine("mysql+aiomysql://host/app", poolclass=StabilityPool,
                            module=mock.MagicMock(paramstyle="format"))


def test_a_close_that_is_interrupted_frees_its_place(engines: Engines) -> None:
    """An exception that no `except Exception` sees, raised in the invalidation or in the reset."""
    for name in ("invalidate", "reset"):
        engine = engines.make(pool_timeout=20)
        fail = [True]

        @event.listens_for(engine, name)
        def interrupt(*_: Any, fail: list[bool] = fail) -> None:
            if fail.pop() if fail else False:
                raise KeyboardInterrupt

        connection = engine.raw_connection()
        with pytest.raises(KeyboardInterrupt):
            if name == "invalidate":
                connection.invalidate()
            else:
                connection.close()
        connection.close()
        assert session_of(engine)


def test_the_connection_that_tells_where_sqlite_is_becomes_the_first(tmp_path: Path) -> None:
    """One connect for one connection."""
    engine = create_engine(f"sqlite:///{tmp_path}/a.db", poolclass=StabilityPool)
    opened: list[object] = []
    event.listen(engine, "connect", lambda raw, _: opened.append(raw))
    for _ in range(3):
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
    assert len(opened) == 1
    engine.dispose()


SCRIPT = """
import sys
from sqlalchemy import create_engine, text
from flask_stability.sqlalchemy import StabilityPool

engine = create_engine(sys.argv[1], poolclass=StabilityPool)
with engine.begin() as connection:
    connection.execute(text("CREATE TABLE IF NOT EXISTS script (number INTEGER)"))
    connection.execute(text("INSERT INTO script VALUES (1)"))
    print(connection.execute(text("SELECT COUNT(*) FROM script")).scalar())
"""


def test_a_script_without_an_app_ends_by_itself(mariadb: MariaDB) -> None:
    """Without `init_app`, a request, a dispose: nothing holds it up, nothing is complained about."""
    url = mariadb.url.replace("mysql://", "mysql+pymysql://")
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT, url], capture_output=True, text=True,
                          timeout=100)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
