"""End workers that a killed master left behind and that still hold the port: a new master could not listen on it.

An orphan releases the port by itself, within two seconds even if its requests hang (`guard.closing`). One that is
stopped by a signal, or whose interpreter is held in C, cannot: it serves no request, so the new master ends it.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from .. import logs, processes, scoreboard
from ..processes import Process
from ..scoreboard import Scoreboard, board_files
from ..scoreboard import file as scoreboard_file

SILENT = 3.0  #: seconds without a sign of life after which an orphan will not release the port by itself
PATIENCE = 5.0  #: maximum seconds that a start waits for orphans
PAUSE = 0.1  #: seconds between two looks


@dataclass(frozen=True)
class Orphan:
    """A worker as a dead master's board describes it. Only `owner` is certain; the rest may be forged.

    :ivar started_ns: when it began, monotonic nanoseconds.
    :ivar owner: the user that owns the board's file.
    """

    pid: int
    started_ns: int
    path: str
    owner: int

    def is_still(self, process: Process) -> bool:
        """Return whether a process is this worker, and not another with the same process id."""
        return process.is_older_than(self.started_ns) and bool(process.maps(self.path))


def end_stuck(run_dirs: Iterable[str], ports: set[int]) -> None:
    """Wait for orphans that hold one of `ports`, and end those that are stuck; call it before the master listens."""
    if not ports:
        return
    holding = list(_holding(run_dirs, ports))
    until = time.monotonic() + PATIENCE
    while holding and time.monotonic() < until:
        beats = {path: _heartbeats(path) for path in {orphan.path for orphan in holding}}
        for orphan in holding:
            _end_if_stuck(orphan, beats[orphan.path].get(orphan.pid, time.monotonic_ns()))
        time.sleep(PAUSE)
        holding = [orphan for orphan in holding if ports & _listens(orphan.pid)]


def ports_of(addresses: Any) -> set[int]:
    """Return the ports among gunicorn's addresses. A socket's path has none and can always be taken over."""
    return {address[1] for address in addresses if isinstance(address, tuple)}


def _end_if_stuck(orphan: Orphan, heartbeat_ns: int) -> None:
    silent = (time.monotonic_ns() - heartbeat_ns) / 1e9
    process = processes.look(orphan.pid)
    frozen = process is not None and process.state == "T"
    if not frozen and silent <= SILENT:
        return
    if processes.send(orphan.pid, signal.SIGKILL, owner=orphan.owner, check=orphan.is_still):
        logs.process("orphan_ended", level="WARNING", worker_pid=orphan.pid, stopped=frozen, silent_s=round(silent, 1))


def _heartbeats(path: str) -> dict[int, int]:
    """Return the last sign of life of each worker on a board, by process id, in monotonic nanoseconds."""
    with contextlib.suppress(OSError, ValueError):
        return {row.pid: int(row.words[scoreboard.W_HEARTBEAT_NS]) for row in Scoreboard.copy_of(path).live()}
    return {}


def _holding(run_dirs: Iterable[str], ports: set[int]) -> Iterator[Orphan]:
    """Return the workers on dead masters' boards that are still what the board says and hold a port."""
    for run_dir in run_dirs:
        for master, path in board_files(run_dir):
            if scoreboard_file.master_of(master, path) is not None:
                continue
            with contextlib.suppress(OSError, ValueError):
                board = Scoreboard.copy_of(path)
                for row in board.live():
                    orphan = Orphan(row.pid, int(row.words[scoreboard.W_STARTED_NS]), path, board.owner)
                    process = processes.look(orphan.pid) if orphan.pid > 1 else None
                    if process is not None and orphan.is_still(process) and ports & _listens(orphan.pid):
                        yield orphan


def _listens(pid: int) -> set[int]:
    """Return the ports that a process listens on."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        # psutil before 6.0 calls this method `connections`
        connections: Callable[[], list[Any]] = getattr(process, "net_connections", None) or process.connections
        return {one.laddr.port for one in connections() if one.status == psutil.CONN_LISTEN}
    return set()
