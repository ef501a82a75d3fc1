"""``flask stability reload`` and ``releases``: bring a new release in, and tell what became of the last ones."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from .. import durations
from ..server.control import ControlError, path_of
from .control import ask
from .find_service import config_option, find, find_master, master_option

FAILED, UNKNOWN = 1, 3  #: exit statuses: it was refused or failed; its end was not seen


@click.command("reload")
@click.option("--force", is_flag=True, help="Take the new release without judging it.")
@click.option("--wait", is_flag=True, help="Wait until the new release serves (exit status 0), or is refused (1).")
@click.option("--timeout", metavar="TIME", default="5m", callback=durations.option, show_default=True,
              help="With --wait: for how long; then the exit status is 3.")
@master_option
@config_option
def reload_command(force: bool, wait: bool, timeout: float, master: int | None, config: str | None) -> None:
    """Load the new code and configuration, as SIGHUP does: a release that is worse is refused by itself."""
    pid, board = find_master(master, config)
    try:
        before = ask(path_of(board.path or ""), {"command": "reload", "force": force}, master=pid)
    except ControlError as error:
        raise click.ClickException(str(error)) from error
    if not wait:
        click.echo("the reload begins")
        return
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        found = find(pid, config).master.releases.read_json({})
        if found.get("reloads", 0) > before["reloads"] and found.get("outcome") != "under way":
            _end(found)
        time.sleep(0.5)
    click.echo(f"no end within {timeout:g} s: process-manager.log says more", err=True)
    sys.exit(UNKNOWN)


def _end(found: dict[str, Any]) -> None:
    if found["outcome"] == "serves":
        kept = found["phase"] != "quiet"
        click.echo(f"release {found['coming'] or found['serving']} serves"
                   + (f"; {found['serving']} is kept for a while, to turn back to" if kept else ""))
        sys.exit(0)
    refused = found.get("refused") if found["outcome"] == "refused" else None
    click.echo(refused["text"] if refused else "the reload failed: process-manager.log says why; the service goes on "
               "as it was", err=True)
    sys.exit(FAILED)


@click.command("releases")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@master_option
@config_option
def releases_command(as_json: bool, master: int | None, config: str | None) -> None:
    """The release that serves, and the last ten verdicts with their figures."""
    found = find(master, config).master.releases.read_json({})
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"release {found.get('serving', 'unknown')} serves"
               + (f"; {found['coming']} is on trial ({found['phase']})" if found.get("coming") else ""))
    if found.get("refused"):
        click.echo(found["refused"]["text"])
    for one in reversed(found.get("verdicts", [])):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["time"]))
        click.echo(f"{when}  {one['release']}  {one['verdict']}, {one['requests']} requests in {one['seconds']:.0f} s"
                   + (f": {one['reason']}" if one["reason"] else ""))
