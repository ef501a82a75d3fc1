"""``flask stability status``: master, workers and restarts, from shared memory."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from .. import durations
from ..server.status import status_block
from .find_service import config_option, find, master_option

_COLUMNS = ("slot", "pid", "state", "uptime_s", "busy", "threads", "queue", "rss_bytes", "limit_bytes", "requests",
            "errors", "retiring")


@click.command("status")
@master_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--pids", is_flag=True, help="Print the workers' process ids alone, one a line, the oldest first.")
@click.option("--watch", is_flag=True, help="Print again every two seconds until interrupted.")
def status_command(master: int | None, config: str | None, as_json: bool, pids: bool, watch: bool) -> None:
    """Show master, workers and restarts, from shared memory."""
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
