"""A start that cannot work ends, with its reason in one line and an exit status."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from supervised import SOURCE, Supervised, starting

from support import wait_until

Start = Callable[..., Supervised]
BAD_CONFIG = """
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
app.config["STABILITY_DB_TIMEOUT"] = "soon"
StabilityExt(app)
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that end with the test."""
    with starting(tmp_path) as start:
        yield start


@pytest.mark.parametrize("folder", ["/nowhere/tmp", "/proc"])
def test_no_place_for_the_workers_file(supervised: Start, worker_class: str, folder: str) -> None:
    """It is not there, or nobody can write to it."""
    server = supervised(worker_class=worker_class, wait=False, config=f"worker_tmp_dir = {folder!r}")
    assert server.process.wait(60) == 1
    assert server.logs().count("no worker can be started") == 1
    assert "worker_tmp_dir" in server.logs()
    assert "Traceback" not in server.logs()
    assert len(server.records("process-manager", "never_worked")) == 1


@pytest.mark.parametrize(("preload", "status"), [(False, 4), (True, 1)])
def test_a_bad_value_in_app_config_is_one_line(supervised: Start, preload: bool, status: int) -> None:
    """Not a traceback from each worker."""
    server = supervised(workers=4, source=BAD_CONFIG, wait=False, config=f"preload_app = {preload}")
    assert server.process.wait(60) == status
    assert server.logs().count("STABILITY_DB_TIMEOUT") == 1
    assert "soon" in server.logs()
    assert "Traceback" not in server.logs()


@pytest.mark.long
@pytest.mark.parametrize(("source", "reason"), [
    ("import os\nos.kill(os.getpid(), 9)", "crash_signal"),
    ("import os\nos._exit(1)", "boot_failure")])
def test_workers_that_all_end_before_they_are_ready_end_it(supervised: Start, source: str, reason: str) -> None:
    """However they end: gunicorn alone would start them for ever."""
    server = supervised(workers=1, wait=False, source=source)
    assert server.process.wait(90) == 3
    lines = [line for line in server.logs().splitlines() if "no worker ever became ready, 3 ended before" in line]
    assert len(lines) == 1
    assert reason in lines[0]


def test_a_worker_that_its_service_killed_did_not_want_memory(supervised: Start) -> None:
    """gunicorn's guess at it stays where somebody else sent the SIGKILL."""
    server = supervised(workers=1, source=SOURCE)
    server.kill(server.worker_pids()[0])
    server.full(1)
    assert server.logs().count("Perhaps out of memory?") == 1
    (server.folder / "app.py").write_text("import time\ntime.sleep(600)")
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    wait_until(lambda: len(server.records("process-manager", "worker_boot")) == 3)
    server.signal(signal.SIGTERM)
    server.process.wait(60)
    assert server.logs().count("Perhaps out of memory?") == 2
    assert server.logs().count("killed by this service: shutdown") == 1


FIRST_OF_TWO = """
import time
from pathlib import Path
if Path("first").exists():
    while not Path("second").exists():
        time.sleep(0.1)
else:
    Path("first").touch()
    time.sleep(3)
"""


@pytest.mark.long
def test_a_reload_while_the_only_worker_boots_does_not_kill_it(supervised: Start, worker_class: str) -> None:
    """Nobody else would answer: it goes once the one that has the new code is ready."""
    server = supervised(workers=1, worker_class=worker_class, wait=False, source=FIRST_OF_TWO + SOURCE)
    wait_until((server.folder / "first").exists, message="the worker boots")
    first = server.worker_pids()[0]
    server.signal(signal.SIGHUP)

    def answering() -> int:
        with contextlib.suppress(requests.RequestException):
            return int(server.get("/", timeout=5).json()["pid"])
        return 0

    assert wait_until(answering, message="it answers") == first
    (server.folder / "second").touch()
    wait_until(lambda: answering() not in (0, first), 60, message="the one with the new code answers")
    server.full(1)
    assert server.exits() == ["reload"]
