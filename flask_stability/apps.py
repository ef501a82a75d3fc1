"""The apps of this process: what the extension keeps for each of them, and the monitor that runs the checks of all.

What belongs to an app (settings, pool, checks) is in `AppState`, under ``app.extensions["stability"]``. What belongs
to a process (the monitor) is started by `Apps.start`: by the server's hooks in a gunicorn worker, else at the first
request.
"""

from __future__ import annotations

import os
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING

from flask import Flask

from . import logs, scoreboard
from .config import KEYS, Settings
from .database import Pool
from .database.credentials import Source
from .database.engine import engine_probe, engines_of
from .health.checks import Check, broken_database_check, database_check, engine_check
from .health.monitor import Monitor
from .runtime import Part, runtime

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


class AppState:
    """What the extension keeps for one app.

    :ivar settings: the app's settings.
    :ivar credentials: gives the database's user and password, None if the settings do.
    :ivar checks: health checks of the app beside the built-in ones.
    :ivar disagrees: the log says which of its settings are not used.
    """

    def __init__(self, app: Flask, settings: Settings, credentials: Source | None = None) -> None:
        self.settings = settings
        self.credentials = credentials
        self.checks: list[Check] = []
        self.disagrees = False
        self.wants_database = any(os.environ.get(key) or app.config.get(key) is not None
                                  for key, name in KEYS.items() if name.startswith("db_") and name != "db_from_env")
        self.wants_database = self.wants_database or settings.db_url is not None
        self.name, self._instance_path = app.name, app.instance_path
        self._app = weakref.ref(app)
        self._lock = threading.Lock()
        self._pool: Pool | None = None

    def renew_lock(self) -> None:
        """In a forked child: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    @property
    def app(self) -> Flask | None:
        """The app, or None if it is gone."""
        return self._app()

    @property
    def engines(self) -> dict[str, Engine]:
        """The SQLAlchemy engines that were registered or found, by the names of their checks."""
        self.find_engines()
        return self._engines()

    def _engines(self) -> dict[str, Engine]:
        return {check.name: check.function.args[0] for check in self.checks
                if isinstance(check.function, partial) and check.function.func is engine_probe}

    def find_engines(self) -> None:
        """Watch the engines of the app's Flask-SQLAlchemy, as if they were registered. Idempotent."""
        app = self.app
        if app is None or "sqlalchemy" not in app.extensions:
            return
        with self._lock:
            known, names = list(self._engines().values()), {check.name for check in self.checks}
            for name, engine in engines_of(app).items():
                if not any(engine is other for other in known):
                    while name in names:
                        name = f"{name}-found"
                    self.checks.append(engine_check(engine, name))

    @property
    def pool_or_none(self) -> Pool | None:
        """The pool, if one was asked for."""
        return self._pool

    @property
    def pool(self) -> Pool:
        """The app's pool, made when first asked for; no connection is opened by that."""
        if self._pool is None:
            with self._lock:
                if self._pool is None:
                    self._pool = Pool(self.settings, name=self.name, instance_path=self._instance_path,
                                      credentials=self.credentials)
            apps.watch_pool(self, self._pool)
        return self._pool


