"""``stability.transaction``: a unit of work, and what may run again after a failure: the unit, never a statement.

==========================================  =================================================
what happened                               what follows
==========================================  =================================================
the server rolled back (1213, 3101)         the unit runs again
a lock wait timed out (1205, BUSY)          ROLLBACK, the unit runs again
the server became read-only                 the unit runs again on a new connection
the link was lost before COMMIT             the unit runs again: nothing of it can be stored
the link was lost during COMMIT             `CommitUnknown`, never again
a time limit ended a statement              never again
the disk is full or fails                   never again
==========================================  =================================================

Only an error on the unit's own connection counts. A unit that ended its transaction itself (CREATE TABLE commits, and
so may a stored procedure) does not run again, since a part of it may be stored. ``idempotent`` overrules both this and
`CommitUnknown`. A retry budget (20 % of the units plus 10 a second) keeps retries from multiplying an outage's load.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from ..dberrors import CONSEQUENCES
from ..exceptions import CommitUnknown, DeadlineExceeded, StabilityError
from .connection import PooledConnection
from .pool import Pool
from .retries import ATTEMPTS, LOST, Budget, demand_plain, flow, persevere
from .statements import CLEAN, TRANSACTION

if TYPE_CHECKING:
    from .session_units import SessionUnits

P = ParamSpec("P")
T = TypeVar("T")

#: The transactions of the running code, at most one for each pool. Not a `threading.local`: if it was created before
#: gevent patched `threading`, all greenlets of a thread would share it.
_current: ContextVar[tuple[_Unit, ...]] = ContextVar("flask_stability_transactions", default=())


def _outer(pool: Pool) -> _Unit | None:
    """Return the transaction of the running code, unless it is over or has lost its connection.

    :raises StabilityError: if another thread, greenlet or task began it: two of them on one connection would store and
        lose each other's work.
    """
    unit = next((unit for unit in _current.get() if unit.pool is pool and unit.open), None)
    if unit is not None and unit.flow != flow():
        raise StabilityError(
            "this transaction was begun by another thread, greenlet or task, whose context was copied to this one: "
            "its connection cannot be shared. Run the unit where it was begun, or give this one a context of its own: "
            "executor.submit(contextvars.Context().run, function)")
    return unit


class _Unit:
    """One transaction on one connection.

    :ivar flow: the thread, greenlet and task that began it.
    :ivar doomed: why nothing of it may be stored; each further call raises it.
    :ivar torn: it ended its transaction itself, so a part may be stored already.
    :ivar failure: the latest error on its connection.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.flow = flow()
        self.connection: PooledConnection | None = None
        self.doomed: BaseException | None = None
        self.failure: BaseException | None = None
        self.torn = False

    @property
    def open(self) -> bool:
        """Return whether it still has its connection: the end of its request takes that away, and so does a fork."""
        connection = self.connection
        return connection is not None and connection.usable

    def begin(self) -> PooledConnection:
        """Take a connection and send BEGIN."""
        connection = self.pool.connection()
        record = connection.record
        record.unit = self
        record.effect = max(record.effect, TRANSACTION)
        try:
            self.pool.calls.run(record, self.pool.driver.begin, record.raw)
        except BaseException:
            connection.close()
            raise
        record.in_transaction = True
        self.connection = connection
        _current.set((*(unit for unit in _current.get() if unit.open and unit.pool is not self.pool), self))
        return connection

    def failed(self, raw: Any, error: BaseException) -> None:
        """Record a statement's error. If it ended the transaction on the server, the rest must not be stored alone."""
        driver = self.pool.driver
        self.failure = error
        if self.doomed is None:
            over = driver.classify(error) in LOST if self.torn else driver.ended(raw, error)
            self.doomed = error if over else None

    def doom(self, error: BaseException) -> None:
        """Record that a part of the unit failed. If the app ignores that, the rest must not be stored alone."""
        if self.doomed is None:
            self.doomed = StabilityError(f"a part of this transaction failed ({type(error).__name__}) and the "
                                         "transaction went on: nothing of it is stored; let the exception through")
            self.doomed.__cause__ = error

    def end(self, error: BaseException | None) -> None:
        """COMMIT, or ROLLBACK after an error; check the connection in, whatever happens.

        :raises CommitUnknown: if the link was lost during COMMIT, or after the app had committed a part.
        """
        connection, self.connection = self.connection, None
        assert connection is not None
        _current.set(tuple(unit for unit in _current.get() if unit is not self))
        with connection:
            if error is None and self.doomed is None:
                self._commit(connection)
                return
            if not connection.closed:
                self._rollback(connection)
            if self.torn and self.failure is not None and self.pool.driver.classify(self.failure) in LOST:
                raise CommitUnknown("the link to the database was lost after the unit had committed a part of its "
                                    "work itself: more of it may be stored") from self.failure
            if error is None and self.doomed is not None:
                raise self.doomed  # the app swallowed the error

    def _commit(self, connection: PooledConnection) -> None:
        record, driver = connection.record, self.pool.driver
        if record.cut:
            raise DeadlineExceeded("the transaction was cut off before COMMIT was sent: nothing of it is stored")
        try:
            self.pool.calls.run(record, record.raw.commit)
        except (driver.dbapi.Error, DeadlineExceeded) as failure:
            if driver.kind == "sqlite" or not CONSEQUENCES[driver.classify(failure)].stored:
                self._rollback(connection)
                raise
            raise CommitUnknown("COMMIT was sent and not confirmed: the transaction may or may not be stored"
                                ) from failure
        self._settled(connection)

    def _rollback(self, connection: PooledConnection) -> None:
        """Roll back at once, to release locks. If that fails, check-in rolls back or discards the connection."""
        record = connection.record
        record.unit = None
        with suppress(Exception):
            self.pool.calls.run(record, record.raw.rollback)
            self._settled(connection)

    def _settled(self, connection: PooledConnection) -> None:
        """Record that no transaction is open, so that check-in needs no rollback."""
        record = connection.record
        record.in_transaction = False
        if record.effect == TRANSACTION:
            record.effect = CLEAN


