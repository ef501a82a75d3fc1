"""What watching a worker's memory costs: time of one look, an idle worker's share of a core and private memory with and
without the extension, and what STABILITY_GC_FREEZE saves.

``python tests/benchmarks/bench_memory.py``; medians.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from flask_stability.config import Settings  # noqa: E402
from flask_stability.memory import sampler  # noqa: E402
from flask_stability.scoreboard import Scoreboard  # noqa: E402
from support import Server, wait_until  # noqa: E402

BARE = "from flask import Flask\napp = Flask(__name__)\n"
WATCHED = BARE + "from flask_stability import StabilityExt\nStabilityExt(app)\n"
LARGE = WATCHED + "kept = [[{'number': number} for number in range(200)] for _ in range(2000)]\n"
IDLE = 30.0  #: seconds


def _looks(number: int = 3000) -> tuple[float, float]:
    """Microseconds of one look, the slow ones included as they come once in 15 s; and bytes added."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    before = sampler.resident()
    watch = sampler.MemoryWatch(replace(Settings(), memory_limit=1 << 40), row, board=board)
    now, times = time.monotonic(), []
    for second in range(number):
        started = time.perf_counter()
        watch.tick(now + second)
        times.append(time.perf_counter() - started)
    return statistics.mean(times) * 1e6, sampler.resident() - before


ADDED = """
import sys, time
import flask, flask_stability
from flask_stability import config, logs, scoreboard as board
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
before, known = resident(), set(sys.modules)
from flask_stability.memory.sampler import MemoryWatch
one = board.Scoreboard.anonymous(1)
watch, now = MemoryWatch(config.Settings(), one.allocate(1), board=one), time.monotonic()
for second in range(3000):
    watch.tick(now + second)
print(resident() - before, len(set(sys.modules) - known))
"""


def _added() -> tuple[float, int]:
    """Bytes that an app with the extension grows by through a watch, fifty minutes of looks; modules it imports."""
    found = subprocess.run([sys.executable, "-c", ADDED], cwd=Path(__file__).resolve().parents[2], check=True,
                           capture_output=True, text=True).stdout.split()
    return int(found[0]), int(found[1])


def _proportional(folder: Path, *, freeze: bool) -> float:
    """MB of proportional memory of one of four workers of a preloaded app, once each has collected garbage."""
    env = {"STABILITY_GC_FREEZE": "1" if freeze else "0", "STABILITY_HEALTH_INTERVAL": "30"}
    with Server(folder, source=LARGE, workers=4, config="preload_app = True", env=env) as one:
        wait_until(lambda: len(one.health()["detailed"]["workers"]) == 4)
        for worker in one.workers():
            worker.send_signal(signal.SIGUSR2)
        wait_until(lambda: len(one.records("process-manager", "garbage_collected")) == 4)
        return statistics.mean(worker.memory_full_info().pss for worker in one.workers()) / 1e6


def _idle_worker(folder: Path, *, extension: bool) -> tuple[float, float]:
    """Share of a core and MB of private memory of an idle worker, its first seconds left out."""
    source = WATCHED if extension else BARE
    with Server(folder, source=source, workers=2, use_hooks=extension, env={"STABILITY_HEALTH_INTERVAL": "30"}) as one:
        time.sleep(8)
        workers = one.workers()
        before = [sum(worker.cpu_times()[:2]) for worker in workers]
        started = time.monotonic()
        time.sleep(IDLE)
        spent = [sum(worker.cpu_times()[:2]) - at for worker, at in zip(workers, before, strict=True)]
        shares = [seconds / (time.monotonic() - started) for seconds in spent]
        return statistics.mean(shares), statistics.mean(worker.memory_full_info().uss for worker in workers) / 1e6


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as name:
        bare = _idle_worker(Path(name, "bare"), extension=False)
        watched = _idle_worker(Path(name, "watched"), extension=True)
    print(f"an idle worker     {watched[0] - bare[0]:.3%} of a core more than a bare one, all threads of the extension "
          f"(to stay below 0.5 %)")
    print(f"                   {watched[1] - bare[1]:.2f} MB of private memory more ({bare[1]:.1f} → "
          f"{watched[1]:.1f}), all rooms and what they import included")
    looks = [_looks() for _ in range(5)]
    cost = statistics.median(cost for cost, _ in looks)
    print(f"one look           {cost:8.1f} µs   {cost / 1e6:.4%} of a core at one a second (to stay below 0.5 %)")
    print(f"memory of a watch  {statistics.median(size for _, size in looks) / 1e6:8.2f} MB   (to stay below 3 MB)")
    added = [_added() for _ in range(5)]
    print(f"in a fresh process {statistics.median(size for size, _ in added) / 1e6:8.2f} MB   "
          f"with {added[0][1]} modules not imported before and the baseline of objects")
    with tempfile.TemporaryDirectory() as name:
        plain, frozen = (_proportional(Path(name, str(freeze)), freeze=freeze) for freeze in (False, True))
    print(f"a preloaded app of 400,000 dicts in four workers, each after a collection: {plain:.0f} MB of proportional "
          f"memory a worker, with STABILITY_GC_FREEZE {frozen:.0f} MB")


if __name__ == "__main__":
    main()
