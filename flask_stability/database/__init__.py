"""The database room: a pool that cannot hang, leak or run a statement twice."""

from __future__ import annotations

from .connection import PooledConnection, PooledCursor
from .pool import Pool

__all__ = ["Pool", "PooledConnection", "PooledCursor"]
