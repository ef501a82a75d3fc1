"""Keeps a Flask service up: exceptions, database, health, memory and processes. See README.rst."""

from __future__ import annotations

from .exceptions import (
    CircuitOpen,
    CommitUnknown,
    ConfigError,
    DatabaseUnavailable,
    DeadlineExceeded,
    PoolClosed,
    PoolTimeout,
    StabilityError,
    TooManyRequests,
)
from .extension import StabilityExt
from .wsgi.middleware import StabilityMiddleware

__all__ = [
    "CircuitOpen",
    "CommitUnknown",
    "ConfigError",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "PoolClosed",
    "PoolTimeout",
    "StabilityError",
    "StabilityExt",
    "StabilityMiddleware",
    "TooManyRequests",
]
