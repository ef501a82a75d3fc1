"""The apps of this process: the extension's state for each of them, and the monitor that runs the checks of all.

`AppState`, under ``app.extensions["stability"]``, holds what belongs to an app (settings, pool, checks). `Apps.start`
starts what belongs to a process (the monitor): the server's hooks call it in a gunicorn worker, elsewhere the first
request does.
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
    """The extension's state for one app.

    :ivar settings: the app's settings.
    :ivar credentials: returns the database's user and password, None if the settings hold them.
    :ivar checks: health checks of the app beside the built-in ones.
    :ivar disagrees: the log has named the settings of this app that are not used.
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
        """Renew the lock in a forked child: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    @property
    def app(self) -> Flask | None:
        """Return the app, or None if it no longer exists."""
        return self._app()

    @property
    def engines(self) -> dict[str, Engine]:
        """Return the registered and found SQLAlchemy engines, by the names of their checks."""
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
        """Return the pool, or None before its first use."""
        return self._pool

    @property
    def pool(self) -> Pool:
        """Return the app's pool, created at its first use; creating it opens no connection."""
        if self._pool is None:
            with self._lock:
                if self._pool is None:
                    self._pool = Pool(self.settings, name=self.name, instance_path=self._instance_path,
                                      credentials=self.credentials)
            apps.watch_pool(self, self._pool)
        return self._pool


class Apps(Part):
    """The apps of this process, and its monitor, which runs the checks of all apps.

    The app that was initialised first decides: its settings apply to what exists once per process, and its checks keep
    their names. The checks of the other apps carry their app's name.

    :ivar states: the apps' states in the order of `init_app`; held weakly.
    """

    def __init__(self) -> None:
        self.states: weakref.WeakKeyDictionary[AppState, None] = weakref.WeakKeyDictionary()
        self.lock = threading.RLock()
        self.monitor: Monitor | None = None
        self._watched: weakref.WeakSet[Pool] = weakref.WeakSet()

    def start(self, *, checks: bool = True) -> None:
        """Start the background work of a process that serves: monitor and housekeepers. Idempotent.

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
        """Add an app, even while the process already serves."""
        with self.lock:
            self.states[state] = None
            serving = self.monitor is not None
            if serving:
                self._watch(state)
        if serving:
            _warn_of_disagreement(list(self.states))

    def _watch(self, state: AppState) -> None:
        """Run an app's checks. The caller holds the lock and has created the monitor."""
        state.find_engines()
        for check in state.checks:
            self.add(check, state)
        if state.pool_or_none is not None:
            self.watch_pool(state, state.pool_or_none)
        elif state.wants_database:
            try:
                _ = state.pool  # creates the pool, which also watches it
            except Exception as error:  # the checks run anyway, and one reports this error
                self.add(broken_database_check(error), state)

    def stop(self) -> None:
        """Stop what `start` started."""
        with self.lock:
            monitor, self.monitor = self.monitor, None
        if monitor is not None:
            monitor.stop()

    def watch_pool(self, state: AppState, pool: Pool) -> None:
        """Start the pool's housekeeper and its check, once this process serves.

        The leader checks a configured database for all workers. An embedded one is used by the workers whose code has
        requested a connection, and the leader may not be among them: each such worker checks the file itself.
        """
        with self.lock:
            if self.monitor is not None and pool not in self._watched:
                self._watched.add(pool)
                pool.start()
                self.add(database_check(pool, state.settings, shared=state.wants_database), state)

    def add(self, check: Check, state: AppState) -> None:
        """Run a check of an app under its name in this process."""
        with self.lock:
            if self.monitor is not None:
                self.monitor.add(check, prefix=self._prefix(state))

    def _prefix(self, state: AppState) -> str:
        """Return the prefix of an app's check names: "" for the first app, else its name, with a number if it is taken.
        """
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
        """Forget all apps so far; for tests, which create many."""
        self.states.clear()

    def reset_after_fork(self) -> None:
        """Forget the monitor, whose threads are the parent's, and renew the locks."""
        self.lock = threading.RLock()
        self.monitor = None
        for state in self.states:
            state.renew_lock()


#: Settings that exist once per process, whatever the number of apps: the first app's value counts.
_OF_THE_PROCESS = ("alert_webhook", "admin_bind", "health_interval", "health_timeout", "health_failure_threshold",
                   "health_success_threshold", "health_disk_paths", "health_disk_min_free", "health_mean_latency",
                   "health_p95_latency", "health_error_rate")


def _warn_of_disagreement(states: list[AppState]) -> None:
    """Warn once per app, not in each worker, about its settings that are not used."""
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
