"""``flask stability …``: what an operator asks and orders, without HTTP.

``status``, ``retire`` and ``gc`` read the scoreboard's file and act through it and signals. They tell the truth while
no worker answers, need no app, and work for the service's own user (and root) only.
"""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import click

from . import processes, scoreboard
from .clean_logs import clean_logs_command
from .config import Settings
from .database.check_db import check_db_command
from .doctor import doctor_command
from .drill.command import drill_command
from .exceptions import ConfigError
from .scoreboard import O_CLI_RETIRE, STATE_READY, W_STARTED_NS, W_STATE, Row, Scoreboard
from .server.status import status_block

_COLUMNS = ("slot", "pid", "state", "uptime_s", "busy", "threads", "queue", "rss_bytes", "limit_bytes", "requests",
            "errors", "retiring")
_master = click.option("--master", type=int, help="Process id of the master, if several services run here.")


@click.group("stability")
def stability() -> None:
    """Look after a running service."""


stability.add_command(drill_command)
stability.add_command(check_db_command)
stability.add_command(clean_logs_command)
stability.add_command(doctor_command)


@stability.command()
@_master
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Print again every two seconds until interrupted.")
def status(master: int | None, as_json: bool, watch: bool) -> None:
    """Master, workers and restarts, from shared memory."""
    while True:
        found = status_block(_board(master)[1])
        click.echo(json.dumps(found, indent=2) if as_json else _as_text(found))
        if not watch:
            return
        time.sleep(2)
        if not as_json:
            click.clear()


@stability.command()
@click.argument("pid", type=int, required=False)
@_master
def retire(pid: int | None, master: int | None) -> None:
    """Replace the worker PID, or all workers one after the other: the newcomer first, no request is lost."""
    number, board = _board(master, write=True)
    found = _workers(number, board, pid)
    for row, _ in found:
        row.orders[O_CLI_RETIRE] = 1
    # has the master look now; without that it looks within a second
    processes.send(number, signal.SIGCHLD, owner=board.owner, check=lambda process: True)
    click.echo(f"asked for the replacement of {', '.join(str(worker) for _, worker in found)}")


@stability.command()
@click.argument("pid", type=int, required=False)
@_master
def gc(pid: int | None, master: int | None) -> None:
    """Have the worker PID, or all, collect garbage; what it freed is in process-manager.log."""
    number, board = _board(master)
    asked = [worker for row, worker in _workers(number, board, pid)
             if processes.send(worker, signal.SIGUSR2, owner=board.owner,
                               check=lambda process, row=row: _is_worker(number, row, process))]  # type: ignore[misc]
    if not asked:
        raise click.ClickException("no worker could be asked: it is gone, or belongs to another user")
    click.echo(f"asked {', '.join(map(str, asked))} to collect garbage")


def _board(master: int | None, *, write: bool = False) -> tuple[int, Scoreboard]:
    """The master and the board of the running service that is meant."""
    try:
        folder = Settings.from_environ().run_dir
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    places = [folder] if folder else scoreboard.default_run_dirs()
    found = scoreboard.running(places, master=master)
    if not found:
        raise click.ClickException(f"no running service of this user has its scoreboard in {', '.join(places)}: if it "
                                   "is elsewhere, set STABILITY_RUN_DIR as the service has it")
    if len({pid for pid, _ in found}) > 1:
        raise click.ClickException("several services run here: choose with --master "
                                   + ", ".join(str(pid) for pid, _ in found))
    pid, path = found[0]
    try:
        return pid, Scoreboard.attach(path, write=True) if write else Scoreboard.copy_of(path)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _workers(master: int, board: Scoreboard, pid: int | None) -> list[tuple[Row, int]]:
    """The rows of the workers that are meant and their process ids: ready, and really the master's children."""
    found = []
    for row in board.live():
        worker = row.pid  # read once: whoever owns the file may change it at any moment
        process = processes.look(worker) if worker > 1 and pid in (None, worker) else None
        if process is not None and row.words[W_STATE] >= STATE_READY and _is_worker(master, row, process):
            found.append((row, worker))
    if not found:
        raise click.ClickException(f"no worker {pid} is serving" if pid else "no worker is serving")
    return found


def _is_worker(master: int, row: Row, process: processes.Process) -> bool:
    """Whether a process is what the board says: a child of the master that was there when the worker began."""
    return process.parent == master and process.is_older_than(row.words[W_STARTED_NS])


def _as_text(found: dict[str, Any]) -> str:
    flags = [name for name in ("replacing", "held", "degraded", "draining") if found[name]]
    silent = found["tick_age_s"] is not None and found["tick_age_s"] > 5
    lines = [f"master {found['master_pid']}, up {found['uptime_s']} s, {len(found['workers'])} of "
             f"{found['target_workers']} workers" + (f", {', '.join(flags)}" if flags else "")
             + (f", silent for {found['tick_age_s']} s" if silent else ""),
             f"{found['requests']} requests, {found['errors']} errors, restarts: "
             + (", ".join(f"{name} {number}" for name, number in found["restarts"].items()) or "none"), ""]
    table = [[name.removesuffix("_bytes").removesuffix("_s") for name in _COLUMNS]]
    table += [[_cell(name, worker[name]) for name in _COLUMNS] for worker in found["workers"]]
    widths = [max(len(line[column]) for line in table) for column in range(len(_COLUMNS))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / (1 << 20):.0f}M" if value else "-"
    return "-" if value is None or value == "none" else str(value)
