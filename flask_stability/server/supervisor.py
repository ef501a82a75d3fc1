"""The master's part: a tick about once a second in gunicorn's main loop.

No thread and no lock of its own: methods of the running arbiter are wrapped on the instance. What is to be done is
decided in `replacement`, `restarts` and `exit_reasons`; here it is carried out. ``num_workers`` stays what the
configuration, TTIN, TTOU and gunicornc make it; only while gunicorn's own ``manage_workers`` runs does it hold our
target, so there is nothing to be put right when any of them changes it in the middle of a replacement.

Nothing here raises into the arbiter but what ends it on purpose.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import deque
from typing import Any

from gunicorn.errors import HaltServer

from .. import logs, scoreboard
from ..config import Settings
from ..memory import cgroup
from ..memory.policy import SETTLED, growth_pause
from ..scoreboard import CRASHES, Scoreboard
from . import exit_reasons, replacement
from .commands import carry_out
from .control import Listener, path_of
from .fleet_memory import FleetMemory
from .guard import TELL_STACKS
from .gunicorn import compat
from .gunicorn.arbiter23 import Signals23
from .replacement import Action, Phase
from .restarts import Pace, Restarts
from .starting import BOOT_FAILED, Kills, cannot_start, stillborn
from .status import status_block
from .systemd import Notifier
from .systemd import Phase as Told
from .workers import Child, alive, stopped, told_of_exits

FROZEN = 1.0  #: seconds after which a worker that was stopped (SIGSTOP) is made to go on, and a second time killed
STARVED = 2.0  #: seconds between two ticks above which the whole machine is slow, and silence says nothing
PAUSED = 5.0  #: seconds of its own standstill that the master tells
LAST_WORDS = 1.0  #: seconds that gunicorn's SIGABRT has for the stacks before its SIGKILL, however often it looks
AT_ONCE, REST = 8, 0.25  #: spare workers started in one go at the most, and seconds to the next ones
CANARY = 1.0  #: seconds that the first newcomer after a crash loop has to serve before the others follow
ROWS_KEPT = 2  #: rows that no spare worker gets, nor a reload: for replacements
#: What a failed reload puts back.
_RELOADED = ("cfg", "_num_workers", "worker_class", "address", "timeout", "proc_name")


class Supervisor:
    """Supervises one arbiter.

    :ivar children: gunicorn's workers by their object.
    """

    def __init__(self, server: Any, board: Scoreboard, settings: Settings) -> None:
        self.server, self.board, self.settings = server, board, settings
        self.words = board.master.words
        self.children: dict[Any, Child] = {}
        self.state = replacement.Replacement()
        self.restarts = Restarts(settings.restart_backoff, most=settings.max_restarts, window=settings.restart_window,
                                 min_uptime=settings.crash_min_uptime)
        self.canary: int | None = None
        self._boots: deque[float] = deque(maxlen=8)
        self.in_reload = self.stopping = self.ever_ready = self._reload_due = False
        self._stillborn: list[str] = []
        self._pid = os.getpid()
        self._hidden: dict[int, Any] = {}
        self._reload_age = 0
        self._reload_told = self._degraded = False
        self._drain_until = 0.0
        self._oom_kills = cgroup.oom_kills()
        self._last_rotation = 0.0
        self._growth = Pace(lambda early: growth_pause(settings.min_worker_uptime, early))
        self.fleet = FleetMemory(server, self.words, settings)
        self._look_at = self._ticked = self._murder_again = self._rows_told_at = 0.0
        self._looked = time.monotonic()
        self.spares = 0
        self.notifier = Notifier()
        self.control: Listener | None = None
        self.words[scoreboard.M_PID] = self._pid
        self.words[scoreboard.M_STARTED_NS] = time.monotonic_ns()

    def wrap(self) -> bool:
        """Put our methods around the arbiter's; False if this gunicorn has not what that needs."""
        server = self.server
        if not compat.can_supervise(server):
            return False
        self._collects = compat.told_exits(server)
        self._manage, self._reap, self._reload = server.manage_workers, server.reap_workers, server.reload
        self._term, self._usr1, self._stop = server.handle_term, server.handle_usr1, server.stop
        server.manage_workers, server.reap_workers, server.reload = self.manage_workers, self.reap_workers, self.reload
        server.handle_term, server.handle_usr1, server.stop = self.handle_term, self.handle_usr1, self.stop
        error_log = getattr(server.log, "error_log", None)  # not every logger_class has one
        if isinstance(error_log, logging.Logger):
            error_log.addFilter(Kills(self._killed_for))
        if hasattr(server, "murder_workers"):
            self._murder, server.murder_workers = server.murder_workers, self.murder_workers
        if hasattr(server, "spawn_workers") and hasattr(server, "spawn_worker"):
            self._spawn, server.spawn_workers = server.spawn_workers, self.spawn_workers
        if hasattr(server, "spawn_worker"):
            self._spawn_one, server.spawn_worker = server.spawn_worker, self.spawn_worker
        if hasattr(server, "wait_for_signals"):  # else the tick comes once a second, and no sooner
            self._wait, server.wait_for_signals = server.wait_for_signals, self.wait_for_signals
        elif hasattr(server, "sleep"):
            Signals23(server, self.reap_workers, self._rest, lambda: self.stopping)
        return True

    # -- the wrapped methods -------------------------------------------------------------------------------------

    def wait_for_signals(self, timeout: float = 1.0) -> Any:
        """gunicorn's rest between two ticks, shorter where something is due sooner."""
        return self._wait(timeout=self._rest(timeout))

    def _rest(self, most: float) -> float:
        return max(0.01, min(most, self._look_at - time.monotonic())) if self._look_at else most

    def murder_workers(self) -> None:
        """gunicorn's: SIGABRT for a worker past its timeout, SIGKILL at the next look. That would be at once when any
        other worker has something to say, and the stacks of a busy machine's worker were lost.
        """
        now = time.monotonic()
        paused, self._looked = now - self._looked, now
        if paused > STARVED:
            self._forgive(now, paused)
        if now < self._murder_again:
            return
        before = self._aborted()
        self._murder()
        if self._aborted() - before:
            self._murder_again = time.monotonic() + LAST_WORDS

    def _forgive(self, now: float, seconds: float) -> None:
        """The master itself stood still (SIGSTOP, a suspended machine): silence that it shared is nobody's."""
        if seconds > PAUSED:
            logs.process("master_paused", level="WARNING", seconds=round(seconds, 1))
        for worker in list(self.server.WORKERS.values()):
            with contextlib.suppress(Exception):
                last = worker.tmp.last_update()
                if last < now:  # else it boots: gunicorn does not look at it yet
                    os.utime(worker.tmp.fileno(), (min(now, last + seconds),) * 2)

    def spawn_workers(self) -> None:
        """gunicorn's, but where spare ones are to help it rests after some, not after each: for dozens that was seconds
        in which the master looked after nobody. At a start the rest keeps them from being ready in any order, which
        hands the leader's part to and fro.
        """
        server = self.server
        if not self.spares:
            self._spawn()
            return
        for _ in range(min(AT_ONCE, server._num_workers - len(server.WORKERS))):
            server.spawn_worker()
        if len(server.WORKERS) < server._num_workers:
            self._look_again(time.monotonic() + REST)

    def spawn_worker(self) -> Any:
        """gunicorn's, but no worker without a row: nobody could see what it does."""
        if self.board.free():
            return self._spawn_one()
        self._tell_rows(time.monotonic())
        return None

    def _tell_rows(self, now: float) -> None:
        if now >= self._rows_told_at:
            self._rows_told_at = now + 60.0
            logs.process("no_row", level="ERROR", rows=len(self.board.rows), workers=len(self.children),
                         remedy="each worker has a row on the scoreboard, and all are taken: workers are started as "
                                "others leave; for more workers than rows restart the service")

    def _aborted(self) -> set[int]:
        return {pid for pid, worker in list(self.server.WORKERS.items()) if getattr(worker, "aborted", False)}

    def manage_workers(self) -> None:
        """One tick, then gunicorn's own management with our target."""
        server = self.server
        if self.in_reload:
            self._hide_old()
            return
        if self._reload_due and not self._handing_over():
            self.reload()
        now = time.monotonic()
        wanted = max(server._num_workers, len(server.WORKERS))
        try:
            wanted = self._tick(now)
        except (StopIteration, HaltServer):
            raise
        except Exception as error:
            self._internal("tick", error)
        self._tell_systemd(now)
        if self.stopping or self.restarts.held(now):
            self._look_again(self.restarts.hold_until)
            return
        most = len(server.WORKERS) + self.board.free()
        if wanted > most:
            self._tell_rows(now)
            wanted = most
        base, server._num_workers = server._num_workers, wanted
        try:
            self._manage()
        except Exception as error:  # no process, memory or descriptor for a new worker
            if os.getpid() != self._pid:
                raise
            if not self._worked():
                self._give_up(cannot_start(error), 1)
            self._internal("spawn", error)
            self.restarts.hold(now + 1.0)
            self._drop_unborn()
        finally:
            # gunicornc changes it from another thread, perhaps meanwhile
            server._num_workers += base - wanted

    def reap_workers(self) -> None:
        """gunicorn's reaping, with each exit status noted; boot failures do not end a service that works."""
        self._tell_systemd(time.monotonic())  # gunicorn's loops in reload and stop call nothing else of ours
        for _ in range(64):
            try:
                with told_of_exits(self._collects, self._note_exit, list(self.server.WORKERS)):
                    self._reap()
                break
            except HaltServer as halt:
                self._finish_missing()
                if not self.stopping and not self._worked():
                    self._tell_never_worked(halt.reason)
                    raise
            except Exception as error:
                self._internal("reap", error)
                break
        self._finish_missing()

    def reload(self) -> None:
        """SIGHUP: gunicorn's own, except that the old workers go when the new ones are ready, and a configuration
        that cannot be read changes nothing. While the old workers of the last one say goodbye it waits for that: else
        each of ten in a row would add a generation of workers.
        """
        self._reload_due = self._handing_over()
        if self._reload_due:
            logs.process("reload_waits")
            return
        server, now = self.server, time.monotonic()
        before = {name: getattr(server, name) for name in _RELOADED if hasattr(server, name)}
        self._reload_age = server.worker_age
        self.words[scoreboard.M_RELOADS] += 1
        logs.process("reload")
        for child in self.children.values():
            child.look(now)
        if any(child.serves() for child in self.children.values()):
            for child in self.children.values():
                if not child.ready_at and not child.term_at:
                    child.kill("reload")  # it has not served yet, and never will
        self.in_reload, self._reload_told = True, False
        if self.notifier.phase is Told.READY:
            self.notifier.phase = Told.RELOADING
            self._tell_systemd(now)
        try:
            self._reload()
            old = [child for child in self.children.values()
                   if child.worker.age <= self._reload_age and not child.term_at and not child.killed]
            for child in old:
                child.ask("reload")
            self.state = replacement.reloaded([self._seen(child, now) for child in old], now)
        except (Exception, SystemExit) as error:
            if os.getpid() != self._pid or any(getattr(item, "sock", item) is None for item in server.LISTENERS):
                raise
            self._undo_reload(before, error)
        finally:
            self.in_reload = False
            server.WORKERS.update(self._hidden)
            self._hidden = {}

    def _handing_over(self) -> bool:
        return self.state.phase is Phase.CLOSING and self.state.reason == "reload" and not self.stopping

    def handle_term(self) -> None:
        """SIGTERM: keep serving for STABILITY_DRAIN_DELAY while /health/ready says 503; a second one at once."""
        if self.settings.drain_delay and not self._drain_until:
            self._drain_until = time.monotonic() + self.settings.drain_delay
            self.words[scoreboard.M_DRAINING] = scoreboard.DRAINING
            logs.process("draining", seconds=self.settings.drain_delay)
            self._tell_stopping()
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
            self.words[scoreboard.M_DRAINING] = scoreboard.ENDING
            logs.process("stopping", graceful=graceful)
            self._tell_stopping()
            now = time.monotonic()
            for child in self.children.values():
                child.look(now)
                if not child.ready_at:
                    child.kill("shutdown")  # it would lose the SIGTERM, and be waited for
                elif stopped(child.pid):
                    child.send(signal.SIGCONT)
        self._stop(graceful)

    def listen(self, uid: int = -1) -> str:
        """Take orders from now on; return why that cannot be, or "".

        :param uid: the workers' user, if it is another.
        """
        if self.board.path is None:
            return ""  # there is no file to put it beside, which was told
        self.control = Listener(path_of(self.board.path), lambda order, user: carry_out(
            order, user, self.board, self.children.values()), uid)
        return self.control.open()

    # -- called by the hooks -------------------------------------------------------------------------------------

    def forking(self, worker: Any) -> None:
        """pre_fork: a row for the worker."""
        row = self.board.allocate(worker.age)
        worker.stability_row = row
        self.children[worker] = Child(worker, row, time.monotonic())
        self.words[scoreboard.M_BOOTS] += 1

    def exited(self, worker: Any) -> None:
        """child_exit: why, how old, and the row is free again."""
        child = self.children.pop(worker, None)
        if child is None:
            return
        now = time.monotonic()
        child.look(now)
        kills = cgroup.oom_kills()
        reason, detail = exit_reasons.reason_of(child.status, exit_reasons.Known(
            asked=child.asked, killed=child.killed, terminated=bool(child.term_at),
            aborted=bool(getattr(worker, "aborted", False)), ready=bool(child.ready_at), stopping=self.stopping,
            client=child.waits_for_client(), max_requests=bool(self.server.cfg.max_requests),
            left=child.row is not None and child.ending(),
            oom_kills=kills - self._oom_kills))
        self._oom_kills = kills
        uptime = now - child.started
        self.board.add_restart(reason, child.pid, uptime, child.row.slot if child.row is not None else -1, detail)
        answered = child.row is not None and child.row.requests > 0
        if child.row is not None:
            if uptime >= SETTLED:
                self.fleet.past_floors.append(int(child.row.words[scoreboard.W_WARM_FLOOR]))
            self.board.release(child.row)
        crash = reason in CRASHES and not self.stopping
        if child.ready_at:
            self._now_worked()
        elif crash and not self._worked():
            self._stillborn.append(reason)
        if crash and self.restarts.crashed(now, uptime, served=now - child.ready_at if child.ready_at else None,
                                           answered=answered,
                                           others=any(other.serves() and alive(other.pid)
                                                      for other in self.children.values())):
            self.canary = self.server.worker_age
        logs.process("worker_exit", level="ERROR" if crash else "INFO", worker_pid=child.pid, reason=reason,
                     detail=detail, uptime_s=round(uptime, 1), recent_crashes=self.restarts.recent(now))
        if reason == "boot_failure" and self.state.reason == "reload" and not self._reload_told:
            self._reload_told = True
            logs.process("reload_stalled", level="ERROR",
                         remedy="the new workers do not boot; the old ones go on serving: repair the app, or send "
                                "SIGHUP after putting the former version back")

    # -- systemd -------------------------------------------------------------------------------------------------

    def _tell_systemd(self, now: float) -> None:
        notifier = self.notifier
        if not notifier.wanted or self.server.master_pid:
            return  # after SIGUSR2 the first master speaks, as long as it is there
        reloaded = not self.in_reload and (self.state.reason != "reload" or self._reload_told)
        if (self.ever_ready if notifier.phase is Told.STARTING else notifier.phase is Told.RELOADING and reloaded):
            notifier.phase = Told.READY
        serving = sum(bool(child.ready_at) and not child.term_at for child in self.children.values())
        notifier.status = f"{serving} of {self.server._num_workers} workers serve{self._condition()}"
        notifier.tell(now)

    def _condition(self) -> str:
        """What is special now, for systemd's status line."""
        if self.stopping:
            return "; stopping"
        if self._drain_until:
            return f"; draining for {self.settings.drain_delay:g} s"
        if self.in_reload or self.state.reason == "reload":
            return "; the reload's new workers do not boot" if self._reload_told else "; reloading"
        return "; too many workers crash" if self._degraded else ""

    def _tell_stopping(self) -> None:
        if not self.server.reexec_pid:  # else the service goes on, under the second master
            self.notifier.phase = Told.STOPPING
        self._tell_systemd(time.monotonic())

    def left(self) -> None:
        """on_exit: this master is done; a second one (SIGUSR2) is now the service's."""
        if self.server.reexec_pid and not self.server.master_pid:
            self.notifier.hand_over(self.server.reexec_pid)

    # -- the tick ------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> int:
        """Look, judge, act; returns how many workers gunicorn is to hold."""
        words, server = self.words, self.server
        self._look_at = 0.0
        words[scoreboard.M_TICK_NS] = time.monotonic_ns()
        words[scoreboard.M_BASE_WORKERS] = server._num_workers
        if self._drain_until and now >= self._drain_until:
            raise StopIteration
        self._release_vanished()
        children = [child for child in self.children.values() if child.pid in server.WORKERS]
        for child in children:
            booting = not child.ready_at
            child.look(now)
            if booting and child.ready_at:
                self._boots.append(child.ready_at - child.started)
            if self._drain_until:
                child.close_connections()  # whoever keeps one is to find the next instance before this one is gone
        self._judge_crashes(now)
        if self.control is not None:
            self.control.serve(now)
        for step in (self._thaw, self._silent, self.fleet.relieve, self.fleet.learn, self._again):
            try:
                step(now, children)
            except Exception as error:
                self._internal(step.__name__.strip("_"), error)
        self._spare_workers(children)
        base = server._num_workers + self.spares
        seen = [self._seen(child, now) for child in children]
        if not self.ever_ready:
            if self._worked():
                self._now_worked()
            elif stillborn(self._stillborn, int(server.cfg.workers)):
                self._give_up(stillborn(self._stillborn, int(server.cfg.workers)), BOOT_FAILED)
        if self.canary is not None and replacement.canary_lives(seen, self.canary, CANARY):
            self.canary = None
        if not self.stopping:
            self._advance(seen, now, base)
            seen = [self._seen(child, now) for child in children]
        wanted = replacement.target(base, seen, self.state, canary=self.canary)
        words[scoreboard.M_TARGET] = wanted
        words[scoreboard.M_SURGE] = int(self.state.phase is not Phase.IDLE)
        words[scoreboard.M_HOLD_UNTIL_NS] = int(self.restarts.hold_until * 1e9) if self.restarts.held(now) else 0
        words[scoreboard.M_CRASHES] = self.restarts.recent(now)
        if now - self._last_rotation > 5.0:
            self._last_rotation = now
            for name in logs.rotate_if_needed():
                logs.process("log_rotated", file=name)
        return wanted

    def _seen(self, child: Child, now: float) -> replacement.Seen:
        asked = child.asked
        if (asked == "memory_growth" and not self._growth.allowed(now)) or (
                self._upgrading() and asked not in replacement.BROKEN):
            asked = ""
        return replacement.Seen(child.pid, child.worker.age, bool(child.ready_at), asked, child.term_at,
                         now - child.ready_at if child.ready_at else 0.0, child.held(), child.row is not None)

    def _upgrading(self) -> bool:
        """A second master is there (SIGUSR2): who replaces whom is the operator's business."""
        return bool(self.server.reexec_pid or self.server.master_pid)

    def _spare_workers(self, children: list[Child]) -> None:
        """Sync workers that all hang in a request while others wait get helpers, like threads that are stuck."""
        serving = [child for child in children if child.row is not None and child.serves()]
        held = [child.held() for child in serving if not child.asked]
        overdue = sum(child.held() for child in serving if child.asked in replacement.BROKEN)
        before = self.spares
        if before or overdue or any(held):
            self.spares = replacement.spares(
                before, self.server._num_workers, held, overdue=overdue, room=self._spare_room(),
                clients=sum(child.waits_for_client() for child in serving if not child.asked and child.held()),
                coming=sum(not (child.ready_at or child.term_at or child.killed) for child in children),
                knocking=any(child.row.words[scoreboard.W_QUEUE] for child in serving if child.row is not None))
        if self.spares > before or (before and not self.spares):
            logs.process("spare_workers", level="WARNING" if self.spares > before else "INFO", spares=self.spares,
                         stuck=sum(held) + overdue)

    def _advance(self, seen: list[replacement.Seen], now: float, base: int) -> None:
        cfg = self.server.cfg
        # sync workers close every connection anyway
        close_time = float(cfg.keepalive) + 0.5 if cfg.keepalive and "thread" in str(cfg.worker_class_str) else 0.0
        before = self.state
        step = replacement.next_step(before, seen, now, base=base,
                              surge=not self._upgrading() and self._may_surge(), close_time=close_time,
                              kill_timeout=self.kill_timeout() + 2.0,  # the dead man's switch in the worker comes first
                              room=self._room(),
                              patience=replacement.ready_timeout(self._boots, float(self.server.timeout or 0)))
        if step.action is Action.GIVE_UP:
            self._boots.append(now - before.since)  # it takes that long at least: the next one is given more
        self.state = step.state
        if step.action is Action.NOTHING:
            return
        reason = step.state.reason or before.reason
        for child in [child for child in self.children.values() if child.pid in step.pids]:
            if not child.asked and reason:
                child.ask(reason)
            if step.action is Action.TERM:
                self._terminate(child, now)
            elif step.action is Action.KILL:
                child.kill(child.asked or "asked")
            elif step.action is Action.CLOSE:
                child.close_connections()
            logs.process("replacement", action=step.action.name.lower(), worker_pid=child.pid,
                         reason=child.asked or reason)

    def kill_timeout(self) -> float:
        """Seconds that a retiring worker may take to end."""
        given = self.settings.retire_mercy
        return given if given is not None else float(self.server.cfg.graceful_timeout) + 5.0

    def _terminate(self, child: Child, now: float) -> None:
        child.term_at = now
        child.close_connections()
        if child.row is not None:
            child.row.orders[scoreboard.O_RETIRE_SINCE_NS] = time.monotonic_ns()
        if child.asked == "memory_growth":
            self._growth.replaced(now)
            self.words[scoreboard.M_GROWTH_AFTER_NS] = int(self._growth.until * 1e9)
            self.words[scoreboard.M_GROWTH_PATIENCE] = int(now - child.started < SETTLED)
        child.send(signal.SIGTERM)

    def _again(self, now: float, children: list[Child]) -> None:
        """A SIGTERM that came before the worker's signal handlers were there was lost: send it again. Never to a
        worker that was ready: a second one may meet it without handlers again, at the end of its exit.
        """
        for child in children:
            if child.term_at and not 0.0 < child.ready_at < child.term_at and not child.ending():
                child.send(signal.SIGTERM)

    def _may_surge(self) -> bool:
        """Surge is on, and there is room in memory for one worker more."""
        free = cgroup.available()
        return self.settings.surge and (free is None or free > self._largest() * 0.5)

    def _room(self) -> int:
        """For how many spare workers there is room in half of the memory that is free; 0 where surge is off."""
        free, largest = cgroup.available(), self._largest()
        if not self.settings.surge:
            return 0
        return replacement.PLENTY if free is None or not largest else free // 2 // largest

    def _spare_room(self) -> int:
        """How many spare workers more there may be: for memory, for the setting, and for rows, of which a reload needs
        as many as there are workers."""
        base: int = self.server._num_workers
        return min(self._room(), max(0, self.settings.spare_max - self.spares),
                   max(0, len(self.board.rows) - 2 * base - ROWS_KEPT - self.spares))

    def _largest(self) -> int:
        return max((int(row.words[scoreboard.W_OWN_MEMORY]) for row in self.board.live()), default=0)

    def _judge_crashes(self, now: float) -> None:
        degraded = self.restarts.too_many(now)
        self.words[scoreboard.M_DEGRADED] = int(degraded)
        if degraded and not self._degraded:
            logs.process("too_many_restarts", level="CRITICAL", crashes=self.restarts.recent(now),
                         window_s=self.settings.restart_window, action=self.settings.restart_action)
            if self.settings.restart_action == "halt":
                raise HaltServer(f"{self.restarts.recent(now)} worker crashes within "
                                 f"{self.settings.restart_window:g} s", 1)
        self._degraded = degraded

    def _look_again(self, at: float) -> None:
        """The next tick is due then at the latest."""
        self._look_at = min(self._look_at or at, at)

    def _thaw(self, now: float, children: list[Child]) -> None:
        """A stopped process neither answers nor leaves. It is made to go on, so that what it had accepted is answered,
        and is replaced in good order; one that is stopped again is killed. The kernel tells at once who is stopped.
        """
        for child in children:
            if child.killed or not stopped(child.pid):
                child.stopped_at = 0.0
                continue
            child.stopped_at = child.stopped_at or now
            if now - child.stopped_at < FROZEN:
                self._look_again(child.stopped_at + FROZEN)
                continue
            logs.process("worker_frozen", level="ERROR", worker_pid=child.pid, again=child.thawed,
                         stopped_s=round(now - child.stopped_at, 1))
            if child.thawed:
                child.kill("frozen")
                continue
            child.thawed = True
            if not child.asked:
                child.ask("frozen")
            child.send(signal.SIGCONT)

    def _silent(self, now: float, children: list[Child]) -> None:
        """A worker in which no thread of Python's runs any more is replaced in good order: if it comes to itself again
        it ends well, else gunicorn's timeout or the kill timeout ends it; a newcomer serves meanwhile. One that leaves
        by itself (max_requests) gives no sign any more while Python ends, which takes seconds on a busy machine.
        """
        starved, self._ticked = now - self._ticked > STARVED, now
        if starved:
            return
        silent = {child: now - child.row.words[scoreboard.W_HEARTBEAT_NS] / 1e9 for child in children
                  if child.row is not None and child.serves() and child.row.words[scoreboard.W_THREADS]}
        patience = self.settings.guard_interval + replacement.patience(list(silent.values()))
        for child, seconds in silent.items():
            most = self.kill_timeout() if child.ending() else patience
            if seconds > most and not child.stopped_at and not child.asked:
                logs.process("worker_silent", level="ERROR", worker_pid=child.pid, silent_s=round(seconds, 1))
                child.send(TELL_STACKS)  # first: SIGTERM may end the very call that hangs, and nobody knew where it was
                child.ask("stuck")

    # -- exits and reloads ---------------------------------------------------------------------------------------

    def _worked(self) -> bool:
        """Whether any worker was ever ready."""
        return self.ever_ready or any(child.row is not None and child.row.words[scoreboard.W_READY_NS]
                                      for child in self.children.values())

    def _now_worked(self) -> None:
        self.ever_ready = True
        self.words[scoreboard.M_EVER_READY] = 1

    def _tell_never_worked(self, reason: str) -> None:
        logs.process("never_worked", level="CRITICAL", reason=reason,
                     remedy="the app did not start in any worker: see the error before this line")

    def _give_up(self, reason: str, status: int) -> None:
        """End a service that never worked; gunicorn's log tells the reason as well."""
        self._tell_never_worked(reason)
        raise HaltServer(reason, status)

    def _killed_for(self, pid: int) -> str:
        """Why this service killed a worker, "" if it did not."""
        for child in self.children.values():
            if child.pid == pid:
                timeout = "timeout" if getattr(child.worker, "aborted", False) else ""
                return child.killed or timeout or ("shutdown" if self.stopping else "")
        return ""

    def _note_exit(self, pid: int, status: int) -> None:
        for child in self.children.values():
            if pid and child.pid == pid:
                child.status = status

    def _finish_missing(self) -> None:
        """What gunicorn skips when it raises: the worker's temporary file and child_exit."""
        for worker, child in list(self.children.items()):
            if child.status is not None:
                self.server.WORKERS.pop(child.pid, None)  # before gunicorn 26 it stays there
            if child.pid and child.pid not in self.server.WORKERS and child.pid not in self._hidden and (
                    not alive(child.pid)):
                with contextlib.suppress(Exception):
                    worker.tmp.close()
                self.server.cfg.child_exit(self.server, worker)
                self.exited(worker)

    def _release_vanished(self) -> None:
        """Workers that gunicorn forgot without calling child_exit."""
        for worker, child in list(self.children.items()):
            if child.pid and child.pid not in self.server.WORKERS and not alive(child.pid):
                self.exited(worker)

    def _drop_unborn(self) -> None:
        """Rows of workers that could not be forked."""
        for worker, child in list(self.children.items()):
            if not child.pid:
                del self.children[worker]
                if child.row is not None:
                    self.board.release(child.row)

    def _hide_old(self) -> None:
        """Called inside gunicorn's reload, which would end the old workers now and wait for them: with those out of
        its sight it goes on at once. The tick ends them when the new ones are ready.
        """
        workers = self.server.WORKERS
        for pid in [pid for pid, worker in workers.items() if worker.age <= self._reload_age]:
            self._hidden[pid] = workers.pop(pid)

    def _undo_reload(self, before: dict[str, Any], error: BaseException) -> None:
        for name, value in before.items():
            setattr(self.server, name, value)
        self.server.app.cfg = self.server.cfg
        os.environ.update(self.server.cfg.env)
        self._drop_unborn()
        what = f"{type(error).__name__}: {error}"[:500]
        logs.process("reload_failed", level="ERROR", error=what, remedy="the service goes on as it was")
        self.server.log.error("flask_stability: the reload failed (%s): the service goes on as it was", what)

    def _internal(self, where: str, error: Exception) -> None:
        logs.process("internal_error", level="ERROR", where=where, error=f"{type(error).__name__}: {error}"[:500])
