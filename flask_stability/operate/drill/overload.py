"""The drill's overload: three times as many requests as the service can answer, from clients that leave after 2 s."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..loadgen import Load
from .service import Service

NAME = "overload"  #: the row of it
CLIENTS = 8  #: of the closed loop that measures what the service can answer
LEAST = 4.0  #: seconds of overload; a shorter one is a burst
MEASURED = 2.0  #: seconds of the closed loop
TIMES = 3.0  #: × what it can answer
PATIENCE = 2.0  #: seconds after which a client leaves
MOST = 600.0  #: requests a second that this process can send beside a service on the same machine


@dataclass
class Flood:
    """The results of an overload.

    :ivar capacity: answers a second of the closed loop.
    :ivar rate: requests a second, beside the drill's own load.
    :ivar in_time: requests that were answered well before their clients left, as a share of the capacity.
    :ivar begun, ended: monotonic seconds.
    """

    capacity: float
    rate: float
    in_time: float
    begun: float
    ended: float

    @property
    def enough(self) -> bool:
        """Return whether it was more than the service can answer."""
        return self.rate >= 2 * self.capacity


def flood(service: Service, seconds: float, progress: Callable[[str], None]) -> Flood:
    """Measure what the service can answer, and send it three times as much for so many seconds."""
    begun = time.monotonic()
    capacity = max(0.1, _capacity(service))
    rate = min(MOST, TIMES * capacity)
    progress(f"{NAME}: {rate:.0f} requests/s")
    seconds = max(seconds, LEAST)
    at = time.monotonic()
    load = Load(service.url, service.paths, rate, timeout=PATIENCE).start()
    time.sleep(seconds)
    result = load.stop()
    return Flood(capacity, rate, result.ok / seconds / capacity, begun, max(at + seconds, begun))


def _capacity(service: Service) -> float:
    answered, end = [0] * CLIENTS, time.monotonic() + MEASURED

    def ask(number: int) -> None:
        while time.monotonic() < end:
            answered[number] += service.answers(service.paths[number % len(service.paths)])

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answered) / MEASURED
