"""What gunicorn would run with, found out without starting it: its configuration as gunicorn itself reads it, our
settings, and the app, in a process of its own. A configuration is a program: it may print, hang or exit.

Run as a module this is that process: ``python -m flask_stability.server.facts DESCRIPTOR app|no-app ARGUMENTS…``.
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

from ..config import Settings, unknown_keys
from ..exceptions import ConfigError, StabilityError

#: gunicorn's settings that are looked at.
NAMES = ("workers", "threads", "timeout", "graceful_timeout", "keepalive", "worker_connections", "max_requests",
         "max_requests_jitter", "preload_app", "reuse_port", "reload", "daemon", "forwarded_allow_ips", "uid", "gid",
         "chdir")


class FactsError(StabilityError):
    """The configuration could not be read; the message says why."""


@dataclass(frozen=True)
class AppFacts:
    """What is known of an app that uses the extension.

    :ivar settings: its own, app.config over the environment.
    :ivar longest: the longest deadline of a view, seconds; 0 = no view has one of its own.
    :ivar credentials: the app gives the database's user and password itself.
    """

    name: str
    instance_path: str
    debug: bool
    settings: Settings
    longest: float = 0.0
    credentials: bool = False


@dataclass(frozen=True)
class Facts:
    """What gunicorn would run with.

    :ivar gunicorn: its settings of `NAMES`.
    :ivar worker_class: the class that is used in the end, and the modules it is made from.
    :ivar binds: ``[host, port]``, a path, or a descriptor's number.
    :ivar hooked: our hooks are in the configuration.
    :ivar settings: of the environment, the configuration's changes to it included.
    :ivar problems: bad values in the environment, one line each.
    :ivar unknown: unknown ``STABILITY_*`` variables, with the nearest known name.
    :ivar apps: the apps that use the extension; empty if none does, or if it was not loaded.
    :ivar app_error: why the app could not be loaded, "" if it could.
    :ivar resident: bytes of memory of a process that has loaded the app; 0 if it was not loaded.
    """

    gunicorn: dict[str, Any]
    worker_class: str
    worker_modules: tuple[str, ...]
    binds: tuple[Any, ...]
    hooked: bool
    settings: Settings = field(default_factory=Settings)
    problems: tuple[str, ...] = ()
    unknown: dict[str, str | None] = field(default_factory=dict)
    loaded: bool = False
    apps: tuple[AppFacts, ...] = ()
    app_error: str = ""
    resident: int = 0

    @property
    def app_settings(self) -> Settings:
        """The app's settings; without an app those of the environment."""
        return self.apps[0].settings if self.apps else self.settings

    @property
    def threaded(self) -> bool:
        """Workers are gthread's."""
        return "gunicorn.workers.gthread" in self.worker_modules


def read(arguments: list[str], *, with_app: bool = True, seconds: float = 60.0) -> Facts:
    """Ask a process of its own.

    :param arguments: as given to ``gunicorn``.
    :param seconds: after which it is ended.
    :raises FactsError: if the configuration cannot be read.
    """
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(file.fileno()), "app" if with_app else "no-app", *arguments],
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
    apps = tuple(AppFacts(**{**app, "settings": _settings(app["settings"])}) for app in found.pop("apps"))
    settings = _settings(found.pop("settings"))
    found.update({name: tuple(found[name]) for name in ("worker_modules", "binds", "problems")})
    return Facts(**found, apps=apps, settings=settings)


def _settings(values: dict[str, Any]) -> Settings:
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                             for name, value in values.items()}
    return Settings(**given)


# -- in the process of its own ---------------------------------------------------------------------------------------


def main(descriptor: int, with_app: bool, arguments: list[str]) -> None:
    """Find out, and write it to the descriptor as JSON."""
    from gunicorn.app.wsgiapp import WSGIApplication

    sys.argv = ["gunicorn", *arguments]
    application = WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
    cfg = application.cfg
    sys.path[:0] = [os.path.abspath(path) for path in (cfg.pythonpath or "").split(",") if path]
    worker_class = cfg.worker_class
    found: dict[str, Any] = {
        "gunicorn": {name: getattr(cfg, name) for name in NAMES if hasattr(cfg, name)},
        "worker_class": f"{worker_class.__module__}.{worker_class.__qualname__}",
        "worker_modules": [base.__module__ for base in worker_class.__mro__],
        "binds": [list(address) if isinstance(address, tuple) else address for address in cfg.address],
        "hooked": bool(getattr(cfg.on_starting, "_flask_stability", False)),
        "unknown": unknown_keys(os.environ), "problems": [], "apps": []}
    settings = Settings()
    try:
        settings = Settings.from_environ()
    except ConfigError as error:
        found["problems"] = error.problems
    found["settings"] = dataclasses.asdict(settings)
    if with_app:
        found.update(_app(application))
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(found, file, default=str)


def _app(application: Any) -> dict[str, Any]:
    from .. import extension, request
    from ..memory.process import resident

    try:
        application.wsgi()
    except ConfigError as error:
        return {"loaded": True, "app_error": "; ".join(error.problems)}
    except BaseException as error:
        return {"loaded": True, "app_error": "".join(traceback.format_exception_only(error)).strip()[-500:]}
    apps = [{"name": state.app.name, "instance_path": state.app.instance_path, "debug": bool(state.app.debug),
             "settings": dataclasses.asdict(state.settings), "longest": request.longest_timeout,
             "credentials": state.credentials is not None}
            for state in extension.apps() if state.app is not None]
    return {"loaded": True, "apps": apps, "resident": resident()}


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "app", sys.argv[3:])
    sys.stderr.flush()
    os._exit(0)  # whatever threads the app has begun
