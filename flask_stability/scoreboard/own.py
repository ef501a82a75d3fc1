"""This process's board and row.

A worker has the master's board and a row of it; a process without a server makes a board of its own with one row.
"""

from __future__ import annotations

import os
import threading
import time

from .board import Scoreboard
from .layout import STATE_READY, W_PID, W_READY_NS, W_STARTED_NS, W_STATE
from .row import Row


class Own:
    """What `own` holds.

    :ivar board: the board, None before anybody asked for it.
    :ivar row: the row, None before anybody asked for it. A request's path reads it without a call.
    """

    def __init__(self) -> None:
        self.board: Scoreboard | None = None
        self.row: Row | None = None
        self.making = threading.RLock()

    def after_fork(self) -> None:
        """In a forked child: a new lock; the row was the parent's, the server's hook gives a worker its own."""
        self.making = threading.RLock()
        self.row = None


own = Own()
os.register_at_fork(after_in_child=own.after_fork)


def install(board: Scoreboard, row: Row | None) -> None:
    """Set the board and the row of this process."""
    own.board, own.row = board, row
    if row is not None:
        row.renew_locks()
        row.words[W_PID] = os.getpid()


def current() -> Scoreboard:
    """Return this process's board: the server's, else one of its own with a single row."""
    if own.board is None:
        my_row()
    assert own.board is not None
    return own.board


def row_or_none() -> Row | None:
    """Return this process's row, if it has one yet."""
    return own.row


def my_row() -> Row:
    """Return this process's row; a private one where no server gave it any, or where all rows were taken."""
    row = own.row
    if row is not None:
        return row
    with own.making:
        if own.row is None:
            board = Scoreboard.anonymous(1)
            row = board.allocate(1)
            assert row is not None
            now = time.monotonic_ns()
            row.words[W_PID], row.words[W_STATE] = os.getpid(), STATE_READY
            row.words[W_STARTED_NS] = row.words[W_READY_NS] = now
            if own.board is None:
                own.board = board
            own.row = row
        return own.row


def forget() -> None:
    """Have no board until it is asked for one again; for tests."""
    with own.making:
        own.board = own.row = None
