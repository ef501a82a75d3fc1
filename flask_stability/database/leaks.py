"""Report connections that borrowers never give back, once each, with the code that took them."""

from __future__ import annotations

from typing import Any

from ..config import Settings
from ..signals import POOL, leak_suspected, send
from .events import Events
from .inventory import IN_USE, Inventory
from .record import ConnectionRecord
from .stats import Counters


class Leaks:
    """Finds one pool's forgotten connections.

    :ivar full_since: since when every connection that the pool may open is in use, `time.monotonic`; 0.0 = not now.
    """

    def __init__(self, settings: Settings, inventory: Inventory[ConnectionRecord], counters: Counters,
                 events: Events) -> None:
        self.full_since = 0.0
        self._inventory, self._counters, self._events = inventory, counters, events
        self._threshold = settings.db_leak_detection_threshold
        self._quiet = settings.db_timeout / 2
        self._exhausted = False

    def look(self, records: list[ConnectionRecord], now: float) -> None:
        """Report the leaks among all open connections."""
        for record in records:
            if self._threshold and record.state is IN_USE and now - record.since >= self._threshold:
                self._tell(record, now)
        self._tell_if_exhausted(records, now)
        if self._inventory.in_use < self._inventory.size:
            self.full_since = 0.0
        elif not self.full_since:
            self.full_since = now

    def _tell(self, record: ConnectionRecord, now: float) -> None:
        if record.reported:
            return
        request = record.request
        record.reported = True
        self._counters.add("leaks_suspected")
        detail: dict[str, Any] = {
            "seconds": round(now - record.since, 1), "thread": record.thread_name(),
            "path": request.path[:1024] if request is not None else None,
            "request_id": request.id if request is not None else None,
            "taken_at": record.taken_at()}
        self._events.log("connection_leak_suspected", **detail)
        send(leak_suspected, "flask_stability", kind="connection", detail=detail)

    def _tell_if_exhausted(self, records: list[ConnectionRecord], now: float) -> None:
        """Report, once, that requests wait while every connection that the pool may open is leaked.

        A connection counts if its leak has been reported, or if a thread outside requests has left it unused for half
        of the maximum wait for a connection.
        """
        if self._exhausted or not self._threshold or len(records) < self._inventory.size:
            return
        since = self._inventory.waiting_since()
        if not since:
            return
        lying = now - since > self._quiet
        if not all(record.state is IN_USE and (record.reported or (lying and self._lies(record, now)))
                   for record in records):
            return
        self._exhausted = True
        for record in records:
            self._tell(record, now)
        self._events.log("pool_exhausted", level="ERROR", remedy="connection_leak_suspected names the holders")
        send(leak_suspected, "flask_stability", kind=POOL, detail={"connections": len(records)})

    def _lies(self, record: ConnectionRecord, now: float) -> bool:
        """Return whether a thread outside requests has held a connection for long without using it."""
        return record.request is None and not record.inside and now - max(record.since, record.used) > self._quiet
