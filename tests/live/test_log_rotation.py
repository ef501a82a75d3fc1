"""The logs of a running service: rotated by its master, by logrotate, or none at all, and no line lost."""

from __future__ import annotations

import collections
import gzip
import itertools
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from support import Server, wait_until
from test_docs import DOCS, blocks

pytestmark = pytest.mark.long

SOURCE = '''
import os
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
StabilityExt(app)

@app.get("/fail/<number>")
def fail(number):
    return str(os.getpid()), 500
'''
Start = Callable[..., Server]


@contextmanager
def failing(server: Server) -> Iterator[list[str]]:
    """Four clients; the paths whose failure they saw, each to be in the log once."""
    seen: list[str] = []
    numbers, done = itertools.count(), threading.Event()

    def ask() -> None:
        while not done.is_set():
            path = f"/fail/{next(numbers)}"
            assert server.get(path).status_code == 500
            seen.append(path)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join()


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """All records of a log and of its rotated files, each line whole; a rotation meanwhile does not disturb."""
    while True:
        found = []
        with suppress(FileNotFoundError):
            before = _files(folder, name)
            for file in before:
                path = folder / file
                text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
                # what comes after the last end of a line is still being written
                found += [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]
            if _files(folder, name) == before:
                return found


def _files(folder: Path, name: str) -> dict[str, int]:
    """The inodes of a log and of its rotated files."""
    return {path.name: path.stat().st_ino for path in folder.glob(f"{name}.log*")}


def each_once(server: Server, seen: list[str]) -> None:
    """Every failure is in a log of one of the workers, and none twice."""
    def written() -> list[dict[str, Any]]:
        return [record for record in lines(server.logs_dir, "error") if record["event"] == "server_error"]

    wait_until(lambda: len(written()) >= len(seen), message="the last ones are written after they were answered")
    records = written()
    assert collections.Counter(record["path"] for record in records) == collections.Counter(seen)
    assert len({record["pid"] for record in records}) == len(server.worker_pids())


def test_nothing_is_lost_while_the_master_rotates(server: Start, worker_class: str) -> None:
    """Three workers and the master write; the master alone renames, and keeps as many as it was told."""
    one = server(source=SOURCE, worker_class=worker_class, workers=3,
                 env={"STABILITY_LOG_MAX_BYTES": "20000", "STABILITY_LOG_BACKUPS": "40"})
    with failing(one) as seen:
        wait_until(lambda: len(list(one.logs_dir.glob("error.log.*"))) >= 3, 90, message="three rotations")
    each_once(one, seen)
    assert {record["pid"] for record in lines(one.logs_dir, "process-manager")
            if record["event"] == "log_rotated"} == {one.pid}
    assert one.health()["detailed"]["checks"]["logs"]["status"] == "pass"


def test_no_more_files_are_kept_than_asked_for(server: Start) -> None:
    """The oldest goes; the newest line is in the file without a number."""
    one = server(source=SOURCE, env={"STABILITY_LOG_MAX_BYTES": "1000", "STABILITY_LOG_BACKUPS": "1"})
    with failing(one):
        wait_until(lambda: [record["file"] for record in lines(one.logs_dir, "process-manager")
                            if record["event"] == "log_rotated"].count("error.log") >= 2, 60)
        wait_until(lambda: (one.logs_dir / "error.log.1").exists() and (one.logs_dir / "error.log").exists())
    assert len(list(one.logs_dir.glob("error.log*"))) <= 2


@pytest.mark.needs("logrotate")
def test_logrotate_does_it_too(server: Start, worker_class: str, tmp_path: Path) -> None:
    """With the configuration of the page on logs: real logrotate, four times under load, compressing what is old."""
    one = server(source=SOURCE, worker_class=worker_class, workers=3)
    snippet, = (block for block in blocks(DOCS / "logs.rst", "text") if "postrotate" in block)
    (tmp_path / "pid").write_text(str(one.pid))
    config = tmp_path / "logrotate.conf"
    config.write_text(snippet.replace("/var/log/orders", str(one.logs_dir)).replace(
        "/run/orders/gunicorn.pid", str(tmp_path / "pid")))
    one.logs_dir.chmod(0o750)
    with failing(one) as seen:
        for number in range(4):
            known = len(seen)
            wait_until(lambda known=known: len(seen) > known + 20, 60)
            subprocess.run(["logrotate", "--force", "--state", str(tmp_path / "state"), str(config)], check=True,
                           timeout=60, env={**os.environ, "PATH": "/usr/sbin:" + os.environ["PATH"]})
            wait_until(lambda number=number: len([record for record in lines(one.logs_dir, "process-manager")
                                                  if record["event"] == "status"]) > number,
                       message="the master heard of it")
    assert (one.logs_dir / "error.log.2.gz").exists()
    # logrotate asks after each file, so that what was counted may be in the file that it renamed next
    wait_until(lambda: one.records("process-manager", "status"), message="the master writes to the new file")
    each_once(one, seen)


def test_without_a_directory_all_goes_to_stderr(server: Start, worker_class: str) -> None:
    """As containers want it, from master and workers, one JSON object a line."""
    one = server(source=SOURCE, worker_class=worker_class, env={"STABILITY_LOG_DIR": ""})
    assert one.get("/fail/1").status_code == 500
    wait_until(lambda: '"event": "round"' in one.logs())
    one.stop()
    found = [json.loads(line) for line in one.logs().splitlines() if line.startswith("{")]
    events = {record["event"]: record for record in found}
    assert events["server_error"]["path"] == "/fail/1"
    assert {"started", "round", "server_error", "stopped"} <= set(events)
    assert not one.logs_dir.exists()
