"""gunicorn's arbiter, supervised: the running arbiter becomes an instance of a subclass of its own class.

This module only steers gunicorn; the `Supervision` decides. ``num_workers`` stays as the configuration, TTIN, TTOU and
gunicornc set it. It holds the target only while gunicorn's own ``manage_workers`` runs, so nothing needs correction
when any of them changes it in the middle of a replacement.

Nothing here raises into gunicorn's loop except to end the service on purpose.
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

STARVED = 2.0  #: seconds between two looks above which the whole machine is slow, and a worker's silence means nothing
PAUSED = 5.0  #: seconds of its own standstill from which the master logs it
#: seconds for the stacks after gunicorn's SIGABRT and before its SIGKILL, however often gunicorn looks
LAST_WORDS = 1.0
AT_ONCE, REST = 8, 0.25  #: maximum number of spare workers started in one go, and seconds to the next ones
BOOT_ATTEMPTS = 64  #: maximum number of workers that did not boot, collected in one go


class EndOfService(Exception):
    """Ends the service: in good order, or with a reason and an exit status."""

    def __init__(self, reason: str = "", status: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


class Supervision(Protocol):
    """The decisions about workers. Its methods raise nothing except `EndOfService`, where documented.

    :ivar children: by gunicorn's worker object, until `exited`.
    :ivar spares: the number of workers wanted beyond the usual number.
    :ivar due: when the next look is due at the latest, monotonic seconds; 0.0 = whenever gunicorn looks.
    """

    children: dict[Any, Child]
    spares: int
    due: float

    def tick(self) -> int | None:
        """Return how many workers gunicorn should hold, None if it should start and end none.

        :raises EndOfService: to end the service now.
        """

    def sign_of_life(self) -> None:
        """Record that the master is alive, though it may be in one of gunicorn's own loops."""

    def is_alone(self, worker: Any) -> bool:
        """Return whether this is the isolation worker, which gunicorn must not count among its workers."""

    def may_fork(self) -> bool:
        """Return whether one more worker may be started."""

    def may_fork_in_reload(self) -> bool:
        """Return the same within gunicorn's reload, which starts a single worker of a release on trial."""

    def look_again(self, at: float) -> None:
        """Schedule the next look for that time at the latest, monotonic seconds."""

    def cannot_fork(self, error: Exception) -> None:
        """Record that a worker could not be started.

        :raises EndOfService: if none ever could.
        """

    def collected(self, pid: int, status: int, peak: int) -> None:
        """Record a child's exit status, and its peak memory in bytes."""

    def timed_out(self, pid: int) -> None:
        """Record that gunicorn sent SIGABRT to a worker past its timeout."""

    def exited(self, worker: Any) -> None:
        """Record that a worker has ended; may be called twice for the same worker."""

    def boot_failed(self, reason: str) -> bool:
        """Record that a worker did not boot; return whether that ends the service."""

    def failed(self, where: str, error: Exception) -> None:
        """Log an unexpected failure."""

    def reload_due(self) -> bool:
        """Return whether a reload that had to wait may begin."""

    def begin_reload(self) -> bool:
        """Begin a reload and return True, or return False if it has to wait."""

    def reloaded(self, newest: int) -> None:
        """Record that the new workers were started; the old ones have ages up to `newest`."""

    def reload_failed(self, error: BaseException) -> str:
        """Record that a reload failed and nothing has changed; return the error in words."""

    def drain(self) -> bool:
        """Begin to drain at SIGTERM; return whether the end waits for that."""

    def tell_status(self) -> None:
        """Log the status at SIGUSR1."""

    def stop(self, graceful: bool) -> None:
        """End the service."""

    def killed_for(self, pid: int) -> str:
        """Return why this service killed a worker, or "" if it did not."""


