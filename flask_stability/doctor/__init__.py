"""``flask stability doctor``: what would go wrong, told before it does, each finding with its remedy."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import click
import psutil

from .. import environment
from ..config import load_dotenv
from ..database.check_db import Finding, check_db, status_of
from ..exceptions import ConfigError
from ..memory import cgroup
from ..server import facts
from . import configuration, machine


def examine(arguments: list[str], *, with_app: bool = True, seconds: float = 60.0) -> list[Finding]:
    """Look at everything that a service would be started with.

    :param arguments: as given to ``gunicorn``.
    :param with_app: load the app too, in a process of its own.
    :param seconds: that reading the configuration and loading the app may take.
    """
    try:
        found = facts.read(arguments, with_app=with_app, seconds=seconds)
    except facts.FactsError as error:
        return [Finding("gunicorn", "fail", str(error), "correct the configuration: the service would not start")]
    findings: list[Finding] = []
    for look in (*configuration.LOOKS, *machine.LOOKS, _memory, _database):
        try:
            findings.extend(look(found))
        except Exception as error:
            findings.append(Finding(look.__name__.strip("_"), "warn",
                                    f"cannot be told: {type(error).__name__}: {error}"))
    return findings


def _memory(found: facts.Facts) -> Iterator[Finding]:
    return configuration.memory(found, container=cgroup.limit(), total=psutil.virtual_memory().total)


def _database(found: facts.Facts) -> Iterator[Finding]:
    """What check-db finds, for as many workers as there will be; a file that is not there yet is not made."""
    url = found.app_settings.db_url
    if url is None or found.app_error or (url.startswith("sqlite:") and not os.path.exists(url[len("sqlite:///"):])):
        return
    app = found.apps[0] if found.apps else None
    if app is not None and app.credentials:
        yield Finding("database: credentials", "ok", "the app gives them itself: `flask --app … stability check-db` "
                      "asks it and looks at the database")
        return
    for finding in check_db(found.app_settings, workers=int(found.gunicorn["workers"]),
                            name=app.name if app else "app", instance_path=app.instance_path if app else "instance"):
        yield replace(finding, name=f"database: {finding.name}")


def show(findings: list[Finding], *, as_json: bool) -> None:
    """Print findings, the remedy below each that has one."""
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    for finding in findings:
        click.echo(f"{finding.status:5} {finding.name}: {finding.detail}")
        if finding.remedy:
            click.echo(f"      {finding.remedy}")


@click.command("doctor")
@click.argument("app", required=False)
@click.option("-c", "--config", metavar="CONFIG", help="gunicorn's configuration; ./gunicorn.conf.py if left out.")
@click.option("--no-app", is_flag=True, help="Do not load the app.")
@click.option("--timeout", type=click.FloatRange(1, 3600), default=60.0, show_default=True,
              help="Seconds that loading may take.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(app: str | None, config: str | None, no_app: bool, timeout: float, as_json: bool) -> None:
    """Look for what would go wrong with the service that ``gunicorn [-c CONFIG] [APP]`` would start here.

    Looks at settings, timeouts, ports, versions, memory, disks, permissions and the database, and changes nothing.
    Exit status: 0 well, 1 warnings, 2 failures.
    """
    arguments = [*(["-c", config] if config else []), *([app] if app else [])]
    try:
        environment.as_the_service()
        load_dotenv()
        findings = examine(arguments, with_app=not no_app, seconds=timeout)
    except ConfigError as error:
        findings = [Finding("settings", "fail", problem) for problem in error.problems]
    show(findings, as_json=as_json)
    sys.exit(status_of(findings))
