"""sync workers: their connections, and how they leave."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from typing import Any

from ...request import waited
from ..arrival import SAMPLE, WAITED, kernel_age
from .admission import Admission, tell_failure
from .connections import LEAVING, Connections, Served, Waiting, ident
from .drain import MOST, Last, awaited, on_sigterm
from .listeners import backlog, knocking, let_go

DEFER = 3  #: seconds for which the kernel hands a silent connection to no sync worker


class Single(Connections):
    """The connections of a sync worker: one thread, which serves in the order in which the heads arrived."""

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._accept, self._handle, self._run = worker.accept, worker.handle, worker.run
        worker.accept, worker.handle, worker.run = self.accept, self.handle, self.run
        worker.wait_fds.append(self._epoll)
        self._ready: list[Waiting] = []
        self._parked = False
        self._began, self._looks, self._queued = 0.0, 0, False
        for listener in worker.sockets:
            with contextlib.suppress(OSError, AttributeError):
                listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER)

    def accept(self, listener: Any) -> None:
        """Accept as gunicorn does: serve a connection whose head has arrived, keep any other aside.

        :raises OSError: if no connection waits.
        """
        if self._serve_next() or listener is self._epoll:
            return
        if self._parked and self.worker.alive:
            raise BlockingIOError(errno.EAGAIN, "the worker accepts nothing now")
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

    def limit(self, most: int | None) -> None:
        """See `Connections.limit`: a sync worker never takes more than one."""
        worker, self._parked, self.limited = self.worker, most == 0, most is not None
        listeners = list(worker.sockets)
        others = [one for one in worker.wait_fds if one not in listeners]
        worker.wait_fds = others if self._parked else [*listeners, *others]
        with contextlib.suppress(OSError):
            os.write(worker.PIPE[1], b".")  # its loop still waits on the former descriptors: wake it

    def _serve_next(self) -> bool:
        if not self._ready:
            self._ready = self._events()
        if not self._ready:
            return False
        self._serve(self._ready.pop(0))
        return True

    def _serve(self, waiting: Waiting) -> None:
        if self._admits(waiting):
            waiting.sock.setblocking(True)
            self.worker.handle(waiting.listener, waiting.sock, waiting.address)

    def _admits(self, waiting: Waiting) -> bool:
        """Return whether to serve a request; else it was refused, or its client has left.

        Its wait, mostly in the kernel's queue, is measured after a request that took long or had waited itself, and at
        every `SAMPLE`-th request, because that costs system calls.
        """
        admission = self.admission
        now = time.monotonic()
        took, self._began = now - self._began, now
        self._looks += 1
        if took < WAITED and not self._queued and self._looks % SAMPLE and not (
                admission is not None and admission.watchful):
            return True
        try:
            age = (kernel_age(waiting.sock) if admission is None
                   else admission.age(waiting.sock, waiting.head, waiting.address))
            self._queued = age is not None and age > WAITED
            if age is not None and not self._queued:
                if admission is not None and admission.watchful:
                    admission.nobody_waits()
                return True
            if self.has_left(waiting.sock, age or 0.0):
                if admission is not None:
                    admission.left(age or 0.0, admission.route(waiting.head))
                waiting.sock.close()
                return False
            return admission is None or age is None or not self._refuses(admission, waiting, age)
        except Exception as error:
            tell_failure(error)
            return True

    def _refuses(self, admission: Admission, waiting: Waiting, age: float) -> bool:
        route = admission.route(waiting.head)
        if admission.too_old(age, route, len(self._ready) + backlog(waiting.listener)) and (
                self._ready or knocking([waiting.listener])):
            if admission.refuse(waiting.sock, waiting.head, route):
                self.refused(waiting.sock)
            else:
                waiting.sock.close()
            return True
        admission.waited(age)
        waited[ident()] = int(age * 1e9)
        return False

    def handle(self, listener: Any, client: socket.socket, address: Any) -> None:
        """Handle a connection as gunicorn does, and keep account of it."""
        thread = ident()
        self.serving[thread] = Served(client.fileno(), address)
        try:
            self._handle(listener, client, address)
        finally:
            self.serving.pop(thread, None)
            if waited:
                waited.pop(thread, None)

    def run(self) -> None:
        """Run as gunicorn does, then serve the connections whose heads were on their way."""
        self._run()
        self.ending = True
        until = time.monotonic() + LEAVING
        while time.monotonic() < until and (self._ready or any(not waiting.answered
                                                               for waiting in self.aside.values())):
            self.worker.notify()
            if not self._serve_next():
                select.select([self._epoll], [], [], 0.1)


class Leaving:
    """See `drain`.

    At SIGTERM the only thread is in a request, or waits for one. The signal's handler accepts the waiting connections
    and closes the listeners; the worker serves those connections after its request.
    """

    def __init__(self, worker: Any, last: Last) -> None:
        self._worker, self._last = worker, last
        self._signalled = False
        self._leaving = threading.Lock()  # between the main thread and any other caller of `leave`
        self._accept, self._run = worker.accept, worker.run
        self._taken: list[tuple[Any, socket.socket, Any]] = []
        self._since = 0.0
        worker.accept, worker.run = self.accept, self.run
        on_sigterm(self.handle_exit)

    def handle_exit(self, number: int, frame: Any) -> None:
        """Handle SIGTERM."""
        self._signalled = True
        self._worker.handle_exit(number, frame)
        self.leave()

    def leave(self) -> None:
        """Accept and close if the master has said which.

        It never waits, since the signal's handler may have interrupted this very method.
        """
        ends = self._last()
        if ends is None and self._signalled:
            return
        if self._leaving.acquire(blocking=False):
            try:
                self._leave(bool(ends))
            finally:
                self._leaving.release()

    def accept(self, listener: Any) -> None:
        """Accept as gunicorn does; the signal may have arrived just before."""
        try:
            self._accept(listener)
        except OSError as error:
            if error.errno == errno.ENOTSOCK and not self._worker.alive:
                raise BlockingIOError(errno.EAGAIN, "the worker leaves") from None
            raise

    def run(self) -> None:
        """Run as gunicorn does, then serve the connections accepted at SIGTERM."""
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
