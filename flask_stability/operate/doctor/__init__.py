"""``flask stability doctor``: find what would go wrong before it does, each finding with its remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace

import click
import psutil

from ... import environment
from ...config import load_dotenv
from ...exceptions import ConfigError
from ...memory import cgroup
from .. import inspect as facts
from ..check_db import of_service
from ..find_service import config_option, gunicorn_arguments
from ..finding import Finding, status_of
from . import configuration, machine


def examine(arguments: list[str], *, with_app: bool = True, seconds: float = 60.0,
            flask_app: str | None = None) -> list[Finding]:
    """Examine everything that a service would be started with; return failures first, then warnings.

    :param arguments: arguments for ``gunicorn``.
    :param flask_app: the value of ``flask --app``, loaded unless the arguments name an app.
    :param with_app: load the app as well, in a process of its own.
    :param seconds: time limit for reading the configuration and loading the app.
    """
    try:
        found = facts.read(arguments, with_app=with_app, seconds=seconds, flask_app=flask_app, engines=True)
    except facts.FactsError as error:
        return [Finding("gunicorn", "fail", str(error), "correct the configuration: the service would not start")]
    if not found.named:
        return [Finding("gunicorn", "fail", "No application module specified", "name the app as gunicorn does, such as "
                        "app:app, or as flask does, or set wsgi_app in the configuration")]
    findings: list[Finding] = []
    for look in (*configuration.LOOKS, *machine.LOOKS, _memory, _database):
        try:
            findings.extend(look(found))
        except Exception as error:
            findings.append(Finding(look.__name__.strip("_"), "warn",
                                    f"cannot be told: {type(error).__name__}: {error}"))
    return sorted(findings, key=lambda finding: ("fail", "warn", "ok").index(finding.status))


def _memory(found: facts.Facts) -> Iterator[Finding]:
    return configuration.memory(found, container=cgroup.limit(), total=psutil.virtual_memory().total)


def _database(found: facts.Facts) -> Iterator[Finding]:
    """Yield what check-db finds, for as many workers as there will be."""
    if found.app_error or not (found.apps or found.settings.db_url):
        return
    for finding in of_service(found):
        yield finding if finding.name.startswith(("database", "engine")) else replace(
            finding, name=f"database: {finding.name}")


def show(findings: list[Finding], *, as_json: bool) -> None:
    """Print the findings, each with its remedy below it."""
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    for finding in findings:
        click.echo(f"{finding.status:5} {finding.name}: {finding.detail}")
        if finding.remedy:
            click.echo(f"      {finding.remedy}")
    click.echo(f"\n{summary(findings)}")


def summary(findings: list[Finding]) -> str:
    """Return the closing line: how many of each, and what that means."""
    count = {status: sum(finding.status == status for finding in findings) for status in ("fail", "warn", "ok")}
    verdict = ("FAILED: the service would not start, or not work" if count["fail"] else
               "PASSED with warnings: they will hurt later" if count["warn"] else "PASSED")
    words = {"fail": "failure", "warn": "warning"}
    told = [f"{count[status]} {word}{'s' * (count[status] != 1)}" for status, word in words.items() if count[status]]
    told.append(f"{count['ok']} ok")
    return f"{verdict} ({', '.join(told)})"


@click.command("doctor")
@click.argument("app", required=False)
@config_option
@click.option("--no-app", is_flag=True, help="Do not load the app.")
@click.option("--timeout", type=click.FloatRange(1, 3600), default=60.0, show_default=True,
              help="Seconds that loading may take.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(app: str | None, config: str | None, no_app: bool, timeout: float, as_json: bool) -> None:
    """Look for what would go wrong with the service that ``gunicorn [-c CONFIG] [APP]`` would start here.

    It examines settings, timeouts, ports, versions, memory, disks, permissions and the database, and changes nothing.
    Exit status: 0 well, 1 warnings, 2 failures.
    """
    try:
        environment.as_the_service()
        load_dotenv()
        findings = examine(gunicorn_arguments(config, app), with_app=not no_app, seconds=timeout,
                           flask_app=facts.flask_app())
    except ConfigError as error:
        findings = [Finding("settings", "fail", problem) for problem in error.problems]
    show(findings, as_json=as_json)
    sys.exit(status_of(findings))
