"""Requests are held while the database is away."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_stability import logs, request
from flask_stability.database import hold
from flask_stability.database.inventory import Inventory
from flask_stability.database.pool import Pool
from flask_stability.database.transaction import Transactions
from flask_stability.exceptions import CircuitOpen, DatabaseUnavailable, PoolTimeout
from flask_stability.request import SOCKET
from support import wait_until
from support_db import FaultProxy, MariaDB, serving

MakePool = Callable[..., Pool]


class Worker:
    """What serves the requests: as many threads as are wanted, unless it says otherwise."""

    willing = True
    shown = 0

    def may_hold(self) -> bool:
        return self.willing

    def show_held(self, number: int) -> None:
        self.shown = number


@pytest.fixture
def worker() -> Iterator[Worker]:
    found = Worker()
    hold.hosted_by(found)
    yield found
    hold.hosted_by(None)
    assert not request.held


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the pool logs."""
    lines: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(logs, "error", lambda event, **fields: lines.append((event, fields)))
    return lines


@pytest.fixture
def away(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy, worker: Worker) -> Callable[..., Pool]:
    """Make a pool whose database is known to be away."""
    def make(**settings: Any) -> Pool:
        pool = make_pool(db_url=proxy.url_for(mariadb), **{"db_outage_patience": 60.0, "db_timeout": 60.0, **settings})
        pool.start()
        proxy.refuse()

        def known() -> bool:
            with pytest.raises(DatabaseUnavailable):
                pool.connection()
            return pool.availability.breaker.open

        wait_until(known)
        return pool

    return make


class Request(threading.Thread):
    """A request that takes a connection and does something with it."""

    def __init__(self, use: Callable[[], Any], client: socket.socket | None = None) -> None:
        super().__init__(daemon=True)
        self.use, self.client = use, client
        self.result: Any = None
        self.held_s = 0.0
        self.start()

    def run(self) -> None:
        with serving() as record:
            if self.client is not None:
                record.environ[SOCKET] = self.client
            try:
                self.result = self.use()
            except Exception as error:
                self.result = error
            self.held_s = record.held_ns / 1e9


def select(pool: Pool, order: list[int] | None = None, number: int = 0) -> Callable[[], Any]:
    def use() -> Any:
        with pool.connection() as connection:
            if order is not None:
                order.append(number)
            return connection.execute("SELECT 1").fetchall()

    return use


def test_requests_are_held_and_served_oldest_first(away: Callable[..., Pool], proxy: FaultProxy, worker: Worker,
                                                   told: list[tuple[str, dict[str, Any]]]) -> None:
    """Each gets its answer once the database is back; the time for which it was held is known, and one line tells."""
    pool = away(db_max_size=1)
    order: list[int] = []
    requests = []
    for number in range(6):
        requests.append(Request(select(pool, order, number)))
        wait_until(lambda: worker.shown == len(requests))
    since = time.monotonic()
    proxy.heal()
    for one in requests:
        one.join(60)
    assert [one.result for one in requests] == [((1,),)] * 6
    assert order == list(range(6))
    assert all(one.held_s > 0 for one in requests)
    assert requests[0].held_s <= time.monotonic() - since + 60
    assert worker.shown == 0
    lines = wait_until(lambda: [fields for event, fields in told if event == "database_back"])
    assert [(line["held"], line["served"]) for line in lines] == [(6, 6)]
    assert [event for event, _ in told if event.startswith("database_")] == ["database_gone", "database_back"]


@pytest.mark.parametrize("timeout", [10.0, 0.05])
def test_requests_that_waited_already_when_the_database_went_are_held(
        make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy, worker: Worker, timeout: float) -> None:
    """The first ones find out that it is away, and are held like those that come later, also where their own time for a
    connection is over before that is certain.
    """
    pool = make_pool(db_url=proxy.url_for(mariadb), db_outage_patience=60.0, db_timeout=timeout)
    pool.start()
    proxy.refuse()
    requests = [Request(select(pool)) for _ in range(4)]
    wait_until(lambda: worker.shown == 4)
    wait_until(lambda: pool.availability.breaker.open)
    pool.hold._timeout = 60.0  # however long this machine takes to connect
    proxy.heal()
    for one in requests:
        one.join(60)
    assert [one.result for one in requests] == [((1,),)] * 4


def test_what_is_no_request_fails_at_once(away: Callable[..., Pool]) -> None:
    """A health check, a background thread, a script; and what the app does inside a request of the extension's own."""
    pool = away()
    with pytest.raises(CircuitOpen):
        pool.connection()
    with serving() as record:
        record.health = True
        with pytest.raises(CircuitOpen):
            pool.connection()
    with serving() as record:
        record.environ[request.NO_HOLD] = True
        with pytest.raises(CircuitOpen):
            pool.connection()


