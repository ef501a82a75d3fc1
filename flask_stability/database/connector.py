"""Opens connections for reserved slots, and closes them.

Short-lived threads of the pool open the connections, so that no request waits beyond its own limit. The inventory
reserves a slot, the connect runs outside its lock, and a failure of any kind frees the slot.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from dbutils import steady_db

from ..config import Settings
from ..exceptions import DatabaseUnavailable, PoolTimeout
from .availability import Availability, caused
from .drivers import Driver
from .inventory import Inventory
from .record import ConnectionRecord
from .stats import Counters

#: Maximum pause between attempts to connect, seconds.
LONGEST_PAUSE = 0.25
#: If no connection has come back for longer than this, the queue is long by now, seconds.
STANDSTILL = 1.0


class Connector:
    """Opens and closes one pool's connections."""

    def __init__(self, settings: Settings, driver: Driver, inventory: Inventory[ConnectionRecord],
                 availability: Availability, counters: Counters) -> None:
        self._settings, self._driver, self._inventory = settings, driver, inventory
        self._availability, self._counters = availability, counters
        availability.back = lambda: self.fill(inventory.resume(paced=availability.watched))

    # -- opening -------------------------------------------------------------------------------------------------

    def fill(self, count: int) -> None:
        """Open connections for reserved slots, in background threads."""
        for number in range(count):
            try:
                threading.Thread(target=self._connect, name="stability-connect", daemon=True).start()
            except RuntimeError:  # no waiter may wait for a connection that no thread opens
                self._inventory.release_slots(count - number)
                self._inventory.send_all_away(
                    lambda: DatabaseUnavailable("cannot connect to the database: no more threads"))
                return

    def pace(self, now: float) -> None:
        """Serve the waiters few at a time after an outage or a standstill. The housekeeper calls this."""
        if self._inventory.waiters and now - self._inventory.given_at > STANDSTILL:
            self._inventory.throttle()
        else:
            self.fill(self._inventory.spread())

    def open_ahead(self) -> None:
        """Open the connections that STABILITY_DB_MIN_IDLE asks for and that are missing."""
        if not self._availability.breaker.open:
            self.fill(self._inventory.reserve_ahead(self._settings.db_min_idle))

    def _connect(self) -> None:
        """Open a connection for a reserved slot. Retry while a thread waits and a retry may help. Never raises."""
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                record = self._new_record(started)
                break
            except BaseException as error:
                attempt += 1
                error.__traceback__ = None
                if not self._availability.connect_failed(error, started):
                    self._inventory.release_slots(1)
                    return
            if self._inventory.release_slot_unless_needed():
                return
            time.sleep(random.uniform(0.02, min(LONGEST_PAUSE, 0.05 * 2 ** attempt)))
        more = self._inventory.opened()
        self.publish(record)
        self.fill(more)

    def open_instead(self, record: ConnectionRecord, query_timeout: float, deadline: float) -> ConnectionRecord:
        """Replace a borrowed connection by a new one with another time limit for its statements.

        :param query_timeout: that limit in seconds; 0 = no limit.
        :raises PoolTimeout: if the new connection is not open by the deadline (`time.monotonic`).
        :raises DatabaseUnavailable: if opening it fails.
        """
        self._remove(record)  # the new connection takes over its slot
        done, lock = threading.Event(), threading.Lock()
        found: list[ConnectionRecord | BaseException] = []
        late: list[bool] = []

        def work() -> None:
            try:
                made: ConnectionRecord | BaseException = self._new_record(time.monotonic(), query_timeout)
            except BaseException as error:
                made = error
            with lock:
                wanted = not late
                found.append(made)
            if not wanted:
                self.discard(made) if isinstance(made, ConnectionRecord) else self._free_slot()
            done.set()

        try:
            threading.Thread(target=work, name="stability-connect", daemon=True).start()
        except RuntimeError:
            self._free_slot()
            raise DatabaseUnavailable("cannot connect to the database: no more threads") from None
        result: ConnectionRecord | BaseException | None = None
        try:
            done.wait(max(0.0, deadline - time.monotonic()))
        finally:
            with lock:
                result = found[0] if found else None
                if result is None:
                    late.append(True)
        if isinstance(result, ConnectionRecord):
            return result
        if result is None:
            raise PoolTimeout("no connection with another limit for its statements was opened in time")
        self._free_slot()
        raise caused(DatabaseUnavailable(f"cannot connect to the database: {type(result).__name__}"), result)

    def _new_record(self, started: float, query_timeout: float | None = None) -> ConnectionRecord:
        generation = self._inventory.generation
        seconds = self._settings.db_query_timeout if query_timeout is None else query_timeout
        try:
            steady = self._steady_connection(query_timeout)
        except BaseException:
            self._counters.add("connections_errors")
            raise
        finally:
            self._counters.add("connections_num")
            self._counters.add("connections_ms", (time.monotonic() - started) * 1000)
        self._availability.connected()
        record = ConnectionRecord(steady, self._driver.link(steady.dbapi_connection), self._settings.db_max_lifetime,
                                  generation, seconds, self._driver.backstop(seconds) if seconds else 0.0)
        self._inventory.add(record)
        return record

    def _steady_connection(self, query_timeout: float | None) -> Any:
        """Open a connection under DBUtils' wrapper, which here neither pings, nor reconnects, nor executes again."""
        options = {} if query_timeout is None else {"query_timeout": query_timeout}
        return steady_db.connect(self._driver, failures=(self._driver.dbapi.Error,), ping=0,
                                 isfatal=lambda error: False, **options)

    # -- giving on, and closing ----------------------------------------------------------------------------------

    def publish(self, record: ConnectionRecord, *, cold: bool = False) -> None:
        """Hand the connection to the first waiter, or make it idle. Discard it if it is of no use. Never raises."""
        if not self._inventory.give(record, time.monotonic(), cold=cold):
            self.discard(record)

    def discard(self, record: ConnectionRecord) -> None:
        """Close a connection and free its slot. Never raises."""
        if self._remove(record):
            self._free_slot()

    def _remove(self, record: ConnectionRecord) -> bool:
        """Close a connection without waiting for an answer, and keep its slot; return False if that was done before."""
        if not self._inventory.remove(record):
            return False
        try:
            if record.broken or record.cut or record.inside:
                self._driver.interrupt(record.raw, record.link)
            record.steady.close()
        except Exception:
            pass
        if record.link is not None:
            record.link.close()
        return True

    def _free_slot(self) -> None:
        """Free a slot, and open a connection in it if a thread waits for one."""
        self.fill(self._inventory.free_slot())
