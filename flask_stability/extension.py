"""`StabilityExt`: reads the settings and wires the rooms to an app.

What belongs to an app (settings, pool, checks) is in `AppState`, under ``app.extensions["stability"]``. What belongs
to a process (the monitor) is started by `start_process`: by the server's hooks in a gunicorn worker, else at the
first request.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flask import Blueprint, Flask, current_app, g, has_app_context

from . import logs, request, scoreboard
from .config import KEYS, Settings
from .config_types import SHORTEST_TOKEN
from .database import Pool, PooledConnection
from .database.credentials import Source
from .database.engine import engine_probe, engine_unavailable, engines_of
from .database.transaction import Transactions
from .errors import handlers, hooks
from .exceptions import ConfigError, StabilityError
from .health import conflicts
from .health.blueprint import declare_broken, make_blueprint, make_health_app
from .health.checks import Check, broken_database_check, database_check, engine_check
from .health.monitor import Monitor
from .wsgi import last_good
from .wsgi.middleware import StabilityMiddleware

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

F = TypeVar("F", bound=Callable[..., Any])
_NAME = "stability"
_TAKEN = "_flask_stability_connections"


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
            _process.watch_pool(self, self._pool)
        return self._pool


class _Process:
    """The monitor of this process; the checks of all its apps run there.

    The app that was initialised first decides: its settings rule what a process has once, and its checks keep their
    names. Those of the others carry their app's name.

    :ivar states: of the apps in the order of `init_app`; held weakly.
    """

    def __init__(self) -> None:
        self.states: weakref.WeakKeyDictionary[AppState, None] = weakref.WeakKeyDictionary()
        self.lock = threading.RLock()
        self.monitor: Monitor | None = None
        self._watched: weakref.WeakSet[Pool] = weakref.WeakSet()

    def start(self, checks: bool = True) -> None:
        with self.lock:
            if self.monitor is not None:
                return
            states = list(self.states)
            settings = states[0].settings if states else Settings.from_environ()
            self.monitor = Monitor(settings, scoreboard.current(), scoreboard.my_row(), [])
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

    def forget(self) -> None:
        """In a forked child: what the parent's threads held is not ours."""
        self.lock = threading.RLock()
        self.monitor = None


_process = _Process()
os.register_at_fork(after_in_child=_process.forget)


def start_process(*, checks: bool = True) -> None:
    """Start what runs in the background of a process that serves: monitor and housekeepers. Idempotent.

    :param checks: run health checks and send alerts; the isolation worker leaves that to the others.
    """
    _process.start(checks)


def stop_process() -> None:
    """Stop what `start_process` started."""
    _process.stop()


def forget_apps() -> None:
    """The apps so far are none of this process's any more; for tests, which make many."""
    _process.states.clear()


def apps() -> list[AppState]:
    """The states of the apps of this process that are still in use, in the order of `init_app`."""
    return list(_process.states)


