"""Choose the waiting connection that a free gthread thread takes: between its pool's queue and admission."""

from __future__ import annotations

import collections
import contextlib
import queue
import time
from typing import Any

from ...request import waited
from ..arrival import SAMPLE, WAITED
from ..classes import Route
from ..queue_delay import Line
from .admission import Admission, tell_failure
from .connections import Connections, ident
from .listeners import UNKNOWN, backlog
from .work_queue import WorkQueue, connection_of


class Turns:
    """The turns of one worker; see `work_queue.Judge`.

    :ivar work: the pool's queue.
    """

    @classmethod
    def of(cls, connections: Connections, admission: Admission) -> Turns | None:
        """Replace the pool's queue by ours; return None, with a line in gunicorn's log, for an unknown pool.
        """
        pool = connections.worker.tpool
        if pool._threads or type(pool._work_queue) is not queue.SimpleQueue or pool._work_queue.qsize():
            connections.worker.log.warning("flask_stability: under overload requests are served in their order; this "
                                           "Python's thread pool has not the queue that is known")
            return None
        found = cls(connections, admission)
        pool._work_queue = found.work
        return found

    def __init__(self, connections: Connections, admission: Admission) -> None:
        self._connections, self._worker, self._admission = connections, connections.worker, admission
        self._looks = 0
        self._late: collections.deque[Any] = collections.deque()
        self.work = WorkQueue(self, tell_failure)

    # -- the main loop's ---------------------------------------------------------------------------------------------

    def before(self, connection: Any, head: bytes) -> None:
        """Note a connection's head before it enters the queue; now and then measure how long it has waited."""
        connection.stability_head = head
        self._looks += 1
        self.work.age = self._age(connection) if self.work.watchful or not self._looks % SAMPLE else 0.0

    def refuse_overdue(self) -> None:
        """Refuse the connections that have waited too long."""
        self._late.extend(self.work.overdue())
        self._refuse()

    def look(self) -> None:
        """Notice that no request waits any more, which without further requests only the guard can do."""
        if self.work.watchful and not self.work.qsize():
            self.nobody_waits()

    # -- the threads' ------------------------------------------------------------------------------------------------

    def arrival(self, item: Any) -> tuple[int, float]:
        """Return class and arrival of a connection that has to wait."""
        return self._route(connection_of(item)).kind, float(item.since)

    def _age(self, connection: Any) -> float:
        try:
            return self._admission.age(connection.sock, connection.stability_head, connection.client) or 0.0
        except Exception as error:
            tell_failure(error)
            return 0.0

    def _route(self, connection: Any) -> Route:
        route: Route = self._admission.route(connection.stability_head)
        connection.stability_route = route
        return route

    def _backlog(self) -> int:
        """Return how many connections are in the kernel's queues, as far as that is known."""
        return sum(number for number in map(backlog, self._worker.sockets) if number != UNKNOWN)

    def next(self, line: Line[Any]) -> tuple[float, Any] | None:
        """Take the connection that a free thread serves next."""
        found, late = self._admission.choose(line, self._backlog())
        self._refuse_soon(late)
        return found

    def _refuse_soon(self, late: list[Any]) -> None:
        """Have the main loop refuse late connections, since it owns lingering ones. Called in a thread.

        gunicorn 23 offers no call into its loop: there the thread itself refuses them, without lingering.
        """
        if late:
            self._late.extend(late)
            try:
                if hasattr(self._worker, "method_queue"):
                    self._worker.method_queue.defer(self._refuse)
                else:
                    self._refuse(lingers=False)
            except Exception as error:  # the main loop finds them at the next request
                tell_failure(error)

    def alone(self, item: Any) -> bool:
        """Decide as `admit` about a connection with no other waiting here.

        It waited in the kernel's queue, which keeps the order of arrival.
        """
        age, waiting = time.monotonic() - item.since, self._backlog()
        if self._admission.too_old(age, self._route(connection_of(item)), waiting) and waiting:
            self._refuse_soon([item])
            return False
        return self.admit(item, item.since)

    def overdue(self, line: Line[Any]) -> list[Any]:
        """Take the connections that have waited too long."""
        return self._admission.overdue(line)

    def admit(self, item: Any, arrived: float) -> bool:
        """Return whether to serve a connection that has waited; else its client has left, and the connection is closed.
        """
        age = time.monotonic() - arrived
        connection = connection_of(item)
        if age < WAITED:
            return True
        if self._connections.has_left(connection.sock, age):
            self._admission.left(age, connection.stability_route)
            item.future.cancel()  # the main loop closes it
            return False
        self._admission.waited(age)
        waited[ident()] = int(age * 1e9)
        return True

    def nobody_waits(self) -> None:
        """Record that a connection got a thread at once."""
        self._admission.nobody_waits()

    def watchful(self) -> bool:
        """Return whether there is overload, or the beginning of one."""
        return self._admission.watchful

    def _refuse(self, *, lingers: bool = True) -> None:
        """Refuse the connections that have waited too long, and let gunicorn forget them."""
        while True:
            try:
                item = self._late.popleft()
            except IndexError:
                return
            connection = connection_of(item)
            sock, connection.sock = connection.sock, NoSocket()
            try:
                linger = self._admission.refuse(sock, connection.stability_head, connection.stability_route) and lingers
            except Exception as error:
                tell_failure(error)
                linger = False
            item.future.cancel()
            if linger:
                self._connections.refused(sock)
            else:
                with contextlib.suppress(OSError):
                    sock.close()


class NoSocket:
    """Replaces the socket of a refused connection, which gunicorn closes once more."""

    def setblocking(self, flag: bool) -> None:
        """Do nothing."""

    def settimeout(self, seconds: float) -> None:
        """Do nothing."""

    def shutdown(self, how: int) -> None:
        """Do nothing."""

    def recv(self, *_: Any) -> bytes:
        """Return the end of the stream."""
        return b""

    def close(self) -> None:
        """Do nothing."""

    def fileno(self) -> int:
        """Return -1: there is no descriptor."""
        return -1