class _Block:
    """``with stability.transaction() as connection``."""

    def __init__(self, pool: Callable[[], Pool]) -> None:
        self._pool = pool
        self._unit: _Unit | None = None
        self._joined = False

    def __enter__(self) -> PooledConnection:
        if self._unit is not None:
            raise StabilityError("this transaction() is in use: call transaction() for each `with`")
        pool = self._pool()
        outer = _outer(pool)
        unit = outer or _Unit(pool)
        connection = unit.begin() if outer is None else unit.connection
        assert connection is not None
        self._unit, self._joined = unit, outer is not None
        return connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        unit, self._unit = self._unit, None
        assert unit is not None
        if not self._joined:
            unit.end(error)
        elif error is not None:
            unit.doom(error)


class Transactions:
    """``stability.transaction``: a context manager, a decorator, or a decorator with options.

    As a decorator, it passes the connection as the function's first argument. It runs the whole function again if that
    cannot store anything twice, so the function should have no other effect that must not happen twice.

    Inside another transaction of the same thread (greenlet, asyncio task), it joins that one: one BEGIN, one COMMIT,
    and only the outermost unit runs again. If an exception leaves the inner one, nothing of the outer one is stored
    either. A context copied to another thread or greenlet does not carry the transaction along: joining it from there
    raises `StabilityError`.

    :param pool: returns the pool at the time of use.
    """

    def __init__(self, pool: Callable[[], Pool]) -> None:
        self._pool = pool
        self._budget = Budget()

    @overload
    def __call__(self, function: Callable[Concatenate[PooledConnection, P], T], /) -> Callable[P, T]: ...

    @overload
    def __call__(self, *, idempotent: bool = ..., attempts: int = ...) -> _BlockOrDecorator: ...

    @overload
    def __call__(self, *, session: Any, idempotent: bool = ..., attempts: int = ...) -> SessionUnits: ...

    def __call__(self, function: Callable[..., Any] | None = None, *, session: Any = None, idempotent: bool = False,
                 attempts: int = ATTEMPTS) -> Any:
        """Wrap a function, or begin a block.

        :param session: an SQLAlchemy Session, a ``scoped_session`` such as ``db.session``, or a ``sessionmaker``: the
            unit is the Session's, and the function gets the Session as its first argument.
        :param idempotent: the unit may run again even if it may have been stored (`CommitUnknown`).
        :param attempts: maximum number of runs.
        """
        if attempts < 1:
            raise StabilityError(f"transaction(attempts={attempts}): give at least 1")
        if session is not None:
            from .session_units import SessionUnits

            return SessionUnits(session, self._budget, idempotent, attempts)
        if function is not None:
            return self._wrap(function, idempotent, attempts)
        return _BlockOrDecorator(self, self._pool, idempotent, attempts)

    def _wrap(self, function: Callable[Concatenate[PooledConnection, P], T], idempotent: bool,
              attempts: int) -> Callable[P, T]:
        demand_plain(function)

        @functools.wraps(function)
        def unit(*args: P.args, **kwargs: P.kwargs) -> T:
            pool = self._pool()
            if _outer(pool) is not None:
                with _Block(lambda: pool) as connection:
                    return function(connection, *args, **kwargs)
            return self._run(pool, lambda connection: function(connection, *args, **kwargs), idempotent,
                             attempts)

        return unit

    def _run(self, pool: Pool, function: Callable[[PooledConnection], T], idempotent: bool, attempts: int) -> T:
        """Run a unit until it is stored, or may not run again."""
        unit = _Unit(pool)

        def once() -> T:
            nonlocal unit
            unit = _Unit(pool)
            connection = unit.begin()
            try:
                result = function(connection)
            except BaseException as error:
                unit.end(error)
                raise
            unit.end(None)
            return result

        def again(error: BaseException) -> bool:
            if isinstance(error, CommitUnknown):
                return idempotent
            return (error is unit.failure and CONSEQUENCES[pool.driver.classify(error)].again
                    and (idempotent or not unit.torn))

        return persevere(once, again, lambda: pool.counters.add("retries_num"), attempts, self._budget)


class _BlockOrDecorator(_Block):
    """``transaction()`` in a ``with``, or ``@transaction(attempts=5)``."""

    def __init__(self, owner: Transactions, pool: Callable[[], Pool], idempotent: bool, attempts: int) -> None:
        super().__init__(pool)
        self._owner, self._idempotent, self._attempts = owner, idempotent, attempts

    def __call__(self, function: Callable[Concatenate[PooledConnection, P], T]) -> Callable[P, T]:
        return self._owner._wrap(function, self._idempotent, self._attempts)
