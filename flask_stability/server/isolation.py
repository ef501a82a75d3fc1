"""The master's side of the quarantine: it learns from crashes, informs the workers, and runs the isolation worker.

The isolation worker serves one request at a time. Other workers hand requests over to it on a Unix socket of mode 0600
beside the scoreboard's file. The master itself listens there, so that waiting requests survive the isolation worker.
The master starts it when the first connection waits, and ends it after a while without isolated requests. It has no row
on the scoreboard: the workers that hand requests over count them, and its crashes are no sign of a crash loop or of a
bad release.

The master starts none while the code on disk differs from the code that serves (a release on trial, or a refused one).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from typing import Any

from .. import logs
from ..exceptions import StabilityError
from ..files import reachable
from ..scoreboard import O_ALLOCATED, W_RSS, W_WARM_FLOOR, Reason, Scoreboard, black_box
from ..scoreboard import file as scoreboard_file
from ..scoreboard.black_box import InFlight
from .control import is_own
from .gunicorn.listeners import knocking
from .last_requests import LastRequests, in_hex
from .quarantine import ISOLATED, REFUSED, WATCHED, Case, Conviction, Quarantine, Seen, Told, about
from .workers import Child

WAITING = 8  #: maximum number of requests that wait for the isolation worker; the kernel counts them
IDLE = 60.0  #: seconds without an isolated request after which the isolation worker ends
HANGS, LOOKS = 8.0, 2  #: seconds without a sign of life, and consecutive looks, after which it counts as hung
AGAIN, RARELY = 0.5, 16.0  #: seconds between two starts: at first, and at most, doubled each time it ends again soon
LONG_LIFE = 60.0  #: seconds of its life after which the wait before the next start is short again
PATIENCE = 2.0  #: maximum seconds until the next start for which a request may wait; else it is refused
HEAVY = 64 << 20  #: bytes that a worker must have grown by for the kernel's OOM kill to be its own fault
MOST_RULES, MOST_BYTES = 32, 32768  #: maximum number of rules, and maximum bytes of all of them as JSON
#: Exits by which a request can have killed its worker; STUCK only where the interpreter hung.
_LEARNT = frozenset({Reason.CRASH_SIGNAL, Reason.OUT_OF_MEMORY, Reason.TIMEOUT, Reason.EXIT_CODE, Reason.STUCK})


class Listener:
    """The isolation worker's socket, with the interface of a gunicorn listener."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self.sock, self.path = sock, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def listen(path: str, uid: int) -> Listener:
    """Listen at a path that only this user and `uid` may connect to.

    :raises OSError: if that fails.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        with reachable(path) as name:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(name)
                if stat.S_ISSOCK(found.st_mode) and found.st_uid in (os.geteuid(), uid):
                    os.unlink(name)
            sock.bind(name)
            if uid != -1 and is_own(os.path.dirname(name)):
                os.chown(name, uid, -1, follow_symlinks=False)
        sock.listen(WAITING - 1)  # the kernel lets one more wait
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    return Listener(sock, path)


class Isolation:
    """The isolation of one service.

    :param start: starts the isolation worker on a listener.
    :param kill_timeout: returns the seconds that it may take to end.
    :ivar automatic: learn from crashes; else only the operator's rules count.
    :ivar uid: the workers' user if it differs from ours, else -1.
    :ivar child: the isolation worker, None while there is none.
    """

    def __init__(self, board: Scoreboard, requests: LastRequests, start: Callable[[Listener], None],
                 kill_timeout: Callable[[], float], *, automatic: bool = True) -> None:
        self._board, self._requests, self._start, self.automatic = board, requests, start, automatic
        self._kill_timeout = kill_timeout
        self.quarantine = Quarantine()
        self.rules: list[dict[str, Any]] = []
        self.listener: Listener | None = None
        self.child: Child | None = None
        self.uid = -1
        self._published = 0, 0, False
        self._rules_changed = 0
        self._closed = False
        self._counts: dict[int, list[int]] = {}
        self._used_at = self._started_at = float("-inf")
        self._pause = AGAIN
        self._cannot = False
        self._silent = 0

    def learn(self, automatic: bool) -> None:
        """Turn learning from crashes on or off; turning it off forgets everything learnt."""
        self.automatic = automatic
        if not automatic:
            self.quarantine.forget()
            self.publish()

    # -- crashes -----------------------------------------------------------------------------------------------------

    def ended(self, child: Child, reason: Reason, doing: list[InFlight], *, oom: bool) -> dict[str, Any]:
        """Learn from a worker that ended or whose interpreter hangs; return fields for the log record.

        :param doing: the requests that were in flight.
        :param oom: the kernel has killed for lack of memory since the last exit.
        """
        now = time.monotonic()
        alone, box = child is self.child, black_box.current()
        exact = box.exact(box.rows - 1) if alone and box is not None else 0
        if alone:
            self.child = None
            short = now - self._started_at < LONG_LIFE and not child.term_at
            self._pause = min(2 * self._pause, RARELY) if short else AGAIN
        if not self.automatic:
            return {"isolated": True} if alone else {}
        goods = self._board.totals().requests
        self._gather(now)
        seen = [Seen(one.fingerprint, one.method, one.path, self._requests.route_of(one), one.answering)
                for one in doing]
        learnt = child.hung is not None and child.hung is not doing  # learnt already, when it was found to hang
        if not seen or learnt or reason not in _LEARNT or (reason is Reason.STUCK and not alone and child.hung is None):
            return {"isolated": True} if alone else {}
        outside = _killed_from_outside(child, reason, oom, self._usual(child))
        told, why = (self.quarantine.crashed_alone(now, seen, exact, outside=outside) if alone else
                     self.quarantine.crashed(now, seen, goods, outside=outside, good_of=self._good_of))
        self._tell(told)
        self.publish()
        return {**({"isolated": True} if alone else {}), **({"quarantine": f"nobody: {why}"} if why else {})}

    def _usual(self, child: Child) -> int:
        """Return the bytes of memory that a worker has without special work; 0 = unknown."""
        others = [int(row.words[W_RSS]) for row in self._board.live()
                  if child.row is None or row.slot != child.row.slot]
        floor = int(child.row.words[W_WARM_FLOOR]) if child.row is not None else 0
        return floor or min((one for one in others if one), default=0)

    def _good_of(self, route: str) -> int:
        endpoints = self._requests.endpoints_of(route)
        return sum(sum(words[2:8]) for (_, endpoint), words in self._board.totals().endpoints.items()
                   if endpoint in endpoints)

    # -- the tick ----------------------------------------------------------------------------------------------------

    def tick(self, now: float, may_start: bool = True) -> None:
        """Count answers, let refusals end, start and end the isolation worker.

        :param may_start: an isolation worker started now would run the code that serves.
        """
        due = self._started_at + self._pause
        self._closed = self.child is None and (not may_start or due - now > PATIENCE)
        if not self._listed():
            return
        self._gather(now)
        self._tell(self.quarantine.tick(now, self._board.totals().requests))
        self.publish()
        self._look_for_hang(now)
        if self.listener is None:
            return
        if self.child is None:
            if may_start and now > due and knocking([self.listener]):
                self._started_at = self._used_at = now
                self._start(self.listener)
        elif self.child.term_at:
            if now - self.child.term_at > self._kill_timeout():
                self.child.kill(self.child.asked)
            elif not self._requests.of(self.child):
                self.child.send(signal.SIGTERM)  # the first SIGTERM may have come before its signal handlers were set
        elif now - self._used_at > IDLE and not self._requests.of(self.child):
            self.end()

    def _look_for_hang(self, now: float) -> None:
        """End the isolation worker if its interpreter hangs.

        It serves no other requests, so it is given less time than other workers.
        """
        box, child = black_box.current(), self.child
        beat = box.heartbeat(box.rows - 1) if box is not None and child is not None else 0
        silent = bool(beat) and now - beat / 1e9 > HANGS and bool(child and self._requests.of(child))
        self._silent = self._silent + 1 if silent else 0
        if child is not None and self._silent > LOOKS and not child.killed:
            child.kill(Reason.STUCK)

    def _listed(self) -> bool:
        return bool(self.quarantine.cases or self.quarantine.convicted or self.quarantine.routes or self.rules
                    or self.child is not None or self._published != self._version())

    def _version(self) -> tuple[int, int, bool]:
        return self.quarantine.version, self._rules_changed, self._closed

    def _gather(self, now: float) -> None:
        """Take over the workers' counts of answers to watched requests."""
        box = black_box.current()
        if box is None:
            return
        for part in {box.rows - 1, *(row.slot for row in self._board.rows if row.orders[O_ALLOCATED])}:
            counts = box.answered(part)
            before = self._counts.get(part) or [0] * len(counts)
            self._counts[part] = counts
            if counts == before:
                continue
            if part == box.rows - 1:
                self._used_at = now
            for index, (new, old) in enumerate(zip(counts, before, strict=True)):
                if new > old:
                    self._tell(self.quarantine.answered(index, new - old, alone=part == box.rows - 1))

    def reloaded(self) -> None:
        """Give refused requests another chance with the new code: isolated, in a new isolation worker."""
        self._tell(self.quarantine.reloaded())
        self.publish()
        self.end()

    def turned_back(self, begun: float) -> None:
        """Forget the crashes since a refused release began, which may have been its fault; end the isolation worker.

        That worker may run the release's code.

        :param begun: when the release's trial began, monotonic seconds.
        """
        self.quarantine.forget(begun)
        self.publish()
        self.end()

    def forget(self, child: Child) -> None:
        """Start a new worker's counts at zero."""
        self._counts.pop(self._requests.part_of(child), None)

    def publish(self) -> None:
        """Publish the list for the workers, if it has changed."""
        box, found = black_box.current(), self.quarantine
        if box is None or self._published == self._version():
            return
        self._published = self._version()
        cases = [[fingerprint, case.index, case.state is ISOLATED] for fingerprint, case in found.cases.items()]
        convicted = [[one.seen.fingerprint, exact, one.index, one.until if one.state is REFUSED else 0.0]
                     for exact, one in found.convicted.items() if one.state is not WATCHED]
        routes = [route for route, case in found.routes.items() if case.isolated]
        if routes or convicted or any(isolated for *_, isolated in cases) or any(
                rule["action"] == "isolate" for rule in self.rules):
            self._listen()
        document = {"cases": cases, "convicted": convicted, "routes": routes, "rules": self.rules,
                    "closed": self._closed, "path": self.listener.path if self.listener is not None else ""}
        box.list_quarantine(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"),
                            empty=not (cases or convicted or routes or self.rules))

    def _listen(self) -> None:
        if self.listener is not None or self._cannot:
            return
        try:
            if self._board.path is None:
                raise OSError("there is no folder for a socket: see STABILITY_RUN_DIR")
            self.listener = listen(self._board.path.removesuffix(scoreboard_file.SUFFIX) + scoreboard_file.ISOLATION,
                                   self.uid)
        except OSError as error:
            self._cannot = True  # workers serve suspects themselves, as without a quarantine
            logs.process("isolation_failed", level="ERROR", error=str(error)[:300],
                         remedy="requests that kill workers are named in worker_exit, and not isolated")

    @staticmethod
    def _tell(told: list[Told]) -> None:
        for one in told:
            logs.process(one.event, level="WARNING", **one.fields)

    def end(self, *, inherited: bool = False) -> None:
        """End the isolation worker, if there is one.

        :param inherited: in a forked child: only close the socket.
        """
        if inherited:
            if self.listener is not None:
                self.listener.close()
        elif self.child is not None and not self.child.term_at:
            self.child.asked, self.child.term_at = Reason.SCALE, time.monotonic()
            self.child.send(signal.SIGTERM)

    def close(self) -> None:
        """Remove the socket at the end of the service."""
        if self.listener is not None:
            self.listener.close()
            with contextlib.suppress(OSError):
                os.unlink(self.listener.path)

    # -- an operator's -----------------------------------------------------------------------------------------------

    def carry_out(self, order: dict[str, Any], uid: int) -> dict[str, Any]:
        """List, add or clear.

        :raises StabilityError: if the order cannot be carried out.
        """
        what = order.get("what")
        if what == "list":
            # the list may be longer than a message
            found = json.dumps(self.as_list()).encode()
            descriptor = os.memfd_create("flask_stability-quarantine", os.MFD_CLOEXEC)
            try:
                os.write(descriptor, found)
            except OSError:
                os.close(descriptor)
                raise
            return {"descriptors": [descriptor]}
        if what == "add":
            return self._add(order, uid)
        if what == "clear":
            return self._clear(order.get("id"))
        raise StabilityError(f"{str(what)[:50]!r} is no order: list, add or clear")

    def as_list(self) -> dict[str, Any]:
        """Return the isolated and refused requests, the routes and rules, and the number of watched requests."""
        now = time.monotonic()
        found = self.quarantine
        listed: dict[int, Case | Conviction] = {
            **{exact: one for exact, one in found.convicted.items() if one.state is not WATCHED},
                  **{number: case for number, case in found.cases.items() if case.state is ISOLATED}}
        requests = [_shown(number, one, now) for number, one in sorted(listed.items(), key=lambda one: -one[1].last)]
        watched = sum(case.state is WATCHED for case in found.cases.values())
        return {"requests": requests, "watched": watched,
                "routes": [route[:200] for route, case in self.quarantine.routes.items() if case.isolated],
                "rules": self.rules, "worker": self.child.pid if self.child is not None else None}

    def _add(self, order: dict[str, Any], uid: int) -> dict[str, Any]:
        rule = {name: str(order.get(name) or "")[:200] for name in ("route", "method", "path")}
        rule["method"] = rule["method"].upper()
        action = order.get("action", "refuse")
        if not any(rule.values()):
            raise StabilityError("say what: --route, --method or --path")
        if action not in ("refuse", "isolate"):
            raise StabilityError(f"{str(action)[:20]!r} is no action: refuse or isolate")
        if len(self.rules) >= MOST_RULES:
            raise StabilityError(f"there are {MOST_RULES} rules already: clear one")
        number = max((int(one["id"]) for one in self.rules), default=0) + 1
        rules = [*self.rules, {"id": number, **rule, "action": action, "by": uid, "since": round(time.time(), 3)}]
        if len(json.dumps(rules)) > MOST_BYTES:
            raise StabilityError("the rules are too long together: clear one, or give a shorter one")
        self.rules = rules
        self._rules_changed += 1
        self.publish()
        return {"id": number}

    def _clear(self, which: Any) -> dict[str, Any]:
        if which is None:
            number = self.quarantine.clear() + len(self.rules)
            self.rules = []
        elif str(which).isdecimal() and any(rule["id"] == int(which) for rule in self.rules):
            self.rules, number = [rule for rule in self.rules if rule["id"] != int(which)], 1
        else:
            found = [one for one in (*self.quarantine.cases, *self.quarantine.convicted) if in_hex(one) == str(which)]
            number = self.quarantine.clear(found[0]) if found else 0
        if which is not None and not number:
            raise StabilityError(f"nothing has the id {str(which)[:20]!r}: see `flask stability quarantine list`")
        self._rules_changed += 1
        self.publish()
        return {"cleared": number}


def _shown(number: int, one: Case | Conviction, now: float) -> dict[str, Any]:
    """Return the fields that the command line shows of a request."""
    told = about(one.seen)
    refused = isinstance(one, Conviction) and one.state is REFUSED
    return {"id": in_hex(number), "state": one.state, "alone": isinstance(one, Conviction), **told,
            "path": told["path"][:200], "route": told["route"][:200], "crashes": one.crashes,
            "answered": one.good if isinstance(one, Case) else one.successes,
            "seconds_left": round(max(0.0, one.until - now), 1) if refused and isinstance(one, Conviction) else 0.0}


def _killed_from_outside(child: Child, reason: Reason, oom: bool, usual: int) -> bool:
    """Return whether the exit says nothing about the worker's requests.

    That is so for kill -9, and for an OOM kill for another process's memory.
    """
    if child.killed or reason in (Reason.STUCK, Reason.TIMEOUT, Reason.EXIT_CODE):
        return False
    if (child.status or 0) & 0x7F != signal.SIGKILL:
        return False
    if not oom:
        return True
    return bool(child.peak and usual and child.peak < usual + HEAVY)
