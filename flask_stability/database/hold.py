"""Hold requests that need a connection during a database outage, and serve them when the database is back.

They wait in the pool's queue, oldest first, for at most STABILITY_DB_OUTAGE_PATIENCE seconds from the outage's begin,
and never beyond their own deadline. A request is held only if it holds no connection of any pool: otherwise one
database's outage would drain the other's pool. It is held only while its worker, or another one, can serve the other
requests: the server decides that, see `Host`. A health check, or a checkout outside requests (a background thread, a
script), fails at once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from ..config import Settings
from ..exceptions import CircuitOpen
from ..presence import client_gone, clients_gone
from ..request import NO_HOLD, RequestRecord, held
from ..runtime import Part, runtime
from .breaker import Breaker
from .events import Events
from .inventory import Inventory
from .waiters import Waiter

if TYPE_CHECKING:
    from .record import ConnectionRecord

#: Seconds between two checks for departed clients of waiting requests. A request that has waited for less than this is
#: not checked.
PRESENCE_INTERVAL = 0.5
#: Minimum seconds after an outage to serve the held requests, even if STABILITY_DB_TIMEOUT is shorter.
AFTER = 10.0
#: Seconds until a waiter checks again for an outage, while connects fail.
SOON = 0.1


class Host(Protocol):
    """The server of this process's requests."""

    def may_hold(self) -> bool:
        """Return whether one more request may be held, and held ones may stay: others are served meanwhile."""

    def show_held(self, number: int) -> None:
        """Publish the number of held requests."""


class _Holds(Part):
    """The server of this process's requests, and every `Hold`."""

    def __init__(self) -> None:
        self.host: Host | None = None
        self.leaving = False
        self.all: weakref.WeakSet[Hold] = weakref.WeakSet()

    def reset_after_fork(self) -> None:
        """Forget the server: no worker's guard looks after the child's threads."""
        self.host, self.leaving = None, False


_holds = runtime.add("holds", _Holds())


def hosted_by(host: Host | None) -> None:
    """Set the server of this process's requests; None: hold no request."""
    _holds.host, _holds.leaving = host, False


def hosted() -> bool:
    """Return whether requests of this process may be held, because its threads or other workers serve the rest."""
    host = _holds.host
    return host is not None and not _holds.leaving and host.may_hold()


def let_go(reason: str) -> None:
    """Refuse all held requests, and hold none from now on: the process ends soon."""
    _holds.leaving = True
    for one in list(_holds.all):
        one.refuse(reason)


class _Outage:
    """One outage, with counts of its requests. Times are `time.monotonic` seconds."""

    def __init__(self, began: float, reason: str) -> None:
        self.began, self.reason = began, reason
        self.ended = 0.0
        self.held = self.served = self.refused = 0
        self.told = False


