"""gunicorn's arbiter, supervised: the running one is made an instance of a subclass of its own class.

Here is how gunicorn is steered, nothing of what is to be done: that is the `Supervision`'s. ``num_workers`` stays what
the configuration, TTIN, TTOU and gunicornc make it; only while gunicorn's own ``manage_workers`` runs does it hold the
target, so there is nothing to be put right when any of them changes it in the middle of a replacement.

Nothing here raises into gunicorn's loop but what ends the service on purpose.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Protocol

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from ... import logs
from ..workers import Child, alive
from .exit_statuses import told_of_exits
from .former import Former
from .isolated import IsolatedWorker

STARVED = 2.0  #: seconds between two looks above which the whole machine is slow, and silence says nothing
PAUSED = 5.0  #: seconds of its own standstill that the master tells
LAST_WORDS = 1.0  #: seconds that gunicorn's SIGABRT has for the stacks before its SIGKILL, however often it looks
AT_ONCE, REST = 8, 0.25  #: spare workers started in one go at the most, and seconds to the next ones
BOOT_ATTEMPTS = 64  #: workers that did not boot, collected in one go


class EndOfService(Exception):
    """The service ends: in good order, or with a reason and an exit status."""

    def __init__(self, reason: str = "", status: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


class Supervision(Protocol):
    """What decides. None of it may raise but `EndOfService`, where that is said.

    :ivar children: gunicorn's workers by their object, as far as they were not taken leave of.
    :ivar spares: how many workers more than usual there are to be.
    :ivar due: when the next look is due at the latest, monotonic seconds; 0.0 = in gunicorn's own time.
    """

    children: dict[Any, Child]
    spares: int
    due: float

    def tick(self) -> int | None:
        """How many workers gunicorn is to hold, None if it is to start and end none.

        :raises EndOfService: now.
        """

    def sign_of_life(self) -> None:
        """The master is alive, though it may be in one of gunicorn's own loops."""

    def is_alone(self, worker: Any) -> bool:
        """Whether it is the isolation worker, which is none of those that gunicorn is to hold."""

    def may_fork(self) -> bool:
        """Whether one worker more may be started."""

    def may_fork_in_reload(self) -> bool:
        """The same within gunicorn's reload: of a release on trial one worker is started."""

    def look_again(self, at: float) -> None:
        """The next look is due then at the latest."""

    def cannot_fork(self, error: Exception) -> None:
        """A worker could not be started.

        :raises EndOfService: if none ever could.
        """

    def collected(self, pid: int, status: int, peak: int) -> None:
        """A child's exit status, and the most memory that it ever had, bytes."""

    def timed_out(self, pid: int) -> None:
        """gunicorn sent SIGABRT to a worker past its timeout."""

    def exited(self, worker: Any) -> None:
        """A worker is gone; once or again."""

    def boot_failed(self, reason: str) -> bool:
        """A worker did not boot; whether that ends the service."""

    def failed(self, where: str, error: Exception) -> None:
        """Something failed that must not."""

    def reload_due(self) -> bool:
        """Whether a reload that had to wait may begin."""

    def begin_reload(self) -> bool:
        """Whether it may begin now; else it waits."""

    def reloaded(self, newest: int) -> None:
        """The new workers were started; the old ones have ages up to that."""

    def reload_failed(self, error: BaseException) -> str:
        """Nothing has changed; returns the error in words."""

    def drain(self) -> bool:
        """SIGTERM: whether the end waits for the drain's time."""

    def tell_status(self) -> None:
        """SIGUSR1."""

    def stop(self, graceful: bool) -> None:
        """The service ends."""

    def killed_for(self, pid: int) -> str:
        """Why this service killed a worker, "" if it did not."""


