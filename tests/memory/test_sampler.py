"""Measuring this very process."""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import replace

import psutil

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.memory import autopsy, cgroup, collect
from flask_stability.memory.policy import Action
from flask_stability.memory.sampler import MemoryWatch, confirmed, resident
from flask_stability.scoreboard import Scoreboard


class Leaked:
    """What the autopsy has to name."""

    def __init__(self) -> None:
        self.data = os.urandom(100) * 500


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


def test_it_publishes_and_decides() -> None:
    """Above a limit that this process has long passed it reclaims, and then asks for replacement."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    watch = MemoryWatch(replace(Settings(), memory_limit=1 << 20, memory_hard_factor=1000.0), row, board=board)
    now = time.monotonic()
    actions = [watch.tick(now + second).action for second in range(6)]
    assert Action.RETIRE in actions
    assert actions[0] is Action.NONE
    assert row.words[sb.W_RSS] > 10 << 20
    assert row.words[sb.W_GC_RUNS] == 1
    watch.tick(now + 30)
    assert row.words[sb.W_N_THREADS] == threading.active_count()
    assert row.words[sb.W_N_FDS] > 2


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


def test_the_autopsy_names_the_type_that_grew_first() -> None:
    """A record that a developer can act on."""
    autopsy.baseline()
    kept = [Leaked() for _ in range(400)]
    report = autopsy.report("memory")
    assert report["grown_types"][0]["type"].endswith("Leaked"), report["grown_types"][:3]
    assert report["grown_types"][0]["objects"] >= 400
    assert report["threads"] >= 1
    assert len(kept) == 400


def test_the_machines_memory_is_known() -> None:
    """With or without a container."""
    assert cgroup.total() > 100 << 20
    available = cgroup.available()
    assert available is not None
    assert 0 < available <= psutil.virtual_memory().total
    assert cgroup.oom_kills() >= 0
    assert 0 <= cgroup.pressure() <= 100
