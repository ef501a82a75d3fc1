"""A node of a real Galera cluster that does not serve: it lives, answers `SELECT 1`, and refuses everything else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import MySQLdb
import pytest

from flask_stability.config import Settings
from flask_stability.database.pool import Pool
from flask_stability.database.transaction import Transactions
from flask_stability.dberrors import ErrorClass, means_unavailable
from flask_stability.exceptions import DatabaseUnavailable
from support import free_port, wait_until
from support_db import MariaDB

_PROVIDER = "/usr/lib/galera/libgalera_smm.so"

pytestmark = [pytest.mark.long, pytest.mark.skipif(not os.path.exists(_PROVIDER), reason="galera-4 is not installed")]


@pytest.fixture(scope="module")
def node() -> Iterator[MariaDB]:
    """A cluster of one."""
    found = MariaDB("--wsrep-on=ON", f"--wsrep-provider={_PROVIDER}", "--wsrep-cluster-address=gcomm://",
                    "--wsrep-new-cluster", "--binlog-format=ROW", "--wsrep-node-address=127.0.0.1",
                    f"--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:{free_port()}")
    found.admin("CREATE TABLE app.t (a INT PRIMARY KEY)")
    try:
        yield found
    finally:
        found.destroy()


def test_a_node_that_does_not_serve_is_left_and_taken_again(node: MariaDB) -> None:
    """The first statement is a 503 and ends what leads there; who comes then is refused at once, not handed the same
    node; when it serves again, so do we, without a restart."""
    pool = Pool(Settings(db_url=node.url, db_timeout=20.0, db_max_size=4))
    pool.start()
    with contextlib.closing(pool):
        held = [pool.connection() for _ in range(3)]
        for connection in held:
            connection.close()
        old = set(pool.inventory.records)
        node.admin("SET GLOBAL wsrep_reject_queries=ALL")
        with pool.connection() as connection:
            connection.execute("SELECT 1")
            with pytest.raises(MySQLdb.Error, match="WSREP") as caught:
                connection.execute("INSERT INTO t VALUES (1)")
        assert pool.driver.classify(caught.value) is ErrorClass.NOT_READY
        assert means_unavailable(caught.value)
        with pytest.raises(DatabaseUnavailable, match="1047"):
            pool.connection()
        assert not old & pool.inventory.records
        node.admin("SET GLOBAL wsrep_reject_queries=NONE")
        wait_until(lambda: pool.availability.breaker.state == "closed", message="the node is found to serve again")
        with pool.connection() as connection:
            connection.execute("INSERT INTO t VALUES (1)")
    assert node.admin("SELECT a FROM app.t") == [(1,)]


def test_a_unit_goes_on_where_the_next_connection_leads(node: MariaDB) -> None:
    """What a node refused was not done: the unit again, once there is one that serves."""
    pool = Pool(Settings(db_url=node.url, db_timeout=20.0))
    runs: list[int] = []
    with contextlib.closing(pool):
        def unit(connection: object) -> None:
            runs.append(len(runs))
            if len(runs) == 1:
                node.admin("SET GLOBAL wsrep_reject_queries=ALL")
            try:
                connection.execute("INSERT INTO t VALUES (%s)", (100 + len(runs),))  # type: ignore[attr-defined]
            finally:
                node.admin("SET GLOBAL wsrep_reject_queries=NONE")

        Transactions(lambda: pool)(unit)()
    assert len(runs) == 2
    assert node.admin("SELECT a FROM app.t WHERE a > 100") == [(102,)]
