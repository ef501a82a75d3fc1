"""Watch a worker's open files and sockets: without a free descriptor it could not even accept a connection."""

from __future__ import annotations

import contextlib
import resource

FULL = 0.8  #: share of the limit that a worker may hold, client connections not included
ROOM = 256  #: extra descriptors for a retiring worker, so that it can leave in good order


class Filling:
    """Watch how many descriptors a worker holds. Pure.

    A worker that held about as many from the start needs them; a replacement worker would not help.

    :param number: open descriptors before the first request.
    """

    def __init__(self, number: int) -> None:
        self._first = number

    def look(self, number: int, clients: int, limit: int) -> str:
        """Return why the worker must be replaced, or "" if it need not be.

        :param number: open descriptors.
        :param clients: client connections among them.
        :param limit: maximum number of descriptors that the process may open.
        """
        held = number - clients
        if held <= FULL * limit or held < 2 * self._first:
            return ""
        return f"{held} open files and sockets beside {clients} connections of clients, {limit} are allowed"


def limit() -> int:
    """Return the soft limit of this process's open descriptors."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def make_room() -> None:
    """Raise the limit a little, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + ROOM
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE,
                           (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
