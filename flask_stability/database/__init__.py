"""The database room: a pool that neither hangs nor leaks, and never runs a statement twice."""

from __future__ import annotations

from .connection import PooledConnection, PooledCursor
from .pool import Pool

__all__ = ["Pool", "PooledConnection", "PooledCursor"]
