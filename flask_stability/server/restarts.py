"""When a worker that died may be started again: backoff and a sliding limit. Pure: numbers and a clock.

Backoff is there to spare the machine from workers that cannot start. It must not be worse than what it protects
from: a worker that has served is the best there is, and while nobody serves there is little to be spared.

The limit is OTP's restart intensity (supervisor.erl, ``add_restart``): a pruned list of monotonic timestamps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

CALM = 30.0  #: seconds without a crash after which the first step is due again
WAVE = 0.5  #: crashes closer together than this are one wave, one step
SERVED = 1.0  #: seconds of service after which an end is no sign of a loop, however young the worker was
WAIT_SERVED = 0.5  #: seconds to wait at the most after a worker that became ready
WAIT_ANSWERED = 0.1  #: seconds to wait at the most after a worker that has answered: it was a request that ended it
WAIT_NOBODY = 2.0  #: seconds to wait at the most while no worker serves


class Restarts:
    """Crashes of workers and what follows from them.

    :param steps: seconds to wait before starting again after the first, second … wave of crashes.
    :param most, window: more crashes than `most` within `window` seconds are too many.
    :param min_uptime: only an exit before that many seconds counts as a crash loop's.
    :param jitter: gives a factor for each wait.
    """

    def __init__(self, steps: Sequence[float], *, most: int, window: float, min_uptime: float,
                 jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2)) -> None:
        self.limit(steps, most=most, window=window, min_uptime=min_uptime)
        self._jitter = jitter
        self._times: list[float] = []
        self._level = 0
        self._last_wave = float("-inf")
        self.hold_until = float("-inf")

    def limit(self, steps: Sequence[float], *, most: int, window: float, min_uptime: float) -> None:
        """Set the limits; the crashes so far count on."""
        self._steps, self._most, self._window, self._min_uptime = steps, most, window, min_uptime

    def crashed(self, now: float, uptime: float, *, served: float | None = None, answered: bool = False,
                others: bool = True) -> bool:
        """A worker ended by its own failure after `uptime` seconds; whether one newcomer is to be tried alone now.

        :param served: seconds since it became ready, None if it never did.
        :param answered: it has answered requests.
        :param others: another worker serves.
        """
        self._times.append(now)
        self._prune(now)
        longest = _longest(served, answered, others)
        self.hold_until = min(self.hold_until, now + longest)
        if uptime >= self._min_uptime or (served is not None and served >= SERVED):
            return False
        if now - max(self._last_wave, self.hold_until) > CALM:
            self._level = 0
        if now < self.hold_until or now - self._last_wave < WAVE:
            return False
        wait = min(self._steps[min(self._level, len(self._steps) - 1)] * self._jitter(), longest)
        self._last_wave = now
        self._level += 1
        self.hold_until = now + wait
        return wait > 0 and not answered

    def hold(self, until: float) -> None:
        """Nothing is started before, whatever the reason."""
        self.hold_until = max(self.hold_until, until)

    def held(self, now: float) -> bool:
        """No worker may be started now."""
        return now < self.hold_until

    def too_many(self, now: float) -> bool:
        """More crashes within the window than are allowed."""
        return self.recent(now) > self._most

    def recent(self, now: float) -> int:
        """Crashes within the window."""
        self._prune(now)
        return len(self._times)

    def _prune(self, now: float) -> None:
        while self._times and now - self._times[0] > self._window:
            del self._times[0]


def _longest(served: float | None, answered: bool, others: bool) -> float:
    """Seconds to wait at the most after such an end."""
    if served is not None:
        return WAIT_ANSWERED if answered else WAIT_SERVED
    return float("inf") if others else WAIT_NOBODY


class Pace:
    """Spaces replacements for growth: a service whose workers all grow must not be replaced round and round.

    :ivar until: none is allowed before.
    :param pause: gives the seconds to the next one, from how many in a row came as soon as they were allowed.
    """

    def __init__(self, pause: Callable[[int], float]) -> None:
        self._pause = pause
        self._early = 0
        self.until = float("-inf")

    def allowed(self, now: float) -> bool:
        """Whether one more may be replaced."""
        return now >= self.until

    def replaced(self, now: float) -> None:
        """One was replaced."""
        soon = now < self.until + self._pause(self._early)
        self._early = self._early + 1 if soon else 0
        self.until = now + self._pause(self._early)
