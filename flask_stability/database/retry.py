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
==========================================  =================================================

A budget (20 % of the units plus 10 a second) keeps an outage from being multiplied.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from .. import request
from ..exceptions import CommitUnknown, DeadlineExceeded, StabilityError
from .connection import PooledConnection
from .drivers import ErrorClass
from .pool import Pool

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 3
AGAIN = frozenset({ErrorClass.ROLLED_BACK, ErrorClass.LOCK_WAIT, ErrorClass.READ_ONLY, ErrorClass.LINK_LOST,
                   ErrorClass.STALE})
_LOST = frozenset({ErrorClass.LINK_LOST, ErrorClass.CONNECT})


class Budget:
    """Tokens for retries: each unit gives 0.2, each second 10, at most 100.

    Google SRE book, chapter 21, "Handling overload": per-client retry budget.
    """

    def __init__(self, share: float = 0.2, rate: float = 10.0, most: float = 100.0) -> None:
        self._share, self._rate, self._most = share, rate, most
        self._lock = threading.Lock()
        self._tokens = rate
        self._last = time.monotonic()

    def unit(self) -> None:
        """One unit of work began."""
        with self._lock:
            self._tokens = min(self._most, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one retry may be made."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._most, self._tokens + (now - self._last) * self._rate)
            self._last = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class _Current(threading.local):
    """The transactions that this thread is in, by pool."""

    def __init__(self) -> None:
        self.of: dict[int, _Unit] = {}


_current = _Current()


class _Unit:
    """One transaction on one connection."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.connection: PooledConnection | None = None
        self.doomed: BaseException | None = None

    def begin(self) -> PooledConnection:
        connection = self.pool.connection()
        try:
            entry = connection._live
            connection.begin()
            entry.in_transaction = True
        except BaseException:
            connection.close()
            raise
        self.connection = connection
        entry.unit = self
        _current.of[id(self.pool)] = self
        return connection

    def end(self, error: BaseException | None) -> None:
        """COMMIT, or ROLLBACK after an error; the connection goes back whatever happens.

        :raises CommitUnknown: if the link was lost during COMMIT.
        """
        connection = self.connection
        assert connection is not None
        _current.of.pop(id(self.pool), None)
        self.connection = None
        if not connection.closed:
            connection._live.unit = None
        try:
            if error is not None:
                with suppress(Exception):
                    connection.rollback()
                return
            if self.doomed is not None:
                # the server rolled back while the app swallowed the error: committing now would store the rest alone
                with suppress(Exception):
                    connection.rollback()
                raise self.doomed
            self._commit(connection)
        finally:
            if not connection.closed:
                connection._live.in_transaction = False
            connection.close()

    def _commit(self, connection: PooledConnection) -> None:
        driver = self.pool.driver
        if connection._live.cut:
            raise DeadlineExceeded("the transaction was cut off before COMMIT was sent: nothing of it is stored")
        try:
            connection.commit()
        except (driver.dbapi.Error, DeadlineExceeded) as failure:
            if isinstance(failure, DeadlineExceeded) or driver.classify(failure) in _LOST:
                raise CommitUnknown("the link to the database was lost during COMMIT: "
                                    "the transaction may or may not be stored") from failure
            with suppress(Exception):
                connection.rollback()
            raise


class _Block:
    """``with stability.transaction() as connection``."""

    def __init__(self, pool: Callable[[], Pool]) -> None:
        self._pool = pool
        self._unit: _Unit | None = None

    def __enter__(self) -> PooledConnection:
        pool = self._pool()
        outer = _current.of.get(id(pool))
        if outer is not None and outer.connection is not None:
            return outer.connection  # a transaction inside a transaction joins it
        self._unit = _Unit(pool)
        try:
            return self._unit.begin()
        except BaseException:
            self._unit = None
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        unit, self._unit = self._unit, None
        if unit is not None:
            unit.end(error)


class Transactions:
    """``stability.transaction``: a context manager, a decorator, a decorator with options.

    As a decorator the function gets the connection as its first argument, and the whole of it is run again where that
    cannot do a thing twice; it should do nothing else that must not be done twice. Inside another transaction it joins
    that one, and only the outermost unit is run again.

    :param pool: gives the pool when it is needed.
    """

    def __init__(self, pool: Callable[[], Pool]) -> None:
        self._pool = pool
        self._budget = Budget()

    @overload
    def __call__(self, function: Callable[Concatenate[PooledConnection, P], T], /) -> Callable[P, T]: ...

    @overload
    def __call__(self, *, idempotent: bool = ..., attempts: int = ...) -> _BlockOrDecorator: ...

    def __call__(self, function: Callable[..., Any] | None = None, *, idempotent: bool = False,
                 attempts: int = ATTEMPTS) -> Any:
        """Wrap a function, or begin a block.

        :param idempotent: the unit may be run again even where it may have been stored (`CommitUnknown`).
        :param attempts: how often it is run at the most.
        """
        if attempts < 1:
            raise StabilityError(f"transaction(attempts={attempts}): give at least 1")
        if function is not None:
            return self._wrap(function, idempotent, attempts)
        return _BlockOrDecorator(self, self._pool, idempotent, attempts)

    def _wrap(self, function: Callable[Concatenate[PooledConnection, P], T], idempotent: bool,
              attempts: int) -> Callable[P, T]:
        @functools.wraps(function)
        def unit(*args: P.args, **kwargs: P.kwargs) -> T:
            pool = self._pool()
            outer = _current.of.get(id(pool))
            if outer is not None and outer.connection is not None:
                return function(outer.connection, *args, **kwargs)
            return self._run(pool, function, args, kwargs, idempotent, attempts)

        return unit

    def _run(self, pool: Pool, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any],
             idempotent: bool, attempts: int) -> T:
        self._budget.unit()

        def once() -> T:
            with _Block(lambda: pool) as connection:
                return function(connection, *args, **kwargs)

        def again(error: BaseException) -> bool:
            if isinstance(error, CommitUnknown):
                return idempotent and self._budget.take()
            if not isinstance(error, pool.driver.dbapi.Error):
                return False
            return pool.driver.classify(error) in AGAIN and self._budget.take()

        def wait(state: RetryCallState) -> float:
            return random.uniform(0, min(2.0, 0.05 * 2 ** state.attempt_number))

        def stop(state: RetryCallState) -> bool:
            left = request.remaining()
            return left is not None and left - state.upcoming_sleep <= 1.0

        def count(state: RetryCallState) -> None:
            pool.counters.add("retries_num")

        result: T = Retrying(retry=retry_if_exception(again), wait=wait, stop=stop_after_attempt(attempts) | stop,
                             before_sleep=count, reraise=True)(once)
        return result


class _BlockOrDecorator(_Block):
    """``transaction()`` in a ``with``, or ``@transaction(attempts=5)``."""

    def __init__(self, owner: Transactions, pool: Callable[[], Pool], idempotent: bool, attempts: int) -> None:
        super().__init__(pool)
        self._owner, self._idempotent, self._attempts = owner, idempotent, attempts

    def __call__(self, function: Callable[Concatenate[PooledConnection, P], T]) -> Callable[P, T]:
        return self._owner._wrap(function, self._idempotent, self._attempts)
