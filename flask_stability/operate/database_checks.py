"""Check that a database answers and is set up for what the pool will ask of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

from ..config import Settings
from ..database.credentials import Source
from ..database.drivers import Driver, make_driver
from ..database.sqlite import MEMORY
from ..dberrors import ErrorClass
from ..dburl import DatabaseURL
from .finding import Finding

ROUND_TRIPS = 20
_WRONG_LOGIN = 1045


def check_db(settings: Settings, *, workers: int = 4, instance_path: str = "instance",
             name: str = "app", credentials: Source | None = None) -> list[Finding]:
    """Check the database of these settings. What the database does wrong is a finding, never an exception.

    :param workers: worker processes that will share it.
    :param credentials: the app's function that gives them, see `StabilityExt`.
    :raises ConfigError: if the driver is missing.
    """
    driver = make_driver(settings, instance_path, name, credentials)
    if driver.kind == "sqlite" and _is_missing(path := getattr(driver, "path", MEMORY)):
        return [_not_made(driver, path)]
    try:
        raw = driver.connect()
    except Exception as error:
        code = error.args[0] if error.args else None
        kind = "credentials" if driver.classify(error) is ErrorClass.REFUSED else "reachable"
        remedy = driver.remedy(error) or "see the error"
        if code == _WRONG_LOGIN and _needs_tls(settings, instance_path, name, credentials):
            remedy = "this user must use TLS: add ssl_mode=REQUIRED (better VERIFY_IDENTITY, with ssl_ca) to the " \
                     "options of STABILITY_DB_URL or to DB_OPTIONS"
        return [Finding(kind, "fail", f"{driver.describe()}: {type(error).__name__} {code}", remedy)]
    try:
        findings = [Finding("reachable", "ok", driver.describe())]
        for look in _mysql if driver.kind == "mysql" else _sqlite:
            try:
                findings.extend(look(driver, raw, settings, workers))
            except driver.dbapi.Error as error:
                findings.append(Finding(look.__name__.strip("_"), "warn", f"{type(error).__name__}: "
                                        f"{error.args[0] if error.args else ''}", "the user may not look at this"))
        return findings
    finally:
        with contextlib.suppress(Exception):
            raw.close()


def _needs_tls(settings: Settings, *which: Any) -> bool:
    """Return whether a login that was refused in clear succeeds with TLS."""
    url = settings.db_url or ""
    if DatabaseURL.parse(url).ssl_mode:
        return False
    encrypted = url.rstrip("?&") + ("&" if "=" in url.partition("?")[2] else "?") + "ssl_mode=REQUIRED"
    try:
        make_driver(replace(settings, db_url=encrypted, db_url_file=None), *which).connect().close()
        return True
    except Exception:
        return False


def _is_missing(path: str) -> bool:
    return path != MEMORY and not os.path.exists(path)


def _not_made(driver: Driver, path: str) -> Finding:
    """Return the finding about a missing SQLite file. Making it here would give it to this user, not the service's."""
    folder = os.path.dirname(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        return Finding("reachable", "fail", f"{driver.describe()} is not there, and cannot be made in {folder}",
                       "correct STABILITY_DB_URL, or let the service's user write to the folder")
    return Finding("reachable", "ok", f"not there yet, the service makes it: {driver.describe()}")


Look = Callable[[Driver, Any, Settings, int], Iterator[Finding]]


def _rows(raw: Any, sql: str) -> list[Any]:
    cursor = raw.cursor()
    try:
        cursor.execute(sql)
        return list(cursor.fetchall())
    finally:
        cursor.close()


def _latency(driver: Driver, raw: Any, settings: Settings, workers: int) -> Iterator[Finding]:
    times = []
    for _ in range(ROUND_TRIPS):
        started = time.perf_counter()
        _rows(raw, "SELECT 1")
        times.append((time.perf_counter() - started) * 1000)
    middle, worst = median(times), max(times)
    yield Finding("latency", "ok" if middle < 50 else "warn", f"median {middle:.2f} ms, worst {worst:.2f} ms of "
                  f"{ROUND_TRIPS} round trips", "" if middle < 50 else "put service and database closer together")


def _version(driver: Driver, raw: Any, settings: Settings, workers: int) -> Iterator[Finding]:
    yield Finding("version", "ok", str(_rows(raw, "SELECT VERSION()")[0][0]))


def _connections(driver: Driver, raw: Any, settings: Settings, workers: int) -> Iterator[Finding]:
    most = int(_rows(raw, "SELECT @@max_connections")[0][0])
    # one more worker during a replacement, one probe per worker
    wanted = (workers + 1) * (settings.db_max_size + 1)
    fits = wanted <= most
    yield Finding("max_connections", "ok" if fits else "warn",
                  f"the server allows {most}; {workers} workers and one replacement may open {wanted}",
                  "" if fits else f"raise max_connections to at least {wanted + 10}, or lower STABILITY_DB_MAX_SIZE to "
                  f"{max(1, most // (workers + 1) - 2)}")


def _timeouts(driver: Driver, raw: Any, settings: Settings, workers: int) -> Iterator[Finding]:
    wait = float(_rows(raw, "SELECT @@wait_timeout")[0][0])
    kept = min(settings.db_idle_timeout, settings.db_keepalive_interval or settings.db_idle_timeout)
    yield Finding("wait_timeout", "ok" if wait > kept else "warn",
                  f"the server closes connections idle for {wait:g} s; ours are used or closed after {kept:g} s",
                  "" if wait > kept else f"raise wait_timeout, or set STABILITY_DB_IDLE_TIMEOUT below {wait:g}")


def _charset(driver: Driver, raw: Any, settings: Settings, workers: int) -> Iterator[Finding]:
    charset = str(_rows(raw, "SELECT @@character_set_database")[0][0])
    good = charset.startswith("utf8mb4")
    yield Finding("character set", "ok" if good else "warn", f"of the database: {charset}",
                  "" if good else "ALTER DATABASE … CHARACTER SET utf8mb4: text beyond it is refused or lost")


def _privileges(driver: Driver, raw: Any, settings: Settings, workers: int) -> Iterator[Finding]:
    grants = " ".join(str(row[0]) for row in _rows(raw, "SHOW GRANTS FOR CURRENT_USER")).upper()
    more = any(word in grants for word in ("GRANT SUPER", "CONNECTION ADMIN", "ALL PRIVILEGES ON *.*"))
    yield Finding("privileges", "ok", "may KILL the connections of all users" if more else
                  "may KILL its own connections: enough for the drill")


def _journal(driver: Driver, raw: Any, settings: Settings, workers: int) -> Iterator[Finding]:
    mode = str(_rows(raw, "PRAGMA journal_mode")[0][0])
    yield Finding("journal mode", "ok" if mode in ("wal", "memory") else "warn", mode,
                  "" if mode in ("wal", "memory") else "put the file on a local disk: write-ahead logging needs it")
    ok = _rows(raw, "PRAGMA quick_check")[0][0] == "ok"
    yield Finding("integrity", "ok" if ok else "fail", "quick_check", "" if ok else "restore the file from a backup")


def _writable(driver: Driver, raw: Any, settings: Settings, workers: int) -> Iterator[Finding]:
    path = driver.describe()
    good = path == ":memory:" or os.access(path, os.W_OK)
    yield Finding("writable", "ok" if good else "fail", path, "" if good else "give the service's user write access")


_mysql: tuple[Look, ...] = (_version, _latency, _connections, _timeouts, _charset, _privileges)
_sqlite: tuple[Look, ...] = (_latency, _journal, _writable)
