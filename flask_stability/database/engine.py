"""An SQLAlchemy engine beside, or instead of, our pool: its state in /health, its outages answered with 503."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..dberrors import means_unavailable
from ..exceptions import StabilityError

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


def engine_probe(engine: Engine) -> dict[str, Any]:
    """One round trip on the engine, and its pool's figures."""
    if not hasattr(engine, "connect") or not hasattr(engine, "pool"):
        raise StabilityError(f"register_engine({type(engine).__name__}): give an SQLAlchemy engine")
    from sqlalchemy import text

    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    pool: Any = engine.pool
    return {"pool": {name: getattr(pool, name)() for name in ("size", "checkedin", "checkedout", "overflow")
                     if callable(getattr(pool, name, None))}}


def engine_unavailable(error: BaseException) -> bool:
    """Whether an exception of SQLAlchemy means that the database cannot be had now."""
    if not type(error).__module__.startswith("sqlalchemy."):
        return False
    if type(error).__name__ == "TimeoutError":  # QueuePool limit reached
        return True
    original = getattr(error, "orig", None)
    return getattr(error, "connection_invalidated", False) is True or (
        isinstance(original, BaseException) and means_unavailable(original))
