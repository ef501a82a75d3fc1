"""gthread workers of gunicorn 23, and of 24 and later: accepting, and the moment from which on none is accepted."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

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
