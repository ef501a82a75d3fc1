"""`StabilityExt`: reads the settings and wires the rooms to an app.

`apps` holds the state for an app, and what runs for all apps of a process.
"""

from __future__ import annotations

import os
import socket
import sys
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flask import Blueprint, Flask, current_app, g, has_app_context

from . import logs, request
from .apps import AppState, apps
from .config import Settings
from .config_types import SHORTEST_TOKEN
from .database import Pool, PooledConnection
from .database.credentials import Source
from .database.engine import engine_unavailable
from .database.transaction import Transactions
from .errors import handlers, hooks
from .exceptions import ConfigError, StabilityError
from .health import conflicts
from .health.blueprint import declare_broken, make_blueprint, make_health_app
from .health.checks import Check, engine_check
from .priority import priority
from .wsgi import last_good
from .wsgi.middleware import StabilityMiddleware

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

F = TypeVar("F", bound=Callable[..., Any])
_NAME = "stability"
_TAKEN = "_flask_stability_connections"


class StabilityExt:
    """Keeps the service of an app up.

    ``StabilityExt(app)``, or ``stability = StabilityExt()`` and ``stability.init_app(app)`` in a factory. One object
    may serve several apps. All settings: README.rst, "Settings".

    :param app: the app, if it exists already.
    :param credentials: returns the password of a MySQL or MariaDB database, or user and password (a pair, or a mapping
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
            logs.error("health_token_short", remedy="it can be guessed, so no client is shown details: set "
                       f"STABILITY_HEALTH_TOKEN to at least {SHORTEST_TOKEN} random characters, such as what "
                       "`openssl rand -hex 20` prints")
        state = AppState(app, settings, self._credentials)
        state.checks.extend(self._checks)
        app.extensions[_NAME] = state
        self._states[state] = None
        apps.join(state)
        handlers.init_app(app, settings)
        if engine_unavailable not in handlers.unavailable:
            handlers.unavailable.append(engine_unavailable)
        middleware = StabilityMiddleware(
            app.wsgi_app, settings=settings, health_app=make_health_app(settings), propagate=_propagation(state))
        middleware.on_first_request = _first_request(state, middleware)
        app.wsgi_app = middleware  # type: ignore[method-assign]

    # -- what an app's code uses ---------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None, *, query_timeout: float | None = None,
                   wait: bool = True) -> PooledConnection:
        """Return a connection to the app's database, in autocommit mode.

        A ``with`` block gives it back at its end; otherwise the end of the request or app context does.

        :param timeout: seconds to wait at most; default STABILITY_DB_TIMEOUT, or STABILITY_DB_OUTAGE_PATIENCE while the
            database is away; never longer than the request may.
        :param query_timeout: seconds that each of its statements may take, instead of STABILITY_DB_QUERY_TIMEOUT; 0 =
            no limit but the request's own. It costs a round trip or, for more time than usual, a connect.
        :param wait: False: fail immediately while the database is away or all connections are in use, for code that has
            a fallback.
        :raises DatabaseUnavailable: if none becomes available in that time.
        """
        connection = self._state().pool.connection(timeout, query_timeout=query_timeout, wait=wait)
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
        """Return the current app's pool; ``pool.stats()`` returns its figures."""
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
        """Declare that this process cannot go on: its /health/live answers 503 from now on."""
        declare_broken(reason)

    def watch(self, future: Future[Any]) -> Future[Any]:
        """Log the exception of a future if no other code reads it; return the future."""
        return hooks.watch(future)

    def request_timeout(self, seconds: float) -> Callable[[F], F]:
        """Set a view's own deadline in seconds, instead of STABILITY_REQUEST_TIMEOUT (a decorator); 0 = none."""
        return request.request_timeout(seconds)

    def priority(self, level: str) -> Callable[[F], F]:
        """Set how much a view matters under overload (a decorator).

        A *critical* view goes before others and is refused late, a *sheddable* one goes last and is refused early;
        *normal* is like no decorator, but never counts as cheap.

        :raises ValueError: for another level.
        """
        return priority(level)

    def client_min_rate(self, bytes_per_second: float) -> Callable[[F], F]:
        """Set a view's minimum rate for clients, instead of STABILITY_CLIENT_MIN_RATE (a decorator); 0 = cut no client.
        """
        return request.client_min_rate(bytes_per_second)

    def keep(self, *, fresh: float, stale: float, vary: Sequence[str] | None = None, query: Sequence[str] = ()
             ) -> Callable[[F], F]:
        """Store the view's answer to GET for all workers, and serve it while no new one can be computed (a decorator).

        Do not use it for user-specific answers. Requests with Cookie, Authorization or REMOTE_USER run the view, unless
        `vary` is given. Never stored: status other than 200, Set-Cookie, ``Cache-Control: private``, ``no-store`` or
        ``no-cache``, a stream, a Vary header that the key does not cover, a view that reads the session unless `vary`
        has ``Cookie``. The view sees only the query parameters that `query` names.

        :param fresh: seconds for which the answer is served without running the view.
        :param stale: further seconds for which it is served immediately while one worker computes a new one, and for
            which it stays if the view fails with 5xx.
        :param vary: names of request headers that the answer depends on, beside Host, Accept and Accept-Encoding;
            ``()`` says that it is the same for all users.
        :param query: names of the query parameters that the answer depends on.
        :raises ValueError: for invalid values.
        """
        return last_good.keep(fresh=fresh, stale=stale, vary=vary, query=query)

    def register_engine(self, engine: Engine, name: str = "sqlalchemy") -> None:
        """Add an SQLAlchemy engine's pool to /health, and answer its outages with 503.

        An error of the engine that means an outage, in any worker, makes the check run immediately. Inside an app
        context the engine belongs to that app alone: an engine created by a factory for one app is not used for the
        next.
        """
        check = engine_check(engine, name)
        if has_app_context():
            _add(check, self._state())
        else:
            self._checks.append(check)
            _add(check, *self._states)

    @property
    def health_blueprint(self) -> Blueprint:
        """Return the health endpoints as a blueprint, for an app that registers them itself."""
        return make_blueprint(self._state().settings)

    def _state(self) -> AppState:
        """Return the current app's state; outside of an app context the only app's.

        :raises StabilityError: if there is no such app.
        """
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
        apps.add(check, state)


