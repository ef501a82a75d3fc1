"""Find the service that an operator's command means, by its scoreboard."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import click
import psutil

from .. import scoreboard
from ..scoreboard import Scoreboard
from ..scoreboard import file as scoreboard_file
from . import inspect as facts

OURS = "python:flask_stability.server.conf"
_MAPPED = re.compile(rf"\s(/\S.*/{scoreboard_file.PREFIX}(\d+)(?:-[0-9a-f]{{8}})?"
                     rf"{re.escape(scoreboard_file.SUFFIX)})$")

#: An option of every command for a running service.
master_option = click.option("--master", type=int, help="Process id of the master, if several services run here.")
#: An option of every command that reads a service's configuration.
config_option = click.option("-c", "--config", metavar="CONFIG", help="gunicorn's configuration, as the service is "
                             "started with; ./gunicorn.conf.py if there is one, else ours.")


def gunicorn_arguments(config: str | None, app: str | None = None, folder: str = ".") -> list[str]:
    """Return the arguments for ``gunicorn``: -c as given, else gunicorn.conf.py in the folder, else ours."""
    given = re.search(r"(^|\s)(-c|--config)[\s=]", os.environ.get("GUNICORN_CMD_ARGS", ""))
    if config is None and not given and not os.path.exists(os.path.join(folder, "gunicorn.conf.py")):
        config = OURS
    return [*(["-c", config] if config else []), *([app] if app else [])]


def find(master: int | None, config: str | None = None) -> Scoreboard:
    """Return a copy of the running service's board; see `find_master`."""
    return find_master(master, config)[1]


def find_master(master: int | None, config: str | None = None) -> tuple[int, Scoreboard]:
    """Return the master's process id and a copy of the board of the running service.

    A given configuration, or STABILITY_RUN_DIR, says where the service is; no other one is taken for it. Without them
    the service is searched for.

    :param master: process id of its master; needed if several services run.
    :param config: gunicorn's configuration, which may name the run directory.
    :raises click.ClickException: if there is none, or more than one.
    """
    given = os.environ.get("STABILITY_RUN_DIR")
    if config is not None:
        given = _configured(config) or given
    looked = [given] if given else scoreboard.default_run_dirs()
    found = scoreboard.running(looked, master=master)
    if not found and not given and config is None:
        configured = _configured(None) if os.path.exists("gunicorn.conf.py") else None
        if configured:
            looked.append(configured)
            found = scoreboard.running([configured], master=master)
        if not found:
            looked.append("the memory of this user's processes")
            found = [(pid, path) for pid, path in _mapped() if master in (None, pid)]
    if not found:
        elsewhere = [path for _, path in scoreboard.running(scoreboard.default_run_dirs())]
        raise click.ClickException(
            f"no running service of this user{f' with master {master}' if master else ''} was found; looked in "
            f"{', '.join(looked)}. Run this as the service's user, or set STABILITY_RUN_DIR as the service has it"
            + (f"; there are others: {', '.join(elsewhere)}" if elsewhere else ""))
    if len({pid for pid, _ in found}) > 1:
        raise click.ClickException("several services run here: choose with --master "
                                   + ", ".join(str(pid) for pid, _ in found))
    pid, path = found[0]
    try:
        return pid, Scoreboard.copy_of(path)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _configured(config: str | None) -> str | None:
    """Return the run directory that a configuration sets; None if it sets none. Report one that cannot be read."""
    try:
        return facts.read(gunicorn_arguments(config), with_app=False).settings.run_dir
    except facts.FactsError as error:
        click.echo(f"{config or 'gunicorn.conf.py'} cannot be read ({error}): looking where the environment says",
                   err=True)
        return None


def _mapped() -> Iterator[tuple[int, str]]:
    """Yield the boards that masters of this user have mapped, wherever the files are."""
    for pid in psutil.pids():
        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
                names = {match[1] for match in map(_MAPPED.search, file) if match and int(match[2]) == pid}
        except OSError:
            continue
        for name in names:
            # a container or a unit may have a /tmp of its own
            path = next((one for one in (name, f"/proc/{pid}/root{name}") if os.path.exists(one)), None)
            if path is not None:
                yield pid, path
