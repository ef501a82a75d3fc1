"""Logins that were ended before their time, on the scoreboard: a cookie that was logged out is none for any worker.

Each row has room for some, written by the one worker that has the row; the next worker in it goes on with them. Where
there is no more room all logins so far are ended, so that none ever comes back. They live as long as the board does.
"""

from __future__ import annotations

import hashlib

from ..scoreboard import ENDED_LOGINS, Row, Scoreboard

ALL_UNTIL, USED, FIRST = 0, 1, 2  # words: logins issued up to then are over; entries follow; the first entry


def fingerprint(signature: str) -> int:
    """Return a cookie's number on the board, from which a reader of the board cannot make the cookie."""
    return int.from_bytes(hashlib.sha256(signature.encode()).digest()[:8], "big", signed=True) or 1


def end(row: Row, number: int, until: int, now: int) -> None:
    """Keep that a login is over.

    :param until: seconds since the epoch at which it would have ended by itself.
    """
    words = row.ended
    with row.lock:
        for entry in range(FIRST, FIRST + 2 * ENDED_LOGINS, 2):
            if words[entry + 1] < now:
                words[entry + 1] = until
                words[entry] = number  # one store: a reader sees the old one or the new one
                words[USED] = 1
                return
        words[ALL_UNTIL] = now


def is_ended(board: Scoreboard, number: int, issued: int) -> bool:
    """Whether a login is over before its time.

    :param issued: seconds since the epoch.
    """
    # a worker for which there was no row has one of its own, on a board of its own
    return any(row.ended[ALL_UNTIL] >= issued or (row.ended[USED] and number in row.ended[FIRST::2].tolist())
               for row in board.rows)
