"""The books alone: thousands of random schedules of a fake connection, in one thread and in many."""

from __future__ import annotations

import collections
import random
import threading
import time
from contextlib import suppress

import pytest

from flask_stability.database import waiters
from flask_stability.database.inventory import IDLE, IN_USE, REMOVED, RESERVED, Inventory
from flask_stability.exceptions import PoolClosed
from support import wait_until


class Fake:
    """What the inventory needs to know of a connection."""

    def __init__(self) -> None:
        self.state, self.cut, self.since, self.expires = RESERVED, "", 0.0, float("inf")
        self.checked, self.generation = time.monotonic(), 0


def nobody_refuses() -> None:
    """The database answers."""


def check(inventory: Inventory[Fake]) -> None:
    """What always holds, once the lock is free."""
    with inventory.lock:
        idle, queue = inventory.idle, list(inventory.waiters)
        states = collections.Counter(record.state for record in inventory.records)
        assert 0 <= inventory.opening <= inventory.taken
        assert inventory.taken + len(idle) <= inventory.size
        assert len(idle) == len(set(map(id, idle))) == states[IDLE]
        assert states[IN_USE] + states[RESERVED] <= inventory.taken - inventory.opening + states[RESERVED]
        assert not states[REMOVED]
        assert len(queue) == len(set(queue))
        assert all(waiter.record is None and waiter.error is None for waiter in queue), "served, and waits still"
        if idle and queue:
            on_its_way = any(not waiter.gate.locked() for waiter in queue)
            assert on_its_way or queue[0].in_vain, "nobody looks at what lies idle"


