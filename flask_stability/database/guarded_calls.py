"""Calls into the driver. The housekeeper sees them, and cancels them at their deadline.

The `ConnectionRecord` notes that a thread is in a call, and what a failed call means for the connection. No lock is
held during a call.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

from ..dberrors import ALL_DISCARDED, CONSEQUENCES, KEPT, ErrorClass
from ..exceptions import DeadlineExceeded
from .drivers import Driver
from .inventory import IN_USE, REMOVED, RESERVED, Inventory
from .killing import Killer
from .record import ConnectionRecord
from .stats import Counters

T = TypeVar("T")

#: Maximum time to check or clear a connection, seconds.
PATIENCE = 2.0
#: A statement that exceeds its limit by more than this is one that the server does not end by itself, seconds.
LATE = 1.0
#: Reason to cancel a call whose link broke during an outage. The driver's own error reaches the app, with the
#: consequences of a lost link.
LINK_LOST = "its link was lost while the database was away"
_NOT_TO_BE_MENDED = frozenset({ErrorClass.LINK_LOST, ErrorClass.CONNECT, ErrorClass.STALE, ErrorClass.ROLLED_BACK,
                               ErrorClass.LOCK_WAIT, ErrorClass.TIMED_OUT})


class GuardedCalls:
    """Runs one pool's calls into its driver, and cancels them.

    :ivar inside: ids of request threads inside the database, each with its start time; shared with the bulkhead.
    :ivar watched: a housekeeper cancels calls that are past their deadline.
    :ivar killer: ends on the server what was cancelled here.
    """

    def __init__(self, driver: Driver, inventory: Inventory[ConnectionRecord], counters: Counters,
                 inside: dict[int, float]) -> None:
        self.inside = inside
        self.watched = False
        self.killer = Killer(driver)
        self._driver, self._inventory, self._counters = driver, inventory, counters

    # -- the borrower's ------------------------------------------------------------------------------------------

    def run(self, record: ConnectionRecord, function: Callable[..., T], *args: Any) -> T:
        """Call into the driver for the borrower.

        :raises DeadlineExceeded: if the call was cancelled.
        :raises Exception: the error that ended the transaction, if the app goes on after it.
        """
        unit = record.unit
        if record.inside or record.cut or (unit is not None and unit.doomed is not None):
            self._refuse(record)
        if record.streams:
            self._read_dropped(record)
        serving = record.request is not None
        record.inside = record.used = now = monotonic()
        if serving:
            self.inside[threading.get_ident()] = now
        try:
            return function(*args)
        except self._driver.dbapi.Error as error:
            given_up = bool(record.backstop) and not record.cut and self._given_up(record, error)
            self._failed(record, error)
            # in the other cases the driver's own error says enough
            if record.cut and record.cut is not LINK_LOST and not (given_up and unit is None):
                raise DeadlineExceeded(f"the call to the database was cut off: {record.cut}") from error
            raise
        except Exception:
            raise  # for example a wrong argument: nothing was sent
        except BaseException as error:
            record.broken = True  # interrupted midway: an answer may still be unread
            if unit is not None:
                unit.doom(error)
            raise
        finally:
            record.inside = 0.0
            if serving:
                self.inside.pop(threading.get_ident(), None)

    def _refuse(self, record: ConnectionRecord) -> None:
        if record.inside:
            raise self._driver.dbapi.ProgrammingError(
                "another thread or greenlet is in a call on this connection: take one for each, or let one wait")
        if not record.cut:
            raise record.unit.doomed  # the server ended the transaction: a statement sent now would be stored alone
        if record.state is REMOVED:
            raise self._driver.dbapi.InterfaceError(f"this connection cannot be used: {record.cut}")
        raise DeadlineExceeded(f"the call to the database was cut off: {record.cut}")

    def _given_up(self, record: ConnectionRecord, error: BaseException) -> bool:
        """Cancel a call that the client's own limit ended while the server still executes the statement.

        Return whether that was so. Nothing may send this statement again.
        """
        return (monotonic() - max(record.inside, record.statement_began()) >= record.backstop - 0.25
                and self._driver.classify(error) is ErrorClass.LINK_LOST
                and self.cancel(record, record.inside, "its time was over and the server did not end it"))

    def _failed(self, record: ConnectionRecord, error: BaseException) -> None:
        """Record what an error means for the connection and for its transaction."""
        kind = self._driver.classify(error)
        follows = CONSEQUENCES[kind]
        if kind not in _NOT_TO_BE_MENDED and (remedy := self._driver.remedy(error)):
            error.add_note(remedy)
        if record.unit is not None:
            record.unit.failed(record.raw, error)
        if follows.connection is ALL_DISCARDED:
            self._inventory.renew()
        if follows.connection is not KEPT and not getattr(error, "unsent", False):
            record.broken = True
            if follows.unavailable:  # other connections may have broken too
                self._inventory.generation += 1
            if kind is ErrorClass.LINK_LOST and not record.cut:
                self._counters.add("connections_lost")

    def _read_dropped(self, record: ConnectionRecord) -> None:
        """Read the remaining rows of dropped cursors: until then, the driver accepts no other statement."""
        streams = record.streams or []
        dropped = [stream for stream in streams if stream.owner() is None]
        streams[:] = [stream for stream in streams if stream.owner() is not None]
        for stream in dropped:
            if stream.unread:
                self.run(record, stream.raw.close)

    # -- the pool's own ------------------------------------------------------------------------------------------

    def run_bounded(self, record: ConnectionRecord, function: Callable[..., object], *args: Any,
                    deadline: float = math.inf) -> None:
        """Run one of the pool's own calls, cancelled at the deadline and after `PATIENCE` seconds at the latest."""
        record.inside = record.used = now = monotonic()
        record.limit = deadline = min(deadline, now + PATIENCE)
        watch = None
        if not self.watched:
            watch = threading.Timer(deadline - now, self.cancel, (record, now, "its time was over"))
            watch.daemon = True
            with suppress(RuntimeError):  # no more threads: only the driver's own timeouts apply
                watch.start()
        try:
            function(*args)
        finally:
            record.inside = record.limit = 0.0
            if watch is not None:
                watch.cancel()

    # -- cancelling ----------------------------------------------------------------------------------------------

    def cancel(self, record: ConnectionRecord, inside: float, why: str) -> bool:
        """Cancel the call that began at `inside`, and no later one; return whether there was one to cancel.

        Code that passes the connection on after a call checks `cut` under the same lock, the inventory's.
        """
        with self._inventory.lock:
            if record.cut or record.inside != inside or record.state not in (IN_USE, RESERVED):
                return False
            record.cut = why
            self._driver.interrupt(record.raw, record.link)
        self.killer.condemn(record.identity)
        return True

    def cancel_if_due(self, record: ConnectionRecord, now: float) -> None:
        """Cancel a call that is past its deadline."""
        inside = record.inside
        if not inside:
            return
        deadline, limit = record.deadline(), record.query_timeout
        if deadline and now > deadline:
            self.cancel(record, inside, "its time was over")
        elif not limit:
            return
        elif self._driver.kind == "sqlite":
            if now - inside > limit:
                self._driver.interrupt(record.raw, None)
        elif (began := record.statement_began()) and now - began > limit + LATE:  # MySQL itself ends SELECT only
            self.cancel(record, inside, f"the statement took longer than {limit:g} s")
