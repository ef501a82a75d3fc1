"""``flask stability check-db``: the databases of a service, and what to change about them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from .. import environment
from ..config import Settings, load_dotenv
from ..database.sockets import DESCRIPTORS
from ..exceptions import ConfigError
from . import inspect as facts
from .database_checks import check_db
from .find_service import config_option, gunicorn_arguments
from .finding import Finding, status_of
from .inspect import Facts


def of_service(found: Facts, workers: int | None = None) -> Iterator[Finding]:
    """Look at every database that a service would use: its pools' and its registered engines'.

    :param workers: worker processes that will share them; default: gunicorn's.
    """
    workers = workers or int(found.gunicorn["workers"])
    if found.app_error:
        yield Finding("app", "warn", f"cannot be loaded ({found.app_error}): only the environment is looked at",
                      "start the app by itself to see why")
    for app in found.apps:
        yield from (Finding(**finding) for finding in app.looked_at)
        if app.looked_at:
            pass
        elif app.credentials:
            yield Finding("credentials", "ok", "the app gives them itself")
        elif app.settings.db_url is not None or app.wants_database or os.path.exists(
                os.path.join(app.instance_path, f"{app.name}.db")):
            yield from check_db(app.settings, workers=workers, instance_path=app.instance_path, name=app.name)
        elif not app.engines:
            yield Finding("database", "ok", f"{app.name} names none; an SQLite file in its instance folder is made "
                          "when it first asks for a connection")
        for engine in app.engines:
            yield _engine(engine)
            if engine["uncut"]:
                yield Finding(f"engine {engine['name']}: deadlines", "warn",
                              f"{engine['uncut']} does not tell its socket: a call is not cut off at its request's "
                              "deadline", f"give the engine that driver's own timeouts (connect_args), or use one of "
                              f"{', '.join(sorted(DESCRIPTORS))}")
    if found.apps:
        return
    settings = found.settings
    if settings.db_url is None:
        settings = Settings.from_environ({"STABILITY_DB_FROM_ENV": "on", **os.environ})
    if settings.db_url is None:
        yield Finding("settings", "warn", "no database is named: the app would use SQLite in its instance folder",
                      "name the app (flask --app …), or set STABILITY_DB_URL")
    else:
        yield from check_db(settings, workers=workers)


def _engine(found: dict[str, Any]) -> Finding:
    name = f"engine {found['name']}"
    if found["error"]:
        return Finding(name, "fail", f"{found['address']}: {found['error']}".removeprefix(": "),
                       "start its database, or correct the engine's address")
    return Finding(name, "ok", f"{found['address']}: a round trip takes {found['latency_ms']} ms; {found['pool']}")


@click.command("check-db")
@click.argument("app", required=False)
@config_option
@click.option("--workers", type=click.IntRange(1, 1000), help="Worker processes that will share the database; "
              "gunicorn's if left out.")
@click.option("--timeout", type=click.FloatRange(1, 3600), default=60.0, show_default=True,
              help="Seconds that loading the app may take.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_db_command(app: str | None, config: str | None, workers: int | None, timeout: float, as_json: bool) -> None:
    """Look at the databases of the service that ``gunicorn [-c CONFIG] [APP]`` would start here.

    Without APP, take that of ``flask --app``, else the configuration's; without any app, the database of
    STABILITY_DB_URL or DB_HOST …. The command changes nothing. Exit status: 0 well, 1 warnings, 2 failures.
    """
    try:
        environment.as_the_service()
        load_dotenv()
        found = facts.read(gunicorn_arguments(config, app), seconds=timeout, flask_app=facts.flask_app(), engines=True)
        findings = [Finding("settings", "fail", problem) for problem in found.problems] or list(
            of_service(found, workers))
    except facts.FactsError as error:
        findings = [Finding("gunicorn", "fail", str(error), "correct the configuration: the service would not start")]
    except ConfigError as error:
        findings = [Finding("settings", "fail", problem) for problem in error.problems]
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding.status:5} {finding.name}: {finding.detail}")
            if finding.remedy:
                click.echo(f"      {finding.remedy}")
    sys.exit(status_of(findings))
