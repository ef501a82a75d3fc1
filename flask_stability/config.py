"""Every setting of the package: key, scope, default, unit, check and meaning, in one frozen dataclass.

Settings are read once, when the app is initialised and when the server starts. All bad values are reported together, so
a wrong number is found at deployment, not at night. `table` generates the table in README.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .config_load import key_of, read, unknown
from .config_types import (
    PREFIX,
    Reader,
    Spec,
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
    paths,
    positive,
    ratio,
    seconds,
    steps,
    switch,
    target,
    token,
    web_url,
)
from .environment import load_dotenv as load_dotenv
from .environment import server_bind as server_bind
from .exceptions import ConfigError as ConfigError

CHATS = ("slack", "feishu", "dingtalk", "wecom", "pagerduty")  #: receivers of alerts with a format of their own


def _setting(default: Any, reader: Reader, doc: str, *, scope: str = "app", unit: str = "",
             shown: str | None = None, secret: bool = False) -> Any:
    if shown is None:
        shown = "on" if default is True else "off" if default is False else "" if default is None else str(default)
        if isinstance(default, float):
            shown = f"{default:g}"
        if isinstance(default, tuple):
            shown = ",".join(f"{part:g}" if isinstance(part, float) else part for part in default)
    return field(default=default, repr=not secret,
                 metadata={"spec": Spec(scope, reader, default, unit, doc, shown, secret)})


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
    db_outage_patience: float = _setting(10.0, seconds, "for which requests wait while the database is away, from the "
                                         "outage's begin; 0 = they are refused at once", unit="s")
    db_outage_threads: int = _setting(256, number(0, 4000, whole=True), "requests of a worker that wait for a database "
                                      "that is away or slow, at the most; within STABILITY_SPARE_MAX")
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
    health_details: str | None = _setting(None, choice("never", "token", "always"), "which clients see details",
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
    release_id: str | None = _setting(None, line, "version of the service in health documents, records and metrics",
                                      shown="none")

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
        0.0, seconds, "under overload the newest request goes first, and one that has waited longer is answered "
        "with 503; 1.0 is right for most services; 0 = requests are served in their order, and none is refused",
        scope="worker", unit="s")
    spare_max: int = _setting(320, number(0, 4000, whole=True), "spare workers of a service, and spare threads of a "
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
    surge: bool = _setting(True, switch, "start the replacement before the old worker leaves", scope="master")
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
    release_judge: bool = _setting(True, switch, "at a reload (SIGHUP) one worker with the new code serves first, "
                                   "and a release that is worse is refused", scope="master")
    release_time: float = _setting(10.0, positive, "in which the new release is judged", scope="master", unit="s")
    release_undecided: str = _setting("accept", choice("accept", "refuse"), "what becomes of a release that answered "
                                      "too few requests in that time to be judged", scope="master")
    release_watch: float = _setting(60.0, seconds, "for which the old workers are kept after that, to turn back to; "
                                    "0 = they leave at once", scope="master", unit="s")
    release_probes: tuple[str, ...] = _setting((), paths, "paths that a new worker asks itself (GET) before it serves; "
                                               "5xx or no answer refuses the release", scope="master", shown="none")
    quarantine: bool = _setting(True, switch, "a request that was in flight in two crashes is served alone by a worker "
                                "of its own; off: only what an operator names is", scope="master")
    drain_delay: float = _setting(0.0, seconds, "to keep serving after SIGTERM with /health/ready at 503",
                                  scope="master", unit="s")
    gc_freeze: bool = _setting(False, switch, "gc.freeze() before forking, with preload_app", scope="master")
    run_dir: str | None = _setting(None, line, "directory of the scoreboard's file", scope="master",
                                   shown="XDG_RUNTIME_DIR, or a directory of its own in /dev/shm")

    @classmethod
    def load(cls, app_config: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
        """Return the settings of one app: `app_config` over the environment.

        :raises ConfigError: with one line per bad value.
        """
        return cls(**read(_SPECS, app_config, os.environ if environ is None else environ))

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Return the settings of a process without an app: the environment alone.

        :raises ConfigError: with one line per bad value.
        """
        return cls(**read(_SPECS, {}, os.environ if environ is None else environ))


_SPECS: dict[str, Spec] = {item.name: item.metadata["spec"] for item in fields(Settings)}
KEYS: dict[str, str] = {key_of(name): name for name in _SPECS}


def unknown_keys(config: Iterable[str]) -> dict[str, str | None]:
    """Return the ``STABILITY_*`` keys that no setting has, each with the nearest known name, or None."""
    return unknown(_SPECS, config)


def table() -> str:
    """Return the table of settings in reStructuredText, as in README.rst."""
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - Setting", "     - Default", "     - Set in",
             "     - Meaning"]
    where = {"app": "app.config or environment", "worker": "environment", "master": "environment"}
    for name, spec in _SPECS.items():
        unit = f" {spec.unit}" if spec.unit and spec.shown[:1].isdigit() and spec.unit != "bytes" else ""
        lines += [f"   * - ``{PREFIX}{name.upper()}``", f"     - {spec.shown or 'none'}{unit}",
                  f"     - {where[spec.scope]}", f"     - {spec.doc}"]
    return "\n".join(lines) + "\n"

