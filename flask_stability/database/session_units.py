"""``stability.transaction(session=…)``: a unit of work of an SQLAlchemy Session, under the rules of `transaction`.

Between two tries, the unit only rolls the Session back. The objects that the app had loaded before, such as the
logged-in user, stay in the Session and are loaded again. A unit never begins on top of work that it could not repeat.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy.orm import Session, scoped_session

from ..dberrors import CONSEQUENCES
from ..exceptions import CommitUnknown, StabilityError
from ..sqlalchemy import RECORDS, UNIT
from .retries import LOST, Budget, demand_plain, flow, persevere

T = TypeVar("T")
#: Sessions that units created for themselves, each with the factory that created it: an inner unit joins.
_made: ContextVar[tuple[tuple[Any, Session], ...]] = ContextVar("flask_stability_sessions", default=())


class SessionUnit:
    """One try of a unit.

    :ivar doomed: why nothing of it may be stored; each further call raises it.
    :ivar torn: a part of it may be committed already, by the app or by a statement that commits implicitly.
    :ivar failure: the latest error on its connections.
    :ivar ending: its own COMMIT is due.
    :ivar committed, unconfirmed: the server confirmed a COMMIT of it; a COMMIT of it was sent and not confirmed.
    :ivar tracked: all its connections belong to a `StabilityPool`, so each error can be traced to its connection.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.flow = flow()
        self.doomed: BaseException | None = None
        self.failure: BaseException | None = None
        self.torn = self.ending = self.committed = self.unconfirmed = False
        self.tracked = True
        self.records: list[Any] = []

    def begin(self) -> None:
        """Take the Session over.

        :raises StabilityError: if it has work that is not the unit's.
        """
        session = self.session
        if session.new or session.deleted or any(session.is_modified(one) for one in session.dirty):
            raise StabilityError("the Session has changes that are not stored yet and would be lost if the unit is "
                                 "rolled back: commit them before, or make them inside")
        begun = list(session.info.get(RECORDS, ()))
        if any(record is not None and record.wrote for record in begun):
            raise StabilityError("the Session has written in the transaction that is open, which would be lost if the "
                                 "unit is rolled back: commit it before, or write inside")
        for record in begun:
            self.use(record)
        session.info[UNIT] = self

    def use(self, record: Any) -> None:
        """Add one of the Session's connections; None stands for a connection outside any `StabilityPool`."""
        if record is None:
            self.tracked = False
        elif record.entry.unit is not self:
            record.entry.unit = self
            self.records.append(record)

    def leave(self) -> None:
        """Let go of the Session."""
        self.session.info.pop(UNIT, None)
        for record in self.records:
            if record.entry is not None and record.entry.unit is self:
                record.entry.unit = None

    def failed(self, raw: Any, error: BaseException) -> None:
        """Record a statement's error. If it ended the transaction on the server, the rest must not be stored alone."""
        self.failure = error
        driver = self.driver_of(raw)
        if self.doomed is None and driver is not None and driver.ended(raw, error):
            self.doomed = error

    def driver_of(self, raw: Any) -> Any:
        """Return the driver of one of its connections; None if the connection is gone."""
        return next((record.house.driver for record in self.records if record.entry.raw is raw), None)

    def doom(self, error: BaseException) -> None:
        """Record that a part of the unit failed. If the app ignores that, the rest must not be stored alone."""
        if self.doomed is None:
            self.doomed = StabilityError(f"a part of this transaction failed ({type(error).__name__}) and the "
                                         "transaction went on: nothing of it is stored; let the exception through")
            self.doomed.__cause__ = error

    def end(self, error: BaseException | None) -> None:
        """COMMIT, or roll the Session back after an error.

        :raises CommitUnknown: if a COMMIT was sent and not confirmed, or if the link was lost after the app had
            committed a part.
        """
        try:
            if error is None:
                self._commit()
                return
            self._rollback()
            self._say_if_unknown(error)
        finally:
            self.leave()

    def _commit(self) -> None:
        try:
            self.session.flush()
            if self.doomed is not None:
                raise self.doomed  # the app swallowed the error
            self.ending = True
            self.session.commit()
        except BaseException as failure:
            self._rollback()
            self._say_if_unknown(failure)
            raise

    def _rollback(self) -> None:
        self.leave()  # after this, no doom refuses the ROLLBACK
        with suppress(Exception):
            self.session.rollback()

    def _say_if_unknown(self, error: BaseException) -> None:
        if self.unconfirmed or (self.ending and self.committed):
            raise CommitUnknown("COMMIT was sent and not confirmed: the transaction may or may not be stored"
                                ) from error
        if self.torn and self.failure is not None and self.kind() in LOST:
            raise CommitUnknown("the link to the database was lost after the unit had committed a part of its work "
                                "itself: more of it may be stored") from error

    def kind(self) -> Any:
        """Return the class of its latest error; None without one."""
        return self.records[-1].house.driver.classify(self.failure) if self.failure and self.records else None

    def again(self, error: BaseException, idempotent: bool) -> bool:
        """Return whether the unit may run again after this error."""
        if isinstance(error, CommitUnknown):
            return idempotent
        return (self.tracked and self.failure is not None and getattr(error, "orig", error) is self.failure
                and CONSEQUENCES[self.kind()].again and (idempotent or not self.torn))