class StabilityExt:
    """Keeps the service up whose app it is given.

    ``StabilityExt(app)``, or ``stability = StabilityExt()`` and ``stability.init_app(app)`` in a factory. One object
    may serve several apps. All settings: README.rst, "Settings".

    :param app: the app, if it is there already.
    :param credentials: gives the password of a MySQL or MariaDB database, or user and password (a pair, or a mapping
        with these keys); called for each new connection, in a thread of the pool. For passwords that expire.
    """

    def __init__(self, app: Flask | None = None, *, credentials: Source | None = None) -> None:
        self._credentials = credentials
        self._checks: list[Check] = []
        self._states: weakref.WeakKeyDictionary[AppState, None] = weakref.WeakKeyDictionary()
        #: A unit of work: context manager, decorator, or decorator with options; see `Transactions`.
        self.transaction = Transactions(lambda: self._state().pool)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Wire an app.

        :raises StabilityError: if the app has the extension already.
        :raises ConfigError: with all bad settings at once.
        """
        if _NAME in app.extensions:
            raise StabilityError("this app has StabilityExt already: call init_app once, "
                                 "or use the object in app.extensions['stability']")
        settings = Settings.load(app.config)
        if settings.service_id is None:
            settings = _named(settings, app)
        if self._credentials is not None and not (settings.db_url or "").startswith(("mysql", "mariadb")):
            raise ConfigError("StabilityExt(credentials=…) needs the address of a MySQL or MariaDB database: set "
                              "STABILITY_DB_URL=mysql://host/database")
        if settings.health_details == "token" and len(settings.health_token or "") < SHORTEST_TOKEN:
            logs.error("health_token_short", remedy="it can be guessed, so nobody is shown details: set "
                       f"STABILITY_HEALTH_TOKEN to at least {SHORTEST_TOKEN} random characters, such as what "
                       "`openssl rand -hex 20` prints")
        state = AppState(app, settings, self._credentials)
        state.checks.extend(self._checks)
        app.extensions[_NAME] = state
        self._states[state] = None
        _process.join(state)
        handlers.init_app(app, settings)
        if engine_unavailable not in handlers.unavailable:
            handlers.unavailable.append(engine_unavailable)
        middleware = StabilityMiddleware(
            app.wsgi_app, settings=settings, health_app=make_health_app(settings), propagate=_propagation(state))
        middleware.on_first_request = _first_request(state, middleware)
        app.wsgi_app = middleware  # type: ignore[method-assign]

    # -- what an app's code uses ---------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None, *, query_timeout: float | None = None) -> PooledConnection:
        """A connection to the app's database, in autocommit.

        With ``with`` it is given back at the end of the block, else when the request or app context ends.

        :param timeout: seconds to wait at most; default STABILITY_DB_TIMEOUT, and never longer than the request may.
        :param query_timeout: seconds that each of its statements may take, instead of STABILITY_DB_QUERY_TIMEOUT;
            0 = no limit but the request's own. It costs a round trip or, for more time than usual, a connect.
        :raises DatabaseUnavailable: if none can be had in that time.
        """
        connection = self._state().pool.connection(timeout, query_timeout=query_timeout)
        if has_app_context():
            # registered here, since it costs every request of an app (4 µs); first, since it has to run last
            if _give_back not in current_app.teardown_appcontext_funcs:
                current_app.teardown_appcontext_funcs.insert(0, _give_back)
            taken = getattr(g, _TAKEN, [])
            # g may be of an app's own class, without setdefault
            setattr(g, _TAKEN, [*(one for one in taken if not one.closed), connection])
        return connection

    @property
    def pool(self) -> Pool:
        """The current app's pool; ``pool.stats()`` are its figures."""
        return self._state().pool

    def health_check(self, name: str, *, critical: bool = False, interval: float | None = None,
                     timeout: float | None = None, shared: bool = True) -> Callable[[F], F]:
        """Register a function as a health check: it raises, or returns None or a dict of details.

        :param critical: a failure makes the service ``fail``, else ``warn``.
        :param interval: seconds between runs; default STABILITY_HEALTH_INTERVAL.
        :param timeout: seconds it may take; default STABILITY_HEALTH_TIMEOUT.
        :param shared: run in one worker for all (the default), or in each.
        """
        def register(function: F) -> F:
            check = Check(name, function, critical=critical, interval=interval, timeout=timeout, shared=shared)
            self._checks.append(check)
            _add(check, *self._states)
            return function

        return register

    def declare_broken(self, reason: str) -> None:
        """Say that this process cannot go on: its /health/live answers 503 from now on."""
        declare_broken(reason)

    def watch(self, future: Future[Any]) -> Future[Any]:
        """Log the exception of a future that nobody reads; returns the future."""
        return hooks.watch(future)

    def request_timeout(self, seconds: float) -> Callable[[F], F]:
        """Decorator: the view's own deadline in seconds, instead of STABILITY_REQUEST_TIMEOUT; 0 = none."""
        return request.request_timeout(seconds)

    def client_min_rate(self, bytes_per_second: float) -> Callable[[F], F]:
        """Decorator: the view's own rate of slow clients, instead of STABILITY_CLIENT_MIN_RATE; 0 = none is cut."""
        return request.client_min_rate(bytes_per_second)

    def keep(self, *, fresh: float, stale: float, vary: Sequence[str] | None = None, query: Sequence[str] = ()
             ) -> Callable[[F], F]:
        """Decorator: store the view's answer to GET for all workers, and give it while no new one can be made.

        A view of user-specific answers is not for it. Requests with Cookie, Authorization or REMOTE_USER run the view,
        unless `vary` is given. Never stored: status other than 200, Set-Cookie, ``Cache-Control: private``,
        ``no-store`` or ``no-cache``, a stream, a Vary header that the key does not cover, a view that reads the session
        unless `vary` has ``Cookie``. The view sees only the query parameters that `query` names.

        :param fresh: seconds in which the answer is given without running the view.
        :param stale: further seconds in which it is given at once while one worker makes a new one, and in which it
            stays if the view fails with 5xx.
        :param vary: names of request headers that the answer depends on, beside Host, Accept and Accept-Encoding;
            ``()`` says that it is the same for all users.
        :param query: names of the query parameters that the answer depends on.
        :raises ValueError: for values that are none of these.
        """
        return last_good.keep(fresh=fresh, stale=stale, vary=vary, query=query)

    def register_engine(self, engine: Engine, name: str = "sqlalchemy") -> None:
        """Bring an SQLAlchemy engine's pool into /health and its outages to 503.

        An error of the engine that means an outage, in any worker, has the check run at once.
        Inside an app context it is that app's alone: what a factory makes for one app is not held for the next.
        """
        check = engine_check(engine, name)
        if has_app_context():
            _add(check, self._state())
        else:
            self._checks.append(check)
            _add(check, *self._states)

    @property
    def health_blueprint(self) -> Blueprint:
        """The health endpoints as a blueprint, for an app that wants to register them by hand."""
        return make_blueprint(self._state().settings)

    def _state(self) -> AppState:
        """The current app's state; outside of an app context the only app's."""
        if has_app_context():
            state = current_app.extensions.get(_NAME)
            if state is None:
                raise StabilityError(f"the app {current_app.name!r} has no StabilityExt: call init_app(app) first")
            return cast(AppState, state)
        states = list(self._states)
        if len(states) != 1:
            raise StabilityError("no app: call init_app(app) first" if not states else
                                 "several apps share this StabilityExt: use it inside `with app.app_context():`")
        return states[0]


