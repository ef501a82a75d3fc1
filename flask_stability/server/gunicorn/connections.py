"""The connections of a sync or gthread worker's clients: a request gets a thread once its head has arrived.

gunicorn reads the head in the thread that will serve the request. A client that sends half a head occupies that thread:
on sync without limit, on gthread for five seconds if it sends nothing at all. With one such client per thread, the
service stops. Here the worker's main loop peeks whether the head has arrived (on a TLS connection: any data). Until
then it keeps the connection aside, where it costs one descriptor. Such a connection does not count as one of the
``worker_connections``, which are those that may need a thread.

The main loop also closes answered connections without waiting for the client to close its side. gunicorn's main loop
(on sync its only thread) waits two seconds for each.

All that happens in the main loop, on events. The guard handles deadlines: it shuts a connection down, which is an
event.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from gunicorn import util

from ... import scoreboard
from ...presence import gone
from ...runtime import runtime
from ..descriptors import limit
from .admission import Admission

PEEK = 1 << 14  #: bytes; a thread reads a longer head
MOST = 1000  #: maximum number of connections that a worker keeps aside; the oldest is dropped
LEAVING = 2.0  #: seconds that a leaving worker waits for the rest of a head
LINGER = 2.0  #: seconds that an answered client has to close its side
LINGER_REFUSED, MOST_REFUSED = 1.0, 1 << 16  #: the same for a refused client, and the bytes to read from it
PATIENCE = 1.0  #: seconds of waiting after which a client that has closed its sending side counts as one that has left
EDGE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET if hasattr(select, "epoll") else 0
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

ident = threading.get_ident


class Served:
    """A connection that a thread serves: from the head's first byte that gunicorn reads to the end of its answer.

    :ivar address: the client's, as `accept` returned it.
    :ivar cut: it was shut down: it must not be kept alive.
    """

    __slots__ = ("address", "connection", "cut", "descriptor", "watched")

    def __init__(self, descriptor: int, address: Any, connection: Any = None) -> None:
        self.descriptor, self.address, self.connection = descriptor, address, connection
        self.cut = False
        self.watched: Any = None

    def duplicate(self) -> socket.socket | None:
        """Return another descriptor of the same connection, which the caller closes.

        Return None if the connection is closed; its descriptor's number may belong to another file by now.
        """
        try:
            found = socket.socket(fileno=os.dup(self.descriptor))
        except OSError:
            return None
        with contextlib.suppress(OSError):
            if found.getpeername() == self.address:
                return found
        found.close()
        return None

    def shut(self, how: int = socket.SHUT_RDWR) -> bool:
        """Cut the connection; return False if it is closed already."""
        self.cut = True
        found = self.duplicate()
        if found is None:
            return False
        with found, contextlib.suppress(OSError):
            found.shutdown(how)
        return True


class Waiting:
    """A connection that no thread serves: its head has not arrived yet, or it was answered and will be closed soon.

    :ivar listener: its listener on sync; gunicorn's connection object on gthread.
    :ivar since: monotonic seconds.
    :ivar counted: it counts among the worker's connections.
    :ivar answered: close it as soon as the client has closed its side.
    :ivar partial: a part of the head has arrived.
    :ivar cut: it was shut down.
    :ivar head: the beginning of the head, once it has arrived.
    :ivar refused: 0, or more once it was answered with 503 before it had a thread: the worker reads what the client
        still sends, up to `MOST_REFUSED` bytes, and not for long.
    """

    __slots__ = ("address", "answered", "counted", "cut", "head", "listener", "partial", "refused", "since", "sock")

    def __init__(self, sock: socket.socket, listener: Any = None, address: Any = None, *,
                 answered: bool = False) -> None:
        self.sock, self.listener, self.address, self.answered = sock, listener, address, answered
        self.since = time.monotonic()
        self.counted = self.partial = self.cut = False
        self.head = b""
        self.refused = 0

    def shut(self) -> None:
        """Shut the connection down, since its time is over; the main loop will notice and close it."""
        self.cut = True
        with contextlib.suppress(OSError, ValueError):
            if self.partial and not self.answered:
                self.sock.send(TIMEOUT, socket.MSG_DONTWAIT)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class Connections:
    """The common part of both kinds of workers.

    :ivar serving: the connections being served, by thread.
    :ivar aside: the connections kept aside, by descriptor, the oldest first.
    :ivar admission: decides about waiting requests; None = they are served in their order.
    :ivar hurry: called, not too often, while requests wait for a thread.
    :ivar limited: the worker accepts fewer connections than it could, and leaves waiting ones to other workers.
    :ivar give_way: called before the worker accepts a connection; may wait for a moment, so that another worker is
        faster.
    """

    can_limit = True  #: whether `limit` does anything

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.serving: dict[int, Served] = {}
        self.aside: dict[int, Waiting] = {}
        self.give_way: Callable[[], None] = lambda: None
        self.ending = self.limited = False
        self.admission: Admission | None = None
        self.hurry: Callable[[], object] = _nothing
        self._hurried = 0.0
        self._secure = bool(worker.cfg.is_ssl)
        self._most = min(MOST, limit() // 2)
        self._epoll = select.epoll()
        self._close_gracefully = getattr(util, "close_graceful", None)
        if self._close_gracefully is not None and not self._secure:
            vars(util)["close_graceful"] = self.close

    def limit(self, most: int | None) -> None:
        """Limit the connections at a time; 0 = accept none, None = as configured. Called from another thread.

        Accepted connections are still served.
        """
        raise NotImplementedError

    def admit_by(self, admission: Admission) -> None:
        """Have `admission` decide about waiting requests."""
        self.admission = admission

    def admission_look(self, now: float) -> None:
        """Run the admission's look, if there is one. The guard calls this now and then."""
        if self.admission is not None:
            self.admission.look(now)

    def too_late(self, now: float, seconds: float) -> int:
        """Shut down connections kept aside for too long; return how many heads did not arrive. The guard calls this.

        :param now: monotonic seconds.
        :param seconds: that a head may take to arrive; 0 = without limit.
        """
        late = 0
        for waiting in list(self.aside.values()):
            if waiting.answered:
                patience = LINGER_REFUSED if waiting.refused else LINGER
            else:
                patience = LEAVING if self.ending else seconds
            if patience and now - waiting.since > patience and not waiting.cut:
                if not waiting.answered and self._arrived(waiting):
                    continue  # the main loop is late, not the client
                waiting.shut()
                late += not waiting.answered
        return late

    def _arrived(self, waiting: Waiting) -> bool:
        """Return whether a head has arrived that the main loop has not noticed yet. The guard calls this."""
        try:
            data = waiting.sock.recv(PEEK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (OSError, ValueError):
            return False
        return bool(data) and (self._secure or len(data) >= PEEK or b"\r\n\r\n" in data)

    def close(self, sock: Any, *arguments: Any, **options: Any) -> None:
        """Replace gunicorn's `util.close_graceful`: send the end of the answer, and close later without blocking.

        gunicorn's function waits for the client to close. Otherwise the kernel would end the connection with a reset,
        and the client would lose what it has not read.
        """
        if self.ending or not self.worker.alive:
            assert self._close_gracefully is not None
            self._close_gracefully(sock, *arguments, **options)
            return
        try:
            sock.shutdown(socket.SHUT_WR)
            if self._done(sock):
                sock.close()
            else:
                self._keep(Waiting(sock, answered=True))
        except (OSError, ValueError, RuntimeError):
            with contextlib.suppress(OSError):
                sock.close()

    def _done(self, sock: socket.socket) -> bool:
        """Read what the client still sends; return whether the client has closed its side."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(8):
                if not sock.recv(1 << 14, socket.MSG_DONTWAIT):
                    return True
            return True  # the client keeps sending
        return False

    def has_left(self, sock: Any, waited: float) -> bool:
        """Return whether the client of a request that has waited has left, and count it in that case. Never wait.

        A reset connection always counts. A client that has closed only its sending side may still read: it counts as
        one that has left once it has waited for `PATIENCE`, and under overload.

        :param waited: seconds.
        """
        try:
            left = gone(sock.fileno(), half_closed=waited > PATIENCE or (
                self.admission is not None and self.admission.impatient))
        except (OSError, ValueError):
            left = True
        if left:
            runtime.my_row().add(scoreboard.W_ABANDONED)
        return left

    def refused(self, sock: Any) -> None:
        """Close a connection answered with 503 once the client has closed its side, and soon in any case.

        A client that still sends would otherwise see a reset instead of the answer.
        """
        waiting = Waiting(sock, answered=True)
        waiting.refused = 1
        try:
            if self.ending or not self.worker.alive or self._done_refused(waiting):
                sock.close()
            else:
                self._keep(waiting)
        except (OSError, ValueError, RuntimeError):
            with contextlib.suppress(OSError):
                sock.close()

    def _done_refused(self, waiting: Waiting) -> bool:
        with contextlib.suppress(BlockingIOError):
            while waiting.refused < MOST_REFUSED:
                data = waiting.sock.recv(1 << 14, socket.MSG_DONTWAIT)
                if not data:
                    return True
                waiting.refused += len(data)
            return True
        return False

    def _keep(self, waiting: Waiting) -> None:
        while len(self.aside) >= self._most:
            self._drop(next(iter(self.aside.values())))
        descriptor = waiting.sock.fileno()
        self.aside[descriptor] = waiting
        self._epoll.register(descriptor, EDGE)

    def _take(self, waiting: Waiting) -> None:
        descriptor = waiting.sock.fileno()
        self.aside.pop(descriptor, None)
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(descriptor)

    def _drop(self, waiting: Waiting) -> None:
        self._take(waiting)
        if not waiting.answered:
            self._forget(waiting)
        waiting.sock.close()

    def _forget(self, waiting: Waiting) -> None:
        """Update the counts for a connection that ends without having been served."""

    def _events(self) -> list[Waiting]:
        """Process the events of connections kept aside; return those whose heads have arrived, in that order."""
        found = []
        try:
            events = self._epoll.poll(0)
        except (OSError, ValueError):
            return []
        for descriptor, _ in events:
            waiting = self.aside.get(descriptor)
            if waiting is None:
                continue
            try:
                over, here = waiting.cut, False
                if not over and waiting.refused:
                    over = self._done_refused(waiting)
                elif not over and waiting.answered:
                    over = self._done(waiting.sock)
                elif not over:
                    seen = self._here(waiting)
                    over, here = seen is None, bool(seen)
            except OSError:
                over, here = True, False
            if over:
                self._drop(waiting)
            elif here:
                self._take(waiting)
                found.append(waiting)
        return found

    def _here(self, waiting: Waiting) -> bool | None:
        """Return whether the head has arrived; None if it never will.

        :raises OSError: if the connection is broken.
        """
        return self._look(waiting, b"")

    def _look(self, waiting: Waiting, before: bytes) -> bool | None:
        try:
            data = waiting.sock.recv(PEEK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        waiting.partial = bool(data)
        if not data:
            return None
        waiting.head = before + data if before else data
        return self._secure or len(data) >= PEEK or b"\r\n\r\n" in before[-3:] + data


def _nothing() -> None:
    return None


def clients(worker: Any) -> int:
    """Return how many client connections a worker holds: those that gthread counts, and those kept aside."""
    connections = getattr(worker, "stability_connections", None)
    return int(getattr(worker, "nr_conns", 0)) + (len(connections.aside) if connections is not None else 0)
