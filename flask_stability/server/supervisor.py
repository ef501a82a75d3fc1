"""The master's supervision: a tick about once a second in gunicorn's main loop, without a thread or a lock of its own.

`replacement`, `restarts` and `exit_reasons` decide; this module acts. `gunicorn.arbiter` makes gunicorn ask, and obey.

Nothing here raises except `EndOfService`, on purpose.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .. import logs, scoreboard
from ..config import Settings
from ..memory import cgroup
from ..memory.policy import SETTLED, growth_pause
from ..scoreboard import CRASHES, Reason, Scoreboard
from ..scoreboard.black_box import InFlight
from . import exit_reasons, replacement, spare_workers, stacks
from .commands import carry_out
from .control import Listener, path_of
from .fleet_memory import FleetMemory
from .gunicorn.arbiter import EndOfService, SupervisedArbiter
from .isolation import Isolation
from .isolation import Listener as IsolationListener
from .last_requests import LastRequests
from .releases import Releases, half
from .reload import Reload, closing, replaced_by_it
from .replacement import Action, Phase
from .restarts import Pace, Restarts
from .starting import BOOT_FAILED, cannot_start, stillborn
from .status import status_block
from .systemd import Notifier, Service
from .unresponsive import Unresponsive
from .workers import Child, alive, stopped

CANARY = 1.0  #: seconds that the first replacement worker after a crash loop has to serve before the others follow


class Supervisor:
    """Supervises one arbiter, from its construction on.

    :ivar children: by gunicorn's worker object.
    """

    def __init__(self, arbiter: SupervisedArbiter, board: Scoreboard, settings: Settings) -> None:
        self.arbiter, self.board, self.settings = arbiter, board, settings
        self.words = board.master.words
        self.children: dict[Any, Child] = {}
        self.state = replacement.Replacement()
        self.restarts = Restarts(settings.restart_backoff, most=settings.max_restarts, window=settings.restart_window,
                                 min_uptime=settings.crash_min_uptime)
        self.canary: int | None = None
        self.reloads = Reload(self.words)
        self.releases = Releases(board, settings, self)
        #: Undoes the changes of our own hook on_reload.
        self.undo_on_reload: Callable[[], None] = lambda: None
        self.requests = LastRequests()
        self.isolation = Isolation(board, self.requests, self._start_alone, self.kill_timeout,
                                   automatic=settings.quarantine)
        self._starting_alone = False
        self._oom = 0
        self.fleet = FleetMemory(board, settings, lambda: arbiter.base)
        self.notifier = Notifier()
        self.control: Listener | None = None
        self.spares = 0
        self.due = 0.0
        self.stopping = self.ever_ready = False
        self._unresponsive = Unresponsive(settings, self.kill_timeout, self.look_again, self._hung)
        self._growth = Pace(lambda early: growth_pause(self.settings.min_worker_uptime, early))
        self._boots: deque[float] = deque(maxlen=8)
        self._stillborn: list[Reason] = []
        self._degraded = False
        self._drain_until = self._rotated_at = self._rows_told_at = 0.0
        self._oom_kills = cgroup.oom_kills()
        arbiter.supervision = self

    # -- what the arbiter asks -----------------------------------------------------------------------------------

    def tick(self) -> int | None:
        """See `Supervision`."""
        now = time.monotonic()
        wanted = max(self.arbiter.base, len(self.ordinary))
        try:
            wanted = self._tick(now)
        except EndOfService:
            raise
        except Exception as error:
            self.failed("tick", error)
        self._tell_systemd(now)
        if self.stopping or self.restarts.held(now):
            self.look_again(self.restarts.hold_until)
            return None
        most = len(self.arbiter.pids) - (len(self.children) - len(self.ordinary)) + self.board.free()
        if wanted > most:
            self._tell_rows(now)
        return min(wanted, most)

    def sign_of_life(self) -> None:
        """See `Supervision`."""
        self._tell_systemd(time.monotonic())

    @property
    def ordinary(self) -> list[Child]:
        """Return the workers without the isolation worker."""
        return [child for child in self.children.values() if not child.alone]

    def is_alone(self, worker: Any) -> bool:
        """See `Supervision`."""
        child = self.children.get(worker)
        return child is not None and child.alone

    def may_fork(self) -> bool:
        """Return whether the board has a free row: the master could not see the state of a worker without a row."""
        if self.board.free():
            return True
        self._tell_rows(time.monotonic())
        return False

    def may_fork_in_reload(self) -> bool:
        """See `Supervision`."""
        if self.releases.starting is None:
            self.releases.prepare(self._not_judged())
        return self.releases.may_start() and self.may_fork()

    def _not_judged(self) -> str:
        former, base = self.arbiter.former, self.arbiter.base
        problem = former.problem() if former is not None else "the configuration of before is not known"
        if problem:
            return problem
        serving = sum(child.serves() and not child.asked for child in self.ordinary)
        if serving < max(1, half(base)):
            return f"{serving} of {base} old workers serve well"
        if self._upgrading():
            return "a second master is there"
        if self.board.free() < base + 1:
            return "the scoreboard has too few rows for two releases"
        return "" if self.fleet.may_surge() else "there is no memory for one worker more, or STABILITY_SURGE is off"

    def look_again(self, at: float) -> None:
        """See `Supervision`."""
        self.due = min(self.due or at, at)

    def cannot_fork(self, error: Exception) -> None:
        """See `Supervision`."""
        if not self._worked():
            self._give_up(cannot_start(error), 1)
        self.failed("spawn", error)
        self.restarts.hold(time.monotonic() + 1.0)
        self._drop_unborn()

    def collected(self, pid: int, status: int, peak: int = 0) -> None:
        """See `Supervision`."""
        for child in self.children.values():
            if pid and child.pid == pid:
                child.status, child.peak = status, peak

    def timed_out(self, pid: int) -> None:
        """See `Supervision`.

        Remember now whether a slow client kept the worker, since its row is of no use later: SIGABRT ends a call that
        hung, and then the worker waits for that request's client to close its side. Nor does the row count while the
        guard is silent.
        """
        for child in self.children.values():
            if child.pid == pid:
                child.kept_by_client = child.waits_for_client() and child.heard(self.settings.guard_interval + 2.0)

    def boot_failed(self, reason: str) -> bool:
        """See `Supervision`."""
        if self.stopping or self._worked():
            return False
        self._tell_never_worked(reason)
        return True

    def failed(self, where: str, error: Exception) -> None:
        """See `Supervision`."""
        logs.process("internal_error", level="ERROR", where=where, error=f"{type(error).__name__}: {error}"[:500])

    def reload_due(self) -> bool:
        """See `Supervision`."""
        return self.reloads.due and (self.stopping or not (closing(self.state) or self.releases.waits()))

    def begin_reload(self) -> bool:
        """See `Supervision`."""
        begun = self.reloads.begin(replacement.Replacement() if self.stopping else self.state, self.ordinary,
                                   wait=self.releases.waits() and not self.stopping)
        if begun:
            self.releases.before_reload(time.monotonic())
            self.undo_on_reload = lambda: None
            self._tell_systemd(time.monotonic())
        return begun

    def reloaded(self, newest: int) -> None:
        """See `Supervision`."""
        now = time.monotonic()
        self.reloads.begun = False
        if self.releases.reloaded(newest):
            return
        self.isolation.reloaded()
        old = replaced_by_it(self.ordinary, newest)
        self.state = replacement.reloaded([self._seen(child, now) for child in old], now)

    def reload_failed(self, error: BaseException) -> str:
        """See `Supervision`."""
        self.reloads.begun = False
        self._drop_unborn()
        self.undo_on_reload()
        self.releases.failed()
        return self.reloads.failed(error)

    # -- what a trial of a release asks ------------------------------------------------------------------------------

    def terminate(self, child: Child, now: float) -> None:
        """See `Fleet`."""
        self._terminate(child, now)

    def replace_all(self, old: list[Child], now: float) -> None:
        """See `Fleet`."""
        self.isolation.reloaded()
        for child in old:
            child.ask(Reason.RELOAD)
        self.state = replacement.reloaded([self._seen(child, now) for child in old], now)

    def restore(self) -> None:
        """See `Fleet`."""
        self.arbiter.restore_former()
        self.undo_on_reload()
        self.isolation.turned_back(self.releases.begun)

    def boot_patience(self) -> float:
        """See `Fleet`."""
        return replacement.ready_timeout(self._boots, float(self.arbiter.cfg.timeout or 0))

    def base(self) -> int:
        """See `Fleet`."""
        return self.arbiter.base

    def may_keep(self) -> bool:
        """See `Fleet`."""
        return self.fleet.may_surge()

    def drain(self) -> bool:
        """Keep serving for STABILITY_DRAIN_DELAY while /health/ready answers 503; return False at a second SIGTERM."""
        if not self.settings.drain_delay or self._drain_until:
            return False
        self._drain_until = time.monotonic() + self.settings.drain_delay
        self.words[scoreboard.M_DRAINING] = scoreboard.DRAINING
        logs.process("draining", seconds=self.settings.drain_delay)
        self._tell_systemd(time.monotonic())
        return True

    def tell_status(self) -> None:
        """Reopen the logs, and write a status block into process-manager.log."""
        logs.reopen()
        try:
            logs.process("status", **status_block(self.board))
        except Exception as error:
            self.failed("status", error)

    def stop(self, graceful: bool) -> None:
        """See `Supervision`."""
        if self.stopping:
            return
        self.stopping = True
        self.words[scoreboard.M_DRAINING] = scoreboard.ENDING
        logs.process("stopping", graceful=graceful)
        now = time.monotonic()
        self._tell_systemd(now)
        for child in self.children.values():
            child.look(now)
            if not child.ready_at:
                child.kill(Reason.SHUTDOWN)  # it would lose the SIGTERM, and the master would wait for it
            elif stopped(child.pid):
                child.send(signal.SIGCONT)

    def killed_for(self, pid: int) -> str:
        """See `Supervision`."""
        for child in self.children.values():
            if child.pid == pid:
                aborted = bool(getattr(child.worker, "aborted", False))
                reason = child.killed or (Reason.TIMEOUT if aborted else Reason.SHUTDOWN if self.stopping else None)
                return str(reason or "")
        return ""

    # -- called by the hooks -------------------------------------------------------------------------------------

    def configure(self, settings: Settings) -> None:
        """Apply the settings of a reload; what has happened so far counts under them too."""
        self.settings = self.fleet.settings = self._unresponsive.settings = self.releases.settings = settings
        self.isolation.learn(settings.quarantine)
        self.restarts.limit(settings.restart_backoff, most=settings.max_restarts, window=settings.restart_window,
                            min_uptime=settings.crash_min_uptime)

    def listen(self, uid: int = -1) -> str:
        """Take orders from now on; return the reason if that fails, else "".

        :param uid: the workers' user if it differs from ours, else -1.
        """
        self.isolation.uid = uid
        if self.board.path is None:
            return ""  # the scoreboard has no file to put the socket beside
        self.control = Listener(path_of(self.board.path), lambda order, user: carry_out(
            order, user, self.board, self.children.values(), self.doing, self._order_reload,
            self.isolation.carry_out), uid)
        return self.control.open()

    def _order_reload(self, force: bool) -> dict[str, Any]:
        """Reload as SIGHUP does."""
        self.releases.force = force
        os.kill(os.getpid(), signal.SIGHUP)
        return {"reloads": int(self.words[scoreboard.M_RELOADS]), "force": force}

    def doing(self, child: Child) -> list[dict[str, Any]]:
        """Return the requests that a worker serves, for `flask stability stacks`."""
        now = time.monotonic_ns()
        return [{**self.requests.fields(one, now), "thread": one.thread_id}
                for one in self.requests.of(child)]

    def _start_alone(self, listener: IsolationListener) -> None:
        self._starting_alone = True
        try:
            self.arbiter.spawn_alone(listener)
        finally:
            self._starting_alone = False
        self._drop_unborn()

    def forking(self, worker: Any) -> None:
        """Give a new worker its row (pre_fork)."""
        row = self.board.allocate(worker.age) if not self._starting_alone else None
        worker.stability_row = row
        child = self.children[worker] = Child(worker, row, time.monotonic(), dump=stacks.make(),
                                              alone=self._starting_alone)
        if row is not None or child.alone:
            self.requests.forget(child)
            self.isolation.forget(child)
        if child.alone:
            self.isolation.child = child
        else:
            self.releases.forking(child)
        self.words[scoreboard.M_BOOTS] += 1

    def exited(self, worker: Any) -> None:
        """Record a worker's exit with its reason and age, and free its row (child_exit)."""
        child = self.children.pop(worker, None)
        if child is None:
            return
        now = time.monotonic()
        child.look(now)
        reason, detail = self._reason_of(child)
        uptime = now - child.started
        self.board.add_restart(reason, child.pid, uptime, child.row.slot if child.row is not None else -1, detail)
        answered = child.row is not None and child.row.requests > 0
        doing = self.requests.of(child)
        judged = self._judged(child, reason, doing) if not self.releases.on_trial(child) else {}
        if child.row is not None:
            if uptime >= SETTLED:
                self.fleet.past_floors.append(int(child.row.words[scoreboard.W_WARM_FLOOR]))
            self.board.release(child.row)
        on_trial = not (self.stopping or child.alone) and self.releases.exited(child, reason, detail)
        crash = reason in CRASHES and not (self.stopping or on_trial or child.alone)
        if child.ready_at:
            self._now_worked()
        elif crash and not self._worked():
            self._stillborn.append(reason)
        if crash and self.restarts.crashed(now, uptime, served=now - child.ready_at if child.ready_at else None,
                                           answered=answered,
                                           others=any(other.serves() and alive(other.pid) for other in self.ordinary)):
            self.canary = self.arbiter.newest
        logs.process("worker_exit", level="ERROR" if crash else "INFO", worker_pid=child.pid, reason=reason,
                     detail=detail, uptime_s=round(uptime, 1), recent_crashes=self.restarts.recent(now),
                     **self.requests.in_words(doing or child.hung or [], reason), **judged)
        self._unresponsive.gone(child)
        stacks.drop(child.dump)
        if reason is Reason.BOOT_FAILURE and (self.state.reason is Reason.RELOAD or self.releases.under_way):
            self.reloads.stall()

    def _hung(self, child: Child) -> None:
        """Learn from a worker whose interpreter hangs.

        The requests that it serves now are to blame, even if it then ends well.
        """
        child.hung = self.requests.of(child)
        if not self.releases.on_trial(child):
            self._judged(child, Reason.STUCK, child.hung)

    def _judged(self, child: Child, reason: Reason, doing: list[InFlight]) -> dict[str, Any]:
        try:
            return self.isolation.ended(child, reason, doing, oom=self._oom > 0) if not self.stopping else {}
        except Exception as error:
            self.failed("quarantine", error)
            return {}

    def _reason_of(self, child: Child) -> exit_reasons.Exit:
        kills = cgroup.oom_kills()
        known = exit_reasons.Known(
            asked=child.asked, killed=child.killed, terminated=bool(child.term_at),
            aborted=bool(getattr(child.worker, "aborted", False)), ready=bool(child.ready_at), stopping=self.stopping,
            client=child.kept_by_client, max_requests=bool(self.arbiter.cfg.max_requests),
            left=child.row is not None and child.ending(), oom_kills=kills - self._oom_kills)
        self._oom, self._oom_kills = kills - self._oom_kills, kills
        return exit_reasons.reason_of(child.status, known)

    def left(self) -> None:
        """End this master (on_exit); a second one (SIGUSR2) now runs the service."""
        if self.arbiter.successor and not self.arbiter.predecessor:
            self.notifier.hand_over(self.arbiter.successor)
        if self.control is not None:
            self.control.close()
        self.isolation.close()

    def _tell_systemd(self, now: float) -> None:
        if not self.notifier.wanted or self.arbiter.predecessor:
            return  # after SIGUSR2 the first master notifies systemd, for as long as it exists
        waits = self.state.reason is Reason.RELOAD
        aside = self.releases.aside(self.ordinary)
        self.notifier.follow(Service(
            sum(bool(child.ready_at) and not child.term_at and child not in aside for child in self.ordinary),
            self.arbiter.base,
            ever_ready=self.ever_ready, reloading=self.reloads.under_way(self.state) or self.releases.under_way,
            stalled=waits and self.reloads.stalled, draining=self.settings.drain_delay if self._drain_until else 0.0,
            stopping=self.stopping, succeeded=bool(self.arbiter.successor), degraded=self._degraded), now)

    # -- the tick ------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> int:
        """Look, judge, act; return how many workers gunicorn should hold."""
        self.due = 0.0
        self.words[scoreboard.M_TICK_NS] = time.monotonic_ns()
        self.words[scoreboard.M_BASE_WORKERS] = self.arbiter.base
        if self._drain_until and now >= self._drain_until:
            raise EndOfService
        self._release_vanished()
        children = self._look(now)
        self._judge_crashes(now)
        if self.control is not None:
            self.control.serve(now)
        for step in (self._unresponsive.thaw, self._unresponsive.silent, self._unresponsive.write_down,
                     self.fleet.relieve, self.fleet.learn, self._again, self._isolate):
            try:
                step(now, children)
            except Exception as error:
                self.failed(step.__name__.strip("_"), error)
        if not self.stopping:
            self._try_release(now)
        aside = self.releases.aside(children)
        children = [child for child in children if child not in aside]
        self.spares = spare_workers.look(self.spares, children, self.arbiter.base, self._spare_room())
        base = self.releases.base(self.arbiter.base + self.spares, children)
        seen = [self._seen(child, now) for child in children]
        self._judge_start()
        if self.canary is not None and replacement.canary_lives(seen, self.canary, CANARY):
            self.canary = None
        if not self.stopping:
            self._advance(seen, now, base)
            seen = [self._seen(child, now) for child in children]
        wanted = replacement.target(base, seen, self.state, canary=self.canary) + self.releases.wanted(len(aside))
        self._publish(wanted, now)
        if now - self._rotated_at > 5.0:
            self._rotated_at = now
            for name in logs.rotate_if_needed():
                logs.process("log_rotated", file=name)
        return wanted

    def _try_release(self, now: float) -> None:
        try:
            self.releases.tick(now)
        except Exception as error:
            self.failed("releases", error)
        if self.state.reason is not Reason.RELOAD:
            self.releases.arrived()

    def _look(self, now: float) -> list[Child]:
        """Read the state of the workers from their rows; return them."""
        pids = self.arbiter.pids
        children = [child for child in self.ordinary if child.pid in pids]
        for child in children:
            booting = not child.ready_at
            child.look(now)
            if booting and child.ready_at:
                self._boots.append(child.ready_at - child.started)
            if self._drain_until:
                # so that clients with an open connection find the next instance before this one ends
                child.close_connections()
        return children

    def _publish(self, wanted: int, now: float) -> None:
        words = self.words
        words[scoreboard.M_TARGET] = wanted
        words[scoreboard.M_SURGE] = int(self.state.phase is not Phase.IDLE)
        words[scoreboard.M_HOLD_UNTIL_NS] = int(self.restarts.hold_until * 1e9) if self.restarts.held(now) else 0
        words[scoreboard.M_CRASHES] = self.restarts.recent(now)

    def _seen(self, child: Child, now: float) -> replacement.Seen:
        asked = child.asked
        if (asked is Reason.MEMORY_GROWTH and not self._growth.allowed(now)) or (
                (self._upgrading() or self.releases.frozen) and asked not in replacement.BROKEN):
            asked = Reason.NONE
        return replacement.Seen(child.pid, child.worker.age, bool(child.ready_at), asked, child.term_at,
                                now - child.ready_at if child.ready_at else 0.0, child.held(), child.row is not None)

    def _upgrading(self) -> bool:
        """Return whether a second master exists (SIGUSR2): the operator then decides which worker replaces which."""
        return bool(self.arbiter.successor or self.arbiter.predecessor)

    def _advance(self, seen: list[replacement.Seen], now: float, base: int) -> None:
        cfg = self.arbiter.cfg
        # sync workers close every connection after its answer
        close_time = float(cfg.keepalive) + 0.5 if cfg.keepalive and "thread" in str(cfg.worker_class_str) else 0.0
        before = self.state
        step = replacement.next_step(
            before, seen, now, base=base, close_time=close_time,
            surge=not (self._upgrading() or self.releases.frozen) and self.fleet.may_surge(),
            kill_timeout=self.kill_timeout() + 2.0,  # the dead man's switch in the worker comes first
            room=self.fleet.room(), patience=replacement.ready_timeout(self._boots, float(cfg.timeout or 0)))
        if step.action is Action.GIVE_UP:
            # a boot takes at least that long: give the next replacement more time
            self._boots.append(now - before.since)
        self.state = step.state
        if step.action is Action.NOTHING:
            return
        reason = step.reason or step.state.reason or before.reason
        for child in [child for child in self.children.values() if child.pid in step.pids]:
            if not child.asked and reason:
                child.ask(reason)
            if step.action is Action.TERM:
                self._terminate(child, now)
            elif step.action is Action.KILL:
                child.kill(child.asked or Reason.ASKED)
            elif step.action is Action.CLOSE:
                child.close_connections()
            logs.process("replacement", action=step.action.name.lower(), worker_pid=child.pid,
                         reason=child.asked or reason)

    def kill_timeout(self) -> float:
        """Return the seconds that a retiring worker may take to end."""
        given = self.settings.retire_mercy
        return given if given is not None else float(self.arbiter.cfg.graceful_timeout) + 5.0

    def _terminate(self, child: Child, now: float) -> None:
        child.term_at = now
        child.close_connections()
        if child.row is not None:
            child.row.orders[scoreboard.O_RETIRE_SINCE_NS] = time.monotonic_ns()
        if child.asked is Reason.MEMORY_GROWTH:
            self._growth.replaced(now)
            self.words[scoreboard.M_GROWTH_AFTER_NS] = int(self._growth.until * 1e9)
            self.words[scoreboard.M_GROWTH_PATIENCE] = int(now - child.started < SETTLED)
        child.send(signal.SIGTERM)

    def _isolate(self, now: float, children: list[Child]) -> None:
        if not self.stopping:
            self.isolation.tick(now, not self.releases.frozen)

    def _again(self, now: float, children: list[Child]) -> None:
        """Send SIGTERM again to workers that lost it, because it came before their signal handlers were set.

        Never send it again to a worker that was ready: at the end of its exit the handlers are gone, too.
        """
        for child in children:
            if child.term_at and not 0.0 < child.ready_at < child.term_at and not child.ending():
                child.send(signal.SIGTERM)

    def _spare_room(self) -> int:
        if self.releases.frozen:
            return 0
        return spare_workers.room(self.arbiter.base, self.spares, most=self.settings.spare_max,
                                  rows=len(self.board.rows), memory=self.fleet.room())

    def _judge_crashes(self, now: float) -> None:
        degraded = self.restarts.too_many(now)
        self.words[scoreboard.M_DEGRADED] = int(degraded)
        if degraded and not self._degraded:
            logs.process("too_many_restarts", level="CRITICAL", crashes=self.restarts.recent(now),
                         window_s=self.settings.restart_window, action=self.settings.restart_action)
            if self.settings.restart_action == "halt":
                raise EndOfService(f"{self.restarts.recent(now)} worker crashes within "
                                   f"{self.settings.restart_window:g} s", 1)
        self._degraded = degraded

    def _judge_start(self) -> None:
        if self.ever_ready:
            return
        if self._worked():
            self._now_worked()
            return
        reason = stillborn(self._stillborn, int(self.arbiter.cfg.workers))
        if reason:
            self._give_up(reason, BOOT_FAILED)

    # -- exits ---------------------------------------------------------------------------------------------------

    def _worked(self) -> bool:
        """Return whether any worker was ever ready."""
        return self.ever_ready or any(child.row is not None and child.row.words[scoreboard.W_READY_NS]
                                      for child in self.children.values())

    def _now_worked(self) -> None:
        self.ever_ready = True

    def _tell_never_worked(self, reason: str) -> None:
        logs.process("never_worked", level="CRITICAL", reason=reason,
                     remedy="the app did not start in any worker: see the error before this line")

    def _give_up(self, reason: str, status: int) -> None:
        """End a service that never worked; gunicorn's log gets the reason as well."""
        self._tell_never_worked(reason)
        raise EndOfService(reason, status)

    def _tell_rows(self, now: float) -> None:
        if now >= self._rows_told_at:
            self._rows_told_at = now + 60.0
            logs.process("no_row", level="ERROR", rows=len(self.board.rows), workers=len(self.children),
                         remedy="each worker has a row on the scoreboard, and all are taken: workers are started as "
                                "others leave; for more workers than rows restart the service")

    def _release_vanished(self) -> None:
        """Release workers that gunicorn forgot without calling child_exit."""
        pids = self.arbiter.pids
        for worker, child in list(self.children.items()):
            if child.pid and child.pid not in pids and not alive(child.pid):
                self.exited(worker)

    def _drop_unborn(self) -> None:
        """Free the rows of workers that could not be forked."""
        for worker, child in list(self.children.items()):
            if not child.pid:
                del self.children[worker]
                stacks.drop(child.dump)
                if child.row is not None:
                    self.board.release(child.row)
