"""The bulkhead: a slow database must not get hold of all threads of a worker."""

from __future__ import annotations

from .. import scoreboard
from ..config import Settings
from ..exceptions import TooManyRequests
from ..runtime import runtime

#: A thread that is longer than this inside the database closes the bulkhead, seconds.
SLOW = 1.0


class Bulkhead:
    """Counts the requests' threads inside the database and keeps one of the worker's threads out of a slow one.

    That is done by giving the worker spare threads as long as there is a connection for who comes next: to wait costs a
    thread little. When there is none, or the database answers nobody, who would take the last thread is sent away.

    :ivar inside: threads of requests that wait for a connection or are in a call, and since when.
    :ivar forgiven: who went in before this does not count as slow: the database was away and is back.
    :ivar silent: the database was asked, and did not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self.inside: dict[int, float] = {}
        self.forgiven = 0.0
        self.silent = False
        self.most = settings.db_max_size
        self._on = settings.db_bulkhead is not False
        # where nobody waits as long as SLOW, waiting for a connection would never count as slow
        self._slow = min(SLOW, settings.db_timeout / 2)

    @property
    def threads(self) -> int:
        """Threads of this worker that serve requests; 0 = not known."""
        return int(runtime.my_row().words[scoreboard.W_THREADS])

    def admit(self, now: float, *, room: bool = True) -> None:
        """Let a request's thread go inside.

        :param room: it has a connection, or there is one for it.
        :raises TooManyRequests: if it would be the last one, and one of those inside has been there for long.
        """
        if self._on and self._crowded(now, 1) and not self._relieved(room):
            raise TooManyRequests(self.why())

    def full(self, now: float, *, room: bool) -> bool:
        """Every thread is inside, one of them for long, and there are no more to be had."""
        return self._on and self._crowded(now, 0) and not self._relieved(room)

    def _relieved(self, room: bool) -> bool:
        give = runtime.more_threads
        return room and not self.silent and give is not None and give(self.most)

    def _crowded(self, now: float, spare: int) -> bool:
        threads = self.threads
        if threads < 2 or len(self.inside) < threads - spare:
            return False
        return now - max(min(list(self.inside.values()), default=now), self.forgiven) > self._slow

    def why(self) -> str:
        """For people: why a request is sent away."""
        return (f"{len(self.inside)} of {self.threads} threads wait for a slow database; "
                "the last one stays free for other requests")
