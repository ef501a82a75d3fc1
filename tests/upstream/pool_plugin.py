"""pytest plugin for SQLAlchemy's and Flask-SQLAlchemy's own suites: a pool of ours wherever they make a QueuePool."""

from __future__ import annotations

import sqlalchemy
import sqlalchemy.pool

from flask_stability.sqlalchemy import StabilityPool

sqlalchemy.pool.QueuePool = sqlalchemy.QueuePool = StabilityPool
try:
    import flask_sqlalchemy.extension as flask_sqlalchemy
except ImportError:
    pass
else:
    _make_engine = flask_sqlalchemy.SQLAlchemy._make_engine

    def _with_pool(self: object, bind_key: object, options: dict[str, object], app: object) -> object:
        options.setdefault("poolclass", StabilityPool)
        return _make_engine(self, bind_key, options, app)

    flask_sqlalchemy.SQLAlchemy._make_engine = _with_pool
