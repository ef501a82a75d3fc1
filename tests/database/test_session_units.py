"""``stability.transaction(session=…)``: units of work of SQLAlchemy's Sessions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from flask_stability import CommitUnknown, StabilityError, StabilityExt
from flask_stability.sqlalchemy import StabilityPool
from support_db import FaultProxy, MariaDB


class Base(DeclarativeBase):  # type: ignore[misc]
    """Of the tables here."""


class Note(Base):
    """Something stored."""

    __tablename__ = "unit_note"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(default=0)


@pytest.fixture
def engine(mariadb: MariaDB) -> Iterator[Engine]:
    """An engine with two notes, 1 and 2."""
    made = create_engine(mariadb.url.replace("mysql://", "mysql+pymysql://"), poolclass=StabilityPool)
    Base.metadata.drop_all(made)
    Base.metadata.create_all(made)
    with Session(made) as session, session.begin():
        session.add_all([Note(id=1), Note(id=2)])
    yield made
    made.dispose()


@pytest.fixture
def stability(tmp_path: Any) -> StabilityExt:
    """Of an app that uses no database of ours."""
    return StabilityExt(Flask("app", instance_path=str(tmp_path)))


def numbers(engine: Engine) -> list[int]:
    """Of all notes."""
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT number FROM unit_note ORDER BY id")).scalars())


def test_a_deadlock_is_run_again_and_what_was_read_before_stays(engine: Engine, stability: StabilityExt,
                                                                 mariadb: MariaDB) -> None:
    """The object that the Session had loaded before the unit is still its own."""
    session = scoped_session(sessionmaker(engine))
    user = session.get(Note, 1)
    assert user is not None
    tries: list[int] = []

    @stability.transaction(session=session)
    def unit(own: Session, add: int) -> Any:
        tries.append(1)
        if len(tries) == 1:
            own.get_one(Note, 2).number += 100
            own.flush()
            own.connection()
            raise_deadlock(own, mariadb)
        user.number += add
        return user.number

    assert unit(5) == 5
    assert len(tries) == 2
    assert user in session()
    assert numbers(engine) == [5, 0]
    session.remove()


def raise_deadlock(session: Session, mariadb: MariaDB) -> None:
    """A real one, with another connection, which is the heavier one and wins."""
    other = mariadb.connect(autocommit=False)
    cursor = other.cursor()
    cursor.execute("INSERT INTO unit_note SELECT seq, 0 FROM seq_100_to_3000")
    cursor.execute("UPDATE unit_note SET number = number WHERE id = 1")

    def want() -> None:
        cursor.execute("UPDATE unit_note SET number = number WHERE id = 2")
        other.rollback()
        other.close()

    thread = threading.Thread(target=want)
    thread.start()
    try:
        session.execute(text("UPDATE unit_note SET number = 7 WHERE id = 1"))
    finally:
        thread.join(30)


def test_a_link_lost_before_commit_is_run_again(engine: Engine, stability: StabilityExt, mariadb: MariaDB) -> None:
    """For a sessionmaker: a Session of its own each time."""
    tries: list[int] = []

    @stability.transaction(session=sessionmaker(engine))
    def unit(session: Session) -> None:
        session.get_one(Note, 1).number += 1
        session.flush()
        tries.append(1)
        if len(tries) == 1:
            mariadb.kill_sessions()
            session.execute(text("SELECT 1"))

    unit()
    assert (len(tries), numbers(engine)) == (2, [1, 0])


def test_a_link_lost_during_commit_is_unknown(stability: StabilityExt, engine: Engine, mariadb: MariaDB,
                                              proxy: FaultProxy) -> None:
    """And only an idempotent unit is run again."""
    through = create_engine(proxy.url_for(mariadb).replace("mysql://", "mysql+pymysql://"), poolclass=StabilityPool)
    tries: list[int] = []

    def unit(session: Session) -> None:
        tries.append(1)
        session.get_one(Note, 1).number = 50
        session.flush()
        if len(tries) == 1:
            proxy.cut_reply_to(1)

    with pytest.raises(CommitUnknown):
        stability.transaction(session=sessionmaker(through))(unit)()
    assert len(tries) == 1
    tries.clear()
    proxy.heal()
    stability.transaction(session=sessionmaker(through), idempotent=True)(unit)()
    assert (len(tries), numbers(engine)) == (2, [50, 0])
    through.dispose()


def test_work_of_before_is_refused(engine: Engine, stability: StabilityExt) -> None:
    """Pending, changed, deleted, flushed, or written by a statement; what was only read is not."""
    def unit(session: Session) -> None:
        session.get_one(Note, 1).number = 9

    def prepare(session: Session, what: str) -> None:
        match what:
            case "new":
                session.add(Note(id=3))
            case "changed":
                session.get_one(Note, 1).number = 3
            case "deleted":
                session.delete(session.get_one(Note, 1))
            case "flushed":
                session.get_one(Note, 1).number = 3
                session.flush()
            case _:
                session.execute(text("INSERT INTO unit_note VALUES (4, 0)"))

    for what in ("new", "changed", "deleted", "flushed", "statement"):
        with Session(engine) as session:
            prepare(session, what)
            with pytest.raises(StabilityError, match="would be lost"):
                stability.transaction(session=session)(unit)()
    with Session(engine) as session:
        session.execute(text("SELECT * FROM unit_note"))
        stability.transaction(session=session)(unit)()
    assert numbers(engine) == [9, 0]


def test_units_inside_join(engine: Engine, stability: StabilityExt) -> None:
    """One COMMIT; an exception of the inner one that is swallowed stores nothing."""
    session = sessionmaker(engine)

    @stability.transaction(session=session)
    def inner(own: Session, fail: bool) -> None:
        own.get_one(Note, 2).number += 1
        if fail:
            raise ValueError("inner")

    @stability.transaction(session=session)
    def outer(own: Session, fail: bool) -> None:
        own.get_one(Note, 1).number += 1
        own.flush()
        try:
            inner(fail)
        except ValueError:
            own.expire_all()

    outer(False)
    assert numbers(engine) == [1, 1]
    with pytest.raises(StabilityError, match="a part of this transaction failed"):
        outer(True)
    assert numbers(engine) == [1, 1]


def test_an_error_of_the_apps_rolls_back_and_passes(engine: Engine, stability: StabilityExt) -> None:
    """A block too."""
    with pytest.raises(ZeroDivisionError), stability.transaction(session=sessionmaker(engine)) as session:
        session.get_one(Note, 1).number = 1 // 0
    with stability.transaction(session=sessionmaker(engine)) as session:
        session.get_one(Note, 1).number = 4
    assert numbers(engine) == [4, 0]


def test_what_committed_a_part_is_not_run_again(engine: Engine, stability: StabilityExt, mariadb: MariaDB) -> None:
    """CREATE TABLE, or the app's own commit."""
    for how in ("CREATE TABLE IF NOT EXISTS torn (id INTEGER)", ""):
        tries: list[int] = []

        @stability.transaction(session=sessionmaker(engine))
        def unit(session: Session, how: str = how, tries: list[int] = tries) -> None:
            tries.append(1)
            session.get_one(Note, 1).number += 1
            session.flush()
            session.execute(text(how)) if how else session.commit()
            session.execute(text("SELECT 1"))
            mariadb.kill_sessions()
            session.execute(text("SELECT 1"))

        with pytest.raises(CommitUnknown):
            unit()
        assert len(tries) == 1


def test_what_is_no_session_is_refused(stability: StabilityExt) -> None:
    """With what to give."""
    with pytest.raises(StabilityError, match="sessionmaker"):
        stability.transaction(session=5)
