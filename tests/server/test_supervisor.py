"""The master's wrapped methods, around an arbiter in miniature."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flask_stability.config import Settings
from flask_stability.scoreboard import (
    STATE_READY,
    STATE_STOPPING,
    W_HEARTBEAT_NS,
    W_STATE,
    W_THREADS,
    Scoreboard,
)
from flask_stability.server import supervisor as module
from flask_stability.server.supervisor import Supervisor
from flask_stability.server.workers import Child


class Arbiter(SimpleNamespace):
    """As much of gunicorn's as the supervisor wraps; what murders workers does it as gunicorn's own does."""

    def __init__(self) -> None:
        super().__init__(WORKERS={}, sent=[], worker_age=0, reexec_pid=0, master_pid=0, _num_workers=1, log=None,
                         app=None, cfg=SimpleNamespace(), LISTENERS=[])
        for name in ("manage_workers", "reap_workers", "reload", "stop", "handle_term", "handle_usr1"):
            setattr(self, name, lambda *_: None)

    def murder_workers(self) -> None:
        """SIGABRT at the first look, SIGKILL at the next."""
        for pid, worker in self.WORKERS.items():
            self.sent.append((pid, "SIGKILL" if worker.aborted else "SIGABRT"))
            worker.aborted = True


def test_a_worker_past_its_timeout_has_time_for_its_stacks_however_often_the_master_looks(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer's ready word wakes the master at once: SIGKILL still comes no sooner than from an idle master."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], monotonic_ns=lambda: 0))
    arbiter: Any = Arbiter()
    assert Supervisor(arbiter, Scoreboard.anonymous(1), Settings()).wrap()
    arbiter.WORKERS[7] = SimpleNamespace(aborted=False)
    for _ in range(5):
        arbiter.murder_workers()
        now[0] += 0.01
    assert arbiter.sent == [(7, "SIGABRT")]
    now[0] += 1.0
    arbiter.murder_workers()
    assert arbiter.sent == [(7, "SIGABRT"), (7, "SIGKILL")]


@pytest.mark.parametrize(("state", "seconds", "asked"), [
    (STATE_READY, 2.9, ""), (STATE_READY, 3.1, "stuck"), (STATE_STOPPING, 34.0, ""), (STATE_STOPPING, 36.0, "stuck")])
def test_a_worker_that_leaves_by_itself_is_given_the_time_of_one_that_was_told_to(state: int, seconds: float,
                                                                                 asked: str) -> None:
    """It gives no sign of life while its interpreter ends; all that serve nobody may do so at once."""
    arbiter: Any = Arbiter()
    arbiter.cfg.graceful_timeout = 30
    board, now = Scoreboard.anonymous(1), time.monotonic()
    row = board.allocate(1)
    assert row is not None
    row.words[W_STATE], row.words[W_THREADS] = state, 1
    row.words[W_HEARTBEAT_NS] = int((now - seconds) * 1e9)
    supervisor = Supervisor(arbiter, board, Settings())
    supervisor._ticked = now
    child = Child(SimpleNamespace(pid=0), row, now - 60, ready_at=now - 50)
    supervisor._silent(now, [child])
    assert child.asked == asked


def test_silence_that_the_master_shared_is_nobodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker that was silent before the standstill stays as silent as it was; one that boots is not touched."""
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], monotonic_ns=lambda: 0))
    arbiter: Any = Arbiter()
    assert Supervisor(arbiter, Scoreboard.anonymous(1), Settings()).wrap()
    files = [(tmp_path / name).open("wb") for name in ("silent", "lively", "boots")]
    for pid, (file, last) in enumerate(zip(files, (980.0, 1040.0, 9e8), strict=True), 1):
        os.utime(file.fileno(), (last, last))
        tmp = SimpleNamespace(fileno=file.fileno, last_update=lambda file=file: os.fstat(file.fileno()).st_mtime)
        arbiter.WORKERS[pid] = SimpleNamespace(aborted=True, tmp=tmp)
    now[0] = 1045.0
    arbiter.murder_workers()
    assert [worker.tmp.last_update() for worker in arbiter.WORKERS.values()] == [1025.0, 1045.0, 9e8]
    for file in files:
        file.close()


def test_no_worker_is_started_without_a_row() -> None:
    """However many are asked for: nobody could see what it does; that is told once a minute."""
    started: list[int] = []
    arbiter: Any = Arbiter()
    arbiter.spawn_worker = lambda: started.append(1)
    board = Scoreboard.anonymous(2)
    supervisor = Supervisor(arbiter, board, Settings())
    assert supervisor.wrap()
    for _ in range(4):
        arbiter.spawn_worker()
        board.allocate(1)
    assert len(started) == 2


@pytest.mark.parametrize(("most", "rows", "base", "room"), [(128, 64, 4, 54), (7, 64, 4, 7), (128, 64, 40, 0)])
def test_spare_workers_leave_rows_for_a_reload(monkeypatch: pytest.MonkeyPatch, most: int, rows: int, base: int,
                                               room: int) -> None:
    """One cap: the setting, the memory and the rows."""
    arbiter: Any = Arbiter()
    arbiter._num_workers = base
    supervisor = Supervisor(arbiter, Scoreboard.anonymous(rows), Settings(spare_max=most))
    monkeypatch.setattr(supervisor, "_room", lambda: 1000)
    assert supervisor._spare_room() == room