def _named(settings: Settings, app: Flask) -> Settings:
    return replace(settings, service_id=f"{app.name}@{socket.gethostname()}")


def _give_back(_: BaseException | None) -> None:
    """Give back the connections taken in an app context at its end; a request has one, too. Never raise."""
    taken = getattr(g, _TAKEN, None) or []
    while taken:
        try:
            taken.pop().release()
        except Exception as error:
            logs.error("connection_release_failed", error=error.__class__.__name__)


def _propagation(state: AppState) -> Callable[[], bool]:
    """Return a function that tells whether the app wants exceptions to reach its caller; it holds the app weakly."""
    reference = weakref.ref(state)

    def propagates() -> bool:
        found = reference()
        app = found.app if found is not None else None
        return app is not None and handlers.propagates(app)

    return propagates


def _look_for_hooks() -> None:
    """Warn if gunicorn runs without our hooks: half of this package needs them, and nothing fails without them.

    gunicorn's master sets SERVER_SOFTWARE, to "" or another name where its own is hidden.
    """
    gunicorn = "gunicorn.arbiter" in sys.modules and "SERVER_SOFTWARE" in os.environ
    if gunicorn and "flask_stability.server.hooks" not in sys.modules:
        logs.error("server_hooks_missing", level="WARNING", remedy="no worker is replaced and no deadline ends a "
                   "request: start gunicorn with -c python:flask_stability.server.conf, or end gunicorn.conf.py with "
                   "`from flask_stability.server import install; install(globals())`")


def _share_health_path(app: Flask, path: str, middleware: StabilityMiddleware) -> None:
    """Let the app's own routes win under the health path; ours answer where it has none."""
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
    """Return the function that the middleware calls before an app's first request."""
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
            apps.start()

    return begin
