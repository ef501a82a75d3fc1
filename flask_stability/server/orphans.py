"""Workers that a killed master left behind and that cannot let go of the port: a new master could not listen.

An orphan lets go of it by itself, within two seconds also if its requests hang (`Guard._parent`). One that is stopped
by a signal, or whose interpreter is held in C, does not: it serves nobody, and is ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from .. import logs, scoreboard
from ..process_state import alive, stopped
from ..scoreboard import Row, Scoreboard, board_files

SILENT = 3.0  #: seconds without a sign of life after which an orphan will not let go by itself
PATIENCE = 5.0  #: seconds that a start waits for orphans at the most
PAUSE = 0.1  #: seconds between two looks


def end_stuck(run_dir: str | None, ports: set[int]) -> None:
    """Before the new master listens on `ports`: wait for orphans that hold one of them, end those that are stuck."""
    if not run_dir or not ports:
        return
    until, holding = time.monotonic() + PATIENCE, list(_holding(run_dir, ports))
    while holding and time.monotonic() < until:
        for row in holding:
            _end_if_stuck(row)
        time.sleep(PAUSE)
        holding = [row for row in holding if ports & _listens(row.pid)]


def ports_of(addresses: Any) -> set[int]:
    """The ports among gunicorn's addresses; paths of sockets have none, and are taken over in any case."""
    return {address[1] for address in addresses if isinstance(address, tuple)}


def _end_if_stuck(row: Row) -> None:
    silent = time.monotonic() - row.words[scoreboard.W_HEARTBEAT_NS] / 1e9
    frozen = stopped(row.pid)
    if not frozen and silent <= SILENT:
        return
    with contextlib.suppress(OSError):
        os.kill(row.pid, signal.SIGKILL)
        logs.process("orphan_ended", level="WARNING", worker_pid=row.pid, stopped=frozen, silent_s=round(silent, 1))


def _holding(run_dir: str, ports: set[int]) -> Iterator[Row]:
    """Workers on boards of masters that are gone, as far as they still are what the board says and hold a port."""
    for master, path in board_files(run_dir):
        if alive(master):
            continue
        with contextlib.suppress(OSError, ValueError):
            for row in Scoreboard.attach(path).live():
                if _maps(row.pid, path) and ports & _listens(row.pid):
                    yield row


def _maps(pid: int, path: str) -> bool:
    """Whether it has the board in its memory: its number may be another process's by now."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            return any(line.rstrip("\n").endswith(f" {path}") for line in maps)
    except OSError:
        return False


def _listens(pid: int) -> set[int]:
    """The ports that it listens on."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        # psutil before 6.0 has the other name
        connections: Callable[[], list[Any]] = getattr(process, "net_connections", None) or process.connections
        return {one.laddr.port for one in connections() if one.status == psutil.CONN_LISTEN}
    return set()
