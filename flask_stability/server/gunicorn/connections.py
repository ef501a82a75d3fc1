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
import errno
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from gunicorn import util

from ..descriptors import limit
from ..threads import queued
from .gthread import on_leaving

PEEK = 1 << 14  #: bytes; a head that is longer is read by a thread
MOST = 1000  #: connections kept aside by a worker at the most, the oldest goes
LEAVING = 2.0  #: seconds in which a head that is on its way may still arrive at a worker that leaves
LINGER = 2.0  #: seconds in which a client that was answered may close its side
HURRY = 0.05  #: seconds between two calls to the guard
DEFER = 3  #: seconds in which the kernel hands a silent connection to no sync worker
EDGE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET if hasattr(select, "epoll") else 0
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
#: What this needs of gunicorn's workers.
NEEDED = {"gthread": ("enqueue_req", "handle", "poller", "tpool", "nr_conns", "worker_connections"),
          "sync": ("accept", "handle", "run", "wait_fds", "sockets")}

_ident = threading.get_ident


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
    """

    __slots__ = ("address", "answered", "counted", "cut", "listener", "partial", "since", "sock")

    def __init__(self, sock: socket.socket, listener: Any = None, address: Any = None, *,
                 answered: bool = False) -> None:
        self.sock, self.listener, self.address, self.answered = sock, listener, address, answered
        self.since = time.monotonic()
        self.counted = self.partial = self.cut = False

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
    :ivar hurry: called, not too often, while requests wait for a thread.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.serving: dict[int, Served] = {}
        self.aside: dict[int, Waiting] = {}
        self.ending = False
        self.hurry: Callable[[], object] = _nothing
        self._hurried = 0.0
        self._secure = bool(worker.cfg.is_ssl)
        self._most = min(MOST, limit() // 2)
        self._epoll = select.epoll()
        self._close_gracefully = getattr(util, "close_graceful", None)
        if self._close_gracefully is not None and not self._secure:
            vars(util)["close_graceful"] = self.close

    def overdue(self, now: float, seconds: float) -> int:
        """From the guard: shut down what was kept aside too long; returns how many heads did not come.

        :param seconds: in which a head has to arrive; 0 = it may take for ever.
        """
        late = 0
        for waiting in list(self.aside.values()):
            patience = LINGER if waiting.answered else LEAVING if self.ending else seconds
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
                if not over and waiting.answered:
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
        return self._secure or len(data) >= PEEK or b"\r\n\r\n" in before[-3:] + data


class Threaded(Connections):
    """gthread's."""

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._enqueue, self._handle = worker.enqueue_req, worker.handle
        worker.enqueue_req, worker.handle = self.enqueue, self.handle
        worker.poller.register(self._epoll, selectors.EVENT_READ, self.dispatch)
        if not hasattr(worker, "set_accept_enabled"):
            worker.accept = self.accept_23
        on_leaving(worker, self.end)

    def end(self) -> None:
        """The worker leaves: it waits for those that count among its connections; heads may be on their way."""
        if self.worker.alive and os.getppid() == self.worker.ppid:
            return  # it only accepts no more for now
        self.ending = True
        now = time.monotonic()
        for waiting in self.aside.values():
            if not waiting.answered:
                waiting.since = now
                self.worker.nr_conns += not waiting.counted
                waiting.counted = True

    def accept_23(self, server: Any, listener: Any) -> None:
        """gunicorn 23's, whose silent connections count, and stay for ever."""
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED):
                return
            raise
        make = self._enqueue.__func__.__globals__["TConn"]
        self.worker.nr_conns += 1
        self.enqueue(make(self.worker.cfg, sock, address, server))

    def enqueue(self, connection: Any) -> None:
        """gunicorn's `enqueue_req`, for a connection that is new or became readable, once the head has arrived."""
        waiting = Waiting(connection.sock, connection)
        try:
            here = self._here(waiting)
        except (OSError, ValueError):
            here = None
        if here:
            self._serve(connection)
        elif here is None:
            self.worker.nr_conns -= 1
            connection.close()
        else:
            waiting.counted = self.ending
            self.worker.nr_conns -= not waiting.counted
            self._keep(waiting)

    def dispatch(self, _: Any = None) -> None:
        """Something happened to those kept aside."""
        for waiting in self._events():
            self.worker.nr_conns += not waiting.counted
            self._serve(waiting.listener)

    def _serve(self, connection: Any) -> None:
        if not connection.initialized:
            connection.data_ready = True  # no need to wait for it in a thread
        self._enqueue(connection)
        if queued(self.worker) and time.monotonic() - self._hurried > HURRY:
            self._hurried = time.monotonic()
            self.hurry()

    def _here(self, waiting: Waiting) -> bool | None:
        connection = waiting.listener
        if getattr(connection, "is_http2", False) or (self._secure and connection.initialized):
            return True
        before = b""
        if connection.parser is not None:  # its last read may have gone on into this head
            before = connection.parser.unreader.buf.getvalue()
            if b"\r\n\r\n" in before:
                return True
        return self._look(waiting, before)

    def _forget(self, waiting: Waiting) -> None:
        self.worker.nr_conns -= waiting.counted

    def handle(self, connection: Any) -> Any:
        """gunicorn's, in a thread."""
        thread = _ident()
        served = self.serving[thread] = Served(connection.sock.fileno(), connection.client, connection)
        try:
            result = self._handle(connection)
        finally:
            self.serving.pop(thread, None)
        if served.cut:
            return (False, connection) if isinstance(result, tuple) else False
        return result


