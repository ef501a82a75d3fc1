"""The supervisor with a real arbiter of gunicorn's, which forks nothing here."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from flask_stability.config import Settings
from flask_stability.scoreboard import (
    REASONS,
    STATE_READY,
    STATE_STOPPING,
    W_HEARTBEAT_NS,
    W_SLOW_CLIENTS,
    W_STATE,
    W_THREADS,
    Reason,
    Scoreboard,
)
from flask_stability.server import spare_workers
from flask_stability.server.gunicorn import arbiter as module
from flask_stability.server.gunicorn.arbiter import EndOfService, SupervisedArbiter
from flask_stability.server.gunicorn.arbiter23 import SupervisedArbiter23
from flask_stability.server.gunicorn.compat import names_of
from flask_stability.server.gunicorn.supervising import supervise
from flask_stability.server.supervisor import Supervisor
from flask_stability.server.unresponsive import Unresponsive
from flask_stability.server.workers import Child


class App(BaseApplication):  # type: ignore[misc]
    """An app for an arbiter that never loads it."""

    def load_config(self) -> None:
        """gunicorn's defaults."""


class Forkless(Arbiter):  # type: ignore[misc]
    """gunicorn's arbiter as somebody may have made his own of it; what murders and starts workers only tells."""

    def __init__(self) -> None:
        super().__init__(App())
        self.sent: list[tuple[int, str]] = []
        self.started = 0

    def murder_workers(self) -> None:
        """SIGABRT at the first look, SIGKILL at the next."""
        for pid, worker in self.WORKERS.items():
            self.sent.append((pid, "SIGKILL" if worker.aborted else "SIGABRT"))
            worker.aborted = True

    def spawn_worker(self) -> int:
        """No worker."""
        self.started += 1
        return 0


class Forked:
    """gunicorn's object of a worker."""

    def __init__(self, pid: int) -> None:
        self.pid, self.age, self.aborted = pid, 1, False


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Those of the arbiter."""
    found: dict[int, Any] = {}
    monkeypatch.setattr(Arbiter, "WORKERS", found)
    return found


def supervised(board: Scoreboard | None = None, **settings: Any) -> tuple[Any, Supervisor]:
    """An arbiter that obeys, and whom."""
    arbiter = supervise(Forkless())
    assert arbiter is not None
    return arbiter, Supervisor(arbiter, board or Scoreboard.anonymous(1), Settings(**settings))


def test_a_worker_past_its_timeout_has_time_for_its_stacks_however_often_the_master_looks(
        monkeypatch: pytest.MonkeyPatch, workers: dict[int, Any]) -> None:
    """A newcomer's ready word wakes the master at once: SIGKILL still comes no sooner than from an idle master."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    arbiter, _ = supervised()
    workers[7] = SimpleNamespace(aborted=False)
    for _ in range(5):
        arbiter.murder_workers()
        now[0] += 0.01
    assert arbiter.sent == [(7, "SIGABRT")]
    now[0] += 1.0
    arbiter.murder_workers()
    assert arbiter.sent == [(7, "SIGABRT"), (7, "SIGKILL")]


@pytest.mark.parametrize(("clients", "silent", "reason"), [
    (1, 0.5, "deadline"), (0, 0.5, "timeout"), (1, 5.0, "timeout")])
def test_whether_a_client_kept_a_worker_is_judged_when_its_timeout_ends_it(workers: dict[int, Any], clients: int,
                                                                          silent: float, reason: str) -> None:
    """Not by what its row says later: SIGABRT ends the call that hung, and the worker waits for its client to close."""
    board = Scoreboard.anonymous(1)
    arbiter, supervisor = supervised(board)
    worker, row = Forked(7), board.allocate(1)
    assert row is not None
    now = time.monotonic()
    row.words[W_THREADS], row.words[W_SLOW_CLIENTS] = 1, clients
    row.words[W_HEARTBEAT_NS] = int((now - silent) * 1e9)
    workers[7] = worker
    supervisor.children[worker] = Child(worker, row, now - 60, ready_at=now - 50)
    arbiter.murder_workers()
    row.words[W_SLOW_CLIENTS], row.words[W_HEARTBEAT_NS] = 1, time.monotonic_ns()
    supervisor.collected(7, 0)
    supervisor.exited(worker)
    assert [name for name, number in zip(REASONS, board.master.reasons, strict=True) if number] == [reason]


@pytest.mark.parametrize(("state", "seconds", "asked"), [
    (STATE_READY, 2.9, Reason.NONE), (STATE_READY, 3.1, Reason.STUCK), (STATE_STOPPING, 34.0, Reason.NONE),
    (STATE_STOPPING, 36.0, Reason.STUCK)])
def test_a_worker_that_leaves_by_itself_is_given_the_time_of_one_that_was_told_to(state: int, seconds: float,
                                                                                 asked: Reason) -> None:
    """It gives no sign of life while its interpreter ends; all that serve nobody may do so at once."""
    board, now = Scoreboard.anonymous(1), time.monotonic()
    row = board.allocate(1)
    assert row is not None
    row.words[W_STATE], row.words[W_THREADS] = state, 1
    watch = Unresponsive(Settings(), lambda: 35.0, lambda at: None)
    watch.silent(now - 1.0, [])
    row.words[W_HEARTBEAT_NS] = int((now - seconds) * 1e9)
    child = Child(SimpleNamespace(pid=0), row, now - 60, ready_at=now - 50)
    watch.silent(now, [child])
    assert child.asked == asked


