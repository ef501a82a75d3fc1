"""A statement past its time: ended on the server too, that one and no other; what one borrower may have instead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from flask_stability.config import Settings
from flask_stability.database import guarded_calls, identity
from flask_stability.database.mysql import MySQLDriver
from flask_stability.database.pool import Pool
from flask_stability.database.transaction import Transactions
from flask_stability.exceptions import DatabaseUnavailable, DeadlineExceeded
from support import wait_until
from support_db import FaultProxy, MariaDB, dbapi, serving

pytestmark = pytest.mark.pymysql_too

MakePool = Callable[..., Pool]
#: Hours of work in which the server does not look whether anybody is still there (as it does in SLEEP).
ENDLESS = "SELECT BENCHMARK(1000000000000, 1 + 1)"


@pytest.fixture
def settled(mariadb: MariaDB) -> MariaDB:
    """The server, started long enough ago that a session of now is certainly one of this run of it."""
    wait_until(lambda: mariadb.status("Uptime") >= 3)
    return mariadb


def working(server: MariaDB, sql: str) -> list[int]:
    """Sessions that execute this now."""
    return [int(row[0]) for row in server.admin(
        "SELECT id FROM information_schema.processlist WHERE user=%s AND info LIKE %s", server.user, f"%{sql}%")]


def test_what_is_cut_off_ends_on_the_server(make_pool: MakePool, settled: MariaDB) -> None:
    """A request's time is over: its statement, which nothing limits, does not go on holding its locks."""
    pool = make_pool(db_query_timeout=0)
    pool.start()
    with serving(timeout=2.0), pool.connection() as connection, pytest.raises(DeadlineExceeded):
        connection.execute(ENDLESS)
    wait_until(lambda: not working(settled, "BENCHMARK"), message="the server has ended it")
    wait_until(lambda: pool.calls.killer.ended == 1)
    assert len(pool.inventory.records) == 0


def test_what_the_server_does_not_limit_is_ended(make_pool: MakePool, settled: MariaDB) -> None:
    """As an UPDATE on MySQL: a second after its time. The unit is not run again."""
    pool = make_pool(db_query_timeout=0.5)
    pool.start()
    settled.admin("CREATE TABLE app.t (a INT)")
    runs: list[int] = []

    def unit(connection: Any) -> None:
        runs.append(1)
        connection.execute("SET SESSION max_statement_time=0")
        connection.execute("INSERT INTO t " + ENDLESS)

    with pytest.raises(DeadlineExceeded, match=r"longer than 0\.5 s"):
        Transactions(lambda: pool)(unit)()
    assert runs == [1]
    wait_until(lambda: not working(settled, "BENCHMARK"), message="the server has ended it")


