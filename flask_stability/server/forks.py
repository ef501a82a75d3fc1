"""A process that a view forks (multiprocessing, `os.fork`, `pty`) is not a worker, though it looks like one at first.

It inherits the worker's signal handlers: SIGTERM would not end it, but make it accept, and lose, connections that wait
for the worker. It inherits the listening sockets: the port would stay taken after master and workers have ended. So the
child gives up both before it does anything else; the worker's signals stay blocked until then.

Programs that a view starts get no handler from the worker, and ignore no signal that a worker ignores. The worker
ignores a signal with a handler that does nothing (`ignore`), because a child inherits SIG_IGN.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from .gunicorn.listeners import let_go

#: Signals that a worker has handlers for.
SIGNALS = (signal.SIGABRT, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1,
           signal.SIGUSR2, signal.SIGWINCH)


class Forks:
    """Watch the forks of one worker, for the life of the process and in each child.

    :param worker: gunicorn's worker, with its signal handlers set.
    """

    def __init__(self, worker: Any) -> None:
        self._worker, self._pid = worker, os.getpid()
        self._masks: dict[int, set[signal.Signals | int]] = {}

    def before(self) -> None:
        """Block the signals that the worker has handlers for."""
        self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def after(self) -> None:
        """Unblock those signals."""
        mask = self._masks.pop(threading.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def in_child(self) -> None:
        """Give up the worker's handlers and listeners, then unblock the signals."""
        try:
            if self._pid:  # else a child of a child: its parent did this already
                self._pid = 0
                self._worker.alive = False
                _reset_signals()
                for listener in self._worker.sockets:
                    let_go(listener)
        finally:
            self.after()


def _reset_signals() -> None:
    """Reset the worker's handlers to the default; the app's handlers stay."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        module = getattr(signal.getsignal(number), "__module__", None) or ""
        if module.startswith(("gunicorn.", "flask_stability.")):
            # a KeyboardInterrupt raised here would be lost in the hook that calls this function
            as_python = number == signal.SIGINT and number not in signal.sigpending()
            signal.signal(number, signal.default_int_handler if as_python else signal.SIG_DFL)


def ignore(number: int) -> None:
    """Ignore a signal in this process, but not in the programs that it starts."""
    signal.signal(number, _do_nothing)
    signal.siginterrupt(number, False)


def _do_nothing(number: int, frame: Any) -> None:
    return None
