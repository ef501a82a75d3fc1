"""The meaning of database errors, and the consequence of each: one table for all code that has to decide.

The module stands below the rooms: the database room must not depend on the answers to errors, nor the other way round,
and an app may use its driver without the pool.

The numbers are those of MySQL 8.4 to 9, MariaDB 10.6 to 12, their client libraries, ProxySQL, MaxScale and RDS Proxy. A
number that is missing here belongs to the statement or to the app: it leads to 500, and to nothing else.
"""

from __future__ import annotations

import enum
import re
import sqlite3
from dataclasses import dataclass


class ErrorClass(enum.Enum):
    """The meaning of a database error."""

    CONNECT = "the database cannot be reached for now"
    FULL = "the server, or a proxy, has no connection left for now"
    QUOTA = "the user's hourly allowance is used up"
    REFUSED = "credentials, encryption, schema or host are refused"
    NOT_READY = "this node of a cluster does not serve: not in sync, cut off, or offline"
    ROLLED_BACK = "the server rolled the transaction back"
    LOCK_WAIT = "no lock in time, or a table altered since the transaction began; the statement alone was rolled back"
    READ_ONLY = "the server became read-only"
    DISK = "the disk is full or fails"
    MEMORY = "the server is out of memory, locks, transactions or files"
    LINK_LOST = "the link was lost"
    TIMED_OUT = "the statement was ended by its time limit or by an administrator"
    TOO_LARGE = "the statement is larger than max_allowed_packet"
    OUT_OF_STEP = "client and session disagree about what comes next"
    STALE = "the session lost what it needs; a new connection has it"
    OTHER = "anything else"


KEPT, DISCARDED, ALL_DISCARDED = "kept", "discarded", "all of the pool are replaced"
#: The consequence of a failed connect: another attempt while a request waits, or an error for all waiting requests.
COUNTS, WAITS, ENDS = "counts against the breaker", "tried again", "nobody waits for it"


@dataclass(frozen=True)
class Consequence:
    """The consequence of an error.

    :ivar unavailable: the answer is 503 with Retry-After if a view lets the error through, else 500.
    :ivar connection: KEPT, DISCARDED, or ALL_DISCARDED.
    :ivar again: the unit of work may be repeated.
    :ivar stored: it is unknown whether a COMMIT that fails this way was stored.
    :ivar connecting: COUNTS, WAITS or ENDS, for a connect that fails this way.
    :ivar alive: only a living server sends this error.
    """

    unavailable: bool = False
    connection: str = KEPT
    again: bool = False
    stored: bool = True
    connecting: str = ENDS
    alive: bool = True


CONSEQUENCES: dict[ErrorClass, Consequence] = {
    ErrorClass.CONNECT: Consequence(True, DISCARDED, again=True, connecting=COUNTS, alive=False),
    ErrorClass.FULL: Consequence(True, DISCARDED, again=True, connecting=WAITS),
    ErrorClass.QUOTA: Consequence(True),
    ErrorClass.REFUSED: Consequence(True),
    ErrorClass.NOT_READY: Consequence(True, ALL_DISCARDED, again=True, stored=False, connecting=COUNTS, alive=False),
    ErrorClass.ROLLED_BACK: Consequence(again=True, stored=False),
    ErrorClass.LOCK_WAIT: Consequence(again=True, stored=False, connecting=WAITS),
    ErrorClass.READ_ONLY: Consequence(True, ALL_DISCARDED, again=True, stored=False),
    ErrorClass.DISK: Consequence(True),
    ErrorClass.MEMORY: Consequence(True, connecting=WAITS),
    ErrorClass.LINK_LOST: Consequence(True, DISCARDED, again=True, connecting=COUNTS, alive=False),
    ErrorClass.TIMED_OUT: Consequence(),
    ErrorClass.TOO_LARGE: Consequence(connection=DISCARDED),
    ErrorClass.OUT_OF_STEP: Consequence(connection=DISCARDED),
    ErrorClass.STALE: Consequence(True, DISCARDED, again=True),
    ErrorClass.OTHER: Consequence(),
}

