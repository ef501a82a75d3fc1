"""``flask stability quarantine``: requests that kill workers, and views that an operator turns off."""

from __future__ import annotations

import json
from typing import Any

import click

from .. import durations
from ..server import stacks
from ..server.control import ControlError, path_of
from .control import ask
from .find_service import config_option, find_master, master_option


@click.group("quarantine", invoke_without_command=True)
@click.pass_context
def quarantine_command(ctx: click.Context) -> None:
    """List, add and clear what is refused or served by a worker of its own."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command)


@quarantine_command.command("list")
@master_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(master: int | None = None, config: str | None = None, as_json: bool = False) -> None:
    """Show requests, routes and rules in quarantine."""
    descriptors: list[int] = []
    try:
        _order(master, config, descriptors, what="list")
        found: dict[str, Any] = json.loads(stacks.read(descriptors[0])) if descriptors else {}
    finally:
        for descriptor in descriptors:
            stacks.drop(descriptor)
    click.echo(json.dumps(found, indent=2) if as_json else in_words(found))


@quarantine_command.command("add")
@click.option("--route", help="A rule of the app, as its view has it: /users/<int:id>.")
@click.option("--method", help="A method: POST.")
@click.option("--path", help="A pattern that the whole path meets: '/reports/*'.")
@click.option("--isolate", is_flag=True, help="Serve it alone in a worker of its own, in place of refusing it.")
@master_option
@config_option
def add_command(route: str | None, method: str | None, path: str | None, isolate: bool, master: int | None,
                config: str | None) -> None:
    """Answer 503 to requests that meet all that is given: this turns a view off without a restart.

    Health endpoints are never refused. A rule ends with the service, or by `clear`.
    """
    done = _order(master, config, what="add", route=route, method=method, path=path,
                  action="isolate" if isolate else "refuse")
    click.echo(f"rule {done['id']} is in force: end it with `flask stability quarantine clear {done['id']}`")


@quarantine_command.command("clear")
@click.argument("which", metavar="[ID]", required=False)
@click.option("--all", "everything", is_flag=True, help="Clear all requests, routes and rules.")
@master_option
@config_option
def clear_command(which: str | None, everything: bool, master: int | None, config: str | None) -> None:
    """Serve the request or rule ID as any other again; its doubled time is forgotten."""
    if (which is None) != everything:
        raise click.UsageError("give one ID of `flask stability quarantine list`, or --all")
    done = _order(master, config, what="clear", id=which)
    click.echo(f"{done['cleared']} cleared")


def in_words(found: dict[str, Any]) -> str:
    """Return the list as text."""
    lines = [f"{one['id']}  {one['state']}  {one['method']} {one['path']}: {one['crashes']} crashes, "
             f"{one['answered']} answers"
             + (f", refused for {durations.in_words(one['seconds_left'])} more" if one["seconds_left"] else "")
             for one in found["requests"]]
    lines += [f"route  isolated  {route}" for route in found["routes"]]
    lines += [f"{rule['id']}  {rule['action']}  " + " ".join(
        f"{name} {rule[name]}" for name in ("method", "route", "path") if rule[name]) for rule in found["rules"]]
    if found["worker"]:
        lines.append(f"isolation worker {found['worker']}")
    if found["watched"]:
        lines.append(f"{found['watched']} more were in flight in a crash, and are watched")
    return "\n".join(lines) or "nothing is in quarantine"


def _order(master: int | None, config: str | None, descriptors: list[int] | None = None,
           **order: Any) -> dict[str, Any]:
    pid, board = find_master(master, config)
    try:
        return ask(path_of(board.path or ""), {"command": "quarantine", **order}, master=pid,
                   descriptors=descriptors)
    except ControlError as error:
        raise click.ClickException(str(error)) from error
