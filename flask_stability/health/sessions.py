"""Logins that ended before their time, on the scoreboard: no worker accepts a cookie after its logout.

Each row has room for some, which only the row's worker writes; the next worker in the row continues with them. Where
the room is used up, all logins so far end, so that no ended login ever becomes valid again. The entries live as long as
the board does.
"""

from __future__ import annotations

import hashlib

from ..scoreboard import ENDED_LOGINS, Row, Scoreboard

ALL_UNTIL, USED, FIRST = 0, 1, 2  # words: logins issued up to this time have ended; entries follow; the first entry


def fingerprint(signature: str) -> int:
    """Return a cookie's number on the board, from which a reader of the board cannot derive the cookie."""
    return int.from_bytes(hashlib.sha256(signature.encode()).digest()[:8], "big", signed=True) or 1


def end(row: Row, number: int, until: int, now: int) -> None:
    """Store that a login has ended.

    :param until: seconds since the epoch at which it would have ended by itself.
    """
    words = row.ended
    with row.lock:
        for entry in range(FIRST, FIRST + 2 * ENDED_LOGINS, 2):
            if words[entry + 1] < now:
                words[entry + 1] = until
                words[entry] = number  # one store: a reader sees the old or the new number
                words[USED] = 1
                return
        words[ALL_UNTIL] = now


def is_ended(board: Scoreboard, number: int, issued: int) -> bool:
    """Return whether a login has ended before its time.

    :param issued: seconds since the epoch.
    """
    # a worker without a row on the shared board has one on a board of its own
    return any(row.ended[ALL_UNTIL] >= issued or (row.ended[USED] and number in row.ended[FIRST::2].tolist())
               for row in board.rows)
