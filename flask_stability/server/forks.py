"""A process that a view forks (multiprocessing, `os.fork`, `pty`) is no worker, though it looks like one at first.

It inherits the worker's signal handlers: SIGTERM would not end it, but have it take, and lose, the connections that
wait for the worker. It inherits the listening sockets: the port would stay taken when master and workers are gone. So
the child gives up both before it does anything else; the signals of a worker wait meanwhile.

Programs that a view starts get no handler from the worker, and nothing that a worker ignores: it ignores by handlers
that do nothing (`ignore`), since what is ignored by the kernel stays ignored in them.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from .gunicorn.listeners import let_go

#: What a worker has handlers for.
SIGNALS = (signal.SIGABRT, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1,
           signal.SIGUSR2, signal.SIGWINCH)


class Forks:
    """Watches the forks of one worker, for the life of the process and in each child.

    :param worker: gunicorn's, its signal handlers set.
    """

    def __init__(self, worker: Any) -> None:
        self._worker, self._pid = worker, os.getpid()
        self._masks: dict[int, set[signal.Signals | int]] = {}

    def before(self) -> None:
        """Hold back the signals that the worker has handlers for."""
        self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def after(self) -> None:
        """Let them in again."""
        mask = self._masks.pop(threading.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def in_child(self) -> None:
        """Give up the worker's handlers and listeners, then let signals in."""
        try:
            if self._pid:  # else a child of a child: done already
                self._pid = 0
                self._worker.alive = False
                _reset_signals()
                for listener in self._worker.sockets:
                    let_go(listener)
        finally:
            self.after()


def _reset_signals() -> None:
    """The worker's handlers make room for the default; those of the app stay."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        module = getattr(signal.getsignal(number), "__module__", None) or ""
        if module.startswith(("gunicorn.", "flask_stability.")):
            # a KeyboardInterrupt that is due now would be lost in the hook that calls this
            as_python = number == signal.SIGINT and number not in signal.sigpending()
            signal.signal(number, signal.default_int_handler if as_python else signal.SIG_DFL)


def ignore(number: int) -> None:
    """Ignore a signal in this process, but not in the programs that it starts."""
    signal.signal(number, _do_nothing)
    signal.siginterrupt(number, False)


def _do_nothing(number: int, frame: Any) -> None:
    return None
