"""Find out what gunicorn would run with, without starting it: its configuration, our settings, and the app.

A process of its own reads them, since a configuration is a program: it may print, hang or exit. This module is that
process as well: ``python -m flask_stability.operate.inspect DESCRIPTOR WANTED ARGUMENTS…``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from typing import Any

import click

from ..config import Settings, unknown_keys
from ..exceptions import ConfigError, StabilityError
from ..runtime import runtime

#: The gunicorn settings that are examined.
NAMES = ("workers", "threads", "timeout", "graceful_timeout", "keepalive", "worker_connections", "max_requests",
         "max_requests_jitter", "preload_app", "reuse_port", "reload", "daemon", "forwarded_allow_ips", "uid", "gid",
         "chdir", "control_socket", "control_socket_disable", "http_protocols")


class FactsError(StabilityError):
    """The configuration could not be read; the message says why."""


@dataclass(frozen=True)
class AppFacts:
    """An app that uses the extension.

    :ivar settings: its own settings, app.config over the environment.
    :ivar wants_database: it names a database, or settings of one.
    :ivar engines: what was found of each SQLAlchemy engine that it registered: name, address, error ("" if it answers),
        latency_ms, pool, uncut. Empty unless `read` was asked for them.
    :ivar looked_at: findings about its database, if only the app itself can give the credentials.
    :ivar longest: the longest deadline of a view, seconds; 0 = no view has one of its own.
    :ivar credentials: the app gives the database's user and password itself.
    :ivar health_own: paths under STABILITY_HEALTH_PATH that the app's own routes answer.
    :ivar health_hidden: rules of the app that the extension's paths hide.
    """

    name: str
    instance_path: str
    debug: bool
    settings: Settings
    longest: float = 0.0
    wants_database: bool = False
    engines: tuple[dict[str, Any], ...] = ()
    looked_at: tuple[dict[str, Any], ...] = ()
    credentials: bool = False
    health_own: tuple[str, ...] = ()
    health_hidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What gunicorn would run with.

    :ivar gunicorn: its settings in `NAMES`.
    :ivar control_shared: gunicorn's control socket is on, at the path that all services of a user share.
    :ivar worker_class: the class that is finally used, and the modules of its bases.
    :ivar binds: ``[host, port]``, a path, or a descriptor's number.
    :ivar hooked: our hooks are in the configuration.
    :ivar settings: those of the environment, including the configuration's changes to it.
    :ivar problems: bad values in the environment, one line each.
    :ivar unknown: unknown ``STABILITY_*`` variables, with the nearest known name.
    :ivar named: the command line or the configuration names an app.
    :ivar apps: the apps that use the extension; empty if none does, or if it was not loaded.
    :ivar app_error: why the app could not be loaded, "" if it could.
    :ivar resident: resident memory in bytes of a process that has loaded the app; 0 if it was not loaded.
    """

    gunicorn: dict[str, Any]
    worker_class: str
    worker_modules: tuple[str, ...]
    binds: tuple[Any, ...]
    hooked: bool
    control_shared: bool = False
    settings: Settings = field(default_factory=Settings)
    problems: tuple[str, ...] = ()
    unknown: dict[str, str | None] = field(default_factory=dict)
    named: bool = True
    loaded: bool = False
    apps: tuple[AppFacts, ...] = ()
    app_error: str = ""
    resident: int = 0

    @property
    def app_settings(self) -> Settings:
        """Return the app's settings; without an app, those of the environment."""
        return self.apps[0].settings if self.apps else self.settings

    @property
    def threaded(self) -> bool:
        """Return whether the workers are gthread workers."""
        return "gunicorn.workers.gthread" in self.worker_modules


def flask_app() -> str | None:
    """Return the app that ``flask --app`` or FLASK_APP names for the running command; None without one."""
    obj = click.get_current_context().find_root().obj
    found = getattr(obj, "app_import_path", None)
    return str(found) if found else None


def read(arguments: list[str], *, with_app: bool = True, seconds: float = 60.0, flask_app: str | None = None,
         engines: bool = False) -> Facts:
    """Read the facts in a process of its own.

    :param arguments: arguments for ``gunicorn``.
    :param flask_app: the value of ``flask --app``, loaded unless the arguments name an app.
    :param engines: connect to the app's SQLAlchemy engines as well.
    :param seconds: time limit of that process.
    :raises FactsError: if the configuration cannot be read.
    """
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(file.fileno()), json.dumps(
                {"with_app": with_app, "flask_app": flask_app, "engines": engines}), *arguments],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=(file.fileno(),), start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise FactsError(f"reading the configuration and loading the app takes longer than {seconds:g} s: it hangs "
                             "at import, or --timeout is too short") from None
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        file.seek(0)
        found = file.read()
        if not found:
            said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
            lines = [line for line in said.read().decode("utf-8", "replace").splitlines() if line.strip()]
            raise FactsError(lines[-1].strip()[:500] if lines else f"exit status {process.returncode}")
    return _decoded(json.loads(found))


