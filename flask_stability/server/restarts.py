"""Decide when a dead worker may be restarted: backoff and a sliding limit. Pure, given numbers and a clock.

Backoff spares the machine from workers that cannot start. It must not hurt more than it protects: a worker that had
served is restarted soon, and while no worker serves there is little to spare.

The limit is OTP's restart intensity (supervisor.erl, ``add_restart``): a pruned list of monotonic timestamps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

CALM = 30.0  #: seconds without a crash after which the backoff steps start over
WAVE = 0.5  #: seconds: crashes closer together than this count as one wave, one step
SERVED = 1.0  #: seconds of service after which an exit does not count towards a crash loop, however young the worker
WAIT_SERVED = 0.5  #: longest wait in seconds after the crash of a worker that had become ready
WAIT_ANSWERED = 0.1  #: the same if it had answered: a request ended it, not its start
WAIT_NOBODY = 2.0  #: longest wait in seconds while no worker serves


class Restarts:
    """The workers' crashes, and the pause that follows from them.

    :param steps: seconds to wait after the first, second … wave of crashes.
    :param most, window: more crashes than `most` within `window` seconds are too many.
    :param min_uptime: an exit after fewer seconds counts towards a crash loop.
    :param jitter: returns the factor for each wait.
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
        """Set the limits; the crashes so far still count."""
        self._steps, self._most, self._window, self._min_uptime = steps, most, window, min_uptime

    def crashed(self, now: float, uptime: float, *, served: float | None = None, answered: bool = False,
                others: bool = True) -> bool:
        """Record a crash after `uptime` seconds; return whether to try a single replacement first.

        :param served: seconds since the worker became ready, None if it never did.
        :param answered: the worker has answered requests.
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
        """Start no worker before that time, whatever the reason."""
        self.hold_until = max(self.hold_until, until)

    def held(self, now: float) -> bool:
        """Return whether no worker may be started now."""
        return now < self.hold_until

    def too_many(self, now: float) -> bool:
        """Return whether the window holds more crashes than allowed."""
        return self.recent(now) > self._most

    def recent(self, now: float) -> int:
        """Count the crashes within the window."""
        self._prune(now)
        return len(self._times)

    def _prune(self, now: float) -> None:
        while self._times and now - self._times[0] > self._window:
            del self._times[0]


def _longest(served: float | None, answered: bool, others: bool) -> float:
    """Return the longest wait in seconds after such an exit."""
    if served is not None:
        return WAIT_ANSWERED if answered else WAIT_SERVED
    return float("inf") if others else WAIT_NOBODY


class Pace:
    """Space out replacements for growth, so that a service whose workers all grow is not replaced continuously.

    :ivar until: no replacement is allowed before that time.
    :param pause: returns the seconds to the next replacement, given how many in a row came as early as allowed.
    """

    def __init__(self, pause: Callable[[int], float]) -> None:
        self._pause = pause
        self._early = 0
        self.until = float("-inf")

    def allowed(self, now: float) -> bool:
        """Return whether another worker may be replaced."""
        return now >= self.until

    def replaced(self, now: float) -> None:
        """Record a replacement."""
        soon = now < self.until + self._pause(self._early)
        self._early = self._early + 1 if soon else 0
        self.until = now + self._pause(self._early)