class SupervisedArbiter(Arbiter):  # type: ignore[misc]
    """An arbiter that asks before it acts. Made by `supervising.supervise`.

    :ivar supervision: takes the decisions.
    :ivar in_reload: within gunicorn's reload.
    :ivar former: its state before the latest reload, until the supervision accepts that reload.
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
        """Initialize the attributes of a supervised arbiter.

        :param collects: see `compat.told_exits`.
        """
        self._master, self._collects, self._hidden = os.getpid(), collects, {}
        self._looked = time.monotonic()

    # -- what the supervision sees -------------------------------------------------------------------------------

    @property
    def base(self) -> int:
        """Return how many workers the configuration, TTIN, TTOU and gunicornc ask for."""
        return int(self._num_workers)

    @property
    def pids(self) -> set[int]:
        """Return the process ids of the workers that gunicorn counts, leaving ones included."""
        return set(self.WORKERS)

    @property
    def newest(self) -> int:
        """Return the age of the last worker that was started: gunicorn's number of it."""
        return int(self.worker_age)

    @property
    def successor(self) -> int:
        """Return the second master's process id after SIGUSR2, 0 = there is none."""
        return int(self.reexec_pid)

    @property
    def predecessor(self) -> int:
        """Return, in a second master, the first one's process id; 0 = this is the first, or the first has ended."""
        return int(self.master_pid)

    # -- gunicorn's, asked first ---------------------------------------------------------------------------------

    def wait_for_signals(self, timeout: float = 1.0) -> Any:
        """Rest between two ticks as gunicorn does, but less if a look is due sooner."""
        return super().wait_for_signals(timeout=self._rest(timeout))

    def _rest(self, most: float) -> float:
        due = self.supervision.due
        return max(0.01, min(most, due - time.monotonic())) if due else most

    def manage_workers(self) -> None:
        """Do one tick, then gunicorn's own management with the target that it returns."""
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
        """Start workers as gunicorn does, but rest after several spare workers instead of after each.

        Starting dozens of workers one by one kept the master busy for seconds. At the start of the service the rest
        stays, because it makes workers ready in their order; otherwise the leader's role would pass to and fro.
        """
        if not self.supervision.spares or not hasattr(super(), "spawn_worker"):
            super().spawn_workers()
            return
        for _ in range(min(AT_ONCE, self._num_workers - len(self.WORKERS))):
            self.spawn_worker()
        if len(self.WORKERS) < self._num_workers:
            self.supervision.look_again(time.monotonic() + REST)

    def spawn_alone(self, listener: Any) -> None:
        """Start the isolation worker, which listens on this listener only."""
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
        """Start a worker as gunicorn does, if the supervision allows it."""
        may = self.supervision.may_fork() if not self.in_reload else self.supervision.may_fork_in_reload()
        return super().spawn_worker() if may else None

    def murder_workers(self) -> None:
        """Send SIGABRT to a worker past its timeout as gunicorn does, but delay SIGKILL by at least `LAST_WORDS`.

        Any SIGCHLD wakes the loop, so SIGKILL could follow SIGABRT immediately, and a worker on a busy machine would
        lose its stacks.
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
        """Ignore the workers' silence while the master itself stood still (SIGSTOP, a suspended machine)."""
        if seconds > PAUSED:
            logs.process("master_paused", level="WARNING", seconds=round(seconds, 1))
        for worker in list(self.WORKERS.values()):
            with contextlib.suppress(Exception):
                last = worker.tmp.last_update()
                if last < now:  # else the worker is booting: gunicorn does not look at it yet
                    os.utime(worker.tmp.fileno(), (min(now, last + seconds),) * 2)

    def reap_workers(self) -> None:
        """Collect workers as gunicorn does, and note each exit status; boot failures do not end a service that works.
        """
        self.supervision.sign_of_life()  # gunicorn's loops in reload and stop call none of our other methods
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
        """Do what gunicorn skips when it raises: close the worker's temporary file and call child_exit."""
        for worker, child in list(self.supervision.children.items()):
            if child.status is not None:
                self.WORKERS.pop(child.pid, None)  # gunicorn before 26 leaves it there
            if child.pid and child.pid not in self.WORKERS and child.pid not in self._hidden and not alive(child.pid):
                with contextlib.suppress(Exception):
                    worker.tmp.close()
                self.cfg.child_exit(self, worker)
                self.supervision.exited(worker)

    # -- reload --------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Reload (SIGHUP) as gunicorn does, except that the old workers leave when the new ones are ready.

        A configuration that cannot be read changes nothing.
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
        """Hide the old workers from gunicorn's reload, which would end them now and wait for them.

        gunicorn then continues immediately. The tick ends the old workers when the new ones are ready.
        """
        for pid in [pid for pid, worker in self.WORKERS.items() if worker.age <= self._newest_before]:
            self._hidden[pid] = self.WORKERS.pop(pid)

    def restore_former(self) -> None:
        """Restore configuration and environment of before the latest reload. Never raise."""
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
        """Handle SIGTERM: drain, or end the service."""
        if not self.supervision.drain():
            super().handle_term()

    def handle_usr1(self) -> None:
        """Handle SIGUSR1: reopen the logs, and log the status."""
        self.supervision.tell_status()
        super().handle_usr1()

    def stop(self, graceful: bool = True) -> None:
        """End the service."""
        self.supervision.stop(graceful)
        super().stop(graceful)
