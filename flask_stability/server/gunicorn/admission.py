"""Admission: what becomes of a request before it has a thread. Nobody works for a client that has left, and under
overload some are refused at once, so that the others are answered while somebody waits for the answer.

gthread asks whenever a thread is free, sync at each connection that it accepts. Where nobody waits,
neither costs a request more than a look at the clock. `queue_delay` decides, `arrival` knows the ages, `routes` what a
request is; this module looks at sockets, refuses and counts.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import sys
import time
from collections import Counter
from typing import Any

from ... import logs, presence
from ...config import Settings
from ...errors import report
from ...errors.problem import HTML, PROBLEM, page, problem_body
from ...presence import gone
from ...request import held
from ...scoreboard import W_OVERLOADED, W_OVERLOADS, Row, Scoreboard
from ..arrival import ProxyClock, kernel_age, proxy_start
from ..queue_delay import KINDS, Line, QueueDelay
from ..routes import UNKNOWN, Route, Routes

LEARN = 10.0  #: seconds between two looks at the routes' costs
CALM = 5.0  #: seconds without overload after which its end is logged
SOON = 0.01  #: seconds: a request that has a thread within them has not waited
SAMPLE = 16  #: so many requests at the most are served without a look at how long one has waited
#: Seconds between two switches of threads while requests wait (`sys.setswitchinterval`): views that compute keep the
#: main loop from accepting, for five milliseconds each time it lets go of the lock, at each of its system calls.
SWITCH = 0.0005
DRAIN = 1 << 16  #: bytes of a refused request that are read, so that the client sees the answer and no reset

_now = time.monotonic


class Admission:
    """One worker's.

    :ivar delay: judges the wait.
    """

    def __init__(self, worker: Any, settings: Settings, board: Scoreboard, row: Row) -> None:
        self._board, self._row, self._form = board, row, settings.error_format
        self._secure = bool(worker.cfg.is_ssl)
        self.delay = QueueDelay(settings.queue_target, settings.queue_limit)
        self.routes = Routes(settings.health_path)
        self._refused: Counter[Route] = Counter()  # in this overload
        self._given_up = 0
        self._clock = ProxyClock()
        self._trusts_all, self._networks = _networks(worker.cfg)
        self._learn_at = 0.0
        self._answers = 0, 0
        self._began: float | None = None
        self._last = 0.0
        self._hurries, self._usual = False, sys.getswitchinterval()
        self._held_at = -LEARN * 1000

    # -- what a request is ---------------------------------------------------------------------------------------

    def route(self, head: bytes) -> Route:
        """Return what a request is; of a TLS connection nothing is known before its handshake."""
        return UNKNOWN if self._secure else self.routes.of(head)

    def age(self, sock: Any, head: bytes, address: Any) -> float:
        """Return the seconds for which a request has waited, before it was accepted or since; held time is none."""
        if held:
            return 0.0
        age = kernel_age(sock)
        if b"request-start:" in head or b"Request-Start:" in head:
            started = proxy_start(head)
            if started is not None and self._trusted(address):
                age = max(age, self._clock.age(started))
        return age

    def _trusted(self, address: Any) -> bool:
        if self._trusts_all or not isinstance(address, tuple):
            return True
        with contextlib.suppress(ValueError):
            client = ipaddress.ip_address(address[0])
            return any(client in network for network in self._networks)
        return False

    # -- what becomes of it --------------------------------------------------------------------------------------

    def has_left(self, descriptor: int, age: float, route: Route) -> bool:
        """Whether a request's client has gone, which is then counted. One that only sends no more is there as long as
        waiting is no trouble.
        """
        try:
            left = gone(descriptor, half_closed=self.delay.overloaded or age > self.delay.limit or bool(held))
        except (OSError, ValueError):
            left = True
        if left:
            self.delay.left(age)
            self._row.abandon(route.method, route.endpoint)
            self._given_up += 1
        return left

    def choose(self, line: Line[Any], backlog: int) -> tuple[tuple[float, Any] | None, list[Any]]:
        """A thread is free: take the next one, with its arrival, and those that have waited too long.

        :param backlog: how many more are in the kernel's queue.
        """
        now = self._time()
        late = self.overdue(line, now) if self._note(now, line.oldest(now), line.number + backlog) else []
        return line.next(newest=self.delay.overloaded), late

    def overdue(self, line: Line[Any], now: float | None = None) -> list[Any]:
        """Take those that have waited too long in a line out of which the newest goes first."""
        now = self._time() if now is None else now
        if not self.delay.overloaded or now - self._held_at < self.delay.limit:
            return []
        return [one for _, one in line.overdue(now, [self.delay.may_wait(kind) for kind in range(KINDS)])]

    def too_old(self, age: float, route: Route, waiting: int) -> bool:
        """Judge by a request that is the oldest, where the oldest goes first; return whether it has waited too long.

        :param waiting: how many wait.
        """
        return self._note(self._time(), age, waiting) and age > self.delay.may_have_waited(route.kind)

    def waited(self, age: float) -> None:
        """A request has a thread after that many seconds."""
        self._row.waited(age)

    def nobody_waits(self) -> None:
        """A request got a thread at once."""
        self._note(_now(), 0.0, 0)

    def _note(self, now: float, oldest: float, waiting: int) -> bool:
        overloaded = self.delay.note(now, min(oldest, now - self._held_at), waiting)
        if (oldest > SOON) != self._hurries:
            self._hurries = not self._hurries
            sys.setswitchinterval(min(SWITCH, self._usual) if self._hurries else self._usual)
        return overloaded

    @property
    def watchful(self) -> bool:
        """Requests wait, or did a moment ago."""
        return self._hurries or self.delay.watchful

    def _time(self) -> float:
        now = _now()
        if held:
            self._held_at = now
        return now

    def refuse(self, sock: socket.socket, head: bytes, route: Route) -> bool:
        """Answer 503 without a wait; return whether the connection should linger, else it can be closed at once."""
        self._row.shed(route.method, route.endpoint)
        self._refused[route] += 1
        if self._secure or b" HTTP/1." not in head[:4096].partition(b"\r\n")[0]:
            return False  # no answer can be given before the handshake
        try:
            with contextlib.suppress(BlockingIOError):
                sock.recv(DRAIN, socket.MSG_DONTWAIT)
            sock.send(self._answer(head), socket.MSG_DONTWAIT)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def _answer(self, head: bytes) -> bytes:
        name = f"{random.getrandbits(48):012x}-{time.monotonic_ns():x}"
        accept = head.lower().partition(b"\r\naccept:")[2].partition(b"\r\n")[0]
        problem = self._form == "problem" or (self._form == "auto" and b"json" in accept and b"text/html" not in accept)
        kind, body = (PROBLEM, problem_body(503, name)) if problem else (HTML, page(503, name))
        lines = (f"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: {random.randint(1, 4)}\r\n"
                 f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nCache-Control: no-store\r\n"
                 "Vary: Accept\r\n\r\n").encode()
        return lines if head.startswith(b"HEAD ") else lines + body

    # -- the guard's ---------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Learn what requests take and cost, and log the begin and the end of an overload."""
        answers, spent = self._row.requests, self._row.duration_ns
        before, self._answers = self._answers, (answers, spent)
        if answers > before[0] and not held:
            self.delay.took((spent - before[1]) / 1e9 / (answers - before[0]))
        calm = now >= self._learn_at
        if calm:
            self._learn_at = now + LEARN
        if calm or self.watchful:
            self.routes.learn(self._row, self._board if calm else None)
        self._tell(now)

    def _tell(self, now: float) -> None:
        self._row.words[W_OVERLOADED] = int(self.delay.overloaded)
        presence.pressed = self.delay.overloaded
        if self.delay.overloaded:
            self._last = now
            if self._began is None:
                self._began = self.delay.since
                self._row.add(W_OVERLOADS)
                logs.process("overload", level="WARNING", target_s=round(self.delay.target, 2),
                             limit_s=round(self.delay.limit, 2), service_s=round(self.delay.service, 3))
        elif self._began is not None and now - self._last > CALM:
            refused, given_up = self._refused, self._given_up
            self._refused, self._given_up = Counter(), 0
            logs.process("overload_over", level="WARNING", seconds=round(max(0.0, self._last - self._began), 1),
                         refused=refused.total(), clients_gone=given_up,
                         routes={f"{one.method} {one.endpoint}".strip(): number
                                 for one, number in refused.most_common(5)})
            self._began = None


def tell_failure(error: Exception) -> None:
    """Record what went wrong in here: the request is served all the same."""
    report.record(error, event="internal_error")


def _networks(cfg: Any) -> tuple[bool, list[Any]]:
    """From which addresses a proxy is believed: gunicorn's ``forwarded_allow_ips``."""
    found: list[Any] = []
    given = cfg.forwarded_allow_ips
    for one in given if isinstance(given, (list, tuple)) else str(given).split(","):
        if str(one).strip() == "*":
            return True, []
        with contextlib.suppress(ValueError):
            found.append(ipaddress.ip_network(str(one).strip(), strict=False))
    return False, found

