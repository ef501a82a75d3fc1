"""Workers that a killed master left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from flask_stability.scoreboard import W_PID, Scoreboard, board_files
from flask_stability.server import orphans


def test_process_that_is_not_the_boards_worker_is_left_alone(tmp_path: Path) -> None:
    """It has the worker's number and listens on the port, but its memory has no board."""
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        board, problem = Scoreboard.create(1, str(tmp_path))
        assert not problem
        assert board.path is not None
        row = board.allocate(1)
        assert row is not None
        row.words[W_PID] = other.pid
        done = subprocess.Popen([sys.executable, "-c", ""])
        done.wait()
        os.rename(board.path, Path(board.path).with_name(f"flask_stability-{done.pid}.board"))
        assert [master for master, _ in board_files(str(tmp_path))] == [done.pid]
        assert orphans._listens(other.pid) == {port}
        orphans.end_stuck([str(tmp_path)], {port})
        assert other.poll() is None
        other.kill()


def test_ports_are_those_of_addresses_and_of_no_path() -> None:
    """As gunicorn gives them; what a process listens on is told by the kernel."""
    assert orphans.ports_of([("127.0.0.1", 80), ("::1", 443, 0, 0), "/run/orders.sock"]) == {80, 443}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert listener.getsockname()[1] in orphans._listens(os.getpid())
