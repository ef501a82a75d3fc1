"""``stability.transaction``: a unit of work, and what may be run again after a failure: the unit, never a statement.

==========================================  =================================================
what happened                               what follows
==========================================  =================================================
the server rolled back (1213, 3101)         the unit again
waited too long for a lock (1205, BUSY)     ROLLBACK, the unit again
the server became read-only                 the unit again on a new connection
the link was lost before COMMIT             the unit again: nothing of it can be stored
the link was lost during COMMIT             `CommitUnknown`, never again
a statement was ended by its time limit     never
the disk is full or fails                   never
==========================================  =================================================

Only what failed on the unit's own connection counts. A unit that ended its transaction itself (CREATE TABLE commits,
and so may a stored procedure) is not run again, since a part of it may be stored; ``idempotent`` overrules both this
and `CommitUnknown`. A budget (20 % of the units plus 10 a second) keeps an outage from being multiplied.
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

#: The transactions that the running code is in, at most one for each pool. Not a `threading.local`: one that was made
#: before gevent patched `threading` is shared by all greenlets of a thread.
_current: ContextVar[tuple[_Unit, ...]] = ContextVar("flask_stability_transactions", default=())


def _outer(pool: Pool) -> _Unit | None:
    """Return the transaction that the running code is in, unless it is over or its connection was taken away.

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

    :ivar flow: which thread, greenlet and task began it.
    :ivar doomed: why nothing of it may be stored; raised by whatever is still tried.
    :ivar torn: it ended its transaction itself: a part may be stored already.
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
        """It has its connection still: a request's end takes that away, and a forked child has no part in it."""
        connection = self.connection
        return connection is not None and connection.usable

    def begin(self) -> PooledConnection:
        """Take a connection and issue BEGIN."""
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
        """A statement failed: where the server ended the transaction with it, the rest must not be stored alone."""
        driver = self.pool.driver
        self.failure = error
        if self.doomed is None:
            over = driver.classify(error) in LOST if self.torn else driver.ended(raw, error)
            self.doomed = error if over else None

    def doom(self, error: BaseException) -> None:
        """A part of it failed: if that goes unnoticed, the rest must not be stored alone."""
        if self.doomed is None:
            self.doomed = StabilityError(f"a part of this transaction failed ({type(error).__name__}) and the "
                                         "transaction went on: nothing of it is stored; let the exception through")
            self.doomed.__cause__ = error

    def end(self, error: BaseException | None) -> None:
        """COMMIT, or ROLLBACK after an error; the connection goes back whatever happens.

        :raises CommitUnknown: if the link was lost during COMMIT, or after a part was committed by the app.
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
                raise self.doomed  # the app swallowed it

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
        """At once, since locks are held; what fails here is done when the connection goes back, or ends it."""
        record = connection.record
        record.unit = None
        with suppress(Exception):
            self.pool.calls.run(record, record.raw.rollback)
            self._settled(connection)

    def _settled(self, connection: PooledConnection) -> None:
        """Nothing is open any more: no rollback is needed when the connection goes back."""
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
    """``stability.transaction``: a context manager, a decorator, a decorator with options.

    As a decorator the function gets the connection as its first argument, and the whole of it is run again where that
    cannot do a thing twice; it should do nothing else that must not be done twice.

    Inside another transaction of the same thread (greenlet, asyncio task) it joins that one: one BEGIN, one COMMIT, and
    only the outermost unit is run again. If an exception leaves the inner one, nothing of the outer one is stored
    either. A context that was copied to another thread or greenlet does not carry the transaction along: joining it
    from there is a `StabilityError`.

    :param pool: gives the pool when it is needed.
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
        :param idempotent: the unit may be run again even where it may have been stored (`CommitUnknown`).
        :param attempts: how often it is run at the most.
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
        """Run a unit until it is stored, or may not be run again."""
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
