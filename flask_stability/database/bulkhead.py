"""The bulkhead: a slow database must not occupy all threads of a worker."""

from __future__ import annotations

from collections.abc import Callable

from .. import scoreboard
from ..config import Settings
from ..exceptions import TooManyRequests
from ..runtime import runtime

#: A thread that has been inside the database for longer than this makes the database count as slow, seconds.
SLOW = 1.0
#: The same limit while no connection comes back at all. It only brings spare threads early and refuses no request.
STALL = 0.05
#: Minimum time between two wake-ups of the housekeeper, seconds.
HURRY = 0.25


class Bulkhead:
    """Counts request threads inside the database, and keeps one thread of the worker free while the database is slow.

    First it gives the worker spare threads, up to STABILITY_DB_OUTAGE_THREADS: a waiting thread costs little. It does
    so when a thread has been inside for long, and sooner while no connection comes back, because the database is away
    or a table is locked. When no more spare threads are available, it refuses the request that would take the last one.

    :ivar inside: ids of request threads that wait for a connection or are in a call, each with its start time.
    :ivar forgiven: end of the latest outage; waits count as slow only from then on.
    :ivar away: the database is known not to answer.
    :ivar given_at: returns when a connection came back last.
    :ivar hurry: wakes the housekeeper.
    """

    def __init__(self, settings: Settings) -> None:
        self.inside: dict[int, float] = {}
        self.forgiven = self._hurried = 0.0
        self.away = False
        self.given_at: Callable[[], float] = lambda: 0.0
        self.hurry: Callable[[], None] = lambda: None
        self._most = settings.db_outage_threads
        self._on = settings.db_bulkhead is not False
        # if no request may wait as long as SLOW, a wait for a connection would never count as slow
        self._slow = min(SLOW, settings.db_timeout / 2)

    @property
    def threads(self) -> int:
        """Return how many threads of this worker serve requests; 0 = unknown."""
        return int(runtime.my_row().words[scoreboard.W_THREADS])

    def admit(self, now: float) -> None:
        """Let a request's thread go inside.

        :raises TooManyRequests: if it would be the last free thread, no spare one is available, and the database is
            away or one of the threads inside has been there for long.
        """
        if self._on and self._crowded(now, 1):
            raise TooManyRequests(self.why())

    def full(self, now: float) -> bool:
        """Return whether every thread is inside, one of them for long, and no spare thread is available.

        During an outage, no thread needs to have been inside for long.
        """
        return self._on and self._crowded(now, 0)

    def helpless(self) -> bool:
        """Return whether every thread is inside, for however long, and no spare thread is available."""
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
                self.hurry()  # with every thread inside, only the housekeeper can look again
            return False
        if self._more() or len(self.inside) < self.threads - spare:  # another thread got spare ones meanwhile
            return False
        return self.away or waited > self._slow

    def _more(self) -> bool:
        """Ask for spare threads; return whether the worker got some."""
        give = runtime.more_threads
        return give is not None and give(self._most)

    def why(self) -> str:
        """Return the reason for refusing a request, for people."""
        return (f"{len(self.inside)} of {self.threads} threads wait for a slow database; "
                "the last one stays free for other requests")
