"""An SQLAlchemy engine beside our pool, or instead of it: its state in /health, a 503 during its outages."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from .. import logs, scoreboard
from ..dberrors import means_unavailable
from ..exceptions import StabilityError
from ..redact import cause_of, redact
from ..runtime import runtime
from .sockets import reaches

if TYPE_CHECKING:
    from flask import Flask
    from sqlalchemy.engine import Engine


#: Ids of threads that run a health check: an error that the check itself causes must not trigger the next check.
_asking: set[int] = set()


def watch_engine(engine: Engine) -> None:
    """Count the engine's errors that mean an outage, including those that the app handles itself.

    :raises StabilityError: if `engine` is not an SQLAlchemy engine.
    """
    try:
        from sqlalchemy import Engine as Known
        from sqlalchemy import event
    except ImportError:
        raise StabilityError("register_engine needs SQLAlchemy: pip install SQLAlchemy") from None
    if not isinstance(engine, Known):
        raise StabilityError(f"register_engine({type(engine).__name__}): give an SQLAlchemy engine, not an async "
                             "one or its address")
    if not event.contains(engine, "handle_error", _on_error):
        event.listen(engine, "handle_error", _on_error)


def _on_error(context: Any) -> None:
    error = context.original_exception
    if threading.get_ident() not in _asking and (context.is_disconnect or means_unavailable(error)):
        runtime.my_row().add(scoreboard.W_ENGINE_ERRORS)


def engine_probe(engine: Engine) -> dict[str, Any]:
    """Make one round trip to the engine's database, and return its pool's figures.

    If the pool is bounded, the round trip runs on a separate connection from the same creator: an exhausted pool does
    not mean an outage.
    """
    from sqlalchemy import text
    from sqlalchemy.pool import QueuePool

    pool: Any = engine.pool
    ident = threading.get_ident()
    _asking.add(ident)
    stats, ask = getattr(pool, "stats", None), getattr(pool, "ask", None)
    try:
        if callable(ask):  # StabilityPool
            ask()
        elif isinstance(pool, QueuePool):
            own = pool.recreate()
            try:
                connection = own.connect()
                try:
                    engine.dialect.do_ping(connection.dbapi_connection)
                finally:
                    connection.close()
            finally:
                own.dispose()
        else:
            with engine.connect() as checked:
                checked.execute(text("SELECT 1"))
    finally:
        _asking.discard(ident)
    if callable(stats):
        return {"pool": stats()}
    return {"pool": {name: getattr(pool, name)() for name in ("size", "checkedin", "checkedout", "overflow")
                     if callable(getattr(pool, name, None))}}


def engines_of(app: Flask) -> dict[str, Engine]:
    """Return the engines of an app's Flask-SQLAlchemy by the names of their checks: "sqlalchemy", "sqlalchemy-BIND"."""
    extension = app.extensions.get("sqlalchemy")
    if not type(extension).__module__.startswith("flask_sqlalchemy"):
        return {}
    try:
        with app.app_context():
            return {"sqlalchemy" if bind is None else f"sqlalchemy-{bind}": engine
                    for bind, engine in extension.engines.items()}  # type: ignore[union-attr]
    except Exception as error:
        logs.error("engines_not_found", level="WARNING", error=cause_of(error))
        return {}


def look_at(name: str, engine: Engine, seconds: float = 10.0) -> dict[str, Any]:
    """Look at an engine's database for an operator: name, address, error ("" if it answers), latency_ms, pool, uncut.

    ``uncut`` names the driver if `StabilityPool` cannot cut its calls off at a request's deadline.

    Never raises.

    :param seconds: maximum time to connect and answer.
    """
    found: dict[str, Any] = {"name": name, "address": "", "error": f"no answer within {seconds:g} s",
                             "latency_ms": None, "pool": "", "uncut": _uncut(engine)}

    def ask() -> None:
        try:
            found["address"] = engine.url.render_as_string(hide_password=True)
            found["pool"] = redact(engine.pool.status())
            engine_probe(engine)
            begun = time.perf_counter()
            engine_probe(engine)  # measure the second round trip: its connection is already open
            found.update(error="", latency_ms=round((time.perf_counter() - begun) * 1000, 2))
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {cause_of(error)}"

    thread = threading.Thread(target=ask, name="stability-engine", daemon=True)
    thread.start()
    thread.join(seconds)
    return dict(found)


def _uncut(engine: Engine) -> str:
    dialect: Any = engine.dialect
    driver = str(getattr(dialect.dbapi, "__name__", ""))
    bounded = callable(getattr(engine.pool, "ask", None))  # StabilityPool
    return "" if not bounded or dialect.name == "sqlite" or reaches(driver) else driver


def engine_unavailable(error: BaseException) -> bool:
    """Return whether an exception of SQLAlchemy means that the database is unavailable now."""
    if not type(error).__module__.startswith("sqlalchemy."):
        return False
    if type(error).__name__ == "TimeoutError":  # QueuePool limit reached
        return True
    original = getattr(error, "orig", None)
    return getattr(error, "connection_invalidated", False) is True or (
        isinstance(original, BaseException) and means_unavailable(original))
