"""Admission: decides about a request before it has a thread.

No thread works for a client that has left. Under overload some requests are refused immediately, so that the others are
answered while their clients still wait.

gthread asks whenever a thread is free, sync at each connection that it accepts. Where no request waits, either costs a
request no more than a look at the clock. `queue_delay` decides, `arrival` knows the ages, `classes` knows the routes;
this module looks at sockets, refuses and counts.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import sys
import time
from typing import Any

from ... import logs
from ...config import Settings
from ...database.pool import inside
from ...errors import report
from ...errors.problem import HTML, PROBLEM, page, problem_body
from ...request import held
from ...scoreboard import ABANDONED, SHED, W_OVERLOADED, W_OVERLOADS, W_THREADS, Row, Scoreboard, Totals
from ..arrival import WAITED, ProxyClock, kernel_age, proxy_start
from ..classes import UNKNOWN, Route, Routes
from ..queue_delay import KINDS, Line, QueueDelay

LEARN = 10.0  #: seconds between two looks at the routes' costs
CALM = 5.0  #: seconds without overload after which the worker logs its end
#: Seconds between two thread switches while requests wait (`sys.setswitchinterval`). Views that compute delay the main
#: loop's `accept` by five milliseconds each time it releases the interpreter's lock, in each of its system calls.
SWITCH = 0.0005
STALL = 0.5  #: seconds inside the database after which a thread counts as waiting for it
DRAIN = 1 << 16  #: bytes of a refused request to read, so that the client sees the answer and not a reset

_now = time.monotonic


class Admission:
    """The admission of one worker.

    :ivar delay: judges the wait.
    """

    def __init__(self, worker: Any, settings: Settings, board: Scoreboard, row: Row) -> None:
        self._board, self._row, self._form = board, row, settings.error_format
        self._secure = bool(worker.cfg.is_ssl)
        self.delay = QueueDelay(settings.queue_target, settings.queue_limit)
        self.routes = Routes(settings.health_path)
        self._clock = ProxyClock()
        self._trusts_all, self._networks = _networks(worker.cfg)
        self._learn_at = 0.0
        self._answers = 0, 0
        self._episode: Episode | None = None
        self._since = 0.0
        self._before: Totals | None = None  # totals of a moment since which nothing was refused
        self._hurries, self._usual = False, sys.getswitchinterval()
        self._held_at = -LEARN * 1000
        self._threads = row.words[W_THREADS]

    # -- what a request is ---------------------------------------------------------------------------------------

    def route(self, head: bytes) -> Route:
        """Return the route of a request; nothing is known of a TLS connection before its handshake."""
        return UNKNOWN if self._secure else self.routes.of(head)

    def age(self, sock: Any, head: bytes, address: Any) -> float | None:
        """Return the seconds that a request has waited, before and after it was accepted; held time does not count.

        Return None where the age is unknown.
        """
        if held:
            return 0.0
        age = kernel_age(sock)
        if b"request-start:" in head or b"Request-Start:" in head:
            started = proxy_start(head)
            if started is not None and self._trusted(address):
                age = max(age or 0.0, self._clock.age(started))
        return age

    def _trusted(self, address: Any) -> bool:
        if self._trusts_all or not isinstance(address, tuple):
            return True
        with contextlib.suppress(ValueError):
            client = ipaddress.ip_address(address[0])
            return any(client in network for network in self._networks)
        return False

    # -- what becomes of it --------------------------------------------------------------------------------------

    @property
    def impatient(self) -> bool:
        """Return whether a client that has closed only its sending side counts as one that has left."""
        return self.delay.overloaded or bool(held)

    def left(self, age: float, route: Route) -> None:
        """Record that a request was abandoned at that age, in seconds, because its client had left."""
        self.delay.left(age)
        self._row.abandon(route.method, route.endpoint)

    def choose(self, line: Line[Any], backlog: int) -> tuple[tuple[float, Any] | None, list[Any]]:
        """Take the next request for a free thread, with its arrival, and the requests that have waited too long.

        :param backlog: how many more are in the kernel's queue.
        """
        now = self._time()
        late = self.overdue(line, now) if self._note(now, line.oldest(now), line.number + backlog) else []
        return line.next(newest=self.delay.overloaded), late

    def overdue(self, line: Line[Any], now: float | None = None) -> list[Any]:
        """Take the requests that have waited too long from a line in which the newest goes first."""
        now = self._time() if now is None else now
        if not self.delay.overloaded or now - self._held_at < self.delay.limit:
            return []
        return [one for _, one in line.overdue(now, [self.delay.may_wait(kind) for kind in range(KINDS)])]

    def too_old(self, age: float, route: Route, waiting: int) -> bool:
        """Judge by the oldest request, where the oldest goes first; return whether it has waited too long.

        :param age: seconds that it has waited.
        :param waiting: how many requests wait.
        """
        return self._note(self._time(), age, waiting) and age > self.delay.may_have_waited(route.kind)

    def waited(self, age: float) -> None:
        """Record that a request got a thread after that many seconds."""
        self._row.waited(age)

    def nobody_waits(self) -> None:
        """Record that a request got a thread at once."""
        self._note(_now(), 0.0, 0)

    def _note(self, now: float, oldest: float, waiting: int) -> bool:
        overloaded = self.delay.note(now, min(oldest, now - self._held_at), waiting)
        if (oldest > WAITED) != self._hurries:
            self._hurries = not self._hurries
            sys.setswitchinterval(min(SWITCH, self._usual) if self._hurries else self._usual)
        return overloaded

    @property
    def watchful(self) -> bool:
        """Return whether requests wait, or did a moment ago."""
        return self._hurries or self.delay.watchful

    def _time(self) -> float:
        now = _now()
        if held:
            self._held_at = now
        return now

    def refuse(self, sock: socket.socket, head: bytes, route: Route) -> bool:
        """Answer 503 without waiting; return whether the connection should linger, else the caller may close it now."""
        self._row.shed(route.method, route.endpoint)
        if self._secure or b" HTTP/1." not in head[:4096].partition(b"\r\n")[0]:
            return False  # no answer is possible before the TLS handshake
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
        """Learn how long requests take and what they cost, and log the begin and the end of an overload."""
        self._excuse(now)
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

    def _excuse(self, now: float) -> None:
        """Forget the overload while threads wait for the database: spare threads are on their way."""
        before, self._threads = self._threads, self._row.words[W_THREADS]
        waiting = inside() if self._threads > 1 else []
        if held or self._threads > before or (
                waiting and len(waiting) >= self._threads - 1 and now - min(waiting) > STALL):
            self._held_at = now
            self.delay.forget()

    def _tell(self, now: float) -> None:
        # an overload may have begun and ended since the last look
        overloaded = self.delay.overloaded or self.delay.since != self._since
        if self.delay.since != self._since:
            self._since = self.delay.since
            self._row.add(W_OVERLOADS)
        self._row.words[W_OVERLOADED] = int(overloaded)
        if self._board.leader() is not self._row:  # one log line for all workers
            self._episode = self._before = None
            return
        if self._before is None:
            self._before = self._board.totals()
        workers = sum(bool(row.words[W_OVERLOADED]) for row in self._board.live())
        if workers:
            if self._episode is None:
                self._episode = Episode(now, self._before)
                logs.process("overload", level="WARNING", workers=workers, target_s=round(self.delay.target, 2),
                             limit_s=round(self.delay.limit, 2), service_s=round(self.delay.service, 3))
            self._episode.last = now
        elif self._episode is not None and now - self._episode.last > CALM:
            logs.process("overload_over", level="WARNING", **self._episode.figures(self._board.totals()))
            self._episode = self._before = None


class Episode:
    """One overload, for its log lines.

    :ivar last: when it was last seen, monotonic seconds.
    """

    def __init__(self, now: float, totals: Totals) -> None:
        self._begun = self.last = now
        self._before = {key: (words[SHED], words[ABANDONED]) for key, words in totals.endpoints.items()}

    def figures(self, totals: Totals) -> dict[str, Any]:
        """Return the figures of the overload for its last log line."""
        refused: dict[str, int] = {}
        gone = 0
        for key, words in totals.endpoints.items():
            before = self._before.get(key, (0, 0))
            if words[SHED] > before[0]:
                refused[" ".join(key).strip()] = words[SHED] - before[0]
            gone += words[ABANDONED] - before[1]
        most = sorted(refused.items(), key=lambda item: -item[1])[:5]
        return {"seconds": round(self.last - self._begun, 1), "refused": sum(refused.values()), "clients_gone": gone,
                "wait_p95_ms": round(totals.wait(0.95) * 1000, 1), "routes": dict(most)}


def tell_failure(error: Exception) -> None:
    """Record a failure in here; the request is served as usual."""
    report.record(error, event="internal_error")


def _networks(cfg: Any) -> tuple[bool, list[Any]]:
    """Return whether all addresses are trusted, and the trusted networks: gunicorn's ``forwarded_allow_ips``."""
    found: list[Any] = []
    given = cfg.forwarded_allow_ips
    for one in given if isinstance(given, (list, tuple)) else str(given).split(","):
        if str(one).strip() == "*":
            return True, []
        with contextlib.suppress(ValueError):
            found.append(ipaddress.ip_network(str(one).strip(), strict=False))
    return False, found

