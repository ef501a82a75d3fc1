"""Every setting of the package: key, scope, default, unit, check and meaning, in one frozen dataclass.

Settings are read once, when the app is initialised and when the server starts, and every bad value is reported
together: a wrong number is found at deployment, not at night. `table` makes the
table that README.rst shows.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple
from urllib.parse import quote

from . import environment
from .config_types import (
    Reader,
    bind,
    choice,
    database_url,
    header,
    line,
    mode,
    names,
    number,
    parse_size,
    path,
    port,
    positive,
    ratio,
    seconds,
    secret_file,
    steps,
    switch,
    target,
    token,
    web_url,
)
from .dburl import DatabaseURL
from .exceptions import ConfigError

PREFIX = "STABILITY_"
CHATS = ("slack", "feishu", "dingtalk", "wecom", "pagerduty")  #: receivers of alerts with a format of their own
_MOST_SHOWN = 200  # characters of a bad value
NO_MYSQLCLIENT = ("STABILITY_DB_URL is a MySQL or MariaDB address, but mysqlclient is not installed: "
                  "pip install 'flask_stability[mysql]'")
PYMYSQL_INSTEAD = ", or write mysql+pymysql:// in STABILITY_DB_URL to use PyMySQL, which is installed"
NO_PYMYSQL = ("STABILITY_DB_URL is a mysql+pymysql address, but PyMySQL is not installed: "
              "pip install 'flask_stability[pymysql]'")


class _Spec(NamedTuple):
    """What is known of one setting: who may set it, how it is read, how it is shown."""

    scope: str
    read: Reader
    unit: str
    doc: str
    shown: str
    secret: bool


def _setting(default: Any, read: Reader, doc: str, *, scope: str = "app", unit: str = "",
             shown: str | None = None, secret: bool = False) -> Any:
    if shown is None:
        shown = "on" if default is True else "off" if default is False else "" if default is None else str(default)
        if isinstance(default, float):
            shown = f"{default:g}"
        if isinstance(default, tuple):
            shown = ",".join(f"{part:g}" if isinstance(part, float) else part for part in default)
    return field(default=default, repr=not secret,
                 metadata={"spec": _Spec(scope, read, unit, doc, shown, secret)})


@dataclass(frozen=True)
class Settings:
    """All settings; the attribute of ``STABILITY_DB_TIMEOUT`` is ``db_timeout``.

    Seconds are floats, sizes are bytes, ``None`` means "not set: see the text". Scopes: *app* keys come from
    ``app.config`` or the environment, *worker* and *master* keys from the environment alone, since the master
    process has no app.
    """

    # errors and logs
    error_format: str = _setting("auto", choice("auto", "problem", "html"), "body of an error answer: problem+json "
                                 "if the client prefers JSON to HTML (auto), always, or never")
    request_id_header: str = _setting("X-Request-ID", header, "header that carries the request's id")
    request_id_trust: bool = _setting(False, switch, "take a well-formed id over from the client's header; "
                                      "only behind a proxy that sets it")
    log_client_errors: bool = _setting(False, switch, "log 4xx answers too")
    log_dir: str | None = _setting(None, line, "directory of error.log, health.log and process-manager.log",
                                   scope="master", shown="stderr")
    log_format: str = _setting("auto", choice("auto", "json", "text"), "one JSON object or one text line per record; "
                               "auto: JSON, and on a terminal exceptions as people read them", scope="master")
    log_max_bytes: int = _setting(50 << 20, parse_size, "size at which a log file is rotated", scope="master",
                                  unit="bytes", shown="50M")
    log_backups: int = _setting(5, number(0, 1000, whole=True), "rotated files kept per log", scope="master")

    log_mode: int | None = _setting(None, mode, "permissions of new log files, such as 0644 where another user "
                                    "collects them", scope="master", shown="0640 less the umask")

    # database
    db_url: str | None = _setting(None, database_url, "mysql://user:password@host:port/database or "
                                  "sqlite:///path; unset: SQLite in the instance folder, when first asked for",
                                  secret=True)
    db_url_file: str | None = _setting(None, line, "file that holds that URL, read again for each new connection",
                                       shown="none")
    db_password_file: str | None = _setting(None, line, "file that holds the password (or DB_PASSWORD_FILE), read "
                                            "again for each new connection", shown="none")
    db_from_env: bool = _setting(False, switch, "build the URL from DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, "
                                 "DB_OPTIONS")
    db_autocommit: bool = _setting(True, switch, "each statement outside a transaction commits at once")
    db_max_size: int = _setting(20, number(1, 10000, whole=True), "connections of one worker at the most")
    db_max_idle: int = _setting(10, number(0, 10000, whole=True), "idle connections kept")
    db_min_idle: int = _setting(0, number(0, 10000, whole=True), "idle connections opened ahead of need")
    db_timeout: float = _setting(10.0, positive, "to wait for a connection; never longer than the request may",
                                 unit="s")
    db_bulkhead: bool | None = _setting(
        None, switch, "keep one thread of a worker, a spare one if need be, out of a slow database",
        shown="on for gthread")
    db_connect_timeout: float = _setting(5.0, positive, "to connect", unit="s")
    db_query_timeout: float = _setting(30.0, seconds, "of one statement; 0 = none", unit="s")
    db_idle_timeout: float = _setting(300.0, positive, "after which an idle connection is closed", unit="s")
    db_max_lifetime: float = _setting(1800.0, positive, "after which a connection is replaced (-2.5 % jitter)",
                                      unit="s")
    db_keepalive_interval: float = _setting(120.0, seconds, "between pings of an idle connection; 0 = none", unit="s")
    db_alive_bypass_window: float = _setting(0.5, seconds, "a connection used within it is not checked", unit="s")
    db_leak_detection_threshold: float = _setting(90.0, seconds, "after which a connection not given back is "
                                                  "reported; 0 = never", unit="s")
    db_reset_on_return: str = _setting("rollback", choice("rollback", "session"), "what clears a returned "
                                       "connection: a rollback, or the whole session's state")

    # health
    health_path: str = _setting("/health", path, "where the health endpoints are")
    health_interval: float = _setting(30.0, number(0.1, 1e9), "between rounds of checks (±10 %)", unit="s")
    health_timeout: float = _setting(2.0, positive, "of one check", unit="s")
    health_failure_threshold: int = _setting(3, number(1, 100, whole=True), "failures in a row that make a fail")
    health_success_threshold: int = _setting(2, number(1, 100, whole=True), "successes in a row that make a pass")
    health_details: str | None = _setting(None, choice("never", "token", "always"), "who sees details",
                                          shown="token if one is set, else never")
    health_token: str | None = _setting(None, token, "bearer token for details, 16 characters or more", secret=True)
    health_token_file: str | None = _setting(None, line, "file that holds that token, read when a worker starts",
                                             shown="none")
    health_disk_paths: tuple[str, ...] = _setting(("/",), names, "paths whose file systems are watched")
    health_disk_min_free: float = _setting(0.1, ratio, "free share of a file system below which it warns")
    health_ready_checks: tuple[str, ...] = _setting((), names, "checks that gate /health/ready", shown="none")
    health_mean_latency: float = _setting(0.2, positive, "mean response time above which it warns", unit="s")
    health_p95_latency: float = _setting(1.0, positive, "95th percentile above which it warns", unit="s")
    health_error_rate: float = _setting(0.05, ratio, "share of 5xx answers above which it warns")
    health_fail_error_rate: float | None = _setting(None, ratio, "share of 5xx answers above which /health fails; "
                                                    "never a reason for /health/ready", shown="none")
    health_certificates: tuple[str, ...] = _setting((), names, "PEM files, or host:port that serve a certificate; "
                                                    "warns 21 days before one ends", shown="none")
    slo: float | None = _setting(None, target, "percent of requests to be answered without a server error, such as "
                                 "99.9; alerts when the error budget is spent too fast", shown="none")
    admin_bind: str | None = _setting(None, bind, "address:port or unix:/path of a second listener that shows details",
                                      shown="none")
    admin_hosts: tuple[str, ...] = _setting((), names, "names by which that listener may be asked, beyond its address "
                                            "and localhost", shown="none")
    alert_webhook: str | None = _setting(None, web_url, "address that alerts are posted to", secret=True,
                                         shown="none")
    alert_webhook_file: str | None = _setting(None, line, "file that holds that address, read when a worker starts",
                                              shown="none")
    alert_format: str = _setting("json", choice("json", *CHATS, "text"), "what the receiver of alerts understands: "
                                 "json, slack, feishu, dingtalk, wecom, pagerduty or text")
    alert_secret: str | None = _setting(None, token, "feishu, dingtalk: the secret that signs; pagerduty: the routing "
                                        "key", secret=True, shown="none")
    service_id: str | None = _setting(None, line, "name of the service in health documents and alerts",
                                      shown="app name@host")
    release_id: str | None = _setting(None, line, "version of the service in health documents", shown="none")

    # last good answers
    keep_dir: str | None = _setting(None, line, "directory of the answers that stability.keep stores (in one of its "
                                    "own there, mode 0700)", shown="STABILITY_RUN_DIR, or its default")
    keep_bytes: int = _setting(32 << 20, parse_size, "disk or memory that all these answers may take", unit="bytes",
                               shown="32M")

    # requests, memory, processes
    guard_interval: float = _setting(1.0, number(0.05, 60), "between looks of a worker's guard thread",
                                     scope="worker", unit="s")
    request_timeout: float = _setting(60.0, seconds, "deadline of a request; 0 = none", scope="worker", unit="s")
    header_timeout: float = _setting(20.0, seconds, "in which the head of a request has to arrive; 0 = for ever",
                                     scope="worker", unit="s")
    client_min_rate: float = _setting(
        500.0, seconds, "a client that sends a body more slowly, over 20 s of waiting for it, is cut off, and one that "
        "takes a response more slowly while others wait; 0 = none is", scope="worker", unit="bytes/s")
    queue_target: float = _setting(
        0.5, positive, "a queue in which the oldest request has waited longer, for a second on end, is overload",
        scope="worker", unit="s")
    queue_limit: float = _setting(
        1.0, seconds, "under overload the newest request goes first, and one that has waited longer is answered "
        "with 503; 0 = never", scope="worker", unit="s")
    spare_max: int = _setting(128, number(0, 4000, whole=True), "spare workers of a service, and spare threads of a "
                              "worker, at the most; fewer where memory or rows of the scoreboard are short",
                              scope="master")
    memory_limit: int | None = _setting(None, parse_size, "a worker's own memory (anonymous, private) above "
                                        "which it is replaced",
                                        scope="master", unit="bytes",
                                        shown="0.8 × container limit / (workers + 1)")
    memory_limit_jitter: float = _setting(0.1, ratio, "share by which each worker's limit is lowered at random",
                                          scope="worker")
    memory_samples: int = _setting(3, number(1, 1000, whole=True), "samples in a row above the limit",
                                   scope="worker")
    memory_reclaim: bool = _setting(True, switch, "collect garbage and trim before a replacement", scope="worker")
    memory_hard_factor: float = _setting(1.25, number(1), "× the limit: replaced at once", scope="worker")
    memory_growth: float = _setting(2.5, number(1, above=True), "× the warm floor: replaced if still growing",
                                    scope="worker")
    min_worker_uptime: float = _setting(60.0, seconds, "between replacements for growth", scope="master", unit="s")
    surge: bool = _setting(True, switch, "start the newcomer before the old worker leaves", scope="master")
    retire_mercy: float | None = _setting(None, positive, "a retiring worker may take to end", scope="master",
                                          unit="s", shown="graceful_timeout + 5")
    crash_min_uptime: float = _setting(10.0, seconds, "an exit before it counts as a crash loop's",
                                       scope="master", unit="s")
    restart_backoff: tuple[float, ...] = _setting((0.0, 1.0, 2.0, 4.0, 8.0, 15.0), steps,
                                                  "waits between restarts in a crash loop (±20 %)",
                                                  scope="master", unit="s")
    max_restarts: int = _setting(16, number(1, 100000, whole=True), "crashes within the window that are too many",
                                 scope="master")
    restart_window: float = _setting(60.0, positive, "the window", scope="master", unit="s")
    restart_action: str = _setting("backoff", choice("backoff", "halt"), "what too many crashes lead to",
                                   scope="master")
    drain_delay: float = _setting(0.0, seconds, "to keep serving after SIGTERM with /health/ready at 503",
                                  scope="master", unit="s")
    gc_freeze: bool = _setting(False, switch, "gc.freeze() before forking, with preload_app", scope="master")
    run_dir: str | None = _setting(None, line, "directory of the scoreboard's file", scope="master",
                                   shown="XDG_RUNTIME_DIR, or a directory of its own in /dev/shm")

    @classmethod
    def load(cls, app_config: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
        """Settings of one app: `app_config` over the environment.

        :raises ConfigError: with one line per bad value.
        """
        return _load(app_config, os.environ if environ is None else environ)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings of a process without an app: the environment alone.

        :raises ConfigError: with one line per bad value.
        """
        return _load({}, os.environ if environ is None else environ)


