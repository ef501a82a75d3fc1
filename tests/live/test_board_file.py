"""A run directory that takes no file: the service starts and runs, with a board that has none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from supervised import Supervised, starting

from support import wait_until

Start = Callable[..., Supervised]
#: A mount in a namespace of the master's own goes with the process.
FAULTS = {
    "a full disk": "size=64k",
    "a read-only disk": "ro,size=64m",
}
MOUNT = """
import ctypes, os, subprocess
assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", {options!r}, "none", os.environ["STABILITY_RUN_DIR"]], check=True)
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that end with the test."""
    with starting(tmp_path) as start:
        yield start


def _may_mount() -> bool:
    return (os.geteuid() == 0 and shutil.which("unshare") is not None
            and subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"],
                               capture_output=True).returncode == 0)


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_service_starts_and_runs_without_the_boards_file(supervised: Start, worker_class: str, fault: str,
                                                             preload: bool) -> None:
    """One warning; /health knows all workers, a killed one is replaced, and what it had counted stays."""
    if not _may_mount():
        pytest.skip("may not mount")
    config = MOUNT.format(options=FAULTS[fault])
    server = supervised(worker_class=worker_class, config=f"{config}\npreload_app = {preload}")
    assert server.logs().count("no scoreboard file in") == 1

    def workers() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = server.health()["detailed"]["workers"]
        return found

    def full() -> bool:
        return {one["pid"] for one in workers() if one["state"] == "ready"} == set(server.worker_pids()) != set()

    wait_until(lambda: full() and len(workers()) == 2)
    for _ in range(10):
        assert server.get("/").ok
    wait_until(lambda: server.health()["detailed"]["requests"]["total"] == 10)  # counted after the answer
    victim = server.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    server.retired(victim)
    wait_until(lambda: full() and len(workers()) == 2)
    document = server.health()["detailed"]
    assert document["requests"]["total"] == 10
    assert document["restarts"]["by_reason"] == {"crash_signal": 1}


NOWHERE = """
import ctypes, os, subprocess
assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", "/dev/shm"], check=True)
for name in ("STABILITY_RUN_DIR", "XDG_RUNTIME_DIR"):
    os.environ.pop(name, None)
"""


def test_a_service_without_any_place_for_its_board_says_so(supervised: Start, worker_class: str) -> None:
    """Else `flask stability status` finds nothing, and nothing says why."""
    if not _may_mount():
        pytest.skip("may not mount")
    server = supervised(worker_class=worker_class, config=NOWHERE)
    assert server.logs().count("no scoreboard file: /dev/shm cannot be written, set STABILITY_RUN_DIR") == 1
    wait_until(lambda: server.get("/").ok)
