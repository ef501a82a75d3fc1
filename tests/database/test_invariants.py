"""Threads that use the pool in every order, well and badly, while links are cut: what must hold at every moment."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import MySQLdb
import MySQLdb.cursors
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flask_stability.config import Settings
from flask_stability.database import Pool, PooledConnection
from flask_stability.database.record import ConnectionRecord
from flask_stability.exceptions import DatabaseUnavailable, StabilityError
from support import wait_until
from support_db import FaultProxy, MariaDB, serving

SIZE, IDLE = 3, 2
#: By how much a checkout may miss its deadline on a busy machine, seconds; one that hangs misses it by minutes.
MERCY = 15.0


@dataclass(frozen=True)
class Step:
    """What a thread does next.

    :ivar fault: what happens to the links before it.
    :ivar patience: seconds to wait for a connection.
    :ivar request: the thread serves a request meanwhile.
    :ivar use: what is done with the connection.
    :ivar back: how it is given back.
    """

    fault: str
    patience: float
    request: bool
    use: str
    back: str


steps = st.builds(
    Step,
    fault=st.sampled_from(["", "", "", "", "cut", "reply", "bytes", "kill", "hole", "refuse"]),
    patience=st.sampled_from([0.0, 0.02, 0.3, 3.0]),
    request=st.booleans(),
    use=st.sampled_from(["", "SELECT 1", "SELECT 1", "SELECT SLEEP(0.02)", "SELECT nonsense", "SET @x = 1", "begin",
                         "stream", "hang"]),
    back=st.sampled_from(["close", "close", "twice", "drop", "request", "two threads"]))
#: One list for each thread; the threads run at the same time.
schedules = st.lists(st.lists(steps, min_size=3, max_size=15), min_size=2, max_size=6)


class Crowd:
    """Threads on one pool; what was seen to be wrong is in `wrong`."""

    def __init__(self, database: MariaDB, proxy: FaultProxy) -> None:
        self.database, self.proxy = database, proxy
        self.pool = Pool(Settings(db_url=proxy.url_for(database), db_max_size=SIZE, db_max_idle=IDLE, db_min_idle=1,
                                  db_max_lifetime=1.0, db_query_timeout=5.0, db_connect_timeout=2.0))
        self.pool.start()
        self.asked = self.refused = 0
        self.wrong: list[str] = []
        self._users: dict[ConnectionRecord, int] = {}
        self._lock, self._outage = threading.Lock(), threading.Lock()

    def work(self, schedule: list[Step]) -> None:
        """All steps of one thread."""
        for step in schedule:
            try:
                self._fault(step.fault)
                with serving(2.5) if step.request else contextlib.nullcontext():
                    self._step(step)
            except (MySQLdb.Error, DatabaseUnavailable):
                pass
            except BaseException as error:
                self.wrong.append(f"{step}: {error!r}")
            self._look()

    def _fault(self, fault: str) -> None:
        if fault == "cut":
            self.proxy.cut_all()
        elif fault == "reply":
            self.proxy.cut_reply_to(2)
        elif fault == "bytes":
            self.proxy.cut_after_reply_bytes(40)
        elif fault == "kill":
            self.database.admin(f"KILL USER {self.database.user}")
        elif fault:
            with self._outage:
                self.proxy.blackhole() if fault == "hole" else self.proxy.refuse()
                time.sleep(0.1)
                self.proxy.heal()

    def _step(self, step: Step) -> None:
        connection = self._take(step.patience)
        entry = connection.record
        with self._lock:
            if entry in self._users:
                self.wrong.append("one connection in two hands")
            self._users[entry] = threading.get_ident()
        try:
            self._use(connection, step.use)
        finally:
            with self._lock:
                del self._users[entry]
            if step.back == "two threads":
                helper = threading.Thread(target=connection.close)
                helper.start()
                connection.close()
                helper.join()
            elif step.back in ("close", "twice") or (step.back == "request" and not step.request):
                connection.close()
                if step.back == "twice":
                    connection.close()
            del connection, entry

    def _take(self, patience: float) -> PooledConnection:
        started = time.monotonic()
        with self._lock:
            self.asked += 1
        try:
            return self.pool.connection(timeout=patience)
        except BaseException:
            with self._lock:
                self.refused += 1
            raise
        finally:
            if time.monotonic() - started > patience + MERCY:
                self.wrong.append(f"waited {time.monotonic() - started:.1f} s instead of {patience} s")

    def _use(self, connection: PooledConnection, use: str) -> None:
        if use == "begin":
            connection.begin()
        elif use == "stream":
            connection.cursor(MySQLdb.cursors.SSCursor).execute("SELECT seq FROM seq_1_to_100000")
        elif use == "hang":
            connection.execute("SELECT SLEEP(0.3)")
        elif use:
            connection.execute(use).fetchall()

    def _look(self) -> None:
        pool = self.pool
        with pool.inventory.lock:
            idle, counted, known = len(pool.inventory.idle), pool.inventory.taken, len(pool.inventory.records)
            connecting = pool.inventory.opening
        if not 0 <= connecting <= counted or counted + idle > SIZE or known > SIZE or idle > IDLE:
            self.wrong.append(f"{counted} in use, {connecting} connecting, {idle} idle, {known} known")

    def check(self) -> None:
        """Once all is quiet and healed: nothing is missing, the pool works, the books are right, and it can end."""
        self.proxy.heal()
        pool = self.pool
        books = pool.inventory
        wait_until(lambda: not pool.lost and not books.taken and not books.opening, message="all came back")
        wait_until(self._works, message="a healed database is used again")
        wait_until(self._settled, message="the books are right")
        open_now, stats = len(pool.inventory.idle), pool.stats()
        assert not self.wrong, self.wrong
        assert (stats["requests_num"], stats["requests_errors"]) == (self.asked, self.refused)
        assert stats["requests_waiting"] == len(pool.inventory.waiters) == len(pool.bulkhead.inside) == 0
        assert stats["connections_num"] >= stats["connections_errors"] + open_now
        pool.close()
        wait_until(lambda: (pool.stats()["pool_size"], len(pool.inventory.records), pool.inventory.taken) == (0, 0, 0),
                   message="what the keeper was at came back to a closed pool")
        wait_until(lambda: not self.database.sessions(), message="the server has no connection left")
        with pytest.raises(StabilityError):
            pool.connection()

    def _settled(self) -> bool:
        """Nothing is in use and nothing is counted twice; the keeper goes on replacing what has expired."""
        books = self.pool.inventory
        with books.lock:
            return not books.taken and not books.opening and len(books.idle) == len(books.records) <= IDLE

    def _works(self) -> bool:
        try:
            with self._take(5.0) as connection:
                return bool(connection.execute("SELECT 1").fetchall() == ((1,),))
        except (DatabaseUnavailable, MySQLdb.Error):
            return False


@pytest.fixture(scope="module")
def crowd_proxy(mariadb_server: MariaDB) -> Iterator[FaultProxy]:
    """One proxy for all schedules."""
    proxy = FaultProxy(mariadb_server.port)
    yield proxy
    proxy.stop()


def _run(database: MariaDB, proxy: FaultProxy, schedule: list[list[Step]]) -> Crowd:
    crowd = Crowd(database.start(), proxy)
    try:
        threads = [threading.Thread(target=crowd.work, args=(part,), daemon=True) for part in schedule]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "a thread hangs"
        crowd.check()
    finally:
        proxy.heal()
        crowd.pool.close()
    return crowd


_PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking repeats what depends on the threads' timing
_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=5, derandomize=True, database=None, phases=_PHASES,
          suppress_health_check=_CHECKS)
@given(schedule=schedules)
def test_what_always_holds(mariadb_server: MariaDB, crowd_proxy: FaultProxy, schedule: list[list[Step]]) -> None:
    """Never above its size, none in two hands, each checkout ends in time, the books add up, nothing is left."""
    _run(mariadb_server, crowd_proxy, schedule)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=100, phases=_PHASES, suppress_health_check=_CHECKS)
@given(schedule=schedules)
def test_what_always_holds_in_a_hundred_schedules(mariadb_server: MariaDB, crowd_proxy: FaultProxy,
                                                  schedule: list[list[Step]]) -> None:
    """Others in each run."""
    _run(mariadb_server, crowd_proxy, schedule)