class Model:
    """One schedule in one thread: every step is one call, and whoever waits is a waiter in a list."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.inventory: Inventory[Fake] = Inventory(self.random.randint(1, 4), self.random.randint(0, 4))
        self.waiting: list[waiters.Waiter[Fake]] = []
        self.held: list[Fake] = []
        self.slots = 0  # reserved for connections that are being opened
        self.now = 1000.0

    def step(self) -> None:
        choice, inventory = self.random.choice, self.inventory
        self.now += choice((0.0, 0.01, 0.2))
        what = choice(("take", "take", "take", "open", "open", "back", "back", "back", "bad", "come", "come", "leave",
                       "away", "all away", "latest", "fail", "upkeep", "ahead", "renew"))
        if what == "take":
            record = inventory.take_warm(self.now, 1e9)
            if record is None:
                record, waiter, wanted = inventory.take_or_join(None, self.now, self.now + choice((0.1, 30.0)),
                                                                nobody_refuses)
                self.slots += wanted
                if record is None:
                    self.waiting.append(waiter)
            if record is not None:
                self.hold(record)
        elif what == "open" and self.slots:
            self.slots -= 1
            record = Fake()
            record.generation = inventory.generation
            inventory.add(record)
            self.slots += inventory.opened()
            self.give(record)
        elif what == "fail" and self.slots:
            if inventory.release_slot_unless_needed():
                self.slots -= 1
        elif what in ("back", "bad") and self.held:
            record = self.held.pop(self.random.randrange(len(self.held)))
            if what == "bad":
                record.cut = "cut off"
            self.give(record)
        elif what == "come":
            self.come()
        elif what == "leave" and self.waiting:
            record = inventory.leave(self.waiting.pop(self.random.randrange(len(self.waiting))))
            if record is not None:
                self.give(record)
        elif what == "all away" and self.random.random() < 0.2:
            inventory.send_all_away(lambda: ValueError("away"))
        elif what == "latest":
            inventory.send_latest_away({threading.get_ident()}, ValueError("away"))
        elif what == "upkeep":
            for record in inventory.reserve_idle(lambda record: self.random.random() < 0.5):
                self.give(record)
        elif what == "ahead":
            self.slots += inventory.reserve_ahead(choice((0, 1, 2)))
        elif what == "renew" and self.random.random() < 0.1:
            inventory.generation += 1
        check(inventory)
        assert inventory.opening == self.slots
        handed = sum(waiter.record is not None for waiter in self.waiting)
        assert inventory.taken == self.slots + len(self.held) + handed

    def hold(self, record: Fake) -> None:
        assert record not in self.held, "one connection in two hands"
        assert record.state in (IN_USE, RESERVED)
        record.state = IN_USE
        self.held.append(record)

    def give(self, record: Fake) -> None:
        if not self.inventory.give(record, self.now):
            assert self.inventory.remove(record)
            assert not self.inventory.remove(record)
            self.slots += self.inventory.free_slot()

    def come(self) -> None:
        """All whose gate is open run on."""
        for waiter in list(self.waiting):
            if (waiter.in_vain or not waiter.gate.locked()) and self.inventory.wait(waiter, 0.0):
                self.waiting.remove(waiter)
                if waiter.record is not None:
                    self.hold(waiter.record)

    def end(self) -> None:
        """Let all go on, none of whom gives up: everybody gets something, and the books are as in the beginning."""
        for _ in range(100_000):
            if not (self.waiting or self.held or self.slots):
                break
            self.now += 0.001
            self.come()
            if self.held:
                self.give(self.held.pop())
            elif self.slots:
                self.slots -= 1
                record = Fake()
                record.generation = self.inventory.generation
                self.inventory.add(record)
                self.slots += self.inventory.opened()
                self.give(record)
            check(self.inventory)
        assert not self.waiting, "somebody waits for ever"
        assert self.inventory.taken == self.inventory.opening == 0
        assert len(self.inventory.records) == len(self.inventory.idle) <= self.inventory.max_idle


def test_thousands_of_schedules_step_by_step() -> None:
    """Whatever the order of calls: the books add up, nobody who can be served is forgotten, none is in two hands."""
    for seed in range(3000):
        model = Model(seed)
        try:
            for _ in range(40):
                model.step()
            model.end()
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error


class Crowd:
    """Threads that take, hold for a moment, and give back; connections are opened by threads as well."""

    def __init__(self, seed: int, *, size: int, threads: int) -> None:
        self.inventory: Inventory[Fake] = Inventory(size, size)
        self.wrong: list[str] = []
        self.served = 0
        self._owners: dict[Fake, int] = {}
        self._seed = seed
        self._threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(threads)]

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join(60)
            if thread.is_alive():
                self.wrong.append("a thread waits for ever")

    def _work(self, number: int) -> None:
        chance = random.Random(self._seed * 1000 + number)
        for _ in range(10):
            record = self._take(chance)
            if record is None:
                continue
            if self._owners.setdefault(record, number) != number:
                self.wrong.append("one connection in two hands")
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.001)  # the connection is used
            del self._owners[record]
            if chance.random() < 0.1:
                record.cut = "cut off"
            self._give(record)

    def _take(self, chance: random.Random) -> Fake | None:
        inventory, now = self.inventory, time.monotonic()
        record = inventory.take_warm(now, 60)
        if record is not None:
            return record
        deadline = now + (0.0005 if chance.random() < 0.05 else 30)
        record, waiter, wanted = inventory.take_or_join(None, now, deadline, nobody_refuses)
        self._open(wanted)
        if record is None:
            if not inventory.wait(waiter, deadline):
                if deadline - now > 1:
                    self.wrong.append("waited in vain")
                late = inventory.leave(waiter)
                if late is not None:
                    self._give(late)
                return None
            record = waiter.record
        assert record is not None
        record.state = IN_USE
        return record

    def _open(self, count: int) -> None:
        for _ in range(count):
            threading.Thread(target=self._connect, daemon=True).start()

    def _connect(self) -> None:
        record = Fake()
        self.inventory.add(record)
        self._open(self.inventory.opened())
        self._give(record)

    def _give(self, record: Fake) -> None:
        if not self.inventory.give(record, time.monotonic()):
            self.inventory.remove(record)
            self._open(self.inventory.free_slot())


def test_crowds_of_threads() -> None:
    """The same with threads, more of them than connections."""
    for seed in range(25):
        crowd = Crowd(seed, size=1 + seed % 4, threads=12)
        crowd.run()
        assert not crowd.wrong, (seed, crowd.wrong)
        wait_until(lambda crowd=crowd: crowd.inventory.taken == crowd.inventory.opening == 0)  # type: ignore[misc]
        check(crowd.inventory)


def full(size: int = 1) -> tuple[Inventory[Fake], Fake]:
    """An inventory with one connection, which is in use."""
    inventory: Inventory[Fake] = Inventory(size, size)
    inventory.reserve_ahead(1)
    record = Fake()
    inventory.add(record)
    inventory.opened()
    assert inventory.give(record, 0.0)
    assert inventory.take_warm(0.0, 1e9) is record
    return inventory, record


def test_a_server_that_takes_no_connection_is_not_run_over() -> None:
    """While opening fails few connections are tried at once; once one is open, twice as many each time."""
    inventory: Inventory[Fake] = Inventory(20, 20)
    for _ in range(30):
        join(inventory, 0.0)
    assert inventory.opening == 20
    released = sum(inventory.release_slot_unless_needed() for _ in range(20))
    assert inventory.opening == 20 - released == 5
    for _ in range(5):
        join(inventory, 0.0)
        assert not inventory.release_slot_unless_needed()  # they try again
    assert inventory.opening == 5
    seen = []
    while inventory.taken < 20:
        record = Fake()
        inventory.add(record)
        inventory.opened()
        assert inventory.give(record, 100.0)
        seen.append(inventory.opening)
    assert seen == [10, 18]
    assert inventory.most_opening == 20


def join(inventory: Inventory[Fake], now: float, deadline: float = 1e9) -> waiters.Waiter[Fake]:
    """One more who waits."""
    record, waiter, _ = inventory.take_or_join(None, now, deadline, nobody_refuses)
    assert record is None
    return waiter


def test_who_comes_by_may_take_it_until_the_first_has_waited_for_long() -> None:
    """No switch of threads for each use; and nobody starves."""
    inventory, record = full()
    first, second = join(inventory, 10.0), join(inventory, 10.0)

    assert inventory.give(record, 10.01)
    assert not first.gate.locked()  # it is called
    assert second.gate.locked()
    assert inventory.take_warm(10.02, 1e9) is record  # and somebody was faster
    assert inventory.give(record, 10.0 + waiters.PATIENCE)
    assert first.record is record  # no more
    assert inventory.take_warm(10.2, 1e9) is None
    assert inventory.wait(first, 0.0)
    assert inventory.give(record, 10.2)
    assert second.record is record


def test_who_cannot_wait_for_long_is_handed_its_connection_sooner() -> None:
    """A quarter of its time."""
    inventory, record = full()
    hurried = join(inventory, 10.0, 10.1)
    assert inventory.give(record, 10.026)
    assert hurried.record is record


def test_who_was_called_in_vain_stays_the_first() -> None:
    """It is not called again, and looks by itself."""
    inventory, record = full()
    first, second = join(inventory, 10.0), join(inventory, 10.0)
    for number in range(3):
        assert inventory.give(record, 10.01)
        assert first.gate.locked() == bool(number)
        assert inventory.take_warm(10.01, 1e9) is record
        assert not inventory.wait(first, 0.0)
    assert first.gate.locked()
    assert inventory.give(record, 10.02)
    assert inventory.wait(first, 0.0)
    assert (first.record, second.record) == (record, None)


def test_who_was_called_in_vain_is_not_late() -> None:
    """It waits for no call: what lies idle is found within milliseconds."""
    inventory, record = full()
    waiter = join(inventory, time.monotonic() + 1000)  # nothing is handed to it
    assert inventory.give(record, 0.0)
    assert inventory.take_warm(0.0, 1e9) is record
    assert not inventory.wait(waiter, 0.0)
    assert inventory.give(record, 0.0)
    assert inventory.wait(waiter, time.monotonic() + 60)
    assert waiter.record is record


def test_who_was_served_badly_is_the_first_again() -> None:
    """Its connection turned out to be dead."""
    inventory, record = full()
    first, second = join(inventory, 10.0), join(inventory, 10.0)
    assert inventory.give(record, 20.0)
    assert inventory.wait(first, 0.0)
    found, again, _ = inventory.take_or_join(first, 20.0, 1e9, nobody_refuses)
    assert found is None
    assert again.since == first.since
    assert inventory.give(record, 20.0)
    assert (again.record, second.record) == (record, None)


def test_who_leaves_passes_the_call_on() -> None:
    """A connection that lies idle for one who gave up is for the next."""
    inventory, record = full()
    first, second = join(inventory, 10.0), join(inventory, 10.0)
    assert inventory.give(record, 10.01)
    assert inventory.leave(first) is None
    assert not second.gate.locked()
    assert inventory.wait(second, 0.0)
    assert second.record is record


def test_what_was_handed_to_who_leaves_comes_back() -> None:
    """It is for the caller to give it on."""
    inventory, record = full()
    first = join(inventory, 10.0)
    assert inventory.give(record, 20.0)
    assert inventory.leave(first) is record
    assert inventory.leave(first) is None


def test_a_closed_one_gives_nothing_out() -> None:
    """Whoever waits is told, whoever comes too, and what comes back is closed."""
    inventory, record = full(2)
    waiter = join(inventory, 10.0)
    assert inventory.close() == []
    inventory.send_all_away()
    assert inventory.wait(waiter, 0.0)
    assert isinstance(waiter.error, PoolClosed)
    assert inventory.take_warm(10.0, 1e9) is None
    with pytest.raises(PoolClosed):
        inventory.take_or_join(None, 10.0, 11.0, nobody_refuses)
    assert not inventory.give(record, 10.0)


def test_nobody_waits_where_it_is_refused() -> None:
    """The refusal leaves the books as they were."""
    inventory, _ = full()

    def refuse() -> None:
        raise ValueError("no")

    with suppress(ValueError):
        inventory.take_or_join(None, 10.0, 11.0, refuse)
    assert not inventory.waiters
    check(inventory)


def test_all_are_renewed_once_a_second_at_the_most() -> None:
    """An error that comes with each statement does not cost a connect with each."""
    inventory, record = full()
    assert inventory.renew()
    assert not inventory.renew()
    assert not inventory.give(record, time.monotonic())
