"""The command ``drill``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import psutil

from ...config import Settings, load_dotenv
from ...dburl import DatabaseURL
from ...exceptions import ConfigError
from .. import inspect as facts
from ..find_service import config_option, find_master, gunicorn_arguments
from .compare import compare, show_comparison
from .faults import database_address
from .run import run
from .service import DrillError, Service, started
from .show import display, show

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _CannotRun(click.ClickException):
    """The drill cannot be run: exit status 2, unlike that of missed targets."""

    exit_code = 2


def _master(run_dir: str | None, config: str | None) -> int:
    """Return the master's process id, found by its scoreboard.

    :raises DrillError: if there is none, or more than one.
    """
    if run_dir:
        os.environ["STABILITY_RUN_DIR"] = run_dir
    try:
        return find_master(None, config)[0]
    except click.ClickException as error:
        raise DrillError(f"{error.message}; name the directory with --run-dir, or the master's process id with "
                         "--pid") from None


def _address(app: str | None, config: str | None) -> DatabaseURL:
    """Return the address of the service's own database.

    :raises DrillError: if it is no MySQL or MariaDB, or unknown.
    """
    try:
        found = facts.read(gunicorn_arguments(config, app), flask_app=facts.flask_app() if app is None else None)
    except facts.FactsError as error:
        raise DrillError(str(error)) from error
    settings = found.app_settings if found.apps else Settings.from_environ(
        {"STABILITY_DB_FROM_ENV": "on", **os.environ})
    address = database_address(settings)
    if address is None:
        raise DrillError("--database needs a MySQL or MariaDB in STABILITY_DB_URL"
                         + (f"; the app cannot be loaded: {found.app_error}" if found.app_error else ""))
    return address


@contextlib.contextmanager
def _writable(junit: str | None) -> Iterator[None]:
    """Check before the drill that its report can be written; remove a file made for that if the drill fails.

    :raises DrillError: if it cannot.
    """
    if junit is None:
        yield
        return
    new = not os.path.lexists(junit)
    try:
        with open(junit, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise DrillError(f"--junit {junit}: {error.strerror}") from error
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                os.unlink(junit)
        raise


@click.command("drill")
@click.argument("app", required=False)
@config_option
@click.option("--url", help="A running service instead of APP.")
@click.option("--pid", type=int, help="Process id of its master.")
@click.option("--run-dir", metavar="DIR", help="Where its scoreboard is, in place of --pid; STABILITY_RUN_DIR.")
@click.option("--path", "paths", multiple=True, default=["/"], show_default=True, help="Path to ask; repeat for more.")
@click.option("--rate", type=click.FloatRange(0.1, 10000), default=50.0, show_default=True, help="Requests a second.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=6.0, show_default=True,
              help="Observed after each fault.")
@click.option("--database", is_flag=True, help="Also drop the database's connections (MySQL, MariaDB).")
@click.option("--overload", is_flag=True, help="Also send three times as much as it can answer, at last.")
@click.option("--compare", "comparing", is_flag=True, help="Do the same to APP without the extension, and show both.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--junit", type=click.Path(dir_okay=False), help="Write a JUnit file.")
@click.option("--anywhere", is_flag=True, help="Allow an address beyond this machine's loopback interface.")
def drill_command(app: str | None, config: str | None, url: str | None, pid: int | None, run_dir: str | None,
                  paths: tuple[str, ...], rate: float, seconds: float, database: bool, overload: bool, comparing: bool,
                  as_json: bool, junit: str | None, anywhere: bool) -> None:
    """Test the stability of APP (as gunicorn names it, such as app:app) under faults.

    Exit status: 0 every target was met (with the extension), 1 one was missed, 2 the drill could not be run.
    """
    if (pid or run_dir) and not url:
        raise click.UsageError("--pid and --run-dir say whose --url it is: give that too")
    if comparing and url:
        raise click.UsageError("--compare starts APP itself, once with and once without the extension: give no --url")
    if comparing and overload:
        raise click.UsageError("--overload is not compared: run it twice, with and without STABILITY_QUEUE_LIMIT")
    if url and urlsplit(url).hostname not in LOOPBACK and not anywhere:
        raise click.UsageError(f"{url} is not on this machine: workers are killed there; add --anywhere if you mean it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C: what was begun is ended
    try:
        load_dotenv()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_writable(junit))
            address = _address(app, config) if database else None
            progress = stack.enter_context(display(as_json))
            comparison = None
            if comparing:
                comparison = compare(app, config, os.getcwd(), paths, rate=rate, seconds=seconds, database=address,
                                     progress=progress)
                report = comparison.with_it
            elif url:
                service = Service(url.rstrip("/"), pid or _master(run_dir, config), paths)
                report = run(service, rate=rate, seconds=seconds, database=address, progress=progress,
                             overload=overload)
            else:
                service = stack.enter_context(started(app, config, os.getcwd(), paths))
                report = run(service, rate=rate, seconds=seconds, database=address, progress=progress,
                             overload=overload)
    except (DrillError, ConfigError, psutil.Error) as error:
        raise _CannotRun(str(error)) from error
    if junit:
        try:
            Path(junit).write_text(report.as_junit(), encoding="utf-8")
        except OSError as error:
            raise _CannotRun(f"--junit {junit}: {error.strerror}") from error
    if comparison is not None:
        click.echo(comparison.as_json()) if as_json else show_comparison(comparison)
    elif as_json:
        click.echo(report.as_json())
    else:
        show(report)
    sys.exit(0 if report.passed else 1)