def test_many_statements_of_one_call_have_their_time_each(make_pool: MakePool, mariadb: MariaDB,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """executemany sends them one after the other."""
    monkeypatch.setattr(guarded_calls, "LATE", 0.0)
    pool = make_pool(db_query_timeout=2)
    pool.start()
    with pool.connection() as connection:
        connection.cursor().executemany("SELECT SLEEP(%s)", [(0.7,)] * 4)


def test_the_clients_own_limit_is_the_end_of_the_statement_too(make_pool: MakePool, settled: MariaDB,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a keeper: 2013 after our own limit is no lost link, and the unit is not begun again beside its first run.
    """
    monkeypatch.setattr(MySQLDriver, "backstop", staticmethod(lambda seconds: 1))
    pool = make_pool(db_query_timeout=0.5)
    runs: list[int] = []

    def unit(connection: Any) -> None:
        runs.append(1)
        connection.execute("SET SESSION max_statement_time=0")
        connection.execute(ENDLESS)

    with pytest.raises(DeadlineExceeded):
        Transactions(lambda: pool)(unit)()
    assert runs == [1]
    wait_until(lambda: not working(settled, "BENCHMARK"), message="the server has ended it")
    assert pool.stats()["retries_num"] == 0


def test_no_session_is_ended_that_is_not_certainly_ours(mariadb: MariaDB) -> None:
    """Another server, an earlier run of this one, another account, a proxy's number, one that is gone, itself."""
    question = identity.questions(mariadb=True)[0]
    with contextlib.closing(mariadb.connect()) as victim, contextlib.closing(mariadb.connect()) as raw:
        theirs, own = identity.identity_of(victim, question), identity.identity_of(raw, question)
        theirs = theirs._replace(since=theirs.since + 60)  # the server of the tests may be seconds old
        for wrong in (theirs._replace(server=theirs.server + "1"), theirs._replace(since=1.0),
                      theirs._replace(account="root@localhost"), theirs._replace(account="app@192.0.2.1"),
                      theirs._replace(direct=False), theirs._replace(session=2**31), own):
            assert not identity.end_session(raw, own, wrong)
        assert not identity.end_session(raw, own._replace(direct=False), theirs)
        victim.ping()
        assert identity.end_session(raw, own, theirs)
        with pytest.raises(dbapi.OperationalError):
            victim.ping()
        wait_until(lambda: not identity.end_session(raw, own, theirs), message="it is gone")


def test_behind_a_proxy_that_multiplexes_nothing_is_ended(mariadb: MariaDB) -> None:
    """There the number of the greeting is the proxy's, and that of a statement some server's."""
    class Multiplexed:
        def __init__(self, raw: Any) -> None:
            self.query, self.store_result = raw.query, raw.store_result

        def thread_id(self) -> int:
            return 7

    with contextlib.closing(mariadb.connect()) as raw:
        assert not identity.identity_of(Multiplexed(raw), identity.questions(mariadb=True)[0]).direct
        assert identity.identity_of(raw, identity.questions(mariadb=True)[0]).direct


@pytest.mark.long
def test_a_link_that_leads_to_another_server_ends_nothing(mariadb: MariaDB, proxy: FaultProxy) -> None:
    """As behind a balancer, or after a failover: the same number there is somebody else."""
    pool = Pool(Settings(db_url=proxy.url_for(mariadb)))
    driver = pool.driver
    other = MariaDB()
    try:
        with contextlib.closing(driver.connect()) as raw:
            theirs = raw.identity._replace(since=raw.identity.since + 60)
            proxy.target_port = other.port
            assert not driver.kill(theirs)
            proxy.target_port = mariadb.port
            assert driver.kill(theirs)
    finally:
        pool.close()
        other.destroy()


def test_waits_for_locks_are_no_longer_than_a_statement(make_pool: MakePool, mariadb: MariaDB) -> None:
    """By default the server lets an UPDATE wait a year for a table; a lower limit of its own stays."""
    mariadb.admin("SET GLOBAL innodb_lock_wait_timeout=3")
    try:
        pool = make_pool(db_query_timeout=6.5)
        for _ in range(2):
            with pool.connection() as connection:
                connection.execute("SET SESSION lock_wait_timeout=1000")  # and cleared afterwards
                connection.execute("SELECT 1")
        with pool.connection() as connection:
            found = connection.execute("SELECT @@lock_wait_timeout, @@innodb_lock_wait_timeout").fetchone()
        assert found == (7, 3)
    finally:
        mariadb.admin("SET GLOBAL innodb_lock_wait_timeout=50")


def test_an_update_behind_a_lock_on_the_table_ends(make_pool: MakePool, mariadb: MariaDB) -> None:
    """Error 1205 after the time that it may take, not after a year."""
    mariadb.admin("CREATE TABLE app.t (a INT)")
    pool = make_pool(db_query_timeout=1)
    with contextlib.closing(mariadb.connect()) as holder:
        holder.query("LOCK TABLES t WRITE")
        with pool.connection() as connection:
            connection.execute("SET SESSION max_statement_time=0")  # as on MySQL
            with pytest.raises(dbapi.OperationalError) as caught:
                connection.execute("UPDATE t SET a=1")
    assert caught.value.args[0] == 1205


def limits(connection: Any) -> Any:
    """What the server lets this session's statements take, seconds."""
    return connection.execute("SELECT @@max_statement_time").fetchone()[0]


@pytest.mark.parametrize("seconds", [0.5, 33.0, 600.0, 0.0])
def test_one_borrower_has_another_limit(make_pool: MakePool, mariadb: MariaDB, seconds: float) -> None:
    """Less or more time, or none; the next one has the usual. The pool is no larger for it."""
    pool = make_pool(db_max_size=1)
    with pool.connection(query_timeout=seconds) as connection:
        assert limits(connection) == seconds
        assert len(mariadb.sessions()) == 1
        assert pool.stats()["pool_in_use"] == 1
        if seconds == 0.5:
            with pytest.raises(dbapi.OperationalError, match="max_statement_time"):
                connection.execute("SELECT SLEEP(60)")
    with pool.connection() as connection:
        assert limits(connection) == 30.0
    assert pool.stats()["pool_size"] == 1


def test_more_time_is_more_than_the_clients_limit(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement longer than any of the others may take."""
    monkeypatch.setattr(MySQLDriver, "backstop", staticmethod(lambda seconds: int(seconds) + 1))
    pool = make_pool(db_query_timeout=0.5, db_max_size=1)
    with pool.connection(query_timeout=30) as connection:
        assert connection.execute("SELECT SLEEP(2.5)").fetchone() == (0,)


def test_where_no_connection_with_more_time_can_be_had_the_slot_is_free_again(make_pool: MakePool, proxy: FaultProxy,
                                                                              mariadb: MariaDB) -> None:
    """Refused or too late: an error in time, and the pool is as large as before."""
    pool = make_pool(db_url=proxy.url_for(mariadb), db_max_size=1, db_timeout=1.0)
    with pool.connection() as connection:
        connection.execute("SELECT 1")
    mariadb.admin("ALTER USER app@'%' IDENTIFIED BY 'other'")
    try:
        with pytest.raises(DatabaseUnavailable, match="OperationalError"):
            pool.connection(query_timeout=600)
    finally:
        mariadb.admin("ALTER USER app@'%' IDENTIFIED BY 'secret'")
    wait_until(lambda: pool.stats()["pool_size"] == 0)
    with pool.connection(timeout=30):
        pass
    proxy.delay(1.0)
    with pytest.raises(DatabaseUnavailable, match="in time"):
        pool.connection(timeout=0.5, query_timeout=600)
    proxy.delay(0.0)
    wait_until(lambda: pool.stats()["pool_size"] == 0)
    with pool.connection(timeout=30):
        pass


def test_a_slow_commit_is_not_cut_off_as_a_statement(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be taken back, and what it stored would be unknown."""
    monkeypatch.setattr(guarded_calls, "LATE", 0.0)
    mariadb.admin("CREATE TABLE app.t (a INT)")
    pool = make_pool(db_url=proxy.url_for(mariadb), db_query_timeout=1)
    pool.start()

    def unit(connection: Any) -> None:
        connection.execute("INSERT INTO t VALUES (1)")
        proxy.delay(1.6)

    try:
        Transactions(lambda: pool)(unit)()
    finally:
        proxy.delay(0.0)
    assert mariadb.admin("SELECT a FROM app.t") == [(1,)]
