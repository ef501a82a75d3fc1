"""What the master knows of its workers' processes: what it remembers of each, and what the kernel says."""

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
    :ivar stopped_at: when it was first seen stopped by a signal; 0.0 = it is not.
    :ivar thawed: it was stopped, and we let it go on.
    :ivar asked: the reason to replace it.
    :ivar killed: the reason we killed it for.
    :ivar kept_by_client: a slow client kept it when gunicorn's timeout ended it.
    :ivar dump: descriptor of the file that it writes its stacks to, -1 without one.
    :ivar hung: what was in flight when its interpreter was found to hang, None = it was not.
    :ivar alone: it is the isolation worker.
    :ivar peak: bytes of memory that it had at the most, 0 = not known; it is gone.
    :ivar status: as `os.waitpid` gave it, None while it was not collected.
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
        """Its process id, 0 before it was forked."""
        pid = self.worker.pid
        return pid if isinstance(pid, int) else 0

    def look(self, now: float) -> None:
        """Take over what the worker says of it."""
        row = self.row
        if row is None:  # all rows are taken: nothing is known of it
            self.ready_at = self.ready_at or now
            return
        if not self.ready_at and row.words[scoreboard.W_STATE] >= scoreboard.STATE_READY:
            self.ready_at = row.words[scoreboard.W_READY_NS] / 1e9 or now
        said = Reason.of(row.words[scoreboard.W_RETIRE_REASON])
        if not self.asked or said is Reason.MEMORY_HARD:
            self.ask(said)

    def ask(self, reason: Reason) -> None:
        """It is to be replaced."""
        if reason:
            self.asked = reason
            if self.row is not None:
                self.row.orders[scoreboard.O_RETIRE_REASON] = reason.code

    def close_connections(self) -> None:
        """From now on it answers with ``Connection: close``."""
        if self.row is not None:
            self.row.orders[scoreboard.O_RETIRE_STATE] = scoreboard.STATE_RETIRING

    def ending(self) -> bool:
        """It has noticed its SIGTERM."""
        return self.row is None or self.row.words[scoreboard.W_STATE] >= scoreboard.STATE_STOPPING

    def serves(self) -> bool:
        """It became ready, and nothing is known that ended it, or will."""
        return bool(self.ready_at) and not self.term_at and not self.killed

    def held(self) -> bool:
        """It is a sync worker that a long request keeps."""
        return self.row is not None and self.row.words[scoreboard.W_THREADS] == 1 and (
            self.row.words[scoreboard.W_STUCK] > 0)

    def waits_for_client(self) -> bool:
        """Its threads wait for slow clients, or most of them."""
        return self.row is not None and 2 * self.row.words[scoreboard.W_SLOW_CLIENTS] > (
            self.row.words[scoreboard.W_THREADS])

    def heard(self, seconds: float) -> bool:
        """Its guard gave a sign of life within that time: what its row says is true."""
        return self.row is not None and (
            time.monotonic_ns() - self.row.words[scoreboard.W_HEARTBEAT_NS] < seconds * 1e9)

    def send(self, number: int) -> None:
        """Send a signal, if it is still there."""
        if self.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)

    def kill(self, reason: Reason) -> None:
        """SIGKILL."""
        self.killed = reason
        self.send(signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    return state(pid) not in ("", "Z", "X")


def stopped(pid: int) -> bool:
    """Whether it was stopped by a signal: then it does nothing, however long one waits."""
    return state(pid) == "T"


def state(pid: int) -> str:
    """The process's state letter, "" if it is gone; "?" where that cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return "" if os.path.isdir("/proc/self") else "?"
    except (OSError, IndexError):
        return "?"
