"""The memory of all workers together: which worker leaves under pressure, what a fresh worker needs, what room is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .. import logs, scoreboard
from ..config import Settings
from ..memory import cgroup
from ..memory.policy import (
    container_needed,
    container_too_small,
    group_decision,
    growth_pause,
    learned_floor,
    limit_too_low,
)
from ..scoreboard import Reason, Scoreboard
from .restarts import Pace
from .workers import Child

PLENTY = 1000  #: workers: more than any service starts
PRESSURE_PAUSE = 10.0  #: seconds from one replacement under pressure to the next, doubled for each that came early


class FleetMemory:
    """The memory of all workers; the master looks at it in each tick.

    :param base: returns the target number of workers.
    :ivar past_floors: bytes that the last workers that ended had needed once they were warm.
    """

    def __init__(self, board: Scoreboard, settings: Settings, base: Callable[[], int]) -> None:
        self._board, self._words, self.settings, self._base = board, board.master.words, settings, base
        self._pressure = Pace(lambda early: growth_pause(PRESSURE_PAUSE, early))
        self.past_floors: deque[int] = deque(maxlen=2)
        self._limit_told = False

    def relieve(self, now: float, children: list[Child]) -> None:
        """Replace the largest worker under pressure on the group's memory, less often the less that helps."""
        if any(child.asked or child.term_at for child in children) or not self._pressure.allowed(now):
            return
        words = {child.row.slot: child.row.words for child in children if child.row is not None and child.ready_at}
        rows = {slot: int(of[scoreboard.W_OWN_MEMORY]) for slot, of in words.items()}
        learned = int(self._words[scoreboard.M_WARM_FLOOR])
        floors = {slot: max(learned, int(of[scoreboard.W_WARM_FLOOR])) for slot, of in words.items()}
        slot = group_decision(rows, available=cgroup.available(), total=cgroup.total(), pressure=cgroup.pressure(),
                              floors=floors)
        for child in children:
            if slot is not None and child.row is not None and child.row.slot == slot:
                self._pressure.replaced(now)
                child.ask(Reason.MEMORY_PRESSURE)
                logs.process("memory_pressure", level="WARNING", worker_pid=child.pid, private_bytes=rows[slot])

    def learn(self, now: float, children: list[Child]) -> None:
        """Learn the floor that fresh workers reach again and hold; warn once about a limit too close to it."""
        rows = [child.row.words for child in children if child.row is not None]
        floors = [int(words[scoreboard.W_WARM_FLOOR]) for words in rows]
        self._words[scoreboard.M_WARM_FLOOR] = learned_floor(int(self._words[scoreboard.M_WARM_FLOOR]),
                                                            [*floors, *self.past_floors])
        if self._limit_told:
            return
        for words, floor in zip(rows, floors, strict=True):
            limit = self.settings.memory_limit or int(words[scoreboard.W_MEMORY_LIMIT])
            if limit_too_low(limit, floor):
                self._limit_told = True
                what = ("it is not enforced, since every worker needs more" if limit < floor else
                        "workers that do nothing wrong are replaced")
                logs.process("memory_limit_too_low", level="WARNING", limit_bytes=limit, warm_floor_bytes=floor,
                             remedy=f"{what}: set STABILITY_MEMORY_LIMIT to at least {int(1.5 * floor)}")
                return
        if self.settings.memory_limit is None:
            self._container(max(floors, default=0),
                            max((int(words[scoreboard.W_COMMON_MEMORY]) for words in rows), default=0))

    def _container(self, floor: int, common: int) -> None:
        """Warn once if the container has less memory than its workers need; their limit is raised then."""
        container, workers = cgroup.limit(), self._base()
        if container is None or not container_too_small(container, workers, floor, common):
            return
        self._limit_told = True
        logs.process("container_too_small", level="WARNING", container_bytes=container, workers=workers,
                     warm_floor_bytes=floor, common_bytes=common, remedy="the kernel may kill workers: give the "
                     f"container at least {container_needed(workers, floor, common)} bytes of memory, or start fewer "
                     "workers")

    def may_surge(self) -> bool:
        """Return whether surge is on and memory has room for one more worker."""
        free = cgroup.available()
        return self.settings.surge and (free is None or free > self._largest() * 0.5)

    def room(self) -> int:
        """Return how many spare workers fit into half of the free memory; 0 where surge is off."""
        free, largest = cgroup.available(), self._largest()
        if not self.settings.surge:
            return 0
        return PLENTY if free is None or not largest else free // 2 // largest

    def _largest(self) -> int:
        return max((int(row.words[scoreboard.W_OWN_MEMORY]) for row in self._board.live()), default=0)
