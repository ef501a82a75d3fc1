"""A call into the driver: visible to the keeper, which cuts it off at its deadline; what fails is remembered.

Whoever is in a call has written so into the connection's `Entry`, and no lock is held meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from ..dberrors import ALL_DISCARDED, CONSEQUENCES, KEPT, ErrorClass
from ..exceptions import DeadlineExceeded
from .entry import IN_USE, REMOVED, RESERVED, Entry

if TYPE_CHECKING:
    from .pool import Pool

T = TypeVar("T")

#: What checking or clearing a connection may take, seconds.
PATIENCE = 2.0
_NOT_TO_BE_MENDED = frozenset({ErrorClass.LINK_LOST, ErrorClass.CONNECT, ErrorClass.STALE, ErrorClass.ROLLED_BACK,
                               ErrorClass.LOCK_WAIT, ErrorClass.TIMED_OUT})


def call(pool: Pool, entry: Entry, function: Callable[..., T], *args: Any) -> T:
    """Call into the driver for the borrower.

    :raises DeadlineExceeded: if the call was cut off.
    :raises Exception: what ended the transaction, if it is over and the app goes on.
    """
    unit = entry.unit
    if entry.inside:
        raise pool.driver.dbapi.ProgrammingError(
            "another thread or greenlet is in a call on this connection: take one for each, or let one wait")
    if entry.cut or (unit is not None and unit.doomed is not None):
        _refuse(pool, entry)
    if entry.streams:
        _read_dropped(pool, entry)
    serving = entry.request is not None
    now = entry.used = monotonic()
    if serving:
        pool.inside[threading.get_ident()] = now
    entry.inside = now
    try:
        return function(*args)
    except pool.driver.dbapi.Error as error:
        given_up = bool(entry.backstop) and not entry.cut and _given_up(pool, entry, error)
        _failed(pool, entry, error)
        if entry.cut and not (given_up and unit is None):  # else the driver's own error says it
            raise DeadlineExceeded(f"the call to the database was cut off: {entry.cut}") from error
        raise
    except Exception:
        raise  # a wrong argument, say: nothing was sent
    except BaseException as error:
        entry.broken = True  # interrupted midway: an answer may be left unread
        if unit is not None:
            unit.doom(error)
        raise
    finally:
        entry.inside = 0.0
        if serving:
            pool.inside.pop(threading.get_ident(), None)


def _refuse(pool: Pool, entry: Entry) -> None:
    if not entry.cut:
        raise entry.unit.doomed  # the server ended the transaction: a statement now would be stored alone
    if entry.state is REMOVED:
        raise pool.driver.dbapi.InterfaceError(f"this connection cannot be used: {entry.cut}")
    raise DeadlineExceeded(f"the call to the database was cut off: {entry.cut}")


def _given_up(pool: Pool, entry: Entry, error: BaseException) -> bool:
    """The client's own limit ended the call, and the server goes on with the statement: it must not be sent again."""
    return (monotonic() - max(entry.inside, entry.statement_began()) >= entry.backstop - 0.25
            and pool.driver.classify(error) is ErrorClass.LINK_LOST
            and cut(pool, entry, entry.inside, "its time was over and the server did not end it"))


def _failed(pool: Pool, entry: Entry, error: BaseException) -> None:
    """Remember what an error means for the connection, and for the transaction that it is in."""
    kind = pool.driver.classify(error)
    follows = CONSEQUENCES[kind]
    if kind not in _NOT_TO_BE_MENDED and (remedy := pool.driver.remedy(error)):
        error.add_note(remedy)
    if entry.unit is not None:
        entry.unit.failed(entry.raw, error)
    if follows.connection is ALL_DISCARDED:
        pool.renew()
    if follows.connection is not KEPT and not getattr(error, "unsent", False):
        entry.broken = True
        if follows.unavailable:  # others may have met the same
            pool.generation += 1
        if kind is ErrorClass.LINK_LOST and not entry.cut:
            pool.counters.add("connections_lost")


def _read_dropped(pool: Pool, entry: Entry) -> None:
    """Read to its end what nobody will read: the driver takes no statement before that."""
    streams = entry.streams or []
    dropped = [stream for stream in streams if stream.owner() is None]
    streams[:] = [stream for stream in streams if stream.owner() is not None]
    for stream in dropped:
        if stream.unread:
            call(pool, entry, stream.raw.close)


def within(pool: Pool, entry: Entry, deadline: float, function: Callable[..., object], *args: Any) -> None:
    """A call of the pool's own, which is cut off at the deadline."""
    entry.limit = deadline
    entry.inside = entry.used = now = monotonic()
    watch = None
    if not pool.kept:  # nobody looks after it
        watch = threading.Timer(deadline - now, cut, (pool, entry, now, "its time was over"))
        watch.daemon = True
        with suppress(RuntimeError):  # no more threads: the driver's own timeouts are left
            watch.start()
    try:
        function(*args)
    finally:
        entry.inside = entry.limit = 0.0
        if watch is not None:
            watch.cancel()


def cut(pool: Pool, entry: Entry, inside: float, why: str) -> bool:
    """End the call that began at `inside`, and no later one: who ends a call looks at `cut` under the lock."""
    with pool._lock:
        if entry.cut or entry.inside != inside or entry.state not in (IN_USE, RESERVED):
            return False
        entry.cut = why
        pool.driver.interrupt(entry.raw, entry.link)
    pool.killer.condemn(entry.identity)
    return True
