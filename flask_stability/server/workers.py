"""The master's knowledge of its workers' processes: its own records of each, and the kernel's answers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from .. import scoreboard
from ..scoreboard import Reason, Row
from ..scoreboard.black_box import InFlight


@dataclass(eq=False)
class Child:
    """One worker.

    :ivar worker: gunicorn's object.
    :ivar started, term_at, ready_at: monotonic seconds; 0.0 = not yet.
    :ivar stopped_at: when the master first saw it stopped by a signal, monotonic seconds; 0.0 = it is not stopped.
    :ivar thawed: it was stopped, and we continued it.
    :ivar asked: the reason to replace it.
    :ivar killed: the reason for which we killed it.
    :ivar kept_by_client: a slow client kept it when gunicorn's timeout ended it.
    :ivar dump: descriptor of the file that it writes its stacks to, -1 without one.
    :ivar hung: the requests in flight when its interpreter was found to hang, None = it was not.
    :ivar alone: it is the isolation worker.
    :ivar peak: maximum bytes of memory that it had, known once it has ended; 0 = unknown.
    :ivar status: as returned by `os.waitpid`, None while it is not collected.
    """

    worker: Any
    row: Row | None
    started: float
    asked: Reason = Reason.NONE
    killed: Reason = Reason.NONE
    term_at: float = 0.0
    ready_at: float = 0.0
    stopped_at: float = 0.0
    thawed: bool = False
    kept_by_client: bool = False
    dump: int = -1
    hung: list[InFlight] | None = None
    alone: bool = False
    peak: int = 0
    status: int | None = None

    @property
    def pid(self) -> int:
        """Return its process id, 0 before the fork."""
        pid = self.worker.pid
        return pid if isinstance(pid, int) else 0

    def look(self, now: float) -> None:
        """Read the worker's state from its row.

        :param now: monotonic seconds.
        """
        row = self.row
        if row is None:  # all rows are taken: nothing is known of the worker
            self.ready_at = self.ready_at or now
            return
        if not self.ready_at and row.words[scoreboard.W_STATE] >= scoreboard.STATE_READY:
            self.ready_at = row.words[scoreboard.W_READY_NS] / 1e9 or now
        said = Reason.of(row.words[scoreboard.W_RETIRE_REASON])
        if not self.asked or said is Reason.MEMORY_HARD:
            self.ask(said)

    def ask(self, reason: Reason) -> None:
        """Request its replacement, for a reason."""
        if reason:
            self.asked = reason
            if self.row is not None:
                self.row.orders[scoreboard.O_RETIRE_REASON] = reason.code

    def close_connections(self) -> None:
        """Have the worker answer with ``Connection: close`` from now on."""
        if self.row is not None:
            self.row.orders[scoreboard.O_RETIRE_STATE] = scoreboard.STATE_RETIRING

    def ending(self) -> bool:
        """Return whether the worker has noticed its SIGTERM."""
        return self.row is None or self.row.words[scoreboard.W_STATE] >= scoreboard.STATE_STOPPING

    def serves(self) -> bool:
        """Return whether the worker is ready, and not known to end."""
        return bool(self.ready_at) and not self.term_at and not self.killed

    def held(self) -> bool:
        """Return whether this is a sync worker that a long request occupies."""
        return self.row is not None and self.row.words[scoreboard.W_THREADS] == 1 and (
            self.row.words[scoreboard.W_STUCK] > 0)

    def waits_for_client(self) -> bool:
        """Return whether most of its threads wait for slow clients."""
        return self.row is not None and 2 * self.row.words[scoreboard.W_SLOW_CLIENTS] > (
            self.row.words[scoreboard.W_THREADS])

    def heard(self, seconds: float) -> bool:
        """Return whether its guard gave a sign of life within that time, so that its row is up to date."""
        return self.row is not None and (
            time.monotonic_ns() - self.row.words[scoreboard.W_HEARTBEAT_NS] < seconds * 1e9)

    def send(self, number: int) -> None:
        """Send a signal to the process, if it still exists."""
        if self.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)

    def kill(self, reason: Reason) -> None:
        """Send SIGKILL, and remember the reason."""
        self.killed = reason
        self.send(signal.SIGKILL)


def alive(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    return state(pid) not in ("", "Z", "X")


def stopped(pid: int) -> bool:
    """Return whether a signal has stopped the process: then it does nothing, however long one waits."""
    return state(pid) == "T"


def state(pid: int) -> str:
    """Return the process's state letter, "" if it has ended; "?" where that is unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return "" if os.path.isdir("/proc/self") else "?"
    except (OSError, IndexError):
        return "?"