def _outer(session: Session) -> SessionUnit | None:
    unit: SessionUnit | None = session.info.get(UNIT)
    if unit is not None and unit.flow != flow():
        raise StabilityError("this Session is in a transaction of another thread, greenlet or task: a Session "
                             "cannot be shared")
    return unit


class SessionUnits:
    """``stability.transaction(session=…)``: a decorator that may run its function again, or a block that runs once.

    :param session: a Session, a ``scoped_session`` (Flask-SQLAlchemy's ``db.session``), or a ``sessionmaker``, which
        creates a Session for each unit.
    """

    def __init__(self, session: Any, budget: Budget, idempotent: bool, attempts: int) -> None:
        if not (isinstance(session, (Session, scoped_session)) or callable(session)):
            raise StabilityError(f"transaction(session={type(session).__name__}): give a Session, a scoped_session "
                                 "such as db.session, or a sessionmaker")
        self._source, self._budget = session, budget
        self._idempotent, self._attempts = idempotent, attempts
        self._block: tuple[Session, SessionUnit | None, bool, Any] | None = None

    def _session(self) -> tuple[Session, bool]:
        """Return the Session, and whether it was created for this unit."""
        if isinstance(self._source, Session):
            return self._source, False
        if isinstance(self._source, scoped_session):
            return self._source(), False
        for maker, session in _made.get():
            if maker is self._source and _outer(session) is not None:
                return session, False
        return self._source(), True

    def __call__(self, function: Callable[..., T]) -> Callable[..., T]:
        demand_plain(function)

        @functools.wraps(function)
        def unit(*args: Any, **kwargs: Any) -> T:
            session, own = self._session()
            outer = _outer(session)
            if outer is not None:
                try:
                    return function(session, *args, **kwargs)
                except BaseException as error:
                    outer.doom(error)
                    raise
            token = _made.set((*_made.get(), (self._source, session))) if own else None
            try:
                return self._run(session, lambda: function(session, *args, **kwargs))
            finally:
                if token is not None:
                    _made.reset(token)
                    session.close()

        return unit

    def _run(self, session: Session, function: Callable[[], T]) -> T:
        current = SessionUnit(session)

        def once() -> T:
            nonlocal current
            current = SessionUnit(session)
            current.begin()
            try:
                result = function()
            except BaseException as error:
                current.end(error)
                raise
            current.end(None)
            return result

        def count() -> None:
            if current.records:
                current.records[-1].house.counters.add("retries_num")

        return persevere(once, lambda error: current.again(error, self._idempotent), count, self._attempts,
                         self._budget)

    def __enter__(self) -> Session:
        if self._block is not None:
            raise StabilityError("this transaction() is in use: call transaction() for each `with`")
        session, own = self._session()
        outer = _outer(session)
        unit = None
        if outer is None:
            unit = SessionUnit(session)
            unit.begin()
        token = _made.set((*_made.get(), (self._source, session))) if own else None
        self._block = (session, unit, own, token)
        return session

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        assert self._block is not None
        (session, unit, own, token), self._block = self._block, None
        try:
            if unit is not None:
                unit.end(error)
            elif error is not None and (outer := _outer(session)) is not None:
                outer.doom(error)
        finally:
            if own:
                _made.reset(token)
                session.close()