def test_a_request_that_holds_a_connection_is_not_held(away: Callable[..., Pool], make_pool: MakePool) -> None:
    """Of any pool: one database's outage would drain the other's pool. Nor one inside such a request."""
    pool, other = away(), make_pool()
    with serving() as outer:
        mine = other.connection()
        with pytest.raises(CircuitOpen):
            pool.connection()
        inner = request.RequestRecord({}, time.monotonic_ns())
        inner.outer = outer
        assert pool.hold.candidate(inner) is None
        mine.close()
        assert pool.hold.candidate(inner) is inner


def test_wait_false_fails_at_once(away: Callable[..., Pool], make_pool: MakePool, mariadb: MariaDB,
                                  worker: Worker) -> None:
    """While the database is away, while it is just going, and while others have all connections."""
    pool = away()
    with serving():
        with pytest.raises(CircuitOpen):
            pool.connection(wait=False)
        going = make_pool(db_url=mariadb.url_for(1), db_timeout=600.0)
        with pytest.raises(CircuitOpen):
            going.connection(wait=False)
        assert not going.availability.breaker.open
        full = make_pool(db_max_size=1, db_timeout=600.0)
        with full.connection(wait=False), pytest.raises(PoolTimeout):
            full.connection(wait=False)
        full.connection(wait=False).close()


def test_patience_ends(away: Callable[..., Pool], worker: Worker) -> None:
    """Counted from the outage's begin: those that are held are refused then, later ones at once."""
    pool = away(db_outage_patience=2.0)
    held = Request(select(pool))
    held.join(60)
    assert isinstance(held.result, CircuitOpen)
    with serving() as record:
        with pytest.raises(CircuitOpen):
            pool.connection()
        assert not record.held_ns


def test_no_patience(away: Callable[..., Pool]) -> None:
    """STABILITY_DB_OUTAGE_PATIENCE=0."""
    pool = away(db_outage_patience=0.0)
    with serving() as record:
        with pytest.raises(CircuitOpen):
            pool.connection()
        assert not record.held_ns


def test_a_time_of_its_own_is_kept(away: Callable[..., Pool], worker: Worker) -> None:
    """A timeout that is given, and the request's deadline, end the wait."""
    pool = away()
    with serving(), pytest.raises(PoolTimeout):
        pool.connection(timeout=0.3)
    with serving(timeout=1.4), pytest.raises(PoolTimeout):
        pool.connection()


def test_the_pool_s_own_timeout_does_not_end_the_wait(away: Callable[..., Pool], proxy: FaultProxy,
                                                      worker: Worker) -> None:
    """STABILITY_DB_TIMEOUT is for connections that others use."""
    pool = away(db_timeout=0.2)
    one = Request(select(pool))
    wait_until(lambda: worker.shown == 1)
    until = time.monotonic() + 1
    wait_until(lambda: time.monotonic() > until)
    assert one.is_alive()
    pool.hold._timeout = 60.0  # however long this machine takes to connect
    proxy.heal()
    one.join(60)
    assert one.result == ((1,),)


def test_a_worker_that_cannot_serve_the_rest_holds_nothing(away: Callable[..., Pool], worker: Worker) -> None:
    """Nor does it go on holding; and one that ends lets go of all."""
    pool = away(db_outage_threads=2)
    requests = [Request(select(pool)) for _ in range(2)]
    wait_until(lambda: worker.shown == 2)
    with serving(), pytest.raises(CircuitOpen):
        pool.connection()
    worker.willing = False
    for one in requests:
        one.join(60)
        assert isinstance(one.result, CircuitOpen)
    worker.willing = True
    last = Request(select(pool))
    wait_until(lambda: worker.shown == 1)
    hold.let_go("the worker ends")
    last.join(60)
    assert isinstance(last.result, CircuitOpen)
    with serving(), pytest.raises(CircuitOpen):
        pool.connection()


def test_requests_whose_client_has_left_are_dropped(away: Callable[..., Pool], proxy: FaultProxy,
                                                    worker: Worker) -> None:
    """At once, not only when it is their turn."""
    pool = away()
    ours, client = socket.socketpair()
    with ours, client:
        leaves, stays = Request(select(pool), ours), Request(select(pool))
        wait_until(lambda: worker.shown == 2)
        client.close()
        leaves.join(60)
        assert isinstance(leaves.result, CircuitOpen)
        assert stays.is_alive()
        proxy.heal()
        stays.join(60)
    assert stays.result == ((1,),)


