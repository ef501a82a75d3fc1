"""One connection as the pool knows it, from its opening to its end."""

from __future__ import annotations

import os
import random
import select
import socket
import threading
import time
import weakref
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

from ..request import RequestRecord
from .identity import Identity
from .inventory import RESERVED
from .sockets import descriptor
from .statements import CLEAN, effect_of, stays_within

#: Folders whose frames do not identify the borrower: ours, and those of libraries that check out for the app.
not_the_app: list[str] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]


class Stream:
    """A cursor whose rows are still on the server.

    The record keeps it alive: when it is freed, the driver reads all remaining rows, however long that takes, and
    blocks the whole process meanwhile.

    :ivar unread: there may be rows left.
    :ivar owner: weak reference to the cursor that reads the rows; dead once no code can read them.
    """

    __slots__ = ("owner", "raw", "unread")

    def __init__(self, raw: Any, owner: object) -> None:
        self.raw, self.owner, self.unread = raw, weakref.ref(owner), False


class ConnectionRecord:
    """One connection. Times are `time.monotonic` seconds, 0.0 = none.

    :ivar steady: DBUtils' connection; ``raw`` is the driver's, ``link`` a duplicate of its socket.
    :ivar readable: polls ``link`` for something to read; None without a socket.
    :ivar state: IDLE, IN_USE (a borrower has it), RESERVED (the pool works on it) or REMOVED.
    :ivar since: when its borrower took it.
    :ivar inside: since when a thread is in a call on it.
    :ivar used: when the latest call on it began.
    :ivar checked: when it was last known to be good.
    :ivar limit: when to cancel the current call, apart from the request's own deadline.
    :ivar cut: why the call was cut off, or "".
    :ivar effect: what check-in has to clear for the next borrower.
    :ivar unit: its current transaction, which learns of errors that doom it.
    :ivar query_timeout: seconds that a statement of its borrower may take; 0.0 = no limit.
    :ivar backstop: after how many seconds the client itself gives a statement up; 0.0 = never.
    :ivar identity: its session on the server; None if not known for certain.
    :ivar streams: its cursors with rows on the server; None if it had none.
    """

    __slots__ = ("backstop", "broken", "checked", "cut", "effect", "expires", "fd", "generation", "identity",
                 "in_transaction", "inside", "jitter", "last_used", "limit", "link", "query_timeout", "raw", "readable",
                 "reported", "request", "since", "stack", "state", "steady", "streams", "thread_id", "unit", "used")

    def __init__(self, steady: Any, link: socket.socket | None, lifetime: float, generation: int,
                 query_timeout: float = 0.0, backstop: float = 0.0) -> None:
        self.steady, self.raw, self.link = steady, steady.dbapi_connection, link
        self.fd, self.readable = -1, None
        if link is not None:
            poll = select.poll()
            poll.register(link, select.POLLIN)
            self.fd, self.readable = descriptor(self.raw), poll.poll
        self.last_used = self.checked = self.used = time.monotonic()
        self.jitter = random.random()
        self.expires = self.last_used + lifetime * (1.0 - 0.025 * self.jitter)
        self.generation = generation
        self.query_timeout, self.backstop = query_timeout, backstop
        identity = getattr(self.raw, "identity", None)  # ours, or an attribute of the driver's own
        self.identity: Identity | None = identity if isinstance(identity, Identity) else None
        self.state = RESERVED
        self.inside = self.limit = self.since = 0.0
        self.broken = self.in_transaction = self.reported = False
        self.cut = ""
        self.effect = CLEAN
        self.request: RequestRecord | None = None
        self.stack: list[tuple[CodeType, int]] = []
        self.thread_id = 0
        self.unit: Any = None
        self.streams: list[Stream] | None = None

    def taken(self, thread_id: int, request: RequestRecord | None, frame: FrameType | None) -> None:
        """Remember the borrower and its eight innermost frames; `taken_at` looks up their lines only when needed."""
        self.thread_id = thread_id
        self.request = request
        self.stack = stack = []
        skipped = tuple(not_the_app)
        while frame is not None:
            code = frame.f_code
            if not code.co_filename.startswith(skipped):
                stack.append((code, frame.f_lasti))
                if len(stack) == 8:
                    break
            frame = frame.f_back

    def touched(self, sql: object = None) -> None:
        """Note that a statement, or another action with unknown effects, is about to run."""
        self.effect = max(self.effect, effect_of(sql))
        if self.unit is not None and not stays_within(sql):
            self.unit.torn = True

    def thread_name(self) -> str:
        """Return the name of the borrower's thread; "(ended)" if it has ended."""
        return next((thread.name for thread in threading.enumerate() if thread.ident == self.thread_id), "(ended)")

    def taken_at(self) -> list[str]:
        """Return file, line and function of the borrower, the innermost frame first."""
        return [f"{code.co_filename}:{_line(code, offset)} {code.co_name}" for code, offset in self.stack]

    def given_back(self, now: float, window: float) -> None:
        """Forget the borrower, and note when the connection was last known to be good.

        That is now, or the time of its latest call if the checkout lasted longer than `window` seconds.
        """
        if now - self.since <= window:
            self.checked = now
        elif self.used > self.checked:
            self.checked = self.used
        self.last_used = now
        self.request = self.unit = self.streams = None
        self.in_transaction = self.reported = False
        self.effect = CLEAN
        self.stack = []

    @property
    def doomed(self) -> bool:
        """Return whether its current transaction can no longer be stored."""
        return self.unit is not None and self.unit.doomed is not None

    def hung_up(self) -> bool:
        """Return whether the server has hung up, without a round trip.

        An idle connection has nothing to read, except when the server closes it.
        """
        return self.readable is not None and bool(self.readable(0))

    def silence(self) -> None:
        """In a forked child: replace the inherited socket by /dev/null, whichever thread of the parent was using it."""
        if self.link is None:
            return
        with suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.dup2(null, self.fd, inheritable=False)
                os.dup2(null, self.link.fileno(), inheritable=False)
            finally:
                os.close(null)

    def statement_began(self) -> float:
        """Return when the current statement began; 0.0 = none is running, as during a COMMIT.

        One call may send several statements.
        """
        inside, began = self.inside, getattr(self.raw, "began", 0.0)
        return began if inside and began >= inside else 0.0

    def deadline(self) -> float:
        """Return when the current call has to end; 0.0 = no limit."""
        request, own = self.request, 0.0
        if request is not None and request.timeout and not request.response_started:
            own = request.deadline - 1.0
        return min(own, self.limit) if own and self.limit else own or self.limit


def _line(code: CodeType, offset: int) -> int:
    return next((line for start, end, line in code.co_lines() if start <= offset < end and line), code.co_firstlineno)
