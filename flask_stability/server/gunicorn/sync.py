"""sync workers: their connections, and how they leave."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import time
from typing import Any

from ...request import waited
from .admission import SAMPLE, SOON, Admission, tell_failure
from .connections import LEAVING, Connections, Served, Waiting, ident
from .drain import MOST, Last, awaited, on_sigterm
from .listeners import backlog, knocking, let_go

DEFER = 3  #: seconds in which the kernel hands a silent connection to no sync worker


class Single(Connections):
    """sync's: one thread, which serves in the order in which the heads arrived."""

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._accept, self._handle, self._run = worker.accept, worker.handle, worker.run
        worker.accept, worker.handle, worker.run = self.accept, self.handle, self.run
        worker.wait_fds.append(self._epoll)
        self._ready: list[Waiting] = []
        self._looked_at, self._looks = 0.0, 0
        for listener in worker.sockets:
            with contextlib.suppress(OSError, AttributeError):
                listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER)

    def accept(self, listener: Any) -> None:
        """gunicorn's: whose head is there is served, who comes without is kept aside.

        :raises OSError: if nobody is there.
        """
        if self._serve_next() or listener is self._epoll:
            return
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            if self.admission is not None and self.admission.watchful:
                self.admission.nobody_waits()
            raise
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
        try:
            if self.admission is not None and not self._admits(self.admission, waiting):
                return
        except Exception as error:
            tell_failure(error)
        waiting.sock.setblocking(True)
        self.worker.handle(waiting.listener, waiting.sock, waiting.address)

    def _admits(self, admission: Admission, waiting: Waiting) -> bool:
        """Whether a request is served; else it was refused, or its client has left.

        How long it has waited is asked where the one before it took long, and now and then: that costs a system call.
        """
        now = time.monotonic()
        before, self._looked_at = self._looked_at, now
        self._looks += 1
        if now - before < SOON and self._looks % SAMPLE and not admission.watchful:
            return True
        sock, head = waiting.sock, waiting.head
        age = admission.age(sock, head, waiting.address)
        if age < SOON:
            if admission.watchful:
                admission.nobody_waits()
            return True
        route = admission.route(head)
        if admission.has_left(sock.fileno(), age, route):
            sock.close()
            return False
        if admission.too_old(age, route, len(self._ready) + backlog(waiting.listener)) and (
                self._ready or knocking([waiting.listener])):
            if admission.refuse(sock, head, route):
                self.refused(sock)
            else:
                sock.close()
            return False
        admission.waited(age)
        waited[ident()] = int(age * 1e9)
        return True

    def handle(self, listener: Any, client: socket.socket, address: Any) -> None:
        """gunicorn's."""
        thread = ident()
        self.serving[thread] = Served(client.fileno(), address)
        try:
            self._handle(listener, client, address)
        finally:
            self.serving.pop(thread, None)
            waited.pop(thread, None)

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


class Leaving:
    """See `drain`: its only thread is in a request, or waits for one, when SIGTERM comes; the signal's handler takes
    and lets go, and what it took is served after the request.
    """

    def __init__(self, worker: Any, last: Last) -> None:
        self._worker, self._last = worker, last
        self._signalled = False
        self._leaving = threading.Lock()  # the main thread's, and that of whoever calls `leave`
        self._accept, self._run = worker.accept, worker.run
        self._taken: list[tuple[Any, socket.socket, Any]] = []
        self._since = 0.0
        worker.accept, worker.run = self.accept, self.run
        on_sigterm(self.handle_exit)

    def handle_exit(self, number: int, frame: Any) -> None:
        """SIGTERM."""
        self._signalled = True
        self._worker.handle_exit(number, frame)
        self.leave()

    def leave(self) -> None:
        """Take and let go, if it is known which; never waits: it may have interrupted itself."""
        ends = self._last()
        if ends is None and self._signalled:
            return
        if self._leaving.acquire(blocking=False):
            try:
                self._leave(bool(ends))
            finally:
                self._leaving.release()

    def accept(self, listener: Any) -> None:
        """gunicorn's; the signal may have come just before it."""
        try:
            self._accept(listener)
        except OSError as error:
            if error.errno == errno.ENOTSOCK and not self._worker.alive:
                raise BlockingIOError(errno.EAGAIN, "the worker leaves") from None
            raise

    def run(self) -> None:
        """gunicorn's, and then what was taken."""
        worker = self._worker
        self._run()
        ends = bool(awaited(self._last) if self._signalled else self._last())
        with self._leaving:
            self._leave(ends)
        until = self._since + float(worker.cfg.graceful_timeout) - 1.0
        while self._taken:
            listener, client, address = self._taken.pop(0)
            if time.monotonic() > until:
                client.close()
                continue
            worker.notify()
            worker.handle(listener, client, address)

    def _leave(self, ends: bool) -> None:
        self._since = self._since or time.monotonic()
        for listener in self._worker.sockets:
            if ends:
                self._take(listener)
            let_go(listener)

    def _take(self, listener: Any) -> None:
        with contextlib.suppress(OSError):
            while len(self._taken) < MOST:
                client, address = listener.accept()
                client.setblocking(True)
                self._taken.append((listener, client, address))