class Hold:
    """Holds the requests of one pool.

    :ivar on: the database is away.
    """

    def __init__(self, settings: Settings, inventory: Inventory[ConnectionRecord], breaker: Breaker,
                 events: Events) -> None:
        self._patience, self._timeout = settings.db_outage_patience, max(settings.db_timeout, AFTER)
        self._most = settings.db_outage_threads
        self._inventory, self._breaker, self._events = inventory, breaker, events
        self._lock = threading.Lock()
        self._outage: _Outage | None = None
        self._waiting: set[Waiter[Any]] = set()
        self._looked = 0.0
        self.on = False
        _holds.all.add(self)

    # -- one request ---------------------------------------------------------------------------------------------

    def candidate(self, serving: RequestRecord | None) -> RequestRecord | None:
        """Return the request if it may be held during an outage, else None."""
        if serving is None or _holds.host is None or not self._patience:
            return None
        one: RequestRecord | None = serving
        while one is not None:
            if one.health or NO_HOLD in one.environ or any(
                    getattr(resource, "is_connection", True) for resource in one.resources or ()):
                return None
            one = one.outer
        return serving

    def refuses(self, request: RequestRecord | None, now: float) -> bool:
        """Return whether to refuse at once a request that arrives during the outage."""
        outage = self._outage
        return (request is None or outage is None or now >= outage.began + self._patience
                or len(held) >= self._most or not hosted())

    def count_refused(self) -> None:
        """Count a request that got no connection, during an outage or before its end is logged."""
        with self._lock:
            if self._outage is not None and not self._outage.told:
                self._outage.refused += 1

    def join(self, waiter: Waiter[Any]) -> None:
        """Hold a waiter from now on, if the database is away and the waiter's request may be held."""
        outage = self._outage
        if waiter.request is None or outage is None or not self.on:
            return
        with self._lock:
            if waiter not in self._waiting:
                self._waiting.add(waiter)
                outage.held += 1
                held.setdefault(waiter.thread_id, monotonic())
        self._publish()

    def leave(self, waiter: Waiter[Any], *, served: bool) -> None:
        """Release a waiter, and subtract the time for which it was held from its request's duration.

        :param served: it got a connection.
        """
        with self._lock:
            if waiter not in self._waiting:
                return
            self._waiting.discard(waiter)
            since = held.pop(waiter.thread_id, None)
            if self._outage is not None:
                self._outage.served += served
        if since is not None and waiter.request is not None:
            waiter.request.held_ns += int((monotonic() - since) * 1e9)
        self._publish()

    def until(self, waiter: Waiter[Any], now: float) -> float:
        """Return until when a waiter may wait on after its own limit for a connection; `now` if no longer."""
        outage = self._outage
        if waiter.request is None:
            return now
        if self.on and outage is not None:
            return max(now, outage.began + self._patience + 1.0)  # `look` ends it
        if self._breaker.failing:
            return now + SOON
        return outage.ended + self._timeout if outage is not None else now

    @staticmethod
    def client_left(waiter: Waiter[Any], now: float) -> bool:
        """Return whether the client of a request that has waited, for whatever reason, has disconnected."""
        return (waiter.request is not None and now - waiter.since > PRESENCE_INTERVAL
                and client_gone(waiter.request))

    def _publish(self) -> None:
        host = _holds.host
        if host is not None:
            host.show_held(len(held))

    # -- the outage ----------------------------------------------------------------------------------------------

    def begin(self, reason: str) -> None:
        """Begin an outage: hold the waiters that may be held, and refuse the others."""
        with self._lock:
            self._outage, self.on = _Outage(monotonic(), reason), True
        self.refuse(f"the database does not answer ({reason})", lambda waiter: waiter.request is None)
        for waiter in self._inventory.waiting():
            self.join(waiter)
        self._events.log("database_gone", reason=reason, held=len(self._waiting), patience_s=self._patience)

    def end(self) -> None:
        """End the outage: from now on, the held requests are served."""
        with self._lock:
            self.on = False
            if self._outage is not None:
                self._outage.ended = monotonic()
        if not self._waiting:
            self._tell()

    def look(self, now: float) -> None:
        """Refuse requests whose time is over or whose client has left; log the outage's end after the last one left.

        The housekeeper calls this.
        """
        self._drop_absent(now)
        outage = self._outage
        if outage is None:
            return
        if self.on:
            if now >= outage.began + self._patience:
                self.refuse(f"the database does not answer ({outage.reason}) since {now - outage.began:.0f} s")
            elif self._waiting and not hosted():
                self.refuse("the database does not answer, and no other worker is idle")
        elif not self._waiting or now - outage.ended > self._timeout:
            self._tell()

    def _drop_absent(self, now: float) -> None:
        """Refuse requests whose client has left, to free their threads and connections for others."""
        if now - self._looked < PRESENCE_INTERVAL or not self._inventory.waiters:
            return
        self._looked = now
        gone = set(map(id, clients_gone([waiter.request for waiter in self._inventory.waiting()
                                         if waiter.request is not None and now - waiter.since > PRESENCE_INTERVAL])))
        # while a waiter is in the queue, its thread waits, so the socket that was checked is still its own
        if gone:
            self.refuse("the client has left", lambda waiter: id(waiter.request) in gone)

    def refuse(self, reason: str, which: Callable[[Waiter[Any]], bool] = lambda waiter: True) -> None:
        """Send all waiters away with `CircuitOpen`, or those that `which` selects."""
        self._inventory.send_all_away(lambda: CircuitOpen(reason), which)

    def _tell(self) -> None:
        with self._lock:
            outage = self._outage
            if outage is None or outage.told:
                return
            outage.told = True
        self._events.log("database_back", level="INFO", seconds=round(outage.ended - outage.began, 2),
                         held=outage.held, served=outage.served, refused=outage.refused)
