"""The command ``drill``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click
import psutil

from .. import scoreboard
from ..config import Settings, load_dotenv
from ..exceptions import ConfigError
from .faults import database_address
from .run import run
from .service import DrillError, Service, started
from .show import display, show

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _CannotRun(click.ClickException):
    """Exit status 2, apart from that of targets that were missed."""

    exit_code = 2


def _master(run_dir: str | None) -> int:
    """The master's process id, by its scoreboard.

    :raises DrillError: if there is none, or more than one.
    """
    folder = run_dir or Settings.from_environ().run_dir
    places = [folder] if folder else scoreboard.default_run_dirs()
    pids = [pid for pid, _ in scoreboard.running(places)]
    if len(pids) != 1:
        found = f"several: {', '.join(map(str, pids))}" if pids else "none"
        raise DrillError(f"one running service has to have its scoreboard in {', '.join(places)}, found {found}: name "
                         "the directory with --run-dir, or the master's process id with --pid")
    return pids[0]


@click.command("drill")
@click.argument("app", required=False)
@click.option("-c", "--config", help="gunicorn's configuration file (default: gunicorn.conf.py, else ours).")
@click.option("--url", help="A running service instead of APP.")
@click.option("--pid", type=int, help="Process id of its master.")
@click.option("--run-dir", metavar="DIR", help="Where its scoreboard is, in place of --pid; STABILITY_RUN_DIR.")
@click.option("--path", "paths", multiple=True, default=["/"], show_default=True, help="Path to ask; repeat for more.")
@click.option("--rate", type=click.FloatRange(0.1, 10000), default=50.0, show_default=True, help="Requests a second.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=6.0, show_default=True,
              help="Observed after each fault.")
@click.option("--database", is_flag=True, help="Also drop the database's connections (MySQL, MariaDB).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--junit", type=click.Path(dir_okay=False), help="Write a JUnit file.")
@click.option("--anywhere", is_flag=True, help="Allow an address beyond this machine's loopback interface.")
def drill_command(app: str | None, config: str | None, url: str | None, pid: int | None, run_dir: str | None,
                  paths: tuple[str, ...], rate: float, seconds: float, database: bool, as_json: bool, junit: str | None,
                  anywhere: bool) -> None:
    """Test the stability of APP (as gunicorn names it, such as app:app) under faults.

    Exit status: 0 every target was met, 1 one was missed, 2 the drill could not be run.
    """
    if (pid or run_dir) and not url:
        raise click.UsageError("--pid and --run-dir say whose --url it is: give that too")
    if url and urlsplit(url).hostname not in LOOPBACK and not anywhere:
        raise click.UsageError(f"{url} is not on this machine: workers are killed there; add --anywhere if you mean it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C: what was begun is ended
    try:
        load_dotenv()
        if database and database_address() is None:
            raise click.UsageError("--database needs a MySQL or MariaDB in STABILITY_DB_URL")
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(display(as_json))
            if url:
                service = Service(url.rstrip("/"), pid or _master(run_dir))
            else:
                service = stack.enter_context(started(app, config, os.getcwd()))
            report = run(service, paths, rate=rate, seconds=seconds, database=database, progress=progress)
    except (DrillError, ConfigError, psutil.Error) as error:
        raise _CannotRun(str(error)) from error
    if junit:
        try:
            Path(junit).write_text(report.as_junit(), encoding="utf-8")
        except OSError as error:
            raise _CannotRun(f"--junit {junit}: {error.strerror}") from error
    if as_json:
        click.echo(report.as_json())
    else:
        show(report)
    sys.exit(0 if report.passed else 1)