def test_who_left_does_not_wait_for_a_connection_that_others_use(make_pool: MakePool, worker: Worker) -> None:
    """The database is there: a table is locked, say, and all connections wait for it."""
    pool = make_pool(db_max_size=1, db_timeout=600.0)
    pool.start()
    ours, client = socket.socketpair()
    with ours, client:
        with pool.connection():
            leaves, stays = Request(select(pool), ours), Request(select(pool))
            wait_until(lambda: len(pool.inventory.waiters) == 2)
            client.close()
            leaves.join(60)
            assert isinstance(leaves.result, CircuitOpen)
            assert stays.is_alive()
        stays.join(60)
    assert stays.result == ((1,),)


def test_a_unit_of_work_waits_and_is_run_again_once(make_pool: MakePool, mariadb: MariaDB, proxy: FaultProxy,
                                                    worker: Worker) -> None:
    """Its link is lost before COMMIT: the outage costs it one attempt, and it is stored once."""
    mariadb.admin(f"CREATE TABLE {mariadb.name}.kept (number INTEGER)")
    pool = make_pool(db_url=proxy.url_for(mariadb), db_outage_patience=60.0, db_timeout=60.0)
    pool.start()
    tries: list[int] = []
    inside, go_on = threading.Event(), threading.Event()

    @Transactions(lambda: pool)(attempts=2)
    def unit(connection: Any) -> int:
        tries.append(1)
        connection.execute("INSERT INTO kept VALUES (%s)", (len(tries),))
        if len(tries) == 1:
            inside.set()
            go_on.wait(60)
            connection.execute("SELECT 1")
        return len(tries)

    one = Request(lambda: unit())
    assert inside.wait(60)
    proxy.refuse()
    go_on.set()
    wait_until(lambda: worker.shown == 1)
    proxy.heal()
    one.join(60)
    assert one.result == 2
    assert mariadb.admin(f"SELECT number FROM {mariadb.name}.kept") == [(2,)]


def test_a_database_that_is_back_is_not_run_over(away: Callable[..., Pool], proxy: FaultProxy, worker: Worker) -> None:
    """Few connections at first, however many requests wait."""
    pool = away(db_max_size=20)
    most: list[int] = []

    def use() -> None:
        with pool.connection():
            with pool.inventory.lock:
                most.append(pool.inventory.taken - pool.inventory.most_used)

    requests = [Request(use) for _ in range(30)]
    wait_until(lambda: worker.shown == 30)
    assert pool.inventory.taken == 0
    proxy.heal()
    for one in requests:
        one.join(60)
        assert one.result is None
    assert max(most) <= 0
    wait_until(lambda: pool.inventory.most_used == 20, message="nobody waits: all may be used")


class Fake:
    """A connection as far as the inventory knows it."""

    state, cut = "reserved", ""
    since = checked = 0.0
    expires, generation = 1e12, 0


def test_few_at_a_time_after_an_outage() -> None:
    """Given back while the limit is reached, a connection lies idle until `spread` raises the limit."""
    inventory: Inventory[Any] = Inventory(8, 8)
    inventory.pause()
    waiters = [inventory.take_or_join(None, 0.0, 1e9, lambda: None)[1] for _ in range(14)]
    assert inventory.taken == 0
    assert inventory.resume(paced=True) == 2
    assert inventory.spread() == 1
    assert (inventory.most_used, inventory.taken) == (3, 3)
    inventory.pause()
    assert inventory.spread() == 0
    assert inventory.resume(paced=False) == 8 - 3
    served = 0
    for _ in range(8):
        inventory.opened()
        inventory.give(Fake(), 1e6)
    served = sum(waiter.record is not None for waiter in waiters)
    assert served == 8
    inventory.throttle()
    assert inventory.most_used == 8, "no queue longer than the pool"
    waiters += [inventory.take_or_join(None, 0.0, 1e9, lambda: None)[1] for _ in range(20)]
    inventory.throttle()
    assert inventory.most_used == 2
    for waiter in waiters[:7]:
        inventory.give(inventory.leave(waiter), 1e6)
    assert (inventory.taken, len(inventory.idle)) == (2, 6)
    assert inventory.take_warm(1e6, 1e9) is None
    inventory.spread()
    assert (inventory.taken, len(inventory.idle)) == (3, 5)
    with contextlib.suppress(ValueError):
        inventory.send_all_away(ValueError)
    inventory.spread()
    assert inventory.most_used == 8