_SPECS: dict[str, _Spec] = {item.name: item.metadata["spec"] for item in fields(Settings)}
KEYS: dict[str, str] = {PREFIX + name.upper(): name for name in _SPECS}


def unknown_keys(config: Iterable[str]) -> dict[str, str | None]:
    """The ``STABILITY_*`` keys that no setting has, each with the nearest known name, or None."""
    unknown = [key for key in config if key.startswith(PREFIX) and key not in KEYS]
    return {key: next(iter(difflib.get_close_matches(key, KEYS, n=1, cutoff=0.85)), None) for key in unknown}


def _load(app_config: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, nearest in unknown_keys(app_config).items():
        if nearest is not None:
            problems.append(f"{key} in app.config is no setting: did you mean {nearest}?")
    for key, name in KEYS.items():
        spec = _SPECS[name]
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
            problems.append(f"{key}={'(not shown)' if spec.secret else _shown(raw)}: {error}")
    if values.get("db_from_env") and "db_url" not in values:
        _url_from_parts(environ, values, problems)
    _with_password(values, problems)
    scheme = (values.get("db_url") or "").partition(":")[0].lower()
    if scheme.endswith("+pymysql"):
        if not _is_there("pymysql"):
            problems.append(NO_PYMYSQL)
    elif scheme.startswith(("mysql", "mariadb")) and not _is_there("MySQLdb"):
        problems.append(NO_MYSQLCLIENT + (PYMYSQL_INSTEAD if _is_there("pymysql") else ""))
    _check_together(values, problems)
    if problems:
        raise ConfigError(problems)
    return Settings(**values)


def _shown(raw: Any) -> str:
    """A bad value, cut; some cannot be shown at all (integers of thousands of digits)."""
    try:
        text = repr(raw)
    except Exception:
        return f"({type(raw).__name__})"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _is_there(module: str) -> bool:
    """Whether a driver is installed, without importing it; a stand-in that was put in its place counts."""
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _secret(key: str, given: Any, app_config: Mapping[str, Any], environ: Mapping[str, str],
            problems: list[str]) -> Any:
    """A secret as it is set, or from the file that KEY_FILE names."""
    path = app_config.get(key + "_FILE") or environ.get(key + "_FILE")
    if not path:
        return given
    if given is not None:
        problems.append(f"{key} and {key}_FILE are both set: leave one of them out")
        return None
    try:
        return secret_file(path)
    except ValueError as error:
        problems.append(f"{key}_FILE={_shown(path)} {error}")
        return None


def _url_from_parts(environ: Mapping[str, str], values: dict[str, Any], problems: list[str]) -> None:
    """``mysql://…`` of DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_OPTIONS; without DB_HOST nothing."""
    host = environ.get("DB_HOST", "").strip()
    if not host:
        return
    given, name = environ.get("DB_PORT", ""), environ.get("DB_NAME", "")
    place = f"[{host}]" if ":" in host else host
    if given or host != "localhost":  # which is the default socket without a port
        number = port(given or "3306")
        if number is None:
            problems.append(f"DB_PORT={_shown(given)}: give a port between 1 and 65535")
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
    """STABILITY_DB_PASSWORD_FILE can be read, and there is an address that it belongs to."""
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


def _check_together(values: dict[str, Any], problems: list[str]) -> None:
    """Settings that depend on each other; fills in what follows from what was given."""
    size = values.get("db_max_size", Settings.db_max_size)
    for name in ("db_max_idle", "db_min_idle"):
        if values.get(name, 0) > size:
            problems.append(f"{PREFIX}{name.upper()}={values[name]}: give at most STABILITY_DB_MAX_SIZE ({size})")
    values.setdefault("db_max_idle", min(Settings.db_max_idle, size))
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


class DatabaseAddress(NamedTuple):
    """The parts of a ``mysql://`` URL, decoded."""

    host: str
    port: int
    user: str
    password: str
    name: str

    @classmethod
    def from_url(cls, url: str) -> DatabaseAddress:
        """Split a URL that the settings accepted."""
        found = DatabaseURL.parse(url)
        return cls(found.host or "localhost", found.port or 3306, found.user, found.password, found.name)


def load_dotenv(path: str = ".env", *, defaults: Mapping[str, str] | None = None) -> None:
    """Add the variables of a ``.env`` file to the environment; what anything else has set stays.

    Read again, it undoes what it did before: a variable that has left the file is what it was.

    :param defaults: set where neither the file nor anything else sets them, now and whenever the file is read again.

    :raises ConfigError: naming file and line of what cannot be parsed or read.
    """
    from dotenv.parser import parse_stream

    try:
        _refuse_planted(os.stat(path), path)
        with open(path, encoding="utf-8") as stream:
            _refuse_planted(os.fstat(stream.fileno()), path)
            bindings = list(parse_stream(stream))
    except FileNotFoundError:
        environment.apply({}, defaults)
        return
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error.__class__.__name__}): "
                          "make it a readable UTF-8 text file or remove it") from error
    broken = [binding.original.line for binding in bindings
              if binding.error or "\0" in f"{binding.key}{binding.value}"]
    if broken:
        raise ConfigError([f"{path}, line {line}: not of the form NAME=value: correct it or comment it out with #"
                           for line in broken])
    environment.apply({binding.key: binding.value for binding in bindings
                       if binding.key and binding.value is not None}, defaults)