class Single(Connections):
    """sync's: one thread, which serves in the order in which the heads arrived."""

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._accept, self._handle, self._run = worker.accept, worker.handle, worker.run
        worker.accept, worker.handle, worker.run = self.accept, self.handle, self.run
        worker.wait_fds.append(self._epoll)
        self._ready: list[Waiting] = []
        for listener in worker.sockets:
            with contextlib.suppress(OSError, AttributeError):
                listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER)

    def accept(self, listener: Any) -> None:
        """gunicorn's: whose head is there is served, who comes without is kept aside.

        :raises OSError: if nobody is there.
        """
        if self._serve_next() or listener is self._epoll:
            return
        sock, address = listener.accept()
        waiting = Waiting(sock, listener, address)
        try:
            here = self._here(waiting)
        except OSError:
            here = None
        if here is None:
            sock.close()
        elif here:
            self._serve(waiting)
        else:
            self._keep(waiting)

    def _serve_next(self) -> bool:
        if not self._ready:
            self._ready = self._events()
        if not self._ready:
            return False
        self._serve(self._ready.pop(0))
        return True

    def _serve(self, waiting: Waiting) -> None:
        waiting.sock.setblocking(True)
        self.worker.handle(waiting.listener, waiting.sock, waiting.address)

    def handle(self, listener: Any, client: socket.socket, address: Any) -> None:
        """gunicorn's."""
        thread = _ident()
        self.serving[thread] = Served(client.fileno(), address)
        try:
            self._handle(listener, client, address)
        finally:
            self.serving.pop(thread, None)

    def run(self) -> None:
        """gunicorn's, and then those whose heads were on their way."""
        self._run()
        self.ending = True
        until = time.monotonic() + LEAVING
        while time.monotonic() < until and (self._ready or any(not waiting.answered
                                                               for waiting in self.aside.values())):
            self.worker.notify()
            if not self._serve_next():
                select.select([self._epoll], [], [], 0.1)


def _nothing() -> None:
    return None


def watch(worker: Any) -> Connections | None:
    """Begin with a sync or gthread worker; None, with a line in gunicorn's log, where this gunicorn or this system
    lacks what it needs.
    """
    kind = "gthread" if hasattr(worker, "tpool") else "sync"
    lacking = [name for name in NEEDED[kind] if not hasattr(worker, name)]
    if not hasattr(select, "epoll"):
        lacking.append("epoll")
    if lacking:
        worker.log.warning("flask_stability: slow clients are not kept from the threads: this gunicorn or system lacks "
                           "%s", ", ".join(lacking))
        return None
    return Threaded(worker) if kind == "gthread" else Single(worker)