#: The numbers of each class. A number that means two things (MySQL and MariaDB disagree, or its text decides) is below.
CODES: dict[ErrorClass, tuple[int, ...]] = {
    # no socket; no server; no host, or no record of it; broken or bad handshake; shutting down, by force, shut down;
    # ProxySQL: no backend in time, too many failures, backend offline
    ErrorClass.CONNECT: (2001, 2002, 2003, 2004, 2005, 2070, 2012, 1043, 1053, 1077, 1078, 1079, 1080, 9001, 9002,
                         9004),
    # max_user_connections; no thread; RDS Proxy: no connection in time
    ErrorClass.FULL: (1203, 1135, 9501),
    # schema, by role too; password; unknown database; blocked or unknown host, or one without a name; authentication
    # methods and plugins of either side; compression; versions of the protocol; password expired, to be changed;
    # account locked, for a while, or for good; TLS required, or not to be had; what the client cannot do: character
    # sets, protocols, FIPS, compression, Kerberos, a second factor, a local address
    ErrorClass.REFUSED: (1044, 3879, 1049, 1129, 1130, 1042, 1698, 1251, 1275, 1524, 1820, 1862, 1873, 3118, 3955,
                         3159, 3922, 3923, 2007, 2009, 2019, 2047, 2049, 2054, 2058, 2059, 2061, 2064, 2065, 2066, 2067,
                         2072, 2074, 5001, 5010, 5011, 5012),
    # offline mode; group replication: a hook failed, the new primary has not caught up, this member fell out of the
    # group, or waits in vain for the others, or leaves
    ErrorClass.NOT_READY: (3032, 6400, 3100, 3781, 3782, 3783, 3796, 3797, 3798, 3799),
    # deadlock, a conflict in a cluster among them; rolled back during COMMIT, in a replicated group too;
    # MariaDB: changed since it was read, an earlier one of the group of commits failed
    ErrorClass.ROLLED_BACK: (1213, 3101, 1020, 1964),
    # of a row or a table; given up for another lock; NOWAIT; of GET_LOCK, in a circle; of the locking service; altered
    ErrorClass.LOCK_WAIT: (1205, 1689, 3572, 3058, 3132, 3133, 1412),
    # a read-only server, storage engine, schema; InnoDB being recovered
    ErrorClass.READ_ONLY: (1836, 1874, 1881, 3989),
    # full, or would wait for room; table full; reading, writing, temporary files; tablespaces; undo log
    ErrorClass.DISK: (1021, 3675, 1114, 1024, 1026, 1810, 1811, 3884, 1878, 3019),
    # memory, of engines, clients and sessions; locks; transactions at once
    ErrorClass.MEMORY: (1037, 1041, 3015, 3044, 3950, 2008, 1206, 3985, 1637),
    # gone; lost; malformed; killed; aborted; errors of the network, at either end
    ErrorClass.LINK_LOST: (2006, 2013, 2027, 2055, 1927, 3169, 1152, 1184, 1154, 1155, 1156, 1157, 1158, 1159, 1160,
                           1161, 1835, 5013, 5014, 5015),
    ErrorClass.TIMED_OUT: (1969, 3024, 1317, 1028),
    ErrorClass.TOO_LARGE: (1153, 2020),
    ErrorClass.OUT_OF_STEP: (2014,),
    # no database selected; a statement that has to be prepared anew; ProxySQL: bound to another group of servers
    ErrorClass.STALE: (1046, 1615, 9005, 9006),
}
_CLASSES = {code: kind for kind, codes in CODES.items() for code in codes}

_BY_ERRNO = ((r"\b(?:28|122|5|30|135|136)\b", ErrorClass.DISK), (r"\b(?:12|23|24|128)\b", ErrorClass.MEMORY))
#: Numbers whose text decides; without a match they are OTHER.
_BY_TEXT: dict[int, tuple[tuple[str, ErrorClass], ...]] = {
    # "Unknown command" from Galera: "WSREP has not yet prepared node for application use"
    1047: (("WSREP", ErrorClass.NOT_READY),),
    # max_connections; ProxySQL: this user may only come from its own machine
    1040: (("only connect locally", ErrorClass.REFUSED), ("", ErrorClass.FULL)),
    # user or password; proxies: a command that they do not know, a server that does not answer them
    1045: (("command not supported|prepared statement", ErrorClass.OTHER),
           ("connect to backend|connect timeout", ErrorClass.CONNECT), ("", ErrorClass.REFUSED)),
    1290: (("read-only", ErrorClass.READ_ONLY),),
    # MaxScale: a result larger than its filter allows; a replica that lags in a read-only transaction
    1226: (("_per_hour|max_(?:questions|queries|updates|connections)", ErrorClass.QUOTA),
           ("resultset", ErrorClass.OTHER), ("", ErrorClass.FULL)),
    # of the session or of the app's own transaction, so of this connection alone
    1792: (("causal read", ErrorClass.LOCK_WAIT), ("", ErrorClass.STALE)),
    # ProxySQL: past mysql-default_query_timeout; MariaDB has another meaning
    1907: (("query_timeout", ErrorClass.TIMED_OUT),),
    # with the number of the operating system's error: ENOSPC, EDQUOT, EIO, EROFS, table full, index full; or of
    # ENOMEM, ENFILE, EMFILE, no memory in the engine
    1030: _BY_ERRNO,
    1004: _BY_ERRNO, 1005: _BY_ERRNO, 1015: _BY_ERRNO, 1016: _BY_ERRNO, 1180: _BY_ERRNO, 1181: _BY_ERRNO,
    # TLS: what another attempt cannot mend, and what it may
    2026: (("certif|verif|self.signed|trust|issuer|expired|not yet valid|host ?name|required|support|protocol|cipher"
            "|handshake failure|No such file|PEM|key", ErrorClass.REFUSED), ("", ErrorClass.CONNECT)),
    # MySQL: inactive for too long; MariaDB: a trigger is missing
    4031: (("trigger", ErrorClass.OTHER), ("", ErrorClass.LINK_LOST)),
    # MySQL: the connection was closed for the memory that it or all together took; MariaDB has other meanings
    4081: (("memory limit", ErrorClass.MEMORY),),
    4082: (("memory limit", ErrorClass.MEMORY),),
    # MySQL: while group replication changes its primary; MariaDB has another meaning
    4094: (("queries have been blocked", ErrorClass.NOT_READY),),
    # MariaDB: TLS is required, and not to be had; MySQL has another meaning
    4167: (("transport", ErrorClass.REFUSED),),
    # MariaDB: blocked after failed logins, locked; MySQL has other meanings
    4150: (("blocked", ErrorClass.REFUSED),),
    4151: (("locked", ErrorClass.REFUSED),),
}


