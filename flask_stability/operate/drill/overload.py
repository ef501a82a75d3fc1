"""The drill's overload: three times as many requests as the service can answer, from clients that leave after 2 s."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..loadgen import Load
from .service import Service

CLIENTS = 8  #: of the closed loop that finds out what the service can answer
LEAST = 4.0  #: seconds of overload, before which it is taken for a burst
FINDING = 2.0  #: seconds of that
TIMES = 3.0  #: × that
PATIENCE = 2.0  #: seconds after which a client leaves
MOST = 600.0  #: requests a second that one process of ours can send beside a service on the same machine


@dataclass
class Flood:
    """What an overload came to.

    :ivar capacity: answers a second of the closed loop.
    :ivar rate: requests a second that were sent on top of the drill's own load.
    :ivar in_time: share of the capacity that was answered well before the client left.
    :ivar begun, ended: monotonic seconds.
    """

    capacity: float
    rate: float
    in_time: float
    begun: float
    ended: float

    @property
    def is_one(self) -> bool:
        """It was more than the service can answer."""
        return self.rate >= 2 * self.capacity


def flood(service: Service, seconds: float, progress: Callable[[str], None]) -> Flood:
    """Find out what the service can answer, and send it three times as much for so many seconds."""
    begun = time.monotonic()
    capacity = max(0.1, _capacity(service))
    rate = min(MOST, TIMES * capacity)
    progress(f"overload: {rate:.0f} requests/s")
    at = time.monotonic()
    load = Load(service.url, service.paths, rate, timeout=PATIENCE).start()
    time.sleep(seconds)
    result = load.stop()
    return Flood(capacity, rate, result.ok / seconds / capacity, begun, at + seconds)


def _capacity(service: Service) -> float:
    answered, end = [0] * CLIENTS, time.monotonic() + FINDING

    def ask(number: int) -> None:
        while time.monotonic() < end:
            answered[number] += service.answers(service.paths[number % len(service.paths)])

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answered) / FINDING
