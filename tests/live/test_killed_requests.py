"""A worker's end names the requests that were in flight, and `flask stability stacks` shows what every thread does."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from supervised import Supervised, starting

from flask_stability.operate import stacks
from flask_stability.server.control import path_of
from support import PYTHON, wait_until

Start = Callable[..., Supervised]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that end with the test."""
    with starting(tmp_path) as start:
        yield start


def in_background(server: Supervised, path: str) -> threading.Thread:
    """A request that may lose its worker."""
    thread = threading.Thread(target=server.lost, args=(path,), daemon=True)
    thread.start()
    return thread


def last_exit(server: Supervised, reason: str) -> dict[str, Any]:
    """The record of an exit."""
    found: list[dict[str, Any]] = wait_until(
        lambda: [record for record in server.records("process-manager", "worker_exit") if record["reason"] == reason],
        60, message=f"an exit for {reason}")
    return found[-1]


def shown(server: Supervised) -> list[dict[str, Any]]:
    """What `flask stability stacks` finds."""
    return stacks.read(path_of(server.board().path or ""), server.pid)[0]


def test_a_crash_names_its_request_without_query_or_address(supervised: Start, worker_class: str) -> None:
    """Path, route, id and age stand in the record of the exit; what may be secret does not."""
    server = supervised(worker_class=worker_class)
    with pytest.raises(requests.RequestException):
        server.get("/segv?token=SECRET77")
    record = last_exit(server, "crash_signal")
    one, = record["in_flight"]
    assert (record["detail"], record["in_flight_count"]) == ("SIGSEGV", 1)
    assert (one["method"], one["path"], one["route"]) == ("GET", "/segv", "/segv")
    assert one["request_id"]
    assert len(one["fingerprint"]) == 16
    assert one["seconds"] >= 0
    text = (server.logs_dir / "process-manager.log").read_text()
    assert "SECRET77" not in text
    assert "token" not in text


def test_sigkill_names_what_was_in_flight_the_oldest_first(supervised: Start) -> None:
    """All of it: nobody knows which of them it was."""
    server = supervised(workers=1, threads=4)
    server.full(1)
    threads = []
    for number in (1, 2):
        threads.append(in_background(server, f"/slow/600.{number}"))
        wait_until(lambda number=number: sum(len(one["requests"]) for one in shown(server)) == number,
                   message="in flight")
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    record = last_exit(server, "crash_signal")
    assert record["detail"] == "SIGKILL"
    assert [one["path"] for one in record["in_flight"]] == ["/slow/600.1", "/slow/600.2"]
    assert {one["route"] for one in record["in_flight"]} == {"/slow/<float:seconds>"}
    for thread in threads:
        thread.join(30)


def test_stacks_show_each_thread_with_its_request_also_where_the_interpreter_hangs(supervised: Start,
                                                                                   worker_class: str) -> None:
    """A view that sleeps and one that holds the interpreter in C, each with its path and its innermost call."""
    server = supervised(worker_class=worker_class, config="timeout = 120\ngraceful_timeout = 1")
    server.full(2)
    threads = [in_background(server, "/slow/600.5")]

    def found(path: str) -> list[str]:
        """The stack of the thread that serves a path, from one look at all workers."""
        return next((one["stack"] for worker in shown(server) for one in worker["threads"]
                     if one["request"] is not None and one["request"]["path"] == path), [])

    stack = wait_until(lambda: found("/slow/600.5"), 60, message="the first is shown")
    assert any("in slow" in line for line in stack)
    printed = subprocess.run([PYTHON, "-m", "flask", "stability", "stacks", "--master", str(server.pid)],
                             env=server.environ, cwd=server.folder, capture_output=True, text=True, timeout=60,
                             check=True).stdout
    assert "GET /slow/600.5 (/slow/<float:seconds>) for " in printed
    threads.append(in_background(server, "/hang-gil"))
    stack = wait_until(lambda: found("/hang-gil"), 60, message="the one that hangs is shown")
    assert any("in hang_gil" in line for line in stack)
    server.stop()
    for thread in threads:
        thread.join(60)
