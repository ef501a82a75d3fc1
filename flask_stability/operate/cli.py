"""``flask stability …``: what an operator asks and orders, without HTTP.

``status`` reads the scoreboard's file: it tells the truth while no worker answers, and needs no app. Orders
(``retire``, ``gc``, ``mute``) and the question for ``stacks`` go to the master by its control socket. Both are for the
service's own user (and root) only.
"""

from __future__ import annotations

import json
import time
from typing import Any

import click

from .. import durations
from ..server import control
from ..server.status import status_block
from .alert_test import alert_test_command
from .check_db import check_db_command
from .clean_logs import clean_logs_command
from .doctor import doctor_command
from .drill.command import drill_command
from .find_service import config_option, find, find_master
from .stacks import stacks_command

_COLUMNS = ("slot", "pid", "state", "uptime_s", "busy", "threads", "queue", "rss_bytes", "limit_bytes", "requests",
            "errors", "retiring")
_master = click.option("--master", type=int, help="Process id of the master, if several services run here.")


@click.group("stability")
def stability() -> None:
    """Look after a running service."""


stability.add_command(alert_test_command)
stability.add_command(drill_command)
stability.add_command(check_db_command)
stability.add_command(clean_logs_command)
stability.add_command(doctor_command)
stability.add_command(stacks_command)


@stability.command()
@_master
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--pids", is_flag=True, help="Print the workers' process ids alone, one a line, the oldest first.")
@click.option("--watch", is_flag=True, help="Print again every two seconds until interrupted.")
def status(master: int | None, config: str | None, as_json: bool, pids: bool, watch: bool) -> None:
    """Master, workers and restarts, from shared memory."""
    while True:
        found = status_block(find(master, config))
        if pids:
            workers = sorted(found["workers"], key=lambda worker: -(worker["uptime_s"] or 0.0))
            click.echo("\n".join(str(worker["pid"]) for worker in workers))
        else:
            click.echo(json.dumps(found, indent=2) if as_json else _as_text(found))
        if not watch:
            return
        time.sleep(2)
        if not as_json:
            click.clear()


@stability.command()
@click.argument("pid", type=int, required=False)
@_master
@config_option
def retire(pid: int | None, master: int | None, config: str | None) -> None:
    """Replace the worker PID, or all workers one after the other: the replacement first, no request is lost."""
    done = _order(master, config, command="retire", pid=pid)
    click.echo(f"asked for the replacement of {', '.join(map(str, done['pids']))}")


@stability.command()
@click.argument("pid", type=int, required=False)
@_master
@config_option
def gc(pid: int | None, master: int | None, config: str | None) -> None:
    """Have the worker PID, or all, collect garbage; what it freed is in process-manager.log."""
    done = _order(master, config, command="gc", pid=pid)
    click.echo(f"asked {', '.join(map(str, done['pids']))} to collect garbage")


@stability.command()
@click.argument("check")
@click.option("--for", "seconds", metavar="TIME", callback=durations.option, required=True,
              help="For how long: 30m, 2h, 1d; at most 30d.")
@_master
@config_option
def mute(check: str, seconds: float, master: int | None, config: str | None) -> None:
    """Post no alerts of CHECK for a while.

    Its status, the logs and the dashboard stay as they are; what still fails afterwards is told of at once. A mute
    ends with the service.
    """
    done = _order(master, config, command="mute", check=check, seconds=seconds)
    until = time.strftime("%H:%M:%S on %Y-%m-%d", time.localtime(done["until"]))
    click.echo(f"alerts of {check} are muted until {until}")


@stability.command()
@click.argument("check")
@_master
@config_option
def unmute(check: str, master: int | None, config: str | None) -> None:
    """Post alerts of CHECK again."""
    _order(master, config, command="unmute", check=check)
    click.echo(f"alerts of {check} are posted again")


def _order(master: int | None, config: str | None, **order: Any) -> dict[str, Any]:
    """Give the master of the running service an order."""
    pid, board = find_master(master, config)
    try:
        return control.ask(control.path_of(board.path or ""), order, master=pid)
    except control.ControlError as error:
        raise click.ClickException(str(error)) from error


def _as_text(found: dict[str, Any]) -> str:
    flags = [name for name in ("replacing", "held", "degraded", "draining") if found[name]]
    silent = found["tick_age_s"] is not None and found["tick_age_s"] > 5
    lines = [f"master {found['master_pid']}, up {durations.in_words(found['uptime_s'])}, {len(found['workers'])} of "
             f"{found['target_workers']} workers" + (f", {', '.join(flags)}" if flags else "")
             + (f", silent for {durations.in_words(found['tick_age_s'])}" if silent else ""),
             f"{found['requests']} requests, {found['errors']} errors, restarts: "
             + (", ".join(f"{name} {number}" for name, number in found["restarts"].items()) or "none"),
             *(f"{window['rate']:.1%} of {window['requests'] - window['refused']} requests failed in the last "
               f"{'minute' if name == '1m' else 'five minutes'}"
               + (f", {window['refused']} more were refused" if window["refused"] else "")
               for name, window in found["error_rate"].items() if window and window["requests"]),
             *(f"alerts of {one['check']} are muted for {durations.in_words(one['until'] - time.time())}"
               for one in found["mutes"]), ""]
    table = [[name.removesuffix("_bytes").removesuffix("_s") for name in _COLUMNS]]
    table += [[_cell(name, worker[name]) for name in _COLUMNS] for worker in found["workers"]]
    widths = [max(len(line[column]) for line in table) for column in range(len(_COLUMNS))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / (1 << 20):.0f}M" if value else "-"
    if name.endswith("_s"):
        return durations.in_words(value)
    return "-" if value is None or value == "none" else str(value)