def _refuse_planted(found: os.stat_result, path: str) -> None:
    """The environment decides what the service runs: only who could replace the file's folder may decide it.

    :raises ConfigError: if anybody may write the file, or its owner is neither root, nor this user, nor the folder's.
    """
    folder = os.stat(os.path.dirname(path) or ".")
    # file systems of other systems (WSL, shared folders) show every mode as 0777
    open_to_all = folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX
    if found.st_mode & stat.S_IWOTH and not open_to_all:
        raise ConfigError(f"{path}: every user of this machine may write it: chmod o-w {path}")
    if found.st_uid not in (0, os.geteuid(), folder.st_uid):
        raise ConfigError(f"{path}: it belongs to user {found.st_uid}, who owns neither the folder nor the service: "
                          "give it to root or to the service's user")


def server_bind(host: str = "0.0.0.0") -> str:
    """Where our gunicorn configurations listen: SERVER_HOST and SERVER_PORT, or PORT as gunicorn takes it (3007).

    :param host: without SERVER_HOST.

    :raises ConfigError: if that is no port.
    """
    name = "SERVER_PORT" if os.environ.get("SERVER_PORT") else "PORT"
    given = os.environ.get(name) or "3007"
    number = port(given)
    if number is None:
        raise ConfigError(f"{name}={_shown(given)}: give a port between 1 and 65535")
    return f"{os.environ.get('SERVER_HOST') or host}:{number}"


def table() -> str:
    """The table of settings in reStructuredText, as README.rst shows it."""
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - Setting", "     - Default", "     - Set in",
             "     - Meaning"]
    where = {"app": "app.config or environment", "worker": "environment", "master": "environment"}
    for name, spec in _SPECS.items():
        unit = f" {spec.unit}" if spec.unit and spec.shown[:1].isdigit() and spec.unit != "bytes" else ""
        lines += [f"   * - ``{PREFIX}{name.upper()}``", f"     - {spec.shown or 'none'}{unit}",
                  f"     - {where[spec.scope]}", f"     - {spec.doc}"]
    return "\n".join(lines) + "\n"