def _decoded(found: dict[str, Any]) -> Facts:
    apps = tuple(AppFacts(settings=_settings(app.pop("settings")), **_with_tuples(app)) for app in found.pop("apps"))
    settings = _settings(found.pop("settings"))
    found.update({name: tuple(found[name]) for name in ("worker_modules", "binds", "problems")})
    return Facts(**found, apps=apps, settings=settings)


def _settings(values: dict[str, Any]) -> Settings:
    return Settings(**_with_tuples(values))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


# -- in the process of its own ---------------------------------------------------------------------------------------


def main(descriptor: int, wanted: dict[str, Any], arguments: list[str]) -> None:
    """Collect the facts and write them to the descriptor as JSON.

    :param wanted: with_app, flask_app and engines, see `read`.
    """
    from ..server.gunicorn.application import read_application
    from ..server.gunicorn.defaults import refit

    application = read_application(arguments)
    cfg = application.cfg
    sys.path[:0] = [os.path.abspath(path) for path in (cfg.pythonpath or "").split(",") if path]
    refit(application)
    worker_class = cfg.worker_class
    found: dict[str, Any] = {
        "gunicorn": {name: getattr(cfg, name) for name in NAMES if hasattr(cfg, name)},
        "worker_class": f"{worker_class.__module__}.{worker_class.__qualname__}",
        "worker_modules": [base.__module__ for base in worker_class.__mro__],
        "binds": [list(address) if isinstance(address, tuple) else address for address in cfg.address],
        "control_shared": not getattr(cfg, "control_socket_disable", True) and (
            cfg.control_socket == cfg.settings["control_socket"].default),
        "hooked": bool(getattr(cfg.on_starting, "_flask_stability", False)),
        "unknown": unknown_keys(os.environ), "problems": [], "apps": [],
        "named": application.given or wanted["flask_app"] is not None}
    settings = Settings()
    try:
        settings = Settings.from_environ()
    except ConfigError as error:
        found["problems"] = error.problems
    found["settings"] = dataclasses.asdict(settings)
    if wanted["with_app"] and found["named"]:
        by_flask = wanted["flask_app"] if not application.positional else None
        found.update(_app(application, by_flask, wanted["engines"]))
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(found, file, default=str)


def _app(application: Any, flask_app: str | None, engines: bool) -> dict[str, Any]:
    from flask.cli import ScriptInfo

    from ..apps import apps
    from ..database.engine import look_at
    from ..memory.process import resident

    app: Any = None  # held: the extension holds its apps weakly
    try:
        app = application.wsgi() if flask_app is None else ScriptInfo(app_import_path=flask_app).load_app()
    except ConfigError as error:
        return {"loaded": True, "app_error": "; ".join(error.problems)}
    except BaseException as error:
        return {"loaded": True, "app_error": "".join(traceback.format_exception_only(error)).strip()[-500:]}
    told = [{"name": state.app.name, "instance_path": state.app.instance_path, "debug": bool(state.app.debug),
             "settings": dataclasses.asdict(state.settings), "longest": runtime.longest_timeout,
             "wants_database": state.wants_database,
             "engines": [look_at(name, engine) for name, engine in state.engines.items()] if engines else [],
             "looked_at": _by_the_app(state, int(application.cfg.workers)) if engines and state.credentials else [],
             "credentials": state.credentials is not None, **_health_paths(state)}
            for state in apps.all() if state.app is not None]
    del app
    return {"loaded": True, "apps": told, "resident": resident()}


def _health_paths(state: Any) -> dict[str, Any]:
    """Return where routes of the app and of the extension collide."""
    from ..health import conflicts

    found = conflicts.find(state.app, state.settings.health_path)
    return {"health_own": sorted(found.own), "health_hidden": list(found.hidden)}


def _by_the_app(state: Any, workers: int) -> list[dict[str, Any]]:
    """Return what check-db finds with the credentials that the app's own function gives."""
    from ..redact import cause_of
    from .database_checks import check_db
    from .finding import Finding

    try:
        found = check_db(state.settings, workers=workers, instance_path=state.app.instance_path, name=state.app.name,
                         credentials=state.credentials)
    except Exception as error:
        found = [Finding("credentials", "fail", f"{type(error).__name__}: {cause_of(error)}",
                         "repair the app's function that gives them")]
    return [dataclasses.asdict(finding) for finding in found]


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
    sys.stderr.flush()
    os._exit(0)  # whatever threads the app has begun
