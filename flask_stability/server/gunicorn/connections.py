"""The connections of a sync or gthread worker's clients: a request is given a thread once its head has arrived.

gunicorn reads the head in the thread that is to serve the request. A client that sends half of one keeps that thread:
on sync without limit, on gthread one that sends nothing at all for five seconds; as many as there are threads, and
nobody is served. Here the worker's main loop looks, without taking anything away, whether the head is there (of a TLS
connection: whether there is anything), and until it is the connection is kept aside, where it costs a descriptor. It
does not count as one of the ``worker_connections``, which are those that may need a thread.

It also closes what was answered without waiting for the client to close too, for which gunicorn's main loop (on sync
its only thread) waits two seconds for each.

All that happens in the main loop, on events. A deadline is the guard's business: it shuts a connection down, which is
an event.
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

PEEK = 1 << 14  #: bytes; a head that is longer is read by a thread
MOST = 1000  #: connections kept aside by a worker at the most, the oldest goes
LEAVING = 2.0  #: seconds in which a head that is on its way may still arrive at a worker that leaves
LINGER = 2.0  #: seconds in which a client that was answered may close its side
LINGER_REFUSED, MOST_REFUSED = 1.0, 1 << 16  #: the same for one that was refused, and bytes that are read from it
PATIENCE = 1.0  #: seconds of waiting after which a client that sends no more counts as one that has left
EDGE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET if hasattr(select, "epoll") else 0
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

ident = threading.get_ident


class Served:
    """A connection that a thread serves: from the head's first byte that gunicorn reads to the end of its answer.

    :ivar address: the client's, as `accept` gave it.
    :ivar cut: it was shut down: it must not be kept alive.
    """

    __slots__ = ("address", "connection", "cut", "descriptor", "watched")

    def __init__(self, descriptor: int, address: Any, connection: Any = None) -> None:
        self.descriptor, self.address, self.connection = descriptor, address, connection
        self.cut = False
        self.watched: Any = None

    def duplicate(self) -> socket.socket | None:
        """A descriptor of its own for the same connection, to be closed; None if it is gone: its number may be
        another's by now.
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
        """Cut it off; False if it is gone already."""
        self.cut = True
        found = self.duplicate()
        if found is None:
            return False
        with found, contextlib.suppress(OSError):
            found.shutdown(how)
        return True


class Waiting:
    """A connection that no thread serves: its head is not there yet, or it was answered and is about to be closed.

    :ivar listener: sync's; its connection on gthread.
    :ivar since: monotonic seconds.
    :ivar counted: it counts among the worker's connections.
    :ivar answered: it is to be closed as soon as the client has closed its side.
    :ivar partial: a part of the head is there.
    :ivar cut: it was shut down.
    :ivar head: the beginning of it, once it is there.
    :ivar refused: it was answered with 503 before it had a thread; what it still sends is read, up to `MOST_REFUSED`
        bytes, and not for long.
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
        """Its time is over; the main loop will notice, and close it."""
        self.cut = True
        with contextlib.suppress(OSError, ValueError):
            if self.partial and not self.answered:
                self.sock.send(TIMEOUT, socket.MSG_DONTWAIT)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class Connections:
    """What both kinds of workers have in common.

    :ivar serving: by thread.
    :ivar aside: kept aside, by descriptor, the oldest first.
    :ivar admission: decides what becomes of requests that wait; None = they are served in their order.
    :ivar hurry: called, not too often, while requests wait for a thread.
    :ivar limited: it takes fewer than it could: what waits to be accepted is for others.
    :ivar give_way: called before a connection is accepted; may wait for a moment, so that another worker is faster.
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
        """From another thread: take so many connections at a time at the most; 0 = accept none, None = as configured.

        What was accepted is served.
        """
        raise NotImplementedError

    def admit_by(self, admission: Admission) -> None:
        """Have requests that wait judged."""
        self.admission = admission

    def admission_look(self, now: float) -> None:
        """From the guard, now and then."""
        if self.admission is not None:
            self.admission.look(now)

    def too_late(self, now: float, seconds: float) -> int:
        """From the guard: shut down what was kept aside too long; returns how many heads did not come.

        :param seconds: in which a head has to arrive; 0 = it may take for ever.
        """
        late = 0
        for waiting in list(self.aside.values()):
            if waiting.answered:
                patience = LINGER_REFUSED if waiting.refused else LINGER
            else:
                patience = LEAVING if self.ending else seconds
            if patience and now - waiting.since > patience and not waiting.cut:
                waiting.shut()
                late += not waiting.answered
        return late

    def close(self, sock: Any, *arguments: Any, **options: Any) -> None:
        """gunicorn's `util.close_graceful`, which sends the end of the answer and then waits for the client to close:
        else the kernel would end the connection with a reset, and drop what was not read. Here nobody waits for it.
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
        """Take what the client still sends; True at its end."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(8):
                if not sock.recv(1 << 14, socket.MSG_DONTWAIT):
                    return True
            return True  # it goes on and on
        return False

    def has_left(self, sock: Any, waited: float) -> bool:
        """Return whether the client of a request that has waited has gone, and count it then; never waits.

        A reset connection counts always. A client that only sends no more may still read: it counts as one that has
        left once it has waited for `PATIENCE`, and under overload.

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
        """Close what was answered with 503 once the client has closed, soon in any case: one that still sends would see
        a reset instead of the answer.
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
        """It goes without having been served."""

    def _events(self) -> list[Waiting]:
        """Look at what happened to those kept aside; returns those whose heads have arrived, in the order in which
        that was."""
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
        """Whether the head is there; None if it never will be.

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
    """Connections of clients that a worker holds: those that gthread counts, and those that are kept aside."""
    connections = getattr(worker, "stability_connections", None)
    return int(getattr(worker, "nr_conns", 0)) + (len(connections.aside) if connections is not None else 0)