class SupervisedArbiter(Arbiter):  # type: ignore[misc]
    """An arbiter that asks before it acts. Made by `supervising.supervise`.

    :ivar supervision: whom it asks.
    :ivar in_reload: within gunicorn's reload.
    :ivar former: what it was before the latest reload that the supervision has not accepted.
    """

    supervision: Supervision
    _num_workers: int
    in_reload = False
    former: Former | None = None
    _master = 0
    _newest_before = 0
    _looked = _abort_again = 0.0
    _collects: dict[str, Any] | None = None
    _hidden: dict[int, Any]

    def begin(self, collects: dict[str, Any] | None) -> None:
        """Become one.

        :param collects: see `compat.told_exits`.
        """
        self._master, self._collects, self._hidden = os.getpid(), collects, {}
        self._looked = time.monotonic()

    # -- what the supervision sees -------------------------------------------------------------------------------

    @property
    def base(self) -> int:
        """How many workers the configuration, TTIN, TTOU and gunicornc ask for."""
        return int(self._num_workers)

    @property
    def pids(self) -> set[int]:
        """The workers that it counts, those that leave included."""
        return set(self.WORKERS)

    @property
    def newest(self) -> int:
        """The age of the last worker that was started: gunicorn's number of it."""
        return int(self.worker_age)

    @property
    def successor(self) -> int:
        """After SIGUSR2 the second master's process id, 0 = there is none."""
        return int(self.reexec_pid)

    @property
    def predecessor(self) -> int:
        """In a second master the first one's process id, 0 = this is the first, or the first is gone."""
        return int(self.master_pid)

    # -- gunicorn's, asked first ---------------------------------------------------------------------------------

    def wait_for_signals(self, timeout: float = 1.0) -> Any:
        """gunicorn's rest between two ticks, shorter where something is due sooner."""
        return super().wait_for_signals(timeout=self._rest(timeout))

    def _rest(self, most: float) -> float:
        due = self.supervision.due
        return max(0.01, min(most, due - time.monotonic())) if due else most

    def manage_workers(self) -> None:
        """One tick, then gunicorn's own management with its target."""
        if self.in_reload:
            self._hide_old()
            return
        if self.supervision.reload_due():
            self.reload()
        try:
            wanted = self.supervision.tick()
            if wanted is not None:
                self._manage(wanted)
        except EndOfService as end:
            if end.reason:
                raise HaltServer(end.reason, end.status) from None
            raise StopIteration from None

    def _manage(self, wanted: int) -> None:
        base, self._num_workers = self._num_workers, wanted
        alone = {pid: worker for pid, worker in self.WORKERS.items() if self.supervision.is_alone(worker)}
        for pid in alone:
            del self.WORKERS[pid]
        try:
            super().manage_workers()
        except Exception as error:  # no process, memory or descriptor for a new worker
            if os.getpid() != self._master:
                raise
            self.supervision.cannot_fork(error)
        finally:
            # gunicornc changes it from another thread, perhaps meanwhile
            self._num_workers += base - wanted
            self.WORKERS.update(alone)

    def spawn_workers(self) -> None:
        """gunicorn's, but where spare ones are to help it rests after some, not after each: for dozens that was seconds
        in which the master looked after nobody. At a start the rest keeps them from being ready in any order, which
        hands the leader's part to and fro.
        """
        if not self.supervision.spares or not hasattr(super(), "spawn_worker"):
            super().spawn_workers()
            return
        for _ in range(min(AT_ONCE, self._num_workers - len(self.WORKERS))):
            self.spawn_worker()
        if len(self.WORKERS) < self._num_workers:
            self.supervision.look_again(time.monotonic() + REST)

    def spawn_alone(self, listener: Any) -> None:
        """Start the isolation worker, which listens there and nowhere else."""
        before: tuple[Any, Any] = self.LISTENERS, self.worker_class  # type: ignore[has-type]
        IsolatedWorker.public = list(before[0])
        self.LISTENERS, self.worker_class = [listener], IsolatedWorker
        try:
            super().spawn_worker()
        except Exception as error:
            if os.getpid() != self._master:
                raise
            self.supervision.failed("isolation", error)
        finally:
            self.LISTENERS, self.worker_class = before

    def spawn_worker(self) -> Any:
        """gunicorn's, if there is room for one."""
        may = self.supervision.may_fork() if not self.in_reload else self.supervision.may_fork_in_reload()
        return super().spawn_worker() if may else None

    def murder_workers(self) -> None:
        """gunicorn's: SIGABRT for a worker past its timeout, SIGKILL at the next look. That would be at once when any
        other worker has something to say, and the stacks of a busy machine's worker were lost.
        """
        now = time.monotonic()
        paused, self._looked = now - self._looked, now
        if paused > STARVED:
            self._forgive(now, paused)
        if now < self._abort_again:
            return
        before = self._aborted()
        super().murder_workers()
        newly = self._aborted() - before
        if newly:
            self._abort_again = time.monotonic() + LAST_WORDS
        for pid in newly:
            self.supervision.timed_out(pid)

    def _aborted(self) -> set[int]:
        return {pid for pid, worker in list(self.WORKERS.items()) if getattr(worker, "aborted", False)}

    def _forgive(self, now: float, seconds: float) -> None:
        """The master itself stood still (SIGSTOP, a suspended machine): silence that it shared is nobody's."""
        if seconds > PAUSED:
            logs.process("master_paused", level="WARNING", seconds=round(seconds, 1))
        for worker in list(self.WORKERS.values()):
            with contextlib.suppress(Exception):
                last = worker.tmp.last_update()
                if last < now:  # else it boots: gunicorn does not look at it yet
                    os.utime(worker.tmp.fileno(), (min(now, last + seconds),) * 2)

    def reap_workers(self) -> None:
        """gunicorn's, with each exit status noted; boot failures do not end a service that works."""
        self.supervision.sign_of_life()  # gunicorn's loops in reload and stop call nothing else of ours
        for _ in range(BOOT_ATTEMPTS):
            try:
                with told_of_exits(self._collects, self.supervision.collected, list(self.WORKERS)):
                    super().reap_workers()
                break
            except HaltServer as halt:
                self._finish_missing()
                if self.supervision.boot_failed(halt.reason):
                    raise
            except Exception as error:
                self.supervision.failed("reap", error)
                break
        self._finish_missing()

    def _finish_missing(self) -> None:
        """What gunicorn skips when it raises: the worker's temporary file and child_exit."""
        for worker, child in list(self.supervision.children.items()):
            if child.status is not None:
                self.WORKERS.pop(child.pid, None)  # before gunicorn 26 it stays there
            if child.pid and child.pid not in self.WORKERS and child.pid not in self._hidden and not alive(child.pid):
                with contextlib.suppress(Exception):
                    worker.tmp.close()
                self.cfg.child_exit(self, worker)
                self.supervision.exited(worker)

    # -- reload --------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """SIGHUP: gunicorn's own, except that the old workers go when the new ones are ready, and a configuration
        that cannot be read changes nothing.
        """
        if not self.supervision.begin_reload():
            return
        self.former = Former(self)
        self._newest_before, self.in_reload = self.worker_age, True
        try:
            super().reload()
            self.supervision.reloaded(self._newest_before)
        except (Exception, SystemExit) as error:
            if os.getpid() != self._master or any(getattr(item, "sock", item) is None for item in self.LISTENERS):
                raise
            self._undo_reload(error)
        finally:
            self.in_reload = False
            self.WORKERS.update(self._hidden)
            self._hidden = {}

    def _hide_old(self) -> None:
        """Called inside gunicorn's reload, which would end the old workers now and wait for them: with those out of
        its sight it goes on at once. The tick ends them when the new ones are ready.
        """
        for pid in [pid for pid, worker in self.WORKERS.items() if worker.age <= self._newest_before]:
            self._hidden[pid] = self.WORKERS.pop(pid)

    def restore_former(self) -> None:
        """Configuration and environment are again those of before the latest reload. Never raises."""
        former, self.former = self.former, None
        if former is not None:
            try:
                former.restore()
            except Exception as error:
                self.supervision.failed("restore", error)

    def _undo_reload(self, error: BaseException) -> None:
        self.restore_former()
        what = self.supervision.reload_failed(error)
        self.log.error("flask_stability: the reload failed (%s): the service goes on as it was", what)

    # -- the end, and signals ------------------------------------------------------------------------------------

    def handle_term(self) -> None:
        """SIGTERM."""
        if not self.supervision.drain():
            super().handle_term()

    def handle_usr1(self) -> None:
        """SIGUSR1: reopen the logs, and tell the status."""
        self.supervision.tell_status()
        super().handle_usr1()

    def stop(self, graceful: bool = True) -> None:
        """The end of the service."""
        self.supervision.stop(graceful)
        super().stop(graceful)
