"""The bulkhead: a slow database must not get hold of all threads of a worker."""

from __future__ import annotations

from collections.abc import Callable

from .. import scoreboard
from ..config import Settings
from ..exceptions import TooManyRequests
from ..runtime import runtime

#: A thread that is longer than this inside the database closes the bulkhead, seconds.
SLOW = 1.0
#: The same while nothing comes back from the database at all: spare threads come so soon, nobody is sent away.
STALL = 0.05
#: Between two calls to the housekeeper, seconds.
HURRY = 0.25


class Bulkhead:
    """Counts the requests' threads inside the database and keeps one of the worker's threads out of a slow one.

    That is done by giving the worker spare threads, up to STABILITY_DB_OUTAGE_THREADS: to wait costs a thread little.
    They come when one of those inside has been there for long, and sooner while nothing comes back, since the database
    is away or a table is locked. When no more are to be had, the request that would take the last thread is refused.

    :ivar inside: threads of requests that wait for a connection or are in a call, and since when.
    :ivar forgiven: who went in before this does not count as slow: the database was away and is back.
    :ivar away: the database is known not to answer.
    :ivar given_at: tells when a connection came back last.
    :ivar hurry: has the housekeeper look soon.
    """

    def __init__(self, settings: Settings) -> None:
        self.inside: dict[int, float] = {}
        self.forgiven = self._hurried = 0.0
        self.away = False
        self.given_at: Callable[[], float] = lambda: 0.0
        self.hurry: Callable[[], None] = lambda: None
        self._most = settings.db_outage_threads
        self._on = settings.db_bulkhead is not False
        # where nobody waits as long as SLOW, waiting for a connection would never count as slow
        self._slow = min(SLOW, settings.db_timeout / 2)

    @property
    def threads(self) -> int:
        """Threads of this worker that serve requests; 0 = not known."""
        return int(runtime.my_row().words[scoreboard.W_THREADS])

    def admit(self, now: float) -> None:
        """Let a request's thread go inside.

        :raises TooManyRequests: if it would be the last one, and one of those inside has been there for long.
        """
        if self._on and self._crowded(now, 1):
            raise TooManyRequests(self.why())

    def full(self, now: float) -> bool:
        """Every thread is inside, one of them for long, and there are no more to be had."""
        return self._on and self._crowded(now, 0)

    def helpless(self) -> bool:
        """Every thread is inside, however long, and there are no more to be had."""
        threads = self.threads
        return 0 < threads <= len(self.inside) and not (threads > 1 and self._on and self._more())

    def _crowded(self, now: float, spare: int) -> bool:
        threads = self.threads
        if threads < 2 or len(self.inside) < threads - spare:
            return False
        waited = now - max(min(list(self.inside.values()), default=now), self.forgiven)
        stalled = now - self.given_at() > STALL
        if not self.away and waited <= (min(STALL, self._slow) if stalled else self._slow):
            if now - self._hurried > HURRY:
                self._hurried = now
                self.hurry()  # with every thread inside nobody else would look
            return False
        if self._more() or len(self.inside) < self.threads - spare:  # another one got some meanwhile
            return False
        return self.away or waited > self._slow

    def _more(self) -> bool:
        """The worker got spare threads."""
        give = runtime.more_threads
        return give is not None and give(self._most)

    def why(self) -> str:
        """For people: why a request is sent away."""
        return (f"{len(self.inside)} of {self.threads} threads wait for a slow database; "
                "the last one stays free for other requests")