def test_silence_that_the_master_shared_is_nobodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                   workers: dict[int, Any]) -> None:
    """A worker that was silent before the standstill stays as silent as it was; one that boots is not touched."""
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    arbiter, _ = supervised()
    files = [(tmp_path / name).open("wb") for name in ("silent", "lively", "boots")]
    for pid, (file, last) in enumerate(zip(files, (980.0, 1040.0, 9e8), strict=True), 1):
        os.utime(file.fileno(), (last, last))
        tmp = SimpleNamespace(fileno=file.fileno, last_update=lambda file=file: os.fstat(file.fileno()).st_mtime)
        workers[pid] = SimpleNamespace(aborted=True, tmp=tmp)
    now[0] = 1045.0
    arbiter.murder_workers()
    assert [worker.tmp.last_update() for worker in workers.values()] == [1025.0, 1045.0, 9e8]
    for file in files:
        file.close()


def test_the_settings_of_a_reload_are_the_supervisors_own() -> None:
    """All that it was made with: of restarts, retiring workers, memory and silence; crashes so far count on."""
    _, supervisor = supervised(max_restarts=1000, retire_mercy=7.0)
    now = time.monotonic()
    for _ in range(4):
        supervisor.restarts.crashed(now, 100.0)
    assert not supervisor.restarts.too_many(now)
    changed = Settings(max_restarts=3, retire_mercy=9.0, surge=False, guard_interval=4.0)
    supervisor.configure(changed)
    assert supervisor.restarts.too_many(now)
    assert supervisor.kill_timeout() == 9.0
    assert not supervisor.fleet.may_surge()
    assert supervisor.settings is changed


def test_no_worker_is_started_without_a_row() -> None:
    """However many are asked for: nobody could see what it does; that is told once a minute."""
    board = Scoreboard.anonymous(2)
    arbiter, _ = supervised(board)
    for _ in range(4):
        arbiter.spawn_worker()
        board.allocate(1)
    assert arbiter.started == 2


@pytest.mark.parametrize(("most", "rows", "base", "room"), [(128, 64, 4, 54), (7, 64, 4, 7), (128, 64, 40, 0)])
def test_spare_workers_leave_rows_for_a_reload(most: int, rows: int, base: int, room: int) -> None:
    """One cap: the setting, the memory and the rows."""
    assert spare_workers.room(base, 0, most=most, rows=rows, memory=1000) == room


def test_the_target_is_gunicorns_only_while_it_manages(monkeypatch: pytest.MonkeyPatch) -> None:
    """TTIN that comes meanwhile is kept, and a worker that cannot be started changes nothing."""
    arbiter, supervisor = supervised(Scoreboard.anonymous(9))
    supervisor.ever_ready = True
    monkeypatch.setattr(supervisor, "tick", lambda: 5)
    held = []

    def manage(self: Any) -> None:
        held.append(self.num_workers)
        self.num_workers += 1  # TTIN
        raise OSError("no process")

    monkeypatch.setattr(Arbiter, "manage_workers", manage)
    arbiter.num_workers = 2
    arbiter.manage_workers()
    assert held == [5]
    assert arbiter.base == 3
    assert supervisor.restarts.held(time.monotonic())


def test_only_what_ends_the_service_on_purpose_leaves_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a reason and a status, or in good order; a fault of ours is told, and gunicorn manages as before."""
    arbiter, supervisor = supervised()
    for error, expected in ((EndOfService("too many crashes", 7), HaltServer), (EndOfService(), StopIteration)):
        def fail(now: float, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(supervisor, "_tick", fail)
        with pytest.raises(expected) as found:
            arbiter.manage_workers()
        if expected is HaltServer:
            assert (found.value.reason, found.value.exit_status) == ("too many crashes", 7)
    supervisor.ever_ready = True

    def fault(now: float) -> int:
        raise RuntimeError("ours")

    monkeypatch.setattr(supervisor, "_tick", fault)
    arbiter.manage_workers()
    assert arbiter.started == 1


def test_a_reload_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch, workers: dict[int, Any]) -> None:
    """The configuration, the number of workers and the workers are those of before."""
    arbiter, supervisor = supervised()
    workers[1] = SimpleNamespace(age=1)
    cfg, base = arbiter.cfg, arbiter.base

    def reload(self: Any) -> None:
        self.cfg, self._num_workers = None, 77
        self.manage_workers()  # hides the old workers
        assert not workers, "still to be seen"
        raise SystemExit(1)

    monkeypatch.setattr(Arbiter, "reload", reload)
    arbiter.reload()
    assert (arbiter.cfg, arbiter.base, arbiter.app.cfg) == (cfg, base, cfg)
    assert list(workers) == [1]
    assert not arbiter.in_reload
    assert not supervisor.reloads.under_way(supervisor.state)


@pytest.mark.parametrize("kind", [SupervisedArbiter, SupervisedArbiter23])
def test_what_we_add_to_an_arbiter_has_no_name_of_gunicorns(kind: type) -> None:
    """But what is overridden on purpose."""
    overridden = {"handle_chld", "handle_term", "handle_usr1", "manage_workers", "murder_workers", "reap_workers",
                  "reload", "sleep", "spawn_worker", "spawn_workers", "stop", "wait_for_signals"}
    ours = {name for base in (kind, SupervisedArbiter) for name in (*vars(base), *base.__annotations__)
            if not name.startswith("__")} - {"_num_workers"}
    assert ours & names_of(Arbiter) <= overridden


def test_an_arbiter_that_cannot_become_another_is_left_as_it_is() -> None:
    """One that is made otherwise than gunicorn's own: the service starts without a supervisor."""
    class Last(Forkless):
        def __init_subclass__(cls) -> None:
            raise TypeError("no")

    arbiter = Last()
    assert supervise(arbiter) is None
    assert type(arbiter) is Last
