"""Read all settings at once, from an app's config and the environment: all bad values are reported together."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from .config_types import PREFIX, Spec, database_url, port, secret_file, shown
from .dburl import DatabaseURL
from .exceptions import ConfigError

NO_MYSQLCLIENT = ("STABILITY_DB_URL is a MySQL or MariaDB address, but mysqlclient is not installed: "
                  "pip install 'flask_stability[mysql]'")
PYMYSQL_INSTEAD = ", or write mysql+pymysql:// in STABILITY_DB_URL to use PyMySQL, which is installed"
NO_PYMYSQL = ("STABILITY_DB_URL is a mysql+pymysql address, but PyMySQL is not installed: "
              "pip install 'flask_stability[pymysql]'")


def unknown(specs: Mapping[str, Spec], config: Iterable[str]) -> dict[str, str | None]:
    """Return the ``STABILITY_*`` keys that no setting has, each with the nearest known name, or None."""
    known = [key_of(name) for name in specs]
    strange = [key for key in config if key.startswith(PREFIX) and key not in known]
    return {key: next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.85)), None) for key in strange}


def key_of(name: str) -> str:
    """Return the key of a setting's attribute: ``STABILITY_DB_TIMEOUT`` of ``db_timeout``."""
    return PREFIX + name.upper()


def read(specs: Mapping[str, Spec], app_config: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that are set: `app_config` over the environment.

    :raises ConfigError: with one line per bad value.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, nearest in unknown(specs, app_config).items():
        if nearest is not None:
            problems.append(f"{key} in app.config is no setting: did you mean {nearest}?")
    for name, spec in specs.items():
        key = key_of(name)
        raw = app_config.get(key)
        if raw is not None and spec.scope != "app":
            problems.append(f"{key} in app.config comes too late: the server reads it before there is an app; "
                            f"set the environment variable {key} instead")
            continue
        if raw is None:
            raw = environ.get(key) or None
        if spec.secret:
            raw = _secret(key, raw, app_config, environ, problems)
        if raw is None:
            continue
        try:
            values[name] = spec.read(raw)
        except ValueError as error:
            problems.append(f"{key}={'(not shown)' if spec.secret else shown(raw)}: {error}")
    if values.get("db_from_env") and "db_url" not in values:
        _url_from_parts(environ, values, problems)
    _with_password(values, problems)
    scheme = (values.get("db_url") or "").partition(":")[0].lower()
    if scheme.endswith("+pymysql"):
        if not _is_there("pymysql"):
            problems.append(NO_PYMYSQL)
    elif scheme.startswith(("mysql", "mariadb")) and not _is_there("MySQLdb"):
        problems.append(NO_MYSQLCLIENT + (PYMYSQL_INSTEAD if _is_there("pymysql") else ""))
    _check_together(specs, values, problems)
    if problems:
        raise ConfigError(problems)
    return values


def _is_there(module: str) -> bool:
    """Return whether a driver is installed, without importing it; a stand-in in `sys.modules` counts."""
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _secret(key: str, given: Any, app_config: Mapping[str, Any], environ: Mapping[str, str],
            problems: list[str]) -> Any:
    """Return a secret as it is set, or from the file that KEY_FILE names; add what is wrong to `problems`."""
    path = app_config.get(key + "_FILE") or environ.get(key + "_FILE")
    if not path:
        return given
    if given is not None:
        problems.append(f"{key} and {key}_FILE are both set: leave one of them out")
        return None
    try:
        return secret_file(path)
    except ValueError as error:
        problems.append(f"{key}_FILE={shown(path)} {error}")
        return None


def _url_from_parts(environ: Mapping[str, str], values: dict[str, Any], problems: list[str]) -> None:
    """Build ``mysql://…`` from DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_OPTIONS; do nothing without DB_HOST.
    """
    host = environ.get("DB_HOST", "").strip()
    if not host:
        return
    given, name = environ.get("DB_PORT", ""), environ.get("DB_NAME", "")
    place = f"[{host}]" if ":" in host else host
    if given or host != "localhost":  # localhost without a port means the default socket
        number = port(given or "3306")
        if number is None:
            problems.append(f"DB_PORT={shown(given)}: give a port between 1 and 65535")
        place += f":{number or 3306}"
    if not name:
        problems.append("DB_NAME is empty: DB_HOST is set, so name the database in DB_NAME")
        return
    user, password = environ.get("DB_USER", ""), environ.get("DB_PASSWORD", "")
    if environ.get("DB_PASSWORD_FILE"):
        if password:
            problems.append("DB_PASSWORD and DB_PASSWORD_FILE are both set: leave one of them out")
        values.setdefault("db_password_file", environ["DB_PASSWORD_FILE"])
    options = environ.get("DB_OPTIONS", "").lstrip("?")
    login = quote(user, safe="") + (":" + quote(password, safe="") if password else "")
    url = f"mysql://{login}@{place}/{quote(name, safe='')}"
    try:
        values["db_url"] = database_url(url)
    except ValueError:
        problems.append(f"DB_HOST={host!r}: give the name or address of the database's host")
        return
    if options:
        try:
            values["db_url"] = database_url(f"{url}?{options}")
        except ValueError as error:
            problems.append(f"DB_OPTIONS: {error}")


def _with_password(values: dict[str, Any], problems: list[str]) -> None:
    """Check that STABILITY_DB_PASSWORD_FILE can be read, and that an address exists for its password."""
    path, url = values.get("db_password_file"), values.get("db_url")
    if not path:
        return
    if not (url or "").startswith(("mysql", "mariadb")):
        problems.append("STABILITY_DB_PASSWORD_FILE is set without an address: set STABILITY_DB_URL to mysql://…")
    elif DatabaseURL.parse(url or "").password:
        problems.append("STABILITY_DB_PASSWORD_FILE is set and the address has a password: leave one of them out")
    else:
        try:
            secret_file(path)
        except ValueError as error:
            problems.append(f"STABILITY_DB_PASSWORD_FILE={path!r} {error}")


def _check_together(specs: Mapping[str, Spec], values: dict[str, Any], problems: list[str]) -> None:
    """Check settings that depend on each other; fill in defaults that follow from the given ones."""
    size = values.get("db_max_size", specs["db_max_size"].default)
    for name in ("db_max_idle", "db_min_idle"):
        if values.get(name, 0) > size:
            problems.append(f"{PREFIX}{name.upper()}={values[name]}: give at most STABILITY_DB_MAX_SIZE ({size})")
    values.setdefault("db_max_idle", min(specs["db_max_idle"].default, size))
    if values.get("db_min_idle", 0) > values["db_max_idle"]:
        problems.append(f"STABILITY_DB_MIN_IDLE={values['db_min_idle']}: give at most "
                        f"STABILITY_DB_MAX_IDLE ({values['db_max_idle']})")
    if "errors" in values.get("health_ready_checks", ()):
        problems.append("STABILITY_HEALTH_READY_CHECKS names errors: a client with one broken URL could take every "
                        "instance out; leave it out, or set STABILITY_HEALTH_FAIL_ERROR_RATE, which fails /health")
    if values.get("alert_format") == "pagerduty" and not values.get("alert_secret"):
        problems.append("STABILITY_ALERT_FORMAT=pagerduty needs the routing key in STABILITY_ALERT_SECRET")
    token = values.get("health_token")
    if values.setdefault("health_details", "token" if token else "never") == "token" and not token:
        problems.append("STABILITY_HEALTH_DETAILS=token needs STABILITY_HEALTH_TOKEN")