def _add(check: Check, *states: AppState) -> None:
    for state in states:
        state.checks.append(check)
        _process.add(check, state)


#: What a process has once, whatever number of apps: the first app's value counts.
_OF_THE_PROCESS = ("alert_webhook", "admin_bind", "health_interval", "health_timeout", "health_failure_threshold",
                   "health_success_threshold", "health_disk_paths", "health_disk_min_free", "health_mean_latency",
                   "health_p95_latency", "health_error_rate")


def _warn_of_disagreement(states: list[AppState]) -> None:
    """Say once for each app, not in each worker, which of its settings are not used."""
    if len(states) < 2 or scoreboard.my_row().words[scoreboard.W_AGE] > 1:
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


def _named(settings: Settings, app: Flask) -> Settings:
    return replace(settings, service_id=f"{app.name}@{socket.gethostname()}")


def _give_back(_: BaseException | None) -> None:
    """At the end of an app context, a request's among them: what it took goes back. Never raises."""
    taken = getattr(g, _TAKEN, None) or []
    while taken:
        try:
            taken.pop().release()
        except Exception as error:
            logs.error("connection_release_failed", error=error.__class__.__name__)


def _propagation(state: AppState) -> Callable[[], bool]:
    """Whether the app wants exceptions to reach its caller; holds the app weakly."""
    reference = weakref.ref(state)

    def propagates() -> bool:
        found = reference()
        app = found.app if found is not None else None
        return app is not None and handlers.propagates(app)

    return propagates


def _look_for_hooks() -> None:
    """Under gunicorn half of what this package is for needs its hooks, and nothing fails without them: say so.

    gunicorn's master sets SERVER_SOFTWARE, to "" or another name where its own is hidden.
    """
    gunicorn = "gunicorn.arbiter" in sys.modules and "SERVER_SOFTWARE" in os.environ
    if gunicorn and "flask_stability.server.hooks" not in sys.modules:
        logs.error("server_hooks_missing", level="WARNING", remedy="no worker is replaced and no deadline ends a "
                   "request: start gunicorn with -c python:flask_stability.server.conf, or end gunicorn.conf.py with "
                   "`from flask_stability.server import install; install(globals())`")


def _share_health_path(app: Flask, path: str, middleware: StabilityMiddleware) -> None:
    """The app's own routes win, and ours answer where it has none."""
    found = conflicts.find(app, path)
    if found.by_hand:
        middleware.health_app = None
        return
    if (found.own or found.below) and middleware.health_app is not None:
        middleware.is_ours = conflicts.Ours(cast("Flask", middleware.health_app), found)
    if found.own:
        logs.error("health_path_taken", level="WARNING", path=path, paths=sorted(found.own),
                   remedy="the app's own routes answer there, the extension's everywhere else under it: set "
                   "STABILITY_HEALTH_PATH to another path to have all of them")
    if found.hidden:
        logs.error("health_path_hides", level="WARNING", path=path, rules=list(found.hidden),
                   remedy="the extension answers there, not these routes: if they are to, set STABILITY_HEALTH_PATH to "
                   "a path that they do not match")


def _first_request(state: AppState, middleware: StabilityMiddleware) -> Callable[[], None]:
    """What the middleware calls before an app's first request."""
    reference = weakref.ref(state)

    def begin() -> None:
        found = reference()
        app = found.app if found is not None else None
        if found is None or app is None:
            return
        middleware.wrapped = app.wsgi_app is not middleware
        _share_health_path(app, found.settings.health_path, middleware)
        if not app.testing:
            _look_for_hooks()
            start_process()

    return begin
