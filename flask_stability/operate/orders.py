"""``flask stability retire``, ``gc``, ``mute`` and ``unmute``: orders for the master of a running service."""

from __future__ import annotations

import time
from typing import Any

import click

from .. import durations
from ..server.control import ControlError, path_of
from .control import ask
from .find_service import config_option, find_master, master_option


@click.command("retire")
@click.argument("pid", type=int, required=False)
@master_option
@config_option
def retire_command(pid: int | None, master: int | None, config: str | None) -> None:
    """Replace the worker PID, or all workers one after the other, without losing a request."""
    done = _order(master, config, command="retire", pid=pid)
    click.echo(f"asked for the replacement of {', '.join(map(str, done['pids']))}")


@click.command("gc")
@click.argument("pid", type=int, required=False)
@master_option
@config_option
def gc_command(pid: int | None, master: int | None, config: str | None) -> None:
    """Collect garbage in the worker PID, or in all; process-manager.log says what it freed."""
    done = _order(master, config, command="gc", pid=pid)
    click.echo(f"asked {', '.join(map(str, done['pids']))} to collect garbage")


@click.command("mute")
@click.argument("check")
@click.option("--for", "seconds", metavar="TIME", callback=durations.option, required=True,
              help="For how long: 30m, 2h, 1d; at most 30d.")
@master_option
@config_option
def mute_command(check: str, seconds: float, master: int | None, config: str | None) -> None:
    """Post no alerts of CHECK for a while.

    Status, logs and dashboard go on showing it. A failure that lasts beyond the mute is posted at once. A mute ends
    with the service.
    """
    done = _order(master, config, command="mute", check=check, seconds=seconds)
    until = time.strftime("%H:%M:%S on %Y-%m-%d", time.localtime(done["until"]))
    click.echo(f"alerts of {check} are muted until {until}")


@click.command("unmute")
@click.argument("check")
@master_option
@config_option
def unmute_command(check: str, master: int | None, config: str | None) -> None:
    """Post alerts of CHECK again."""
    _order(master, config, command="unmute", check=check)
    click.echo(f"alerts of {check} are posted again")


def _order(master: int | None, config: str | None, **order: Any) -> dict[str, Any]:
    """Give the master of the running service an order."""
    pid, board = find_master(master, config)
    try:
        return ask(path_of(board.path or ""), order, master=pid)
    except ControlError as error:
        raise click.ClickException(str(error)) from error
