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

#: Folders whose frames do not tell who took a connection: ours, and those of libraries that take it for the app.
not_the_app: list[str] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]


class Stream:
    """A cursor whose rows are still with the server.

    Kept here, since the driver reads all that is left of it when it is let go, however long that takes, and stops the
    whole process meanwhile.

    :ivar unread: there may be rows left.
    :ivar owner: the cursor that reads it; dead if no code will.
    """

    __slots__ = ("owner", "raw", "unread")

    def __init__(self, raw: Any, owner: object) -> None:
        self.raw, self.owner, self.unread = raw, weakref.ref(owner), False


class ConnectionRecord:
    """One connection. Times are `time.monotonic` seconds, 0.0 = none.

    :ivar steady: DBUtils' connection; the driver's is ``raw``, a duplicate of its socket ``link``.
    :ivar readable: whether there is something to read on that; None where there is no socket.
    :ivar state: IDLE, IN_USE (an app has it), RESERVED (the pool works on it) or REMOVED.
    :ivar since: when its borrower took it.
    :ivar inside: since when a thread is in a call on it.
    :ivar used: when the latest call on it began.
    :ivar checked: when it was known to be good.
    :ivar limit: when that call is cut off, beside the request's own deadline.
    :ivar cut: why it was cut off, or "".
    :ivar effect: what has to be cleared before the next borrower.
    :ivar unit: the transaction it is in, which learns what dooms it.
    :ivar query_timeout: seconds that a statement of its borrower may take; 0.0 = no limit.
    :ivar backstop: after how many seconds the client itself gives a statement up; 0.0 = never.
    :ivar identity: which session it is on the server, None if that is not known for certain.
    :ivar streams: its cursors with rows at the server, None if it had none.
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
        identity = getattr(self.raw, "identity", None)  # ours, or something of the driver's own
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
        """Remember the borrower, and his eight innermost frames; their lines are looked up if anybody asks."""
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
        """A statement, or something else that is not understood, is about to be done."""
        self.effect = max(self.effect, effect_of(sql))
        if self.unit is not None and not stays_within(sql):
            self.unit.torn = True

    def thread_name(self) -> str:
        """Of the borrower."""
        return next((thread.name for thread in threading.enumerate() if thread.ident == self.thread_id), "(ended)")

    def taken_at(self) -> list[str]:
        """File, line and function of the borrower, the innermost frame first."""
        return [f"{code.co_filename}:{_line(code, offset)} {code.co_name}" for code, offset in self.stack]

    def given_back(self, now: float, window: float) -> None:
        """Forget the borrower. Who held it for long without a word has not shown that it is good."""
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
        """The transaction that it is in is over."""
        return self.unit is not None and self.unit.doomed is not None

    def hung_up(self) -> bool:
        """The other end has; no round trip. An idle connection has nothing to read but the server's farewell."""
        return self.readable is not None and bool(self.readable(0))

    def silence(self) -> None:
        """In a forked child: put /dev/null in the place of an inherited socket, whichever thread was using it."""
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
        """When the statement began that is under way: one call may send many. 0.0 = none is, as during a COMMIT."""
        inside, began = self.inside, getattr(self.raw, "began", 0.0)
        return began if inside and began >= inside else 0.0

    def deadline(self) -> float:
        """When a call that is under way has to end."""
        request, own = self.request, 0.0
        if request is not None and request.timeout and not request.response_started:
            own = request.deadline - 1.0
        return min(own, self.limit) if own and self.limit else own or self.limit


def _line(code: CodeType, offset: int) -> int:
    return next((line for start, end, line in code.co_lines() if start <= offset < end and line), code.co_firstlineno)
