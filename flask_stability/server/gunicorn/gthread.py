"""gthread workers of gunicorn 23, and of 24 and later: their connections, their threads, and how they leave."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import queue
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any

from ...request import waited
from ..queue_delay import Line
from ..routes import Route
from .admission import SAMPLE, SOON, Admission, tell_failure
from .connections import Connections, Served, Waiting, ident
from .drain import MOST, Last, awaited, on_sigterm
from .listeners import UNKNOWN, backlog, knocking, let_go
from .work_queue import WorkQueue

HURRY = 0.05  #: seconds between two calls to the guard
LINGER = 2.0  #: seconds that connections without a request are kept by a worker that leaves, as in gunicorn 27


def accept(worker: Any, listener: Any) -> None:
    """Accept one connection, if one waits."""
    if hasattr(worker, "set_accept_enabled"):
        worker.accept(listener)
    else:
        worker.accept(listener.getsockname(), listener)


def on_leaving(worker: Any, leave: Callable[[], None]) -> None:
    """Have `leave` called when the worker stops accepting for good; it may still accept, and what it accepts is served.

    The worker calls `set_accept_enabled` for less as well: `leave` looks for itself whether this is the end.
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
    """gunicorn 24 to 26 wait for all of graceful_timeout while one idle kept-alive connection is open."""
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
    """gunicorn 23's loop ends by shutting its pool down, and drops connections whose request it has not seen yet."""
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
    """See `drain`: the main loop says when it stops accepting."""
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
    """SIGINT and SIGQUIT: gunicorn's handler shuts the pool of threads down, for which it needs a lock that the main
    thread, which it interrupts, may hold: it is in `submit` at each request. Then it waited for itself until it was
    killed. The end of the interpreter shuts the pool down as well.
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
    """Connections that a gthread worker accepted and no thread has taken; on other workers 0.

    One whose connections are all taken, by idle clients for the most part, accepts no more: then whether any wait.
    """
    try:
        return int(worker.tpool._work_queue.qsize()) or int(_full(worker) and knocking(worker.sockets))
    except (AttributeError, OSError):
        return 0


def number(worker: Any) -> int:
    """How many threads a gthread worker has, or may have as soon as it needs them."""
    return int(getattr(getattr(worker, "tpool", None), "_max_workers", 1))


def _full(worker: Any) -> bool:
    return bool(worker.nr_conns >= worker.worker_connections)


def add_threads(worker: Any, number: int) -> bool:
    """Give a gthread worker more threads, and as many connections; False if this Python's pool has not what that
    needs.
    """
    pool = getattr(worker, "tpool", None)
    if not (hasattr(pool, "_max_workers") and hasattr(pool, "_adjust_thread_count")):
        return False
    assert pool is not None
    with getattr(pool, "_shutdown_lock", None) or contextlib.nullcontext():
        pool._max_workers += number
        for _ in range(min(number, queued(worker))):
            pool._adjust_thread_count()
    with contextlib.suppress(AttributeError, OSError):
        worker.worker_connections += number
        worker.method_queue.defer(int)  # its loop looks at that number after each event
    return True


# -- its connections ---------------------------------------------------------------------------------------------


class Threaded(Connections):
    """gthread's."""

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._enqueue, self._handle = worker.enqueue_req, worker.handle
        worker.enqueue_req, worker.handle = self.enqueue, self.handle
        worker.poller.register(self._epoll, selectors.EVENT_READ, self.dispatch)
        if not hasattr(worker, "set_accept_enabled"):
            worker.accept = self.accept_23
        self._queue: WorkQueue | None = None
        self._looks = 0
        self._late: collections.deque[Any] = collections.deque()
        on_leaving(worker, self.end)

    def admit_by(self, admission: Admission) -> None:
        """See `Connections`: from now on a free thread takes what `admission` says."""
        self.admission = admission
        pool = self.worker.tpool
        if not pool._threads and type(pool._work_queue) is queue.SimpleQueue and not pool._work_queue.qsize():
            self._queue = pool._work_queue = WorkQueue(self, tell_failure)
        else:
            self.worker.log.warning("flask_stability: under overload requests are served in the order of arrival; "
                                    "this Python's thread pool has not the queue that is known")

    def admission_look(self, now: float) -> None:
        """See `Connections`."""
        if self._queue is not None and self._queue.watchful and not self._queue.qsize():
            self.nobody_waits()
        super().admission_look(now)

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
            self._serve(connection, waiting.head)
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
            self._serve(waiting.listener, waiting.head)

    def _serve(self, connection: Any, head: bytes) -> None:
        if not connection.initialized:
            connection.data_ready = True  # no need to wait for it in a thread
        connection.stability_head = head
        work = self._queue
        if work is not None:
            self._looks += 1
            work.age = self._age(connection) if work.watchful or not self._looks % SAMPLE else 0.0
        self._enqueue(connection)
        if work is not None and work.watchful:
            self._late.extend(work.overdue())
            self._refuse()
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
        thread = ident()
        served = self.serving[thread] = Served(connection.sock.fileno(), connection.client, connection)
        connection.stability_head = b""
        try:
            result = self._handle(connection)
        finally:
            self.serving.pop(thread, None)
            if waited:
                waited.pop(thread, None)
        if served.cut:
            return (False, connection) if isinstance(result, tuple) else False
        return result

    # -- which connection a free thread takes: see `work_queue.Judge` ------------------------------------------------

    def arrival(self, item: Any) -> tuple[int, float]:
        """Class and arrival of a connection that has to wait."""
        assert self.admission is not None
        return self._route(item.args[0]).kind, float(item.since)

    def _age(self, connection: Any) -> float:
        assert self.admission is not None
        try:
            return self.admission.age(connection.sock, connection.stability_head, connection.client)
        except Exception as error:
            tell_failure(error)
            return 0.0

    def _route(self, connection: Any) -> Route:
        assert self.admission is not None
        route: Route = self.admission.route(connection.stability_head)
        connection.stability_route = route
        return route

    def _backlog(self) -> int:
        """Connections in the kernel's queues, as far as that is known."""
        return sum(number for number in map(backlog, self.worker.sockets) if number != UNKNOWN)

    def next(self, line: Line[Any]) -> tuple[float, Any] | None:
        """The one that a free thread is to take."""
        assert self.admission is not None
        found, late = self.admission.choose(line, self._backlog())
        self._refuse_soon(late)
        return found

    def _refuse_soon(self, late: list[Any]) -> None:
        """From a thread: sockets are the main loop's."""
        if late:
            self._late.extend(late)
            if hasattr(self.worker, "method_queue"):
                self.worker.method_queue.defer(self._refuse)

    def alone(self, item: Any) -> bool:
        """The same as `admit` for one before which nobody waits here: it waited in the kernel's queue, whose order is
        that of arrival.
        """
        assert self.admission is not None
        age, waiting = time.monotonic() - item.since, self._backlog()
        if self.admission.too_old(age, self._route(item.args[0]), waiting) and waiting:
            self._refuse_soon([item])
            return False
        return self.admit(item, item.since)

    def overdue(self, line: Line[Any]) -> list[Any]:
        """Those that have waited too long."""
        assert self.admission is not None
        return self.admission.overdue(line)

    def admit(self, item: Any, arrived: float) -> bool:
        """Whether a connection that has waited is served; else its client has left, and it is closed."""
        assert self.admission is not None
        age = time.monotonic() - arrived
        connection = item.args[0]
        if age < SOON:
            return True
        if self.admission.has_left(connection.sock.fileno(), age, connection.stability_route):
            item.future.cancel()  # the main loop closes it
            return False
        self.admission.waited(age)
        waited[ident()] = int(age * 1e9)
        return True

    def nobody_waits(self) -> None:
        """A connection got a thread at once."""
        assert self.admission is not None
        self.admission.nobody_waits()

    def watchful(self) -> bool:
        """There is overload, or the beginning of one."""
        return self.admission is not None and self.admission.watchful

    def _refuse(self) -> None:
        """Answer those that have waited too long, and let gunicorn forget them."""
        assert self.admission is not None
        while self._late:
            item = self._late.popleft()
            connection = item.args[0]
            sock, connection.sock = connection.sock, _NoSocket()
            try:
                linger = self.admission.refuse(sock, connection.stability_head, connection.stability_route)
            except Exception as error:
                tell_failure(error)
                linger = False
            item.future.cancel()
            if linger:
                self.refused(sock)
            else:
                with contextlib.suppress(OSError):
                    sock.close()


class _NoSocket:
    """Stands for the socket of a connection that was refused: gunicorn closes that once more."""

    def setblocking(self, flag: bool) -> None:
        """Nothing."""

    def shutdown(self, how: int) -> None:
        """Nothing."""

    def recv(self, *_: Any) -> bytes:
        """The end."""
        return b""

    def close(self) -> None:
        """Nothing."""

    def fileno(self) -> int:
        """None."""
        return -1
