"""Keep the last good answer of a GET view: serve it fresh, and stale while a new one is computed or cannot be computed.

``@stability.keep(fresh=5, stale=300)`` stores the view's answers (RFC 5861's stale-while-revalidate and stale-if-error,
for all workers together). Flask's own order stays: ``before_request`` functions run before the lookup,
``after_request`` functions and the session see each answer, so what they add for one client is never stored.

One `Flight` at a time computes a key: it holds the key's lock, which the kernel frees if the worker is killed. A thread
of its own refreshes a stale answer, as a request of its own with record and deadline, so no client waits for it. A view
whose answer may not be stored runs for each request as without the decorator. So does every view while the store is
unusable.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

from flask import Flask, Response, current_app, has_request_context, request_finished
from flask import request as flask_request
from flask.globals import request_ctx
from flask.sessions import SecureCookieSession
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, ServiceUnavailable

from .. import logs, scoreboard
from ..config import Settings
from ..dburl import DatabaseURL
from ..errors import report
from ..request import NO_HOLD, SOCKET, current, remaining
from ..runtime import Part, runtime
from ..scoreboard import default_run_dir
from .answer_store import Answer, AnswerStore, KeyLock
from .middleware import MARK, StabilityMiddleware

F = TypeVar("F", bound=Callable[..., Any])

NAME = "flask_stability"  #: our name in Cache-Status (RFC 9211)
#: seconds after a failure, or an answer that may not be stored, in which no other request waits or tries
HOLD_OFF = 1.0
_TRY_AGAIN = 30.0  # seconds until the next try to open the store after a failure
_REFRESHES = 4  # maximum number of simultaneous refreshes in a process
_MARGIN = 0.9  # share of the request's remaining time that it may wait
_FLIGHT = "flask_stability.flight"
_CONDITIONAL = ("HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_MATCH", "HTTP_IF_UNMODIFIED_SINCE")
_OF_ONE_CLIENT = ("HTTP_COOKIE", "HTTP_AUTHORIZATION", "REMOTE_USER")
_IN_KEY = frozenset({"accept", "accept-encoding", "host"})
_PRIVATE = frozenset({"private", "no-store", "no-cache"})
_HOST = re.compile(r"[A-Za-z0-9._\-\[\]:]{1,255}").fullmatch
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}").fullmatch



class Kept(NamedTuple):
    """The arguments of a view's decorator."""

    fresh: float
    stale: float
    vary: tuple[str, ...] | None
    query: tuple[str, ...]
    code: str


