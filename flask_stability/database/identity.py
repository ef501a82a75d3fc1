"""Which session on which server a connection is, so that a statement can be ended there, and no other one ever is.

A session's number alone is worth nothing: another server behind the same address has the same numbers, the same server
begins anew after a restart, and behind a proxy that multiplexes it changes from statement to statement.
"""

from __future__ import annotations

from typing import Any, NamedTuple

#: Between a start that is known to the second and a session that is certainly younger, seconds.
_SAME_RUN = 0.1


class Identity(NamedTuple):
    """One session.

    :ivar session: its number on the server.
    :ivar account: ``user@host`` as the server knows the client.
    :ivar server: number, name, port and, where it has one, the UUID of the server.
    :ivar since: when it was asked, seconds since the epoch by the server's clock.
    :ivar max_packet: bytes that the server takes in one statement; 0 if not known.
    :ivar clustered: the server is a node of a Galera cluster.
    :ivar direct: the server itself is at the other end, not a proxy that multiplexes.
    """

    session: int
    account: str
    server: str
    since: float
    max_packet: int
    clustered: bool
    direct: bool


def questions(mariadb: bool) -> list[str]:
    """Statements that ask for an identity, the best one first; a server that lacks a variable is asked the next."""
    uuid = "" if mariadb else ", @@server_uuid"
    base = "SELECT CONNECTION_ID(), USER(), CONCAT_WS('/', @@server_id, @@hostname, @@port{}), " \
           "UNIX_TIMESTAMP(NOW(6)), @@max_allowed_packet, {}"
    return [base.format(uuid, "@@wsrep_on"), base.format(uuid, "0"), base.format("", "0")]


def identity_of(raw: Any, question: str) -> Identity:
    """Ask a new connection who it is."""
    session, account, server, since, packet, clustered = one_row(raw, question)
    direct = int(session) & 0xFFFFFFFF == int(raw.thread_id()) & 0xFFFFFFFF  # else the proxy's own number
    return Identity(int(session), _text(account), _text(server), float(since), int(packet or 0),
                    bool(int(clustered or 0)), direct)


def end_session(raw: Any, own: Identity, other: Identity) -> bool:
    """End a session by way of `raw`; False if it is not certain that it is the same one, or if it is gone.

    :param own: identity of `raw`.
    :param other: the session to end.
    """
    if not (own.direct and other.direct) or own.server != other.server or own.session == other.session:
        return False
    raw.query("SHOW GLOBAL STATUS LIKE 'Uptime'")
    uptime = float(raw.store_result().fetch_row()[0][1])
    if other.since < own.since - uptime + _SAME_RUN:  # the server was started since then, or may have been
        return False
    raw.query("SHOW PROCESSLIST")
    rows = raw.store_result().fetch_row(0)
    if not any(int(row[0]) == other.session and _account(row) == other.account for row in rows):
        return False
    raw.query(f"KILL CONNECTION {other.session}")
    return True


def demand_ready(raw: Any) -> None:
    """Raise error 1047 if a node of a cluster does not serve: it answers ``SELECT 1`` all the same, but no BEGIN."""
    raw.query("BEGIN")
    raw.query("ROLLBACK")


def one_row(raw: Any, sql: str) -> tuple[Any, ...]:
    """The first row of a statement's result."""
    raw.query(sql)
    row: tuple[Any, ...] = raw.store_result().fetch_row()[0]
    return row


def _account(row: tuple[Any, ...]) -> str:
    """``user@host`` of a row of the process list, which shows the client's port as well."""
    user, host = _text(row[1]), _text(row[2])
    head, colon, port = host.rpartition(":")
    return f"{user}@{head if colon and port.isdecimal() else host}"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
