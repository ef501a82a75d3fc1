"""A service that is started with its standard descriptors closed, as by a daemon: nothing is written over its files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import SOURCE, starting

CLOSED = {"all": "0<&- 1>&- 2>&-", "stderr": "2>&-"}


@pytest.mark.parametrize("closed", CLOSED)
def test_the_scoreboard_is_not_where_logs_go(tmp_path: Path, closed: str) -> None:
    """Twenty exceptions, logged to stderr: /health goes on, and the descriptors are /dev/null in every process."""
    with starting(tmp_path) as start:
        server = start(source=SOURCE + "\n@app.get('/boom')\ndef boom():\n    raise ValueError('boom')\n",
                       env={"STABILITY_LOG_DIR": ""}, prefix=("sh", "-c", f'exec "$@" {CLOSED[closed]}', "sh"))
        server.full(2)
        for _ in range(20):
            assert server.get("/boom").status_code == 500
        assert server.get("/health/ready").ok
        assert len(server.health()["detailed"]["workers"]) == 2
        for pid in (server.pid, *server.worker_pids()):
            for number in (0, 1, 2) if closed == "all" else (2,):
                assert os.readlink(f"/proc/{pid}/fd/{number}") == os.devnull


def test_without_the_hooks_a_log_line_goes_into_no_file_that_got_the_number(tmp_path: Path) -> None:
    """Whatever the app opened first: its database, most likely."""
    code = ("import os\nfile = os.open('data', os.O_WRONLY | os.O_CREAT)\nassert file == 2, file\n"
            "from flask_stability import logs\nlogs.error('exception', message='boom')\nassert logs.drops() == 1")
    script = f"exec {sys.executable} -c \"$CODE\" 2>&-"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env={**os.environ, "CODE": code}, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "data").read_bytes() == b""
