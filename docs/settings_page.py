"""The tables of docs/settings.rst: the settings of the code, grouped by what one wants to achieve.

A setting belongs to the first group that names it or a beginning of its name; one that no group names is in the last.
"""

from __future__ import annotations

from flask_stability import config

#: The ten to look at before a service goes live.
FIRST = ("DB_URL", "HEALTH_TOKEN", "LOG_DIR", "ALERT_WEBHOOK", "REQUEST_TIMEOUT", "DB_TIMEOUT", "DB_QUERY_TIMEOUT",
         "DB_MAX_SIZE", "MEMORY_LIMIT", "DRAIN_DELAY")

#: Title, and names of settings without STABILITY_; one that ends with * stands for all that begin so.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Connect to a database", ("DB_URL*", "DB_PASSWORD*", "DB_FROM_ENV", "DB_AUTOCOMMIT", "DB_RESET*")),
    ("Size the connection pool", ("DB_MAX_SIZE", "DB_MAX_IDLE", "DB_MIN_IDLE", "DB_IDLE_TIMEOUT", "DB_MAX_LIFETIME")),
    ("Survive a slow or lost database", ("DB_*", "KEEP_*")),
    ("Answer errors, and find them in the logs", ("ERROR_*", "REQUEST_ID*", "LOG_*")),
    ("Bound requests and slow clients", ("REQUEST_*", "HEADER_*", "CLIENT_*", "SPARE_*", "GUARD_*", "QUEUE_*",
                                        "ADMISSION*", "OVERLOAD*", "PRIORITY*")),
    ("Bound memory", ("MEMORY_*", "MIN_WORKER_UPTIME", "GC_*")),
    ("Restart and replace workers", ("SURGE", "RETIRE_*", "CRASH_*", "RESTART_*", "MAX_RESTARTS", "QUARANTINE")),
    ("Start, reload and stop", ("DRAIN_*", "RUN_*", "RELEASE_*", "SERVICE_*")),
    ("Show details to operators only", ("HEALTH_DETAILS", "HEALTH_TOKEN*", "ADMIN_*")),
    ("Be alerted", ("ALERT_*", "SLO", "HEALTH_ERROR*", "HEALTH_FAIL_*")),
    ("Know how the service is", ("HEALTH_*",)),
    ("More", ("*",)),
)


def group_of(name: str) -> str:
    """Return the title of the group that a setting belongs to."""
    short = name.removeprefix("STABILITY_")
    return next(title for title, names in GROUPS
                if any(short.startswith(one[:-1]) if one.endswith("*") else short == one for one in names))


def rows() -> dict[str, str]:
    """Return the row of each setting in `config.table`."""
    _, *found = config.table().split("   * - ``")
    return {row.partition("``")[0]: "   * - ``" + row.rstrip("\n") + "\n" for row in found}


def page() -> str:
    """Return the tables in reStructuredText, the ten that matter first."""
    known = rows()
    head = config.table().partition("   * - ``")[0]
    groups: dict[str, list[str]] = {title: [] for title, _ in GROUPS}
    for name in known:
        groups[group_of(name)].append(name)
    parts = [("Ten that matter first", [f"STABILITY_{name}" for name in FIRST]), *groups.items()]
    return "\n".join(f"{title}\n{'-' * len(title)}\n\n{head}{''.join(known[name] for name in names)}"
                     for title, names in parts if names)