def keep(*, fresh: float, stale: float, vary: Sequence[str] | None = None, query: Sequence[str] = ()
         ) -> Callable[[F], F]:
    """See `StabilityExt.keep`."""
    for name, value in (("fresh", fresh), ("stale", stale)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e7:
            raise ValueError(f"keep({name}={value!r}): give seconds from 0 to 10000000, such as 5 or 300")
    for name, names in (("vary", vary), ("query", query)):
        if names is not None and (isinstance(names, str) or not all(isinstance(one, str) for one in names)):
            raise ValueError(f"keep({name}={names!r}): give a tuple of names, such as ({str(names)!r},)")
    for one in vary or ():
        if not _HEADER(one):
            raise ValueError(f"keep(vary={vary!r}): {one!r} is no header's name: give names such as Accept-Language")

    def decorate(view: F) -> F:
        kept = Kept(float(fresh), float(stale), None if vary is None else tuple(sorted({one.lower() for one in vary})),
                    tuple(sorted(set(query))), _code_of(view))
        _kept.codes.add(kept.code)
        is_async = inspect.iscoroutinefunction(view)

        @functools.wraps(view)
        def answered(*args: Any, **kwargs: Any) -> Any:
            def run() -> Any:
                return (current_app.ensure_sync(view) if is_async else view)(*args, **kwargs)

            last_good = _of(current_app._get_current_object()) if has_request_context() else None  # type: ignore[attr-defined]
            if last_good is None or not last_good.applies(kept):
                return run()
            found = last_good.find(kept)
            if found is None:
                return run()
            row = runtime.my_row()
            if isinstance(found, Flight):
                row.add(scoreboard.W_KEPT_MADE)
                return found.make(run)
            row.add(scoreboard.W_KEPT_FRESH if found.age < found.fresh else scoreboard.W_KEPT_STALE)
            return _response(found)

        return answered  # type: ignore[return-value]

    return decorate


def _code_of(view: Callable[..., Any]) -> str:
    """Return a substitute for the release where none is named: the version of the view's file that was loaded."""
    with contextlib.suppress(AttributeError, OSError):
        status = os.stat(inspect.unwrap(view).__code__.co_filename)
        return f"{status.st_mtime_ns}-{status.st_size}"
    return ""


def _of(app: Flask) -> LastGood | None:
    """Return an app's answers; None without the extension."""
    found = _kept.apps.get(app)
    if found is None:
        state = app.extensions.get("stability")
        if state is None:
            return None
        with _kept.lock:
            found = _kept.apps.get(app)
            if found is None:
                found = _kept.apps[app] = LastGood(app, state.settings)
                request_finished.connect(_on_finished, app)
    return found


def release_digest(release: str) -> str:
    """Return the beginning of the keys of a release's answers."""
    return hashlib.blake2b(release.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()


def drop_refused(serving: str) -> None:
    """Remove the answers that this process's release has stored, since it was refused. Never raise.

    :param serving: the release that serves on: answers that both stored under the same name stay.
    """
    for found in list(_kept.apps.values()):
        found.drop(serving)


class LastGood:
    """The answers that one app keeps, as this process sees them."""

    def __init__(self, app: Flask, settings: Settings) -> None:
        self.settings = settings
        self._app = weakref.ref(app)
        self._parts = [app.import_name, app.root_path, app.instance_path, settings.service_id or "",
                       _database(settings.db_url), _boot()]
        self._lock = threading.Lock()
        self._leading: dict[str, threading.Event] = {}
        self._refreshes = threading.BoundedSemaphore(_REFRESHES)
        self._store: AnswerStore | None = None
        self._try_again = 0.0
        self._told: set[str] = set()

    def drop(self, serving: str) -> None:
        """See `drop_refused`."""
        if self._store is None or self.settings.release_id == serving:
            return
        try:
            for name in [self.settings.release_id] if self.settings.release_id else list(_kept.codes):
                self._store.drop_release(release_digest(name))
        except OSError as error:
            self.warn(error)

    def forget(self) -> None:
        """Reset the locks in a forked child: the parent's threads do not exist there."""
        self._lock, self._leading = threading.Lock(), {}
        self._refreshes = threading.BoundedSemaphore(_REFRESHES)

    # -- what may be asked ---------------------------------------------------------------------------------------------

    def applies(self, kept: Kept) -> bool:
        """Return whether this thread's request may be answered from the store."""
        environ = flask_request.environ
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or "HTTP_RANGE" in environ:
            return False
        if kept.vary is None and any(environ.get(name) for name in _OF_ONE_CLIENT):
            return False
        app = self._app()
        if app is None or ((app.testing or app.debug) and self.settings.keep_dir is None):
            return False  # a test or an edited file must not get an answer of an earlier run
        try:
            return _HOST(flask_request.host) is not None
        except HTTPException:  # Request.trusted_hosts refuses the host
            return False

    def key(self, kept: Kept) -> str:
        """Return the key of this thread's request."""
        environ = flask_request.environ
        parts = [*self._parts, str(flask_request.endpoint), flask_request.scheme, flask_request.host,
                 environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", ""), urlencode(_named(kept.query)),
                 environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", ""), repr(kept[:4])]
        parts += [f"{name}:{flask_request.headers.get(name, '')}" for name in kept.vary or ()]
        digest = hashlib.blake2b(digest_size=20)
        for part in parts:
            data = part.encode("utf-8", "surrogateescape")
            digest.update(b"%d:%b" % (len(data), data))
        return f"{release_digest(self.settings.release_id or kept.code)}-{digest.hexdigest()}"

    def find(self, kept: Kept) -> Answer | Flight | None:
        """Return an answer for this thread's request, or the right to compute it; None = run the view as without us.

        :raises ServiceUnavailable: if another request computes it and takes too long.
        """
        flight = flask_request.environ.get(_FLIGHT)
        key = self.key(kept)
        if isinstance(flight, Flight) and flight.key == key:
            return flight
        store = self._opened()
        if store is None or flight is not None:
            return None
        try:
            answer = store.get(key)
            if answer is not None:
                if answer.age >= answer.fresh:
                    self._refresh(store, key, kept)
                return answer
            if flask_request.method == "HEAD" or store.held_off(key):
                return None
            return self._lead(store, key, kept)
        except OSError as error:
            self.warn(error)
            return None

    def _opened(self) -> AnswerStore | None:
        if self._store is None and time.monotonic() >= self._try_again:
            with self._lock:
                if self._store is None:
                    try:
                        self._store = AnswerStore(self._directory(), self.settings.keep_bytes)
                    except OSError as error:
                        self._try_again = time.monotonic() + _TRY_AGAIN
                        self.warn(error)
        return self._store

    def _directory(self) -> str:
        found = self.settings.keep_dir or self.settings.run_dir
        if found is None and default_run_dir() is not None:
            found = default_run_dir()  # asked again: all processes that created one at the same time then agree on it
        if found is None:
            raise FileNotFoundError("no directory in memory: set STABILITY_KEEP_DIR")
        return found

    def warn(self, error: Exception) -> None:
        """Log that the store is unusable, once per process and reason."""
        reason = f"{type(error).__name__} {getattr(error, 'errno', '')}"
        if reason not in self._told:
            self._told.add(reason)
            logs.error("kept_answers_unusable", level="WARNING", reason=f"{type(error).__name__}: {error}"[:300],
                       remedy="views run for each request: make STABILITY_KEEP_DIR a directory on a disk with room "
                       "that the service's user owns and no other may write")

    # -- one computation -----------------------------------------------------------------------------------------------

    def _lead(self, store: AnswerStore, key: str, kept: Kept) -> Answer | Flight | None:
        """Compute an answer that is not stored, or wait for the request that computes it, in whichever worker that is.
        """
        record = current()
        if record is None:
            return None
        left = remaining()
        # a request that holds a connection does not wait: the computing one could need that connection
        patience = 0.0 if record.resources else min(self.settings.db_timeout, 1e9 if left is None else left * _MARGIN)
        until = time.monotonic() + patience
        while True:
            with self._lock:
                event = self._leading.get(key)
                if event is None:
                    mine = self._leading[key] = threading.Event()
                    break
            if not event.wait(until - time.monotonic()):
                _too_long(patience)
                return None
            answer = store.get(key)
            if answer is not None or store.held_off(key):
                return answer
        flight = None
        try:
            lock, answer = _wait_for(store, key, until)
            if lock is not None:
                flight = Flight(self, store, key, kept, lock, mine)
                record.hold(flight)
                flask_request.environ[_FLIGHT] = flight
                return flight
            if answer is None and not store.held_off(key):
                _too_long(patience)
            return answer
        finally:
            if flight is None:
                self.landed(key, mine)

    def landed(self, key: str, event: threading.Event) -> None:
        """End a computation of this process and wake the requests that wait for it."""
        with self._lock:
            if self._leading.get(key) is event:
                del self._leading[key]
        event.set()

    def _refresh(self, store: AnswerStore, key: str, kept: Kept) -> None:
        """Compute a new answer in a thread, unless one does that already, or has just failed."""
        app = self._app()
        lock = None if app is None or store.held_off(key) else store.lock(key)
        if app is None or lock is None:
            return
        flight, begun = Flight(self, store, key, kept, lock), False
        try:
            answer = store.get(key)
            if store.held_off(key) or (answer is not None and answer.age < answer.fresh):
                return  # another one was faster
            if self._refreshes.acquire(blocking=False):
                try:
                    environ = _as_a_refresh(flask_request.environ, flight)
                    threading.Thread(target=self._run, args=(app, environ, flight), name="stability-keep",
                                     daemon=True).start()
                    begun = True
                except RuntimeError as error:  # no thread can be started
                    self.warn(error)
                finally:
                    if not begun:
                        self._refreshes.release()
        finally:
            if not begun:
                flight.leave()

    def _run(self, app: Flask, environ: dict[str, Any], flight: Flight) -> None:
        """Run a refresh: the request that triggered it, repeated without that client's connection."""
        try:
            layer = StabilityMiddleware(functools.partial(type(app).wsgi_app, app), settings=self.settings)
            source = layer(environ, lambda *_: lambda _: None)
            try:
                for _ in source:
                    pass
            finally:
                close = getattr(source, "close", None)
                if close is not None:
                    close()
        except BaseException as error:
            report.record(error, event="keep_refresh_failed")
        finally:
            flight.release()
            self._refreshes.release()


class Flight:
    """One computation of an answer; holds the key's lock, and is a resource of its request.

    :ivar query: names of the query parameters that the view may see.
    :ivar reached: the view has begun.
    :cvar is_connection: a request that holds a flight may still wait for a database that is away.
    """

    is_connection = False

    def __init__(self, owner: LastGood, store: AnswerStore, key: str, kept: Kept, lock: KeyLock,
                 event: threading.Event | None = None) -> None:
        self.key, self.query, self.reached = key, kept.query, False
        self._owner, self._store, self._kept, self._lock, self._event = owner, store, kept, lock, event
        self._answer: Answer | None = None
        self._conditional: dict[str, str] = {}
        self._over = False

    def make(self, run: Callable[[], Any]) -> Any:
        """Run the view and return its response; the answer is stored when Flask has finished the response."""
        self.reached, created = True, time.monotonic()
        with _as_keyed(self._kept.query) as self._conditional, _session_read() as reads:
            response = current_app.make_response(run())
        if _may_be_kept(response, self._kept, bool(reads)):
            if "ETag" not in response.headers:
                response.add_etag()
            response.vary.update(self._kept.vary or ())  # for caches on the way: a stored answer reads no session
            stale = 0.0 if response.cache_control.must_revalidate else self._kept.stale
            headers = [(name, value) for name, value in response.headers if name.lower() != "content-length"]
            self._answer = Answer(created, self._kept.fresh, stale, headers, response.get_data())
        return response

    def settle(self, response: Response) -> None:
        """Store the answer once Flask has finished the response. Never raise."""
        if self._over:
            return
        stored = False
        try:
            answer = self._answer
            if answer is not None and response.status_code == 200 and not _of_one_client(response):
                stored = self._store.put(self.key, answer)
                if not stored:
                    self._owner.warn(MemoryError(f"STABILITY_KEEP_BYTES={self._store.most} is too little for the "
                                                 "answers in use"))
            if not stored and self.reached and response.status_code < 500:
                self._store.drop(self.key)  # the view's current answer is right, and must not be stored
        except OSError as error:
            self._owner.warn(error)
        finally:
            self._end(0.0 if stored else HOLD_OFF)
        if self.reached:
            response.headers.add("Cache-Status", f"{NAME}; fwd=miss{'; stored' if stored else ''}")
            if self._conditional and response.status_code == 200:
                response.make_conditional({**flask_request.environ, **self._conditional})

    def release(self) -> None:
        """End the computation with the request; if Flask has finished no response, the view has failed."""
        self._end(HOLD_OFF)

    def leave(self) -> None:
        """End a computation that was not tried."""
        with contextlib.suppress(OSError):
            self._end(None if self._store.held_off(self.key) else 0.0)

    def _end(self, hold_off: float | None) -> None:
        if self._over:
            return
        self._over = True
        try:
            self._lock.release(hold_off)
        except OSError as error:
            self._owner.warn(error)
        finally:
            if self._event is not None:
                self._owner.landed(self.key, self._event)


def _on_finished(app: Flask, response: Response, **_: Any) -> None:
    flight = flask_request.environ.pop(_FLIGHT, None)
    if isinstance(flight, Flight):
        flight.settle(response)


def _wait_for(store: AnswerStore, key: str, until: float) -> tuple[KeyLock | None, Answer | None]:
    """Take a key's lock, unless another request finishes the computation before, or the time is over.

    :param until: monotonic seconds.
    :returns: the lock, or else the answer, if there is one.
    """
    pause = 0.005
    while True:
        lock = store.lock(key)
        answer = store.get(key)
        held_off = store.held_off(key)
        if answer is not None or held_off:
            if lock is not None:
                lock.release(None if held_off else 0.0)
            return None, answer
        if lock is not None or time.monotonic() > until:
            return lock, None
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _too_long(patience: float) -> None:
    """End a request's vain wait for another's answer; return for a request that may not wait, so that its view runs.

    :param patience: seconds that it has waited.
    :raises ServiceUnavailable: if it has waited.
    """
    if patience:
        raise ServiceUnavailable("The answer is being made, and that takes too long.", retry_after=1)


# -- what may be stored ------------------------------------------------------------------------------------------------


def _may_be_kept(response: Response, kept: Kept, session_read: bool) -> bool:
    varies = {name.lower() for name in response.vary}
    covered = _IN_KEY.union(kept.vary or ())
    return (response.status_code == 200 and flask_request.method == "GET" and not _of_one_client(response)
            and not response.direct_passthrough and not response.is_streamed
            and varies <= covered and (not session_read or "cookie" in covered))


def _of_one_client(response: Response) -> bool:
    return "Set-Cookie" in response.headers or not _PRIVATE.isdisjoint(
        word.lower() for word in response.cache_control)


@contextlib.contextmanager
def _session_read() -> Iterator[list[bool]]:
    """Yield a list that contains True after the block if the block read the session."""
    found: list[bool] = []
    context = vars(request_ctx._get_current_object())  # type: ignore[attr-defined]
    session = context.get("_session", context.get("session"))
    # Up to Flask 3.1.2 the session itself tracks this, and not every kind does.
    tracked = "_session" in context or isinstance(session, SecureCookieSession)
    before = getattr(session, "accessed", True)
    if session is None or not tracked:
        yield [True] if session is not None else found
        return
    session.accessed = False
    try:
        yield found
    finally:
        if session.accessed or session.modified:
            found.append(True)
        session.accessed = session.accessed or before


def _named(query: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(name, value) for name in query for value in flask_request.args.getlist(name)]


@contextlib.contextmanager
def _as_keyed(query: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Hide from the request, within the block, what is not in the key; yield the hidden conditions.

    These are query parameters that the decorator does not name (one client's would be in the answer to all), and
    conditions (the answer would have no body).
    """
    request, environ = flask_request._get_current_object(), flask_request.environ  # type: ignore[attr-defined]
    conditional = {name: environ.pop(name) for name in _CONDITIONAL if name in environ}
    given, named = request.query_string, urlencode(_named(query)).encode()
    derived = ("args", "full_path", "url", "values")
    if given != named:
        environ["QUERY_STRING"], request.query_string = named.decode(), named
        for name in derived:
            vars(request).pop(name, None)
    try:
        yield conditional
    finally:
        environ.update(conditional)
        if given != named:
            environ["QUERY_STRING"], request.query_string = given.decode("latin-1"), given
            for name in derived:
                vars(request).pop(name, None)


# -- what is given -----------------------------------------------------------------------------------------------------


def _response(answer: Answer) -> Response:
    """Return a stored answer as a response to this thread's request."""
    response = current_app.response_class(answer.body)
    response.headers = Headers(answer.headers)
    age = answer.age
    response.headers["Age"] = str(int(age))
    response.headers.add("Cache-Status", f"{NAME}; hit; ttl={math.floor(answer.fresh - age)}")
    response.make_conditional(flask_request.environ)
    return response


def _as_a_refresh(environ: dict[str, Any], flight: Flight) -> dict[str, Any]:
    """Return the environ of the same request without its body, connection, conditions and objects derived from it."""
    left_out = {MARK, SOCKET, *_CONDITIONAL, "CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT",
                "HTTP_UPGRADE", "wsgi.websocket", "wsgi.file_wrapper", "wsgi.input_terminated"}
    made = {name: value for name, value in environ.items()
            if name not in left_out and not name.startswith(("werkzeug.", "flask.", "gunicorn."))}
    made.update({"REQUEST_METHOD": "GET", "wsgi.input": io.BytesIO(), _FLIGHT: flight, NO_HOLD: True,
                 "QUERY_STRING": urlencode(_named(flight.query))})
    return made


def _database(url: str | None) -> str:
    """Return which database an app uses, without user and password."""
    if url is None or url.startswith("sqlite:"):
        return url or ""
    address = DatabaseURL.parse(url)
    return f"{address.host}:{address.port}/{address.name}"


def _boot() -> str:
    """Return an id of this start of the machine, since the monotonic clock starts over with the next."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


class _Kept(Part):
    """The answers of each app of this process."""

    def __init__(self) -> None:
        self.apps: weakref.WeakKeyDictionary[Flask, LastGood] = weakref.WeakKeyDictionary()
        self.lock = threading.Lock()
        self.codes: set[str] = set()  # file versions of all decorated views

    def reset_after_fork(self) -> None:
        """Replace the locks, since the parent's threads do not exist in the child."""
        self.lock = threading.Lock()
        for found in list(self.apps.values()):
            found.forget()


_kept = runtime.add("kept_answers", _Kept())
