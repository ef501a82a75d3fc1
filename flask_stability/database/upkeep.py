"""Maintain idle connections: keep them alive, close old and surplus ones, open some ahead of need."""

from __future__ import annotations

import time

from ..config import Settings
from . import availability as available
from .availability import Availability
from .connector import Connector
from .drivers import Driver
from .events import Events
from .inventory import IDLE, RESERVED, Inventory
from .record import ConnectionRecord

#: A database file that seems replaced this often is on a file system whose inode numbers are unreliable.
MOVES = 10


class Upkeep:
    """Maintains one pool's idle connections."""

    def __init__(self, settings: Settings, driver: Driver, inventory: Inventory[ConnectionRecord],
                 availability: Availability, connector: Connector, events: Events) -> None:
        self._settings, self._driver, self._inventory = settings, driver, inventory
        self._availability, self._connector, self._events = availability, connector, events
        self._moves = 0

    def is_due(self, records: list[ConnectionRecord], now: float) -> bool:
        """Return whether there is something to maintain."""
        return (len(self._inventory.idle) < self._settings.db_min_idle
                or any(record.state is IDLE and self.due(record, now) for record in records))

    def due(self, record: ConnectionRecord, now: float) -> bool:
        """Return whether an idle connection is too old, or due for a keepalive ping."""
        interval = self._settings.db_keepalive_interval
        return (now >= record.expires or self._unused(record, now)
                or 0 < interval * (1.0 - 0.1 * record.jitter) < now - record.checked)

    def _unused(self, record: ConnectionRecord, now: float) -> bool:
        return now - record.last_used > self._settings.db_idle_timeout

    def maintain(self) -> None:
        """Close or ping the connections that are due, and open missing ones. May block."""
        now = time.monotonic()
        spare = len(self._inventory.idle) - self._settings.db_min_idle
        unwanted: set[ConnectionRecord] = set()
        chosen = self._inventory.reserve_idle(lambda record: self.due(record, now))
        for record in reversed(chosen):  # close the coldest first
            if now >= record.expires or (spare > 0 and self._unused(record, now)):
                spare -= 1
                unwanted.add(record)
        for record in chosen:
            if record not in unwanted and self._availability.ping(record, time.monotonic() + available.PROBE_TIMEOUT):
                self._connector.publish(record, cold=True)
            else:
                self._connector.discard(record)
        self._connector.open_ahead()

    def leave_moved(self, records: list[ConnectionRecord], now: float) -> None:
        """Expire connections to a database file that was removed or replaced: they would write to the deleted file."""
        if self._moves < MOVES and any(
                now < record.expires and record.state is not RESERVED and self._driver.moved(record.raw)
                for record in records) and self._inventory.renew():
            self._moves += 1
            self._events.log("database_replaced", level="ERROR", remedy="stop the service before its database file is "
                             "replaced: what was written meanwhile is lost")
