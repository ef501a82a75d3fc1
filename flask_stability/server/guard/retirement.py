"""Ask the master for a worker's replacement; without a master that answers, end the worker."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

from ... import logs, scoreboard
from ...scoreboard import Reason, Row, Scoreboard
from ...signals import POOL, leak_suspected, send, worker_retired

UNSUPERVISED = 15.0  #: seconds without a tick of the master after which a worker retires itself


class Retirement:
    """The retirement of one worker.

    :param supervised: the master replaces workers before they retire.
    :ivar reason: the latest reason.
    :ivar term_sent: the worker has sent SIGTERM to itself.
    """

    def __init__(self, worker: Any, board: Scoreboard, row: Row, *, supervised: bool) -> None:
        self._worker, self._board, self._row = worker, board, row
        self.supervised = supervised
        self.reason = Reason.NONE
        self.term_sent = False

    def watch_pools(self) -> None:
        """Retire a worker whose pool has no connection left."""
        leak_suspected.connect(self._leaked)

    def _leaked(self, sender: object, kind: str = "", detail: object = None, **more: object) -> None:
        """Retire for an exhausted pool; any other leak only informs."""
        if kind == POOL:
            self.ask(Reason.LEAKED_CONNECTIONS, f"all connections of the pool are held for long: {detail}")

    def ask(self, reason: Reason, text: str) -> None:
        """Ask the master for this worker's replacement, once, and once more if that becomes urgent."""
        words = self._row.words
        before = Reason.of(words[scoreboard.W_RETIRE_REASON])
        if before and (reason is not Reason.MEMORY_HARD or before is reason):
            return
        self.reason = reason
        if not before:
            words[scoreboard.W_RETIRE_SINCE_NS] = time.monotonic_ns()
        words[scoreboard.W_RETIRE_REASON] = reason.code
        logs.process("replacement_asked", level="WARNING", reason=reason, detail=text)
        if self.supervised:
            wake_master(self._worker)
        send(worker_retired, "flask_stability", reason=reason, detail=text, pid=os.getpid())

    def go_alone(self, now: float) -> None:
        """Terminate a worker that must retire while no master ticks."""
        words = self._row.words
        if not words[scoreboard.W_RETIRE_REASON] or not self._worker.alive or self.term_sent:
            return
        silent = now - self._board.master.words[scoreboard.M_TICK_NS] / 1e9
        asked_for = now - words[scoreboard.W_RETIRE_SINCE_NS] / 1e9
        if not self.supervised or (silent > UNSUPERVISED and asked_for > UNSUPERVISED):
            self.terminate()

    def terminate(self) -> None:
        """Send SIGTERM to this worker, as its master would."""
        self.term_sent = True
        os.kill(os.getpid(), signal.SIGTERM)


def wake_master(worker: Any) -> None:
    """Send SIGCHLD to the master, so that it looks at its workers now instead of within a second, and nothing else."""
    if os.getppid() == worker.ppid:
        with contextlib.suppress(OSError):
            os.kill(worker.ppid, signal.SIGCHLD)
