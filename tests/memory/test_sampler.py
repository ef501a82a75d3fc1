"""Measuring this very process."""

from __future__ import annotations

import gc
import math
import mmap
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.memory import cgroup, collect, sampler
from flask_stability.memory.policy import Action
from flask_stability.memory.process import sizes
from flask_stability.memory.sampler import MemoryWatch, confirmed, resident
from flask_stability.scoreboard import Row, Scoreboard
from flask_stability.signals import leak_suspected
from support import fork


def test_resident_memory_is_what_psutil_says() -> None:
    """Within what changes between the two looks."""
    assert abs(resident() - psutil.Process().memory_info().rss) < 8 << 20


def test_private_memory_is_part_of_the_resident() -> None:
    """And its proportional share lies between."""
    proportional, private = confirmed()
    assert 0 < private <= proportional <= resident() + (8 << 20)


def test_a_forked_child_measures_itself() -> None:
    """The descriptor of /proc is the child's own."""
    resident()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        block = bytearray(60 << 20)
        block[::4096] = b"x" * len(block[::4096])
        os.write(write, str(resident()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    child = int(os.read(read, 32))
    os.close(read)
    os.close(write)
    assert child > 60 << 20


@pytest.fixture
def board() -> Scoreboard:
    """Of one worker."""
    return Scoreboard.anonymous(1)


@pytest.fixture
def row(board: Scoreboard) -> Row:
    """The worker's."""
    row = board.allocate(1)
    assert row is not None
    return row


def test_it_publishes_and_decides(board: Scoreboard, row: Row) -> None:
    """Above its limit it reclaims, measures again, and asks for replacement."""
    limit = sizes()[1] + (64 << 20)
    settings = replace(Settings(), memory_limit=limit, memory_hard_factor=1000.0, memory_limit_jitter=0.0)
    watch = MemoryWatch(settings, row, board=board)
    now = time.monotonic()
    held = b"x" * (128 << 20)
    decisions = [watch.tick(now + second) for second in range(4)]
    assert [decision.action for decision in decisions] == [Action.NONE, Action.NONE, Action.RETIRE, Action.RETIRE]
    assert "resident" in decisions[2].text
    assert row.words[sb.W_OWN_MEMORY] > len(held)
    assert row.words[sb.W_RSS] > 10 << 20
    assert row.words[sb.W_GC_RUNS] == 1
    assert row.words[sb.W_MEMORY_LIMIT] == limit
    assert math.isnan(row.floats[sb.F_SECONDS_TO_LIMIT]) or row.floats[sb.F_SECONDS_TO_LIMIT] == 0
    before = threading.active_count()  # another test's thread may be ending
    watch.tick(now + 30)
    assert before >= row.words[sb.W_N_THREADS] >= threading.active_count() >= 1
    assert row.words[sb.W_N_FDS] > 2
    assert row.words[sb.W_N_GC_OBJECTS] > 10_000


def test_a_mapped_file_is_none_of_the_workers(row: Row, tmp_path: Path) -> None:
    """It is the kernel's cache, however much of it is read: a replacement would map and read it again."""
    path = tmp_path / "index"
    with path.open("wb") as file:
        for _ in range(150):
            file.write(os.urandom(1 << 20))
    limit = sizes()[1] + (60 << 20)
    watch = MemoryWatch(replace(Settings(), memory_limit=limit), row)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as index:
        sum(index[at] for at in range(0, len(index), 4096))
        assert resident() > limit + (60 << 20)
        now = time.monotonic()
        assert all(watch.tick(now + second).action is Action.NONE for second in range(10))


def test_what_a_forked_worker_shares_is_not_its_own_until_it_writes_to_it(tmp_path: Path) -> None:
    """A preloaded model counts for no worker; what the worker writes to becomes its own."""
    model = bytearray(os.urandom(1 << 20) * 100)

    def worker() -> None:
        row = Scoreboard.anonymous(1).allocate(1)
        assert row is not None
        watch = MemoryWatch(replace(Settings(), memory_limit=60 << 20, memory_limit_jitter=0.0,
                                    memory_hard_factor=1000.0), row)
        now = time.monotonic()
        assert sizes()[1] > 100 << 20
        assert [watch.tick(now + second).action for second in range(5)] == [Action.NONE] * 5
        assert row.words[sb.W_OWN_MEMORY] < 50 << 20
        assert row.words[sb.W_COMMON_MEMORY] > 100 << 20
        model[::4096] = b"y" * len(model[::4096])
        found = [watch.tick(now + 61 + second).action for second in range(6)]
        assert Action.RETIRE in found

    _, status = os.waitpid(fork(worker), 0)
    assert status == 0


def test_a_limit_below_what_the_app_needs_is_not_enforced(row: Row) -> None:
    """Every worker would be replaced, for ever."""
    watch = MemoryWatch(replace(Settings(), memory_limit=1 << 20), row)
    now = time.monotonic()
    assert all(watch.tick(now + second).action is Action.NONE for second in range(10))
    assert row.words[sb.W_MEMORY_LIMIT] > 1.4 * row.words[sb.W_OWN_MEMORY]


def test_each_worker_has_a_limit_of_its_own(row: Row) -> None:
    """Lowered by up to the jitter, so that they do not cross together."""
    settings = replace(Settings(), memory_limit=1000 << 20, memory_limit_jitter=0.1)
    limits = {int(MemoryWatch(settings, row)._judge.limit()) for _ in range(20)}
    assert len(limits) > 15
    assert 900 << 20 <= min(limits) <= max(limits) <= 1000 << 20


def test_a_limit_out_of_the_container_leaves_room_for_what_is_there(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container too small for its workers must not have fresh ones replaced for ever."""
    monkeypatch.setattr(cgroup, "limit", lambda: 10 << 20)
    watch = MemoryWatch(Settings(), row, workers=4)
    assert row.words[sb.W_MEMORY_LIMIT] >= 1.4 * row.words[sb.W_OWN_MEMORY] > 0
    now = time.monotonic()
    assert all(watch.tick(now + second).action is Action.NONE for second in range(30))


def test_what_other_workers_know_counts(board: Scoreboard, row: Row) -> None:
    """The learned floor, and when growth may be replaced again, from the master's words."""
    watch = MemoryWatch(Settings(), row, board=board)
    board.master.words[sb.M_WARM_FLOOR] = 123 << 20
    board.master.words[sb.M_GROWTH_AFTER_NS] = 5_000_000_000
    board.master.words[sb.M_GROWTH_PATIENCE] = 1
    row.words[sb.W_STARTED_NS], row.words[sb.W_READY_NS] = 10**9, 4 * 10**9
    watch.tick(time.monotonic())
    judge = watch._judge
    assert (judge.learned, judge.growth_after, judge.patient) == (123 << 20, 5.0, True)
    assert judge.replacement == 3.0 + 4.0


def test_under_pressure_it_collects_once_a_minute(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at all when there is none, or when reclaiming is off."""
    monkeypatch.setattr(cgroup, "available", lambda: 0)
    monkeypatch.setattr(sampler, "collect", lambda: 0)  # one that takes long is made more seldom
    monkeypatch.setattr(sampler, "COLLECT_SHARE", 1.0)
    off = MemoryWatch(replace(Settings(), memory_reclaim=False), row)
    watch = MemoryWatch(Settings(), row)
    now = time.monotonic()
    for second in range(0, 110, 5):
        off.tick(now + second)
    assert row.words[sb.W_GC_RUNS] == 0
    for second in range(0, 110, 5):
        watch.tick(now + second)
    assert row.words[sb.W_GC_RUNS] == 2
    monkeypatch.setattr(cgroup, "available", lambda: 1 << 60)
    monkeypatch.setattr(cgroup, "pressure", lambda: 0.0)
    for second in range(110, 400, 5):
        watch.tick(now + second)
    assert row.words[sb.W_GC_RUNS] == 2


def test_collections_that_take_long_are_made_seldom(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under pressure they take a hundredth of the time at most: all threads wait for them."""
    monkeypatch.setattr(cgroup, "available", lambda: 0)
    monkeypatch.setattr(sampler, "collect", lambda: time.sleep(0.2) or 0)
    monkeypatch.setattr(sampler, "COLLECT_SHARE", 0.001)
    watch = MemoryWatch(Settings(), row)
    now = time.monotonic()
    for second in range(0, 180, 5):
        watch.tick(now + second)
    assert row.words[sb.W_GC_RUNS] == 1
    second = 180
    while row.words[sb.W_GC_RUNS] == 1:  # the slower the machine was, the later
        second += 5
        assert second < 20_000
        watch.tick(now + second)
    assert second >= 195


def test_without_figures_nothing_is_decided(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc is hidden the rest of the guard goes on: no error, no replacement, no verdict."""
    monkeypatch.setattr(sampler, "sizes", lambda: (0, 0))
    monkeypatch.setattr(sampler, "confirmed", lambda: (0, 0))
    monkeypatch.setattr(cgroup, "_machine", lambda: (0, None))
    monkeypatch.setattr(cgroup, "_OWN", "/nowhere")
    watch = MemoryWatch(replace(Settings(), memory_limit=1 << 30), row)
    now = time.monotonic()
    assert all(watch.tick(now + 7.0 * step).action is Action.NONE for step in range(600))
    assert not row.words[sb.W_LEAK_VERDICT]
    assert watch.next_interval() == 1.0


def test_a_leak_is_told_once_with_its_trend(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the log, by the signal, on the board; a limit says how soon."""
    size = [100 << 20]
    monkeypatch.setattr(sampler, "sizes", lambda: (size[0], size[0]))
    monkeypatch.setattr(sampler, "confirmed", lambda: (size[0], size[0]))
    told: list[dict[str, object]] = []

    def receiver(sender: object, **told_of: object) -> None:
        told.append(told_of)

    settings = replace(Settings(), memory_limit=1 << 30, memory_limit_jitter=0.0, memory_growth=1000.0)
    with leak_suspected.connected_to(receiver):
        watch = MemoryWatch(settings, row)
        now = time.monotonic()
        for minute in range(1, 200):
            size[0] += 1_000_000
            watch.tick(now + 60.1 * minute)
    assert [one["kind"] for one in told if one["kind"] == "memory"] == ["memory"]
    assert row.words[sb.W_LEAK_VERDICT] == 1
    assert row.floats[sb.F_MEMORY_TREND] == pytest.approx(1_000_000)
    assert row.floats[sb.F_SECONDS_TO_LIMIT] == pytest.approx(((1 << 30) - size[0]) / 1e6 * 60, rel=0.05)
    assert row.words[sb.W_WARM_FLOOR] < 120 << 20


def test_collect_frees_cycles_and_tells_how_much() -> None:
    """Garbage in cycles is gone, and the memory with it."""
    gc.disable()
    try:
        for _ in range(2000):
            cycle: list[object] = [bytearray(20_000)]
            cycle.append(cycle)
        del cycle
        freed = collect()
    finally:
        gc.enable()
    assert freed > 10 << 20


def test_the_machines_memory_is_known() -> None:
    """With or without a container."""
    assert cgroup.total() > 100 << 20
    available = cgroup.available()
    assert available is not None
    assert 0 < available <= psutil.virtual_memory().total
    assert cgroup.oom_kills() >= 0
    assert 0 <= cgroup.pressure() <= 100
