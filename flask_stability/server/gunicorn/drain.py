"""A worker that leaves lets go of the listening sockets at once; at the service's end it first takes what waits there.

gunicorn's workers hold them until their last request is done. At the end of a service that is a trap: as long as one
request is in flight the kernel goes on accepting connections that nobody will serve, and resets them when the last
worker is gone (150 requests a second, one of 6 s in flight: 720 lost). Let go of, a new connection is refused, and a
proxy takes the next instance, whatever the method.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from . import gthread

MOST = 4096  #: connections taken from one queue at the most
WORD = 2.0  #: seconds for the master to say what it is that ends, the service or this worker
#: Whether the service ends, and nobody else will accept what waits; None while the master has not said anything.
Last = Callable[[], bool | None]


def leave_well(worker: Any, last: Last) -> Callable[[], None]:
    """Have a sync or gthread worker leave so.

    A SIGTERM that the master has not announced went to this worker alone, or to the whole process group (supervisord,
    systemd): then the master says so a moment later, and until then nobody lets go of what waits.

    :returns: to be called now and then by another thread once the worker is told to leave.
    """
    for listener in worker.sockets:
        name = listener.getsockname()
        listener.getsockname = lambda name=name: name  # asked for at each request, also after it was let go of
    if hasattr(worker, "tpool"):
        _threaded(worker, last)
        return lambda: None
    return _Sync(worker, last).leave


def _awaited(last: Last) -> bool:
    """The word, waited for; False if none comes."""
    until = time.monotonic() + WORD
    while (known := last()) is None and time.monotonic() < until:
        time.sleep(0.01)
    return bool(known)


def _threaded(worker: Any, last: Last) -> None:
    """gthread: its main loop says when it stops accepting."""
    quit_without_locks(worker)
    signalled = False

    def handle_exit(number: int, frame: Any) -> None:
        nonlocal signalled
        signalled = True
        worker.handle_exit(number, frame)

    def leave() -> None:
        if worker.alive and os.getppid() == worker.ppid:
            return
        ends = _awaited(last) if signalled else last()
        for listener in worker.sockets:
            if ends:
                _accept_all(worker, listener)
            let_go(listener)

    _on_sigterm(handle_exit)
    gthread.on_leaving(worker, leave)


def _on_sigterm(handler: Callable[[int, Any], None]) -> None:
    signal.signal(signal.SIGTERM, handler)
    signal.siginterrupt(signal.SIGTERM, False)


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
            gthread.accept(worker, listener)
            if worker.nr_conns == before:
                return


class _Sync:
    """sync: its only thread is in a request, or waits for one, when SIGTERM comes; the signal's handler takes and
    lets go, and what it took is served after the request.
    """

    def __init__(self, worker: Any, last: Last) -> None:
        self._worker, self._last = worker, last
        self._signalled = False
        self._leaving = threading.Lock()  # the main thread's, and that of whoever calls `leave`
        self._accept, self._run = worker.accept, worker.run
        self._taken: list[tuple[Any, socket.socket, Any]] = []
        self._since = 0.0
        worker.accept, worker.run = self.accept, self.run
        _on_sigterm(self.handle_exit)

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
        ends = bool(_awaited(self._last) if self._signalled else self._last())
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


def let_go(listener: Any) -> None:
    """Its descriptor stays valid, for whatever loop still looks at it, but is no socket any more; once or again."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.dup2(null, listener.fileno(), inheritable=False)
        finally:
            os.close(null)
