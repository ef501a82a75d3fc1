"""What a run cost: processor seconds, the share of time in which no core worked, the counts of several passes together.

The figures of a run are the whole machine's: what else runs on it counts. Those of a test are of its process and of the
programs that ended in it: what a fixture of a module started is in the figure of its last test.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

INTERVAL = 0.25  #: seconds between two looks at the processors
BUSY = 0.1  #: a core that worked for a smaller part of an interval was idle
_KINDS = ("failed", "error", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings")


class Meter:
    """Looks at the processors until it is stopped."""

    def __init__(self) -> None:
        self._looks = self._idle = 0
        self._cpu = psutil.cpu_times()
        self._began, self._done = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="meter")
        self._thread.start()

    def _run(self) -> None:
        psutil.cpu_percent(percpu=True)
        while not self._done.wait(INTERVAL):
            self._looks += 1
            self._idle += all(one < 100 * BUSY for one in psutil.cpu_percent(percpu=True))

    def stop(self) -> dict[str, float]:
        """Wall seconds, processor seconds of the machine and of this process's children, share of idle time."""
        self._done.set()
        self._thread.join()
        now, own = psutil.cpu_times(), os.times()
        idle = sum(getattr(now, name, 0.0) - getattr(self._cpu, name, 0.0)
                   for name in ("idle", "iowait", "steal", "guest", "guest_nice"))
        return {"seconds": time.monotonic() - self._began, "machine": sum(now) - sum(self._cpu) - idle,
                "own": sum(own[:4]), "idle": self._idle / max(1, self._looks)}


COSTLIEST = 15  #: tests, and files, whose processor seconds are printed
_COST = "processor seconds"
_METER = pytest.StashKey[Meter]()
_LINES = pytest.StashKey[list[str]]()
_SPENT = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--measure`` and ``--tally``."""
    parser.addoption("--measure", action="store_true", help="print processor seconds and the share of idle time")
    parser.addoption("--tally", type=Path, help="add this pass's result to the file, and end with the sum of all")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to measure, in the process that directs."""
    if config.getoption("--measure") and not hasattr(config, "workerinput"):
        config.stash[_METER] = Meter()


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Remember what had been spent before the test."""
    item.stash[_SPENT] = _spent()
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Put what the test has spent into its last report, which comes to the process that directs."""
    report = (yield).get_result()
    if call.when == "teardown":
        report.user_properties.append((_COST, _spent() - item.stash[_SPENT]))


def _spent() -> float:
    return sum(os.times()[:4])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the figures, and keep the counts, in the process that directs."""
    if hasattr(config, "workerinput"):
        return
    passes = _read(config.getoption("--tally"))
    one: dict[str, Any] = {
        "counts": {kind: len(terminalreporter.stats.get(kind, ())) for kind in _KINDS},
        "failed": [report.nodeid for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, ())]}
    if _METER in config.stash:
        figures = one["figures"] = config.stash[_METER].stop()
        terminalreporter.write_line(
            f"{figures['seconds']:.0f} s; processor seconds: {figures['machine']:.0f} of the machine, "
            f"{figures['own']:.0f} of these processes; all cores idle for {figures['idle']:.0%} of the time")
        _show_costs(terminalreporter)
    if path := config.getoption("--tally"):
        path.write_text(json.dumps([*passes, one]))
        config.stash[_LINES] = _sum([*passes, one])


def _show_costs(terminalreporter: Any) -> None:
    tests: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if cost := dict(getattr(report, "user_properties", ())).get(_COST):
            tests[report.nodeid] += cost
            files[report.nodeid.partition("::")[0]] += cost
    for costs in (files, tests):
        terminalreporter.section(f"processor seconds: the {COSTLIEST} costliest of {len(costs)}", "-")
        for name, cost in costs.most_common(COSTLIEST):
            terminalreporter.write_line(f"{cost:7.1f}  {name}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print the sum as the last line, below pytest's own."""
    for line in config.stash.get(_LINES, []):
        print(line)


def _read(path: Path | None) -> list[dict[str, Any]]:
    """The passes before this one."""
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path and path.exists() and path.stat().st_size else []
    return found


def _sum(passes: list[dict[str, Any]]) -> list[str]:
    """What failed in the earlier passes, and pytest's line for all of them; nothing for a single one."""
    if len(passes) < 2:
        return []
    lines = [f"FAILED {name}" for one in passes[:-1] for name in one["failed"]]
    counts = {kind: sum(one["counts"][kind] for one in passes) for kind in _KINDS if kind != "deselected"}
    words = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    seconds = sum(one.get("figures", {}).get("seconds", 0.0) for one in passes)
    return [*lines, f"===== all passes: {words or 'no tests ran'} in {seconds:.2f}s ====="]
