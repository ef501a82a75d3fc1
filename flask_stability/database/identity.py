"""Identify a connection's session on its server, to end that session's statement and never another one.

A session's number alone proves nothing: another server behind the same address uses the same numbers, a restarted
server begins anew, and behind a multiplexing proxy the number changes from statement to statement.
"""

from __future__ import annotations

from typing import Any, NamedTuple

#: Seconds by which a session must be younger than the server's start, which is known to the second.
_SAME_RUN = 0.1


class Identity(NamedTuple):
    """One session.

    :ivar session: its number on the server.
    :ivar account: ``user@host`` as the server knows the client.
    :ivar server: number, name and port of the server, and its UUID where it has one.
    :ivar since: when the server was asked, seconds since the epoch by its clock.
    :ivar max_packet: largest statement in bytes that the server accepts; 0 if unknown.
    :ivar clustered: the server is a node of a Galera cluster.
    :ivar direct: the server itself is at the other end, not a multiplexing proxy.
    """

    session: int
    account: str
    server: str
    since: float
    max_packet: int
    clustered: bool
    direct: bool


def questions(mariadb: bool) -> list[str]:
    """Return statements that ask for an identity, best first; later ones suit servers that lack a variable."""
    uuid = "" if mariadb else ", @@server_uuid"
    base = "SELECT CONNECTION_ID(), USER(), CONCAT_WS('/', @@server_id, @@hostname, @@port{}), " \
           "UNIX_TIMESTAMP(NOW(6)), @@max_allowed_packet, {}"
    return [base.format(uuid, "@@wsrep_on"), base.format(uuid, "0"), base.format("", "0")]


def identity_of(raw: Any, question: str) -> Identity:
    """Ask a new connection for its identity."""
    session, account, server, since, packet, clustered = one_row(raw, question)
    direct = int(session) & 0xFFFFFFFF == int(raw.thread_id()) & 0xFFFFFFFF  # a proxy sends a number of its own
    return Identity(int(session), _text(account), _text(server), float(since), int(packet or 0),
                    bool(int(clustered or 0)), direct)


def end_session(raw: Any, own: Identity, other: Identity) -> bool:
    """End a session through `raw`; return False if it has ended or is not certainly the same one.

    :param own: identity of `raw`.
    :param other: the session to end.
    """
    if not (own.direct and other.direct) or own.server != other.server or own.session == other.session:
        return False
    raw.query("SHOW GLOBAL STATUS LIKE 'Uptime'")
    uptime = float(raw.store_result().fetch_row()[0][1])
    if other.since < own.since - uptime + _SAME_RUN:  # the server has restarted since then, or may have
        return False
    raw.query("SHOW PROCESSLIST")
    rows = raw.store_result().fetch_row(0)
    if not any(int(row[0]) == other.session and _account(row) == other.account for row in rows):
        return False
    raw.query(f"KILL CONNECTION {other.session}")
    return True


def demand_ready(raw: Any) -> None:
    """Raise error 1047 for a cluster node that does not serve: it answers ``SELECT 1`` but refuses BEGIN."""
    raw.query("BEGIN")
    raw.query("ROLLBACK")


def one_row(raw: Any, sql: str) -> tuple[Any, ...]:
    """Return the first row of a statement's result."""
    raw.query(sql)
    row: tuple[Any, ...] = raw.store_result().fetch_row()[0]
    return row


def _account(row: tuple[Any, ...]) -> str:
    """Return ``user@host`` from a process list's row, without the client's port that it shows."""
    user, host = _text(row[1]), _text(row[2])
    head, colon, port = host.rpartition(":")
    return f"{user}@{head if colon and port.isdecimal() else host}"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
