"""The master's part: a tick about once a second in gunicorn's main loop.

No thread and no lock of its own: `manage_workers`, `reap_workers`, `reload` and `handle_term` of the running arbiter
are wrapped on the instance. Decisions are made in `plan`, `restarts` and `exits`; here they are carried out. Nothing
here may raise into the arbiter but what ends it on purpose.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from gunicorn.errors import HaltServer

from .. import logs, scoreboard
from ..config import Settings
from ..memory import cgroup
from ..memory.policy import group_decision, learned_floor
from ..scoreboard import CODE, CRASHES, REASONS, Row, Scoreboard
from . import exits, plan
from .restarts import Restarts
from .status import status_block

#: A stopped worker (SIGSTOP) whose guard has been silent for this long is replaced, seconds.
FROZEN = 4.0
NEEDED = ("manage_workers", "reap_workers", "reload", "handle_term", "handle_usr1", "_num_workers", "WORKERS",
          "kill_worker", "cfg", "log", "SIG_QUEUE")


@dataclass
class Child:
    """What the master remembers of a worker."""

    row: Row | None
    started: float
    asked: str = ""
    killed: str = ""
    term_at: float = 0.0
    ready: bool = False
    status: int | None = None
    ended: bool = False


class Supervisor:
    """Wraps one arbiter."""

    def __init__(self, server: Any, board: Scoreboard, settings: Settings) -> None:
        self.server, self.board, self.settings = server, board, settings
        self.children: dict[Any, Child] = {}
        self.booting: Child | None = None
        self.state = plan.Replacement()
        self.restarts = Restarts(settings.restart_backoff, most=settings.max_restarts, window=settings.restart_window,
                                 min_uptime=settings.crash_min_uptime)
        self.in_reload = self.stopping = False
        self.drain_until = 0.0
        self.ever_ready = False
        self._degraded = False
        self._oom_kills = cgroup.oom_kills()
        self._last_rotation = 0.0
        self._last_group_retirement = 0.0
        self.board.master.words[scoreboard.M_PID] = os.getpid()
        self.board.master.words[scoreboard.M_STARTED_NS] = time.monotonic_ns()

    def wrap(self) -> bool:
        """Put our methods around the arbiter's; False if this gunicorn has not what that needs."""
        server = self.server
        if any(not hasattr(server, name) for name in NEEDED):
            return False
        self._manage, self._reap = server.manage_workers, server.reap_workers
        self._reload, self._term, self._usr1 = server.reload, server.handle_term, server.handle_usr1
        self._stop = server.stop
        server.manage_workers, server.reap_workers = self.manage_workers, self.reap_workers
        server.reload, server.handle_term, server.handle_usr1 = self.reload, self.handle_term, self.handle_usr1
        server.stop = self.stop
        return True

    # -- the wrapped methods -------------------------------------------------------------------------------------

    def manage_workers(self) -> None:
        """One tick, then gunicorn's own management with our target."""
        now = time.monotonic()
        hold, wanted = False, self.server._num_workers
        try:
            self._tick(now)
            hold = self.restarts.held(now) and not self.in_reload
            wanted = self._target()
        except (StopIteration, HaltServer):
            raise
        except Exception as error:
            self._internal("tick", error)
        if hold or self.stopping:
            return
        server = self.server
        base = server._num_workers
        server._num_workers = wanted
        try:
            if self.in_reload and not self._newcomers_ready():
                return
            self._manage()
        finally:
            if server._num_workers == wanted:
                server._num_workers = base

    def reap_workers(self) -> None:
        """gunicorn's reaping, with each exit status peeked at first; boot failures do not end a service that works."""
        for _ in range(64):
            self._peek()
            try:
                self._reap()
                break
            except HaltServer as halt:
                self._finish_missing()
                if self.stopping:
                    continue
                if not self.ever_ready:
                    self._fail_first(halt)
                    raise
        try:
            self._finish_missing()
        except Exception as error:
            self._internal("reap", error)

    def reload(self) -> None:
        """SIGHUP: gunicorn's own, known to be under way."""
        self.in_reload = True
        self.board.master.words[scoreboard.M_RELOADS] += 1
        self.state = plan.Replacement()
        self.reload_age = self.server.worker_age
        logs.process("reload")
        try:
            self._reload()
        finally:
            self.in_reload = False

    def handle_term(self) -> None:
        """SIGTERM: keep serving for STABILITY_DRAIN_DELAY while /health/ready says 503; a second one at once."""
        if self.settings.drain_delay and not self.drain_until:
            self.drain_until = time.monotonic() + self.settings.drain_delay
            self.board.master.words[scoreboard.M_DRAINING] = 1
            logs.process("draining", seconds=self.settings.drain_delay)
            return
        self._term()

    def handle_usr1(self) -> None:
        """SIGUSR1: reopen the logs, and a status block into process-manager.log."""
        logs.reopen()
        try:
            logs.process("status", **status_block(self.board))
        except Exception as error:
            self._internal("status", error)
        self._usr1()

    def stop(self, graceful: bool = True) -> None:
        """The end of the service."""
        if not self.stopping:
            self.stopping = True
            self.board.master.words[scoreboard.M_DRAINING] = 1
            logs.process("stopping", graceful=graceful)
        self._stop(graceful)

    # -- called by the hooks -------------------------------------------------------------------------------------

    def forking(self, worker: Any) -> None:
        """pre_fork: a row for the worker."""
        row = self.board.allocate(worker.age)
        worker.stability_row = row
        self.booting = Child(row, time.monotonic())
        self.children[worker] = self.booting
        self.board.master.words[scoreboard.M_BOOTS] += 1

    def exited(self, worker: Any) -> None:
        """child_exit: why, how old, and the row is free again."""
        child = self.children.pop(worker, None)
        if child is None or child.ended:
            return
        child.ended = True
        now = time.monotonic()
        row = child.row
        asked = child.asked
        if row is not None:
            child.ready = child.ready or bool(row.words[scoreboard.W_READY_NS])
            asked = asked or _name(row.words[scoreboard.W_RETIRE_REASON])
        kills = cgroup.oom_kills()
        known = exits.Known(asked=asked, killed=child.killed, aborted=bool(getattr(worker, "aborted", False)),
                            ready=child.ready, stopping=self.stopping, reloading=self.in_reload,
                            scaling=len(self.server.WORKERS) >= self.server._num_workers > 0,
                            oom_kills=kills - self._oom_kills)
        self._oom_kills = kills
        reason, detail = exits.reason_of(child.status, known)
        uptime = now - child.started
        self.board.add_restart(reason, worker.pid if isinstance(worker.pid, int) else 0, uptime,
                               row.slot if row is not None else -1, detail)
        if row is not None:
            self.board.release(row)
        crash = reason in CRASHES and not self.stopping
        if crash:
            self.restarts.crashed(now, uptime)
        logs.process("worker_exit", level="ERROR" if crash else "INFO", worker_pid=worker.pid, reason=reason,
                     detail=detail, uptime_s=round(uptime, 1), recent_crashes=self.restarts.recent(now))

    # -- inside --------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        words = self.board.master.words
        words[scoreboard.M_TICK_NS] = time.monotonic_ns()
        words[scoreboard.M_BASE_WORKERS] = self.server._num_workers
        if self.drain_until and now >= self.drain_until:
            raise StopIteration
        seen = [self._look(worker, child) for worker, child in list(self.children.items())
                if isinstance(worker.pid, int) and worker.pid in self.server.WORKERS]
        if not self.ever_ready and any(one.ready for one in seen):
            self.ever_ready = True
            words[scoreboard.M_EVER_READY] = 1
        if self.restarts.canary and any(one.ready and not one.asked for one in seen):
            self.restarts.settled()
        self._judge_crashes(now)
        self._release_orphans()
        self._kill_frozen(now)
        self._group(now, seen)
        self._floor()
        if not (self.in_reload or self.stopping or self.server.reexec_pid or self.server.master_pid):
            self._advance(seen, now)
        words[scoreboard.M_SURGE] = int(self.state.phase is not plan.Phase.IDLE)
        words[scoreboard.M_HOLD_UNTIL_NS] = int(max(0.0, self.restarts.hold_until) * 1e9) if (
            self.restarts.held(now)) else 0
        words[scoreboard.M_CRASHES] = self.restarts.recent(now)
        if now - self._last_rotation > 5.0:
            self._last_rotation = now
            for name in logs.rotate_if_needed():
                logs.process("log_rotated", file=name)

    def _look(self, worker: Any, child: Child) -> plan.Seen:
        row = child.row
        if row is None:
            return plan.Seen(worker.pid, worker.age, True, child.asked, child.term_at)
        child.ready = child.ready or row.words[scoreboard.W_STATE] >= scoreboard.STATE_READY
        if not child.asked:
            child.asked = _name(row.words[scoreboard.W_RETIRE_REASON])
            if not child.asked and row.orders[scoreboard.O_CLI_RETIRE]:
                child.asked = "asked"
            if child.asked:
                row.orders[scoreboard.O_RETIRE_REASON] = CODE[child.asked]
        return plan.Seen(worker.pid, worker.age, child.ready, child.asked, child.term_at)

    def _advance(self, seen: list[plan.Seen], now: float) -> None:
        cfg = self.server.cfg
        threaded = "gthread" in str(cfg.worker_class_str)
        close_time = min(float(cfg.keepalive), 5.0) if threaded else 0.0
        # the dead man's switch in the worker comes first
        mercy = self.mercy() + 2.0
        before = self.state
        step = plan.next_step(before, seen, now, surge=self._may_surge(), close_time=close_time, mercy=mercy)
        self.state = step.state
        if step.action is plan.Action.NOTHING:
            return
        worker, child = next((item for item in self.children.items() if item[0].pid == step.pid), (None, None))
        if worker is None or child is None:
            return
        if step.action is plan.Action.TERM:
            self._term_worker(worker, child, now)
        elif step.action is plan.Action.KILL:
            child.killed = child.asked or "asked"
            self._signal(step.pid, signal.SIGKILL)
        elif step.action is plan.Action.CLOSE:
            self._order(child, scoreboard.CMD_CLOSE_KEEPALIVE)
        logs.process("replacement", action=step.action.name.lower(), worker_pid=step.pid,
                     reason=child.asked or before.reason)

    def mercy(self) -> float:
        """Seconds that a retiring worker may take to end."""
        given = self.settings.retire_mercy
        return given if given is not None else float(self.server.cfg.graceful_timeout) + 5.0

    def _term_worker(self, worker: Any, child: Child, now: float) -> None:
        child.term_at = now
        if child.row is not None:
            child.row.orders[scoreboard.O_RETIRE_SINCE_NS] = time.monotonic_ns()
        self._signal(worker.pid, signal.SIGTERM)

    def _order(self, child: Child, command: int) -> None:
        if child.row is not None:
            child.row.orders[scoreboard.O_COMMAND] = command
            child.row.orders[scoreboard.O_COMMAND_SEQ] += 1

    def _signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)

    def _may_surge(self) -> bool:
        """Surge is on, and there is room in memory for one worker more."""
        if not self.settings.surge:
            return False
        largest = max((row.words[scoreboard.W_RSS] for row in self.board.live()), default=0)
        free = cgroup.available()
        return free is None or free > largest * 0.5

    def _target(self) -> int:
        seen = [self._look(worker, child) for worker, child in self.children.items()
                if isinstance(worker.pid, int) and worker.pid in self.server.WORKERS]
        base = self.server._num_workers
        if self.in_reload:
            return int(base)
        wanted = plan.target(base, seen, self.state, canary=self.restarts.canary)
        self.board.master.words[scoreboard.M_TARGET] = wanted
        return wanted

    def _newcomers_ready(self) -> bool:
        """In a reload: wait until the new workers serve; False if they do not boot, and the old ones stay."""
        deadline = time.monotonic() + plan.READY_TIMEOUT
        newcomers = [(worker, child) for worker, child in self.children.items() if worker.age > self.reload_age]
        while time.monotonic() < deadline:
            if all(child.row is None or child.row.words[scoreboard.W_STATE] >= scoreboard.STATE_READY
                   for _, child in newcomers):
                return True
            if any(child.ended or not _alive(worker.pid) for worker, child in newcomers):
                logs.process("reload_failed", level="ERROR",
                             remedy="the new workers do not boot: the old ones go on; see the error log")
                return False
            time.sleep(0.05)
        return True

    def _judge_crashes(self, now: float) -> None:
        degraded = self.restarts.too_many(now)
        self.board.master.words[scoreboard.M_DEGRADED] = int(degraded)
        if degraded and not self._degraded:
            logs.process("too_many_restarts", level="CRITICAL", crashes=self.restarts.recent(now),
                         window_s=self.settings.restart_window, action=self.settings.restart_action)
            if self.settings.restart_action == "halt":
                raise HaltServer(f"{self.restarts.recent(now)} worker crashes within "
                                 f"{self.settings.restart_window:g} s", 1)
        self._degraded = degraded

    def _release_orphans(self) -> None:
        """Workers that gunicorn forgot without calling child_exit."""
        for worker in list(self.children):
            if isinstance(worker.pid, int) and worker.pid not in self.server.WORKERS and not _alive(worker.pid):
                self.exited(worker)

    def _kill_frozen(self, now: float) -> None:
        """A stopped process neither answers nor leaves: it is replaced at once, not after gunicorn's timeout."""
        for worker, child in self.children.items():
            row = child.row
            if row is None or not row.words[scoreboard.W_HEARTBEAT_NS] or child.killed:
                continue
            silent = now - row.words[scoreboard.W_HEARTBEAT_NS] / 1e9
            if silent > FROZEN and _stopped(worker.pid):
                child.killed = "frozen"
                logs.process("worker_frozen", level="ERROR", worker_pid=worker.pid, silent_s=round(silent, 1))
                self._signal(worker.pid, signal.SIGKILL)

    def _group(self, now: float, seen: list[plan.Seen]) -> None:
        """Under pressure on the group's memory the largest worker is replaced."""
        if any(one.asked or one.term_at for one in seen) or now - self._last_group_retirement < 10.0:
            return
        rows = {row.slot: int(row.words[scoreboard.W_RSS]) for row in self.board.live()
                if row.words[scoreboard.W_STATE] == scoreboard.STATE_READY}
        slot = group_decision(rows, available=cgroup.available(), total=cgroup.total(),
                              limit=self.settings.memory_limit)
        if slot is None:
            return
        self._last_group_retirement = now
        for child in self.children.values():
            if child.row is not None and child.row.slot == slot:
                child.asked = "memory_pressure"
                child.row.orders[scoreboard.O_RETIRE_REASON] = CODE[child.asked]
                logs.process("memory_pressure", level="WARNING", slot=slot, rss=rows[slot])

    def _floor(self) -> None:
        """What fresh workers reach again and hold is learned as the floor."""
        floors = [int(row.words[scoreboard.W_WARM_FLOOR]) for row in self.board.live()]
        self.board.master.words[scoreboard.M_WARM_FLOOR] = learned_floor(
            int(self.board.master.words[scoreboard.M_WARM_FLOOR]), floors)

    # -- exits ---------------------------------------------------------------------------------------------------

    def _peek(self) -> None:
        """Exit statuses before gunicorn collects them: it does not pass them on."""
        for worker, child in self.children.items():
            if child.status is not None or not isinstance(worker.pid, int):
                continue
            with contextlib.suppress(ChildProcessError, OSError):
                found = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is not None:
                    code = found.si_status
                    child.status = code << 8 if found.si_code == os.CLD_EXITED else code

    def _finish_missing(self) -> None:
        """What gunicorn skipped when it raised: the worker's temporary file and child_exit."""
        for worker in list(self.children):
            child = self.children[worker]
            if child.status is not None and not child.ended and worker.pid not in self.server.WORKERS:
                with contextlib.suppress(Exception):
                    worker.tmp.close()
                self.server.cfg.child_exit(self.server, worker)

    def _fail_first(self, halt: HaltServer) -> None:
        logs.process("never_worked", level="CRITICAL", reason=halt.reason,
                     remedy="the app did not start in any worker: see the traceback above")

    def _internal(self, where: str, error: Exception) -> None:
        logs.process("internal_error", level="ERROR", where=where, error=f"{type(error).__name__}: {error}"[:500])


def _name(code: int) -> str:
    return REASONS[code] if 0 < code < len(REASONS) else ""


def _alive(pid: Any) -> bool:
    """Whether the process is there and no zombie."""
    if not isinstance(pid, int):
        return True
    state = _state(pid)
    return state not in ("", "Z", "X")


def _stopped(pid: Any) -> bool:
    return isinstance(pid, int) and _state(pid) == "T"


def _state(pid: int) -> str:
    """The process's state letter, "" if it is gone; "?" where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return "" if os.path.isdir("/proc/self") else "?"
    except (OSError, IndexError):
        return "?"
