"""The state that exists once per process, and its single reset in a forked child.

`runtime` is that object. It holds the board and this process's row. Each room registers its own state as a `Part`;
`ORDER` names all of them and is the order in which a forked child resets them. A fork copies one thread and all of
memory: locks stay locked by threads that the child does not have, descriptors and sockets are the parent's, and counts
would be counted twice. So no module of this package keeps such a thing outside of a part, and no other module registers
with `os.register_at_fork`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from .scoreboard import STATE_READY, W_PID, W_READY_NS, W_STARTED_NS, W_STATE, Row, Scoreboard, black_box

#: Every part, in the order in which a forked child resets them, after its row. Parts that others use during the reset
#: come first; the server's comes last, since it unblocks signals.
ORDER = ("logs", "stacks", "requests", "quarantine", "exceptions", "memory", "pools", "holds", "stored_answers",
         "kept_answers", "access", "apps", "server")


class Part:
    """The state that one room keeps for the whole process."""

    def before_fork(self) -> None:
        """Prepare for a fork, in the thread that forks; called in the reverse of `ORDER`."""

    def after_fork_in_parent(self) -> None:
        """Undo `before_fork` in the parent."""

    def reset_after_fork(self) -> None:
        """Renew the locks and drop the parent's objects, in a forked child. Only this thread exists there."""
        raise NotImplementedError


P = TypeVar("P", bound=Part)


def _unknown() -> bool:
    return True


class Runtime:
    """The state of this process.

    :ivar board: the shared board; None until a server sets it or the first use creates a private one.
    :ivar row: this process's row of the board; None as `board`, and in a forked child until it gets its own.
    :ivar under_hooks: the server's hooks run in this worker, so every request is a server's, whatever the server calls
        itself.
    :ivar watches_uploads: the guard measures how fast request bodies arrive.
    :ivar stopping: returns whether this worker has to end. Only then may a SystemExit from gunicorn's own signal
        handlers pass. Without the hooks: True.
    :ivar more_threads: adds spare threads to this worker, up to the given total; returns False if it can add none.
        None: spare threads are not supported.
    :ivar longest_timeout: the longest deadline of any view, seconds; 0.0 = no view has one.
    :ivar broken: why this process cannot go on; "" if it can.
    """

    def __init__(self) -> None:
        self.board: Scoreboard | None = None
        self.row: Row | None = None
        self.under_hooks = self.watches_uploads = False
        self.stopping: Callable[[], bool] = _unknown
        self.more_threads: Callable[[int], bool] | None = None
        self.longest_timeout = 0.0
        self.broken = ""
        self._making = threading.RLock()
        #: By name; `ORDER` decides the order.
        self.parts: dict[str, Part] = {}

    # -- the board -----------------------------------------------------------------------------------------------

    def install(self, board: Scoreboard, row: Row | None) -> None:
        """Set the board and the row of this process."""
        self.board, self.row = board, row
        if row is not None:
            row.renew_locks()
            row.words[W_PID] = os.getpid()

    def my_board(self) -> Scoreboard:
        """Return this process's board: the server's, else a private one with a single row."""
        board = self.board
        if board is None:
            self.my_row()
            board = self.board
            assert board is not None
        return board

    def my_row(self) -> Row:
        """Return this process's row; a private one if the server has set none (also when all rows are taken)."""
        row = self.row
        if row is None:
            with self._making:
                row = self.row
                if row is None:
                    row = self._make_row()
        return row

    def _make_row(self) -> Row:
        own = Scoreboard.anonymous(1)
        row = own.allocate(1)
        assert row is not None
        row.words[W_PID], row.words[W_STATE] = os.getpid(), STATE_READY
        row.words[W_STARTED_NS] = row.words[W_READY_NS] = time.monotonic_ns()
        if self.board is None:
            self.board = own
        self.row = row
        return row

    def forget_board(self) -> None:
        """Drop the board, so that the next use creates one; for tests."""
        with self._making:
            self.board = self.row = None

    # -- the parts -----------------------------------------------------------------------------------------------

    def add(self, name: str, part: P) -> P:
        """Register a room's part, and return it.

        :param name: one of `ORDER`.
        :raises ValueError: for another name, or one that is taken.
        """
        if name not in ORDER or name in self.parts:
            raise ValueError(f"{name!r} is no free part of the process: add it to ORDER, once")
        self.parts[name] = part
        return part

    def _ordered(self) -> list[Part]:
        return [self.parts[name] for name in ORDER if name in self.parts]

    # -- forks ---------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Have every part prepare, in the reverse of `ORDER`."""
        _all([part.before_fork for part in reversed(self._ordered())])

    def after_fork_in_parent(self) -> None:
        """Have every part undo that, in `ORDER`."""
        _all([part.after_fork_in_parent for part in self._ordered()])

    def reset_after_fork(self) -> None:
        """Reset every part in a forked child, in `ORDER`, even if one of them raises."""
        self._making = threading.RLock()
        self.row = self.more_threads = None
        black_box.after_fork()
        _all([part.reset_after_fork for part in self._ordered()])


def _all(steps: list[Callable[[], None]]) -> None:
    """Run every step; then raise the first exception, which Python reports as unraisable."""
    failed: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:
            failed = failed or error
    if failed is not None:
        raise failed


#: The only instance of this process.
runtime = Runtime()
os.register_at_fork(before=runtime.before_fork, after_in_parent=runtime.after_fork_in_parent,
                    after_in_child=runtime.reset_after_fork)