class Apps(Part):
    """The apps of this process, and its monitor; the checks of all apps run there.

    The app that was initialised first decides: its settings rule what a process has once, and its checks keep their
    names. Those of the others carry their app's name.

    :ivar states: of the apps in the order of `init_app`; held weakly.
    """

    def __init__(self) -> None:
        self.states: weakref.WeakKeyDictionary[AppState, None] = weakref.WeakKeyDictionary()
        self.lock = threading.RLock()
        self.monitor: Monitor | None = None
        self._watched: weakref.WeakSet[Pool] = weakref.WeakSet()

    def start(self, *, checks: bool = True) -> None:
        """Start what runs in the background of a process that serves: monitor and housekeepers. Idempotent.

        :param checks: run health checks and send alerts; the isolation worker leaves that to the others.
        """
        with self.lock:
            if self.monitor is not None:
                return
            states = list(self.states)
            settings = states[0].settings if states else Settings.from_environ()
            self.monitor = Monitor(settings, runtime.my_board(), runtime.my_row(), [])
            self._watched = weakref.WeakSet()
            for state in states:
                self._watch(state)
            if checks:
                self.monitor.start()
        _warn_of_disagreement(states)

    def join(self, state: AppState) -> None:
        """Take one more app in, also while the process serves already."""
        with self.lock:
            self.states[state] = None
            serving = self.monitor is not None
            if serving:
                self._watch(state)
        if serving:
            _warn_of_disagreement(list(self.states))

    def _watch(self, state: AppState) -> None:
        """Run an app's checks. The lock is held, and the monitor is there."""
        state.find_engines()
        for check in state.checks:
            self.add(check, state)
        if state.pool_or_none is not None:
            self.watch_pool(state, state.pool_or_none)
        elif state.wants_database:
            try:
                _ = state.pool  # made, and watched by that
            except Exception as error:  # the checks run all the same, and one says so
                self.add(broken_database_check(error), state)

    def stop(self) -> None:
        """Stop what `start` started."""
        with self.lock:
            monitor, self.monitor = self.monitor, None
        if monitor is not None:
            monitor.stop()

    def watch_pool(self, state: AppState, pool: Pool) -> None:
        """Start the pool's housekeeper and its check, if this process runs in earnest.

        A database that was named is asked by the leader for all. The embedded one is used by whoever was asked for a
        connection, which may not be the leader: each such worker looks at the file itself.
        """
        with self.lock:
            if self.monitor is not None and pool not in self._watched:
                self._watched.add(pool)
                pool.start()
                self.add(database_check(pool, state.settings, shared=state.wants_database), state)

    def add(self, check: Check, state: AppState) -> None:
        """Run a check of an app under the name that it has in this process."""
        with self.lock:
            if self.monitor is not None:
                self.monitor.add(check, prefix=self._prefix(state))

    def _prefix(self, state: AppState) -> str:
        """Of the names of an app's checks: "" for the first app, else the app's name, with a number if it is taken."""
        states = list(self.states)
        if not states or states[0] is state:
            return ""
        before = [one.name for one in states[:states.index(state)]] if state in states else []
        number = before.count(state.name) + 1
        return f"{state.name}:" if number == 1 else f"{state.name}-{number}:"

    def all(self) -> list[AppState]:
        """Return the states of the apps that are still in use, in the order of `init_app`."""
        return list(self.states)

    def forget(self) -> None:
        """The apps so far are none of this process's any more; for tests, which make many."""
        self.states.clear()

    def reset_after_fork(self) -> None:
        """The monitor's threads are the parent's."""
        self.lock = threading.RLock()
        self.monitor = None
        for state in self.states:
            state.renew_lock()


#: What a process has once, whatever number of apps: the first app's value counts.
_OF_THE_PROCESS = ("alert_webhook", "admin_bind", "health_interval", "health_timeout", "health_failure_threshold",
                   "health_success_threshold", "health_disk_paths", "health_disk_min_free", "health_mean_latency",
                   "health_p95_latency", "health_error_rate")


def _warn_of_disagreement(states: list[AppState]) -> None:
    """Say once for each app, not in each worker, which of its settings are not used."""
    if len(states) < 2 or runtime.my_row().words[scoreboard.W_AGE] > 1:
        return
    first, *others = states
    for state in others:
        keys = [f"STABILITY_{name.upper()}" for name in _OF_THE_PROCESS
                if getattr(state.settings, name) != getattr(first.settings, name)]
        if keys and not state.disagrees:
            state.disagrees = True
            logs.error("settings_disagree", level="WARNING", app=state.name, used_app=first.name, settings=keys,
                       remedy=f"a process has these once, and {first.name!r} was initialised first: give both apps the "
                       "same values, or initialise the one first whose values are to count")


apps = runtime.add("apps", Apps())
