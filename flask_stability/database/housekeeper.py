"""The pool's housekeeper: a thread that runs each periodic look when it is due.

It never waits itself. Short-lived helper threads do whatever may block.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from .availability import Availability
from .connector import Connector
from .events import Events
from .guarded_calls import GuardedCalls
from .hold import Hold
from .inventory import IDLE, Inventory
from .leaks import Leaks
from .record import ConnectionRecord
from .upkeep import Upkeep

#: Pause between looks, seconds: while a thread is in the database, while a connection is in use, and otherwise.
BUSY_INTERVAL, USED_INTERVAL, IDLE_INTERVAL = 0.1, 0.25, 1.0
MAINTENANCE_INTERVAL = 5.0


class House(Protocol):
    """The pool, as the housekeeper sees it."""

    inventory: Inventory[ConnectionRecord]
    calls: GuardedCalls
    availability: Availability
    hold: Hold
    connector: Connector
    leaks: Leaks
    upkeep: Upkeep
    events: Events

    @property
    def has_lost(self) -> bool:
        """Return whether borrowers dropped connections without check-in."""

    def reclaim_lost(self) -> None:
        """Take those connections back."""

    def publish_figures(self) -> None:
        """Write the figures to the scoreboard."""


class Housekeeper:
    """Looks after one pool, and ends when the pool is gone.

    :ivar thread: the housekeeper's own thread.
    :ivar looked: when it last published the figures, after it had looked at everything; `time.monotonic`.
    """

    def __init__(self, house: House) -> None:
        self.thread = threading.Thread(target=self._run, name="stability-housekeeper", daemon=True)
        self._house = weakref.ref(house)
        self._wake = house.availability.wake
        self._stopped = self._maintaining = False
        self.looked = self._maintained = 0.0

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait up to 1 s for it; do not wait for helpers."""
        self._stopped = True
        self._wake.set()
        if self.thread is not threading.current_thread():
            self.thread.join(1.0)

    def _run(self) -> None:
        while not self._stopped:
            house = self._house()
            if house is None:
                return
            pause = BUSY_INTERVAL
            try:
                pause = self._look(house, time.monotonic())
            except Exception as error:
                house.events.log("keeper_failed", level="ERROR", error=type(error).__name__)
            del house
            self._wake.wait(pause)
            self._wake.clear()

    def _look(self, house: House, now: float) -> float:
        """Look once; return the seconds until the next look."""
        records = house.inventory.snapshot()
        for record in records:
            house.calls.cancel_if_due(record, now)
        house.leaks.look(records, now)
        house.upkeep.leave_moved(records, now)
        house.availability.end_lost(now)
        house.availability.keep_one_free(now)
        house.hold.look(now)
        house.connector.pace(now)
        house.availability.probe_if_due(records, now, self._help)
        self._maintain_if_due(house, records, now)
        if now - self.looked >= 1.0:
            self.looked = now
            house.publish_figures()
        if (house.calls.inside or house.inventory.waiters or house.availability.breaker.open
                or any(record.inside for record in records)):
            return BUSY_INTERVAL
        return USED_INTERVAL if any(record.state is not IDLE for record in records) else IDLE_INTERVAL

    def _help(self, job: Callable[[], None]) -> bool:
        """Run a job that may block in a thread of its own; return False if no thread can be started."""
        try:
            threading.Thread(target=job, name="stability-housekeeper-helper", daemon=True).start()
            return True
        except RuntimeError:  # no more threads: try again at the next look
            return False

    def _maintain_if_due(self, house: House, records: list[ConnectionRecord], now: float) -> None:
        if self._maintaining or (now - self._maintained < MAINTENANCE_INTERVAL and not house.has_lost):
            return
        self._maintained = now
        if house.has_lost or house.upkeep.is_due(records, now):
            self._maintaining = True
            if not self._help(lambda: self._maintain(house)):
                self._maintaining = False

    def _maintain(self, house: House) -> None:
        try:
            house.reclaim_lost()
            house.upkeep.maintain()
        except Exception as error:
            house.events.log("keeper_failed", level="ERROR", error=type(error).__name__)
        finally:
            self._maintaining = False