def mysql_class(error: BaseException) -> ErrorClass:
    """Return the class of an exception of mysqlclient (or of any with a server's error number as first argument)."""
    code = error.args[0] if error.args else None
    if code == 0 and type(error).__name__ == "InterfaceError":
        return ErrorClass.LINK_LOST  # "(0, '')": the connection is closed
    if not isinstance(code, int):
        return ErrorClass.OTHER
    if code in _BY_TEXT:
        text = str(error.args[-1])
        return next((kind for pattern, kind in _BY_TEXT[code] if re.search(pattern, text, re.IGNORECASE)),
                    ErrorClass.OTHER)
    return _CLASSES.get(code, ErrorClass.OTHER)


def proves_alive(error: BaseException) -> bool:
    """Return whether only a living server can have caused an exception of mysqlclient."""
    kind, code = mysql_class(error), error.args[0] if error.args else None
    if kind is ErrorClass.OTHER:
        return isinstance(code, int) and code >= 1000 and not 2000 <= code < 3000
    return CONSEQUENCES[kind].alive


def sqlite_class(error: BaseException) -> ErrorClass:
    """Return the class of an exception of sqlite3."""
    code = getattr(error, "sqlite_errorcode", None)
    base = code & 0xFF if isinstance(code, int) else None
    if base in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ErrorClass.LOCK_WAIT
    if base == sqlite3.SQLITE_INTERRUPT:
        return ErrorClass.TIMED_OUT
    if base == sqlite3.SQLITE_CANTOPEN:
        return ErrorClass.REFUSED
    if base == sqlite3.SQLITE_READONLY:
        return ErrorClass.READ_ONLY
    if base in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return ErrorClass.DISK
    return ErrorClass.OTHER


def means_unavailable(error: BaseException | None) -> bool:
    """Return whether an exception of mysqlclient, PyMySQL or sqlite3 means that the database is unavailable now."""
    driver = type(error).__module__.partition(".")[0]
    if error is None or driver not in ("MySQLdb", "pymysql", "sqlite3"):
        return False
    if driver == "sqlite3":
        kind = sqlite_class(error)
        return kind is ErrorClass.LOCK_WAIT or CONSEQUENCES[kind].unavailable
    return CONSEQUENCES[mysql_class(error)].unavailable


def table() -> str:
    """Return the table of errors in reStructuredText, as in docs/database.rst."""
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - Meaning", "     - Errors", "     - Answer",
             "     - Connection", "     - Unit of work", "     - Connecting", "     - Check ``database``"]
    for kind, follows in CONSEQUENCES.items():
        if kind is ErrorClass.OTHER:
            continue
        codes = [str(code) for code in CODES.get(kind, ())]
        codes += [f"{code} by its text" for code, choices in _BY_TEXT.items()
                  if any(found is kind for _, found in choices)]
        lines += [f"   * - {kind.value}", f"     - {', '.join(codes)}",
                  f"     - {503 if follows.unavailable else 500}", f"     - {follows.connection}",
                  f"     - {'again' if follows.again else 'never again'}", f"     - {follows.connecting}",
                  f"     - {'fails' if follows.unavailable and kind is not ErrorClass.LOCK_WAIT else 'passes'}"]
    return "\n".join(lines) + "\n"
