"""gthread workers of gunicorn 23, and of 24 and later: their connections, their threads, and how they leave."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any

from ...request import waited
from ..arrival import WAITED
from .admission import Admission
from .connections import Connections, Served, Waiting, ident
from .drain import MOST, Last, awaited, on_sigterm
from .listeners import knocking, let_go
from .turns import Turns

HURRY = 0.05  #: seconds between two calls of `hurry`
LINGER = 2.0  #: seconds that a leaving worker keeps connections without a request, as in gunicorn 27


def accept(worker: Any, listener: Any) -> None:
    """Accept one connection, if one waits."""
    if hasattr(worker, "set_accept_enabled"):
        worker.accept(listener)
    else:
        worker.accept(listener.getsockname(), listener)


def on_leaving(worker: Any, leave: Callable[[], None]) -> None:
    """Call `leave` when the worker stops accepting for good.

    `leave` may still accept connections, which are then served. The worker calls `set_accept_enabled` at other times
    too, so `leave` must check itself whether this is the end.
    """
    if hasattr(worker, "set_accept_enabled"):
        switch = worker.set_accept_enabled

        def set_accept_enabled(enabled: bool) -> None:
            switch(enabled)
            if not enabled:
                leave()

        worker.set_accept_enabled = set_accept_enabled
        if not hasattr(worker, "_cap_keepalive") and hasattr(worker, "keepalived_conns"):
            _close_idle(worker)
    else:
        _on_leaving_23(worker, leave)


def _close_idle(worker: Any) -> None:
    """Close idle kept-alive connections when the worker leaves.

    gunicorn 24 to 26 would wait all of graceful_timeout while one is open.
    """
    wait = worker.wait_for_and_dispatch_events
    left = 0.0

    def wait_for_and_dispatch_events(timeout: float) -> None:
        nonlocal left
        if worker.alive and os.getppid() == worker.ppid:
            wait(timeout)
            return
        left = left or time.monotonic()
        for conn in list(worker.keepalived_conns):
            conn.timeout = min(conn.timeout, left + LINGER)
        wait(min(timeout, LINGER / 4))
        worker.murder_keepalived()

    worker.wait_for_and_dispatch_events = wait_for_and_dispatch_events


def _on_leaving_23(worker: Any, leave: Callable[[], None]) -> None:
    """Serve the rest when gunicorn 23's loop ends.

    The loop ends by shutting its pool down, and drops connections whose request it has not seen yet.
    """
    pool = worker.tpool
    shutdown = pool.shutdown

    def last(*args: Any, **options: Any) -> None:
        pool.shutdown = shutdown
        for listener in worker.sockets:
            with contextlib.suppress(KeyError, ValueError, OSError):
                worker.poller.unregister(listener)
        leave()
        _serve_rest(worker)
        shutdown(*args, **options)

    pool.shutdown = last


def _serve_rest(worker: Any) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < float(worker.cfg.graceful_timeout):
        worker.notify()
        for key, _ in worker.poller.select(0.1):
            key.data(key.fileobj)
        busy = [future for future in list(worker.futures) if not future.done()]
        if not busy and (worker.nr_conns <= 0 or time.monotonic() - begun > LINGER):
            return
    worker.futures.clear()  # gunicorn would wait for them as long again


# -- how it leaves -----------------------------------------------------------------------------------------------


def leave_well(worker: Any, last: Last) -> None:
    """See `drain`; here the main loop calls when it stops accepting."""
    quit_without_locks(worker)
    signalled = False

    def handle_exit(number: int, frame: Any) -> None:
        nonlocal signalled
        signalled = True
        worker.handle_exit(number, frame)

    def leave() -> None:
        if worker.alive and os.getppid() == worker.ppid:
            return
        ends = awaited(last) if signalled else last()
        for listener in worker.sockets:
            if ends:
                _accept_all(worker, listener)
            let_go(listener)

    on_sigterm(handle_exit)
    on_leaving(worker, leave)


def quit_without_locks(worker: Any) -> None:
    """Handle SIGINT and SIGQUIT without the thread pool's lock.

    gunicorn's handler shuts the pool down, which needs a lock that the interrupted main thread may hold, because it
    calls `submit` at each request. The worker then waited for itself until it was killed. The interpreter's end shuts
    the pool down as well.
    """
    def handle_quit(number: int, frame: Any) -> None:
        worker.tpool.shutdown = lambda *_, **__: None
        worker.handle_quit(number, frame)

    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == worker.handle_quit:
            signal.signal(number, handle_quit)


def _accept_all(worker: Any, listener: Any) -> None:
    with contextlib.suppress(OSError):
        for _ in range(MOST):
            before = worker.nr_conns
            accept(worker, listener)
            if worker.nr_conns == before:
                return


# -- its threads -------------------------------------------------------------------------------------------------


def queued(worker: Any) -> int:
    """Return the connections that a gthread worker has accepted and no thread has taken; 0 on other workers.

    A worker at its connection limit, mostly of idle clients, accepts no more: return 1 then if connections wait in the
    kernel.
    """
    try:
        limited = getattr(getattr(worker, "stability_connections", None), "limited", False)
        return int(worker.tpool._work_queue.qsize()) or int(
            not limited and _full(worker) and knocking(worker.sockets))
    except (AttributeError, OSError):
        return 0


def _full(worker: Any) -> bool:
    return bool(worker.nr_conns >= worker.worker_connections)


# -- its connections ---------------------------------------------------------------------------------------------


class Threaded(Connections):
    """The connections of a gthread worker."""

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._enqueue, self._handle = worker.enqueue_req, worker.handle
        self._usual: int | None = None
        worker.enqueue_req, worker.handle = self.enqueue, self.handle
        worker.poller.register(self._epoll, selectors.EVENT_READ, self.dispatch)
        if not hasattr(worker, "set_accept_enabled"):
            worker.accept = self.accept_23
        accept = worker.accept

        def give_way_and_accept(*args: Any) -> None:
            self.give_way()
            accept(*args)

        worker.accept = give_way_and_accept
        self._turns: Turns | None = None
        on_leaving(worker, self.end)

    @property
    def can_limit(self) -> bool:  # type: ignore[override]
        """Return whether `limit` works: gunicorn 23 serves no connection at all while it accepts none."""
        return hasattr(self.worker, "set_accept_enabled")

    def limit(self, most: int | None) -> None:
        """See `Connections.limit`."""
        if not self.can_limit:
            return
        worker, self.limited = self.worker, most is not None
        if self._usual is None:
            self._usual = int(worker.worker_connections)
        worker.worker_connections = self._usual if most is None else min(most, self._usual)
        if most is None:
            self._usual = None
        with contextlib.suppress(AttributeError, OSError, ValueError):
            worker.method_queue.defer(int)  # the main loop reads that number after each event

    def admit_by(self, admission: Admission) -> None:
        """See `Connections`: from now on `admission` chooses the request that a free thread takes."""
        self.admission = admission
        self._turns = Turns.of(self, admission)

    def admission_look(self, now: float) -> None:
        """See `Connections`."""
        if self._turns is not None:
            self._turns.look()
        super().admission_look(now)

    def end(self) -> None:
        """Count connections without a head among the worker's, so that it waits for heads on their way while it leaves.
        """
        if self.worker.alive and os.getppid() == self.worker.ppid:
            return  # the worker only pauses accepting
        self.ending = True
        now = time.monotonic()
        for waiting in self.aside.values():
            if not waiting.answered:
                waiting.since = now
                self.worker.nr_conns += not waiting.counted
                waiting.counted = True

    def accept_23(self, server: Any, listener: Any) -> None:
        """Accept a connection in place of gunicorn 23's `accept`: there silent connections count, and stay for ever."""
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
        """Enqueue a new or readable connection as gunicorn's `enqueue_req` does, but only once the head has arrived."""
        waiting = Waiting(connection.sock, connection)
        try:
            here = self._here(waiting)
        except (OSError, ValueError):
            here = None
        if here:
            self._serve(connection, waiting.head)
        elif here is None:
            self.worker.nr_conns -= 1
            connection.close()
        else:
            waiting.counted = self.ending
            self.worker.nr_conns -= not waiting.counted
            self._keep(waiting)

    def dispatch(self, _: Any = None) -> None:
        """Serve the connections kept aside whose heads have arrived."""
        for waiting in self._events():
            self.worker.nr_conns += not waiting.counted
            self._serve(waiting.listener, waiting.head)

    def _serve(self, connection: Any, head: bytes) -> None:
        if not connection.initialized:
            connection.data_ready = True  # no thread needs to wait for the data
        turns = self._turns
        if turns is not None:
            turns.before(connection, head)
        else:
            connection.stability_since = time.monotonic()
        self._enqueue(connection)
        if turns is not None and turns.work.watchful:
            turns.refuse_overdue()
        if queued(self.worker) and time.monotonic() - self._hurried > HURRY:
            self._hurried = time.monotonic()
            self.hurry()

    def _here(self, waiting: Waiting) -> bool | None:
        connection = waiting.listener
        if getattr(connection, "is_http2", False) or (self._secure and connection.initialized):
            return True
        before = b""
        if connection.parser is not None:  # the previous read may have consumed the beginning of this head
            before = connection.parser.unreader.buf.getvalue()
            if b"\r\n\r\n" in before:
                waiting.head = before
                return True
        return self._look(waiting, before)

    def _forget(self, waiting: Waiting) -> None:
        self.worker.nr_conns -= waiting.counted

    def handle(self, connection: Any) -> Any:
        """Handle a connection in a thread as gunicorn does, and keep account of it."""
        thread = ident()
        if self._turns is None:
            age = time.monotonic() - connection.stability_since
            if age > WAITED and self.has_left(connection.sock, age):
                return False if hasattr(self.worker, "set_accept_enabled") else (False, connection)
        else:
            connection.stability_head = b""
        served = self.serving[thread] = Served(connection.sock.fileno(), connection.client, connection)
        try:
            result = self._handle(connection)
        finally:
            self.serving.pop(thread, None)
            if waited:
                waited.pop(thread, None)
        if served.cut:
            return (False, connection) if isinstance(result, tuple) else False
        return result
