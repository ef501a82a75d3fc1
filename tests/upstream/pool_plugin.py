"""pytest plugin for SQLAlchemy's and Flask-SQLAlchemy's own suites: a pool of ours wherever they make a QueuePool.

Where SQLAlchemy's tests look into a QueuePool they find the same facts about ours. The last line of a run says how many
connections were checked out, so that a suite that went past it does not count.
"""

from __future__ import annotations

import itertools
from typing import Any

import sqlalchemy
import sqlalchemy.pool

from flask_stability.sqlalchemy import StabilityPool

_checkouts = itertools.count()
_do_get = StabilityPool._do_get


def _counted(self: StabilityPool) -> Any:
    next(_checkouts)
    return _do_get(self)


class _Queue:
    """What the tests ask a QueuePool's queue for."""

    #: Records without a connection, which a QueuePool keeps.
    queue: Any = ()

    def __init__(self, pool: StabilityPool) -> None:
        self.use_lifo, self._idle = pool._use_lifo, pool.checkedin

    def empty(self) -> bool:
        """No connection is idle."""
        return not self._idle()


StabilityPool._do_get = _counted  # type: ignore[method-assign]
# of connections alone, where a QueuePool counts entries without one as well
StabilityPool._overflow = property(lambda pool: max(0, pool.overflow()))  # type: ignore[attr-defined]
StabilityPool._pool = property(_Queue)  # type: ignore[attr-defined]
sqlalchemy.pool.QueuePool = sqlalchemy.QueuePool = StabilityPool
try:
    import flask_sqlalchemy.extension as flask_sqlalchemy
except ImportError:
    pass
else:
    _make_engine = flask_sqlalchemy.SQLAlchemy._make_engine

    def _with_pool(self: object, bind_key: object, options: dict[str, object], app: object) -> object:
        options["poolclass"] = StabilityPool  # of a database in memory too, where Flask-SQLAlchemy has a StaticPool
        return _make_engine(self, bind_key, options, app)

    flask_sqlalchemy.SQLAlchemy._make_engine = _with_pool


def pytest_unconfigure() -> None:
    """Tell that the pool was used."""
    print(f"\nStabilityPool: {next(_checkouts)} checkouts")
