"""``flask stability alert-test``: find out whether an alert arrives before it matters."""

from __future__ import annotations

import socket
import time
import uuid

import click

from ..config import load_dotenv
from ..exceptions import ConfigError
from ..health.alert_formats import DELIVERED
from ..health.alerts import post
from ..redact import redact, secrets_of
from . import inspect as facts
from .find_service import config_option, gunicorn_arguments


@click.command("alert-test")
@click.argument("app", required=False)
@config_option
def alert_test_command(app: str | None, config: str | None) -> None:
    """Post one alert, marked as a test, to STABILITY_ALERT_WEBHOOK as the service would.

    Name APP as for gunicorn; the default is the configuration's. Exit status: 0 delivered, 1 not, 2 no address is set.
    """
    try:
        load_dotenv()
        found = facts.read(gunicorn_arguments(config, app), flask_app=facts.flask_app())
    except (ConfigError, facts.FactsError) as error:
        raise click.ClickException(str(error)) from error
    if found.problems:
        raise click.ClickException("; ".join(found.problems))
    settings = found.app_settings
    if found.app_error:
        click.echo(f"the app cannot be loaded ({found.app_error}): only the environment is looked at", err=True)
    if settings.alert_webhook is None:
        click.echo("STABILITY_ALERT_WEBHOOK is not set: alerts go to health.log and the signal only", err=True)
        click.get_current_context().exit(2)
    outcome, why, _ = post(settings, {
        "id": uuid.uuid4().hex[:12], "time": round(time.time(), 3), "check": "alert-test", "old": "pass", "new": "warn",
        "kind": "test", "detail": "flask stability alert-test", "service": settings.service_id or "",
        "host": socket.gethostname(), "service_status": "pass"})
    if outcome != DELIVERED:
        text = redact(why, secrets_of(settings))
        raise click.ClickException(f"the receiver did not take it as {settings.alert_format}: {text}; see "
                                   "STABILITY_ALERT_WEBHOOK, STABILITY_ALERT_FORMAT and STABILITY_ALERT_SECRET")
    if settings.alert_format == "pagerduty":  # what was begun is ended
        post(settings, {"check": "alert-test", "new": "pass", "service": settings.service_id or "",
                        "host": socket.gethostname()})
    click.echo(f"delivered as {settings.alert_format}")
