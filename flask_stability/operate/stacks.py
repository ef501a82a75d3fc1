"""``flask stability stacks``: what every thread of every worker does now, and for which request."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from typing import Any

import click

from .. import durations
from ..server import stacks
from ..server.control import ControlError, path_of
from .control import ask
from .find_service import config_option, find_master, master_option

PATIENCE = 0.7  #: seconds that workers have to write their stacks
_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)")


@click.command("stacks")
@click.argument("pid", type=int, required=False)
@master_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stacks_command(pid: int | None, master: int | None, config: str | None, as_json: bool) -> None:
    """Show the stacks of all threads of the worker PID, or of all workers, with the requests that they serve.

    Nothing is stopped and nothing waits, also where the interpreter hangs. The innermost call comes first.
    """
    found_master, board = find_master(master, config)
    try:
        workers, left_out = read(path_of(board.path or ""), found_master, pid)
    except ControlError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(workers, indent=2))
        return
    click.echo("\n\n".join(in_words(worker) for worker in workers))
    if left_out:
        click.echo(f"\n{left_out} more workers: ask for one by its process id")


def read(path: str, master: int, pid: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """Return of each worker pid, slot, state, requests and stacks; and how many workers there was no room for.

    :param path: of the master's control socket.
    :raises ControlError: if the master cannot be asked.
    """
    descriptors: list[int] = []
    try:
        done = ask(path, {"command": "stacks", "pid": pid}, master=master, descriptors=descriptors)
        if not descriptors:
            raise ControlError("the master sent no stacks")
        workers: list[dict[str, Any]] = json.loads(stacks.read(descriptors[0]))
        texts = stacks.collect(descriptors[1:], time.monotonic() + PATIENCE)
    finally:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    for worker, text in zip(workers, texts, strict=True):
        by_thread = {one.pop("thread"): one for one in worker["requests"]}
        worker["threads"] = [{"thread": thread, "request": by_thread.get(thread), "stack": lines}
                             for thread, lines in split(text)]
    return workers, int(done.get("left_out", 0))


def split(text: str) -> list[tuple[int, list[str]]]:
    """Return thread and stack of each thread in what faulthandler wrote, those of the requests' threads included."""
    found: list[tuple[int, list[str]]] = []
    for line in text.splitlines():
        match = _THREAD.match(line)
        if match is not None:
            found.append((int(match[1], 16), []))
        elif found and line.strip():
            found[-1][1].append(line.strip())
    return found


def in_words(worker: dict[str, Any]) -> str:
    """Return one worker's text."""
    requests, threads = worker["requests"], worker["threads"]
    lines = [f"worker {worker['pid']}, slot {worker['slot']}, {worker['state']}, "
             f"{len(requests)} request{'s' if len(requests) != 1 else ''} in flight"]
    if not threads:
        lines.append("  no answer: it is stopped, has not loaded the app yet, or waits for a disk")
        lines += [f"  {_request(one)}" for one in requests]
    for one in sorted(threads, key=lambda one: -one["request"]["seconds"] if one["request"] else 1.0):
        lines.append(f"  thread {one['thread']:#x}" + (f": {_request(one['request'])}" if one["request"] else ""))
        lines += [f"    {line}" for line in one["stack"]]
    return "\n".join(lines)


def _request(one: dict[str, Any]) -> str:
    route = f" ({one['route']})" if one["route"] not in ("", one["path"]) else ""
    return (f"{one['method']} {one['path']}{route} for {durations.in_words(one['seconds'])}, "
            f"id {one['request_id']}" + (", answering" if one.get("answering") else ""))
