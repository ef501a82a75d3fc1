"""The required order of timeouts, in which the inner one always ends first. Pure."""

from __future__ import annotations

from ..config import Settings


def breaches(settings: Settings, *, graceful: float, app: bool = False) -> list[str]:
    """Return one line per breach, with the keys, their values and the remedy.

    :param graceful: gunicorn's graceful_timeout, seconds.
    :param app: the app's settings are known too, the database's among them.
    """
    found = []
    deadline = settings.request_timeout
    kill_timeout = settings.retire_mercy if settings.retire_mercy is not None else graceful + 5
    if kill_timeout <= graceful:
        found.append(f"STABILITY_RETIRE_MERCY={kill_timeout:g} is not above graceful_timeout={graceful:g}: "
                     "a worker would be ended before its requests may finish; raise STABILITY_RETIRE_MERCY")
    if app and deadline:
        if settings.db_query_timeout and settings.db_query_timeout + 5 >= deadline:
            found.append(f"STABILITY_DB_QUERY_TIMEOUT={settings.db_query_timeout:g} plus 5 s is not below "
                         f"STABILITY_REQUEST_TIMEOUT={deadline:g}: a statement may outlast its request; "
                         "lower the first or raise the second")
        if settings.db_timeout >= deadline:
            found.append(f"STABILITY_DB_TIMEOUT={settings.db_timeout:g} is not below "
                         f"STABILITY_REQUEST_TIMEOUT={deadline:g}; lower the first or raise the second")
    return found
