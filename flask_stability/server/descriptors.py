"""A worker's open files and sockets: it is replaced before it can open none, since then it could not even accept."""

from __future__ import annotations

import contextlib
import resource

FULL = 0.8  #: share of the limit that a worker may hold beside its clients' connections
ROOM = 256  #: descriptors more for one that is to go, to leave in good order


class Filling:
    """Watches how many descriptors a worker holds; pure.

    One that holds about as many from the start needs them: a newcomer would not be better.

    :param number: open descriptors before the first request.
    """

    def __init__(self, number: int) -> None:
        self._first = number

    def look(self, number: int, clients: int, limit: int) -> str:
        """What to tell if the worker has to go, else "".

        :param number: open descriptors.
        :param clients: how many of them are connections of clients.
        :param limit: how many there may be.
        """
        held = number - clients
        if held <= FULL * limit or held < 2 * self._first:
            return ""
        return f"{held} open files and sockets beside {clients} connections of clients, {limit} are allowed"


def limit() -> int:
    """How many descriptors this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def make_room() -> None:
    """Raise the limit a little, as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + ROOM
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE,
                           (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
