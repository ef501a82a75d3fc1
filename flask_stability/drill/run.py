"""The course of a drill: one fault after the other under load."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..loadgen import Load
from .faults import FAULTS, drop_database_connections
from .report import Report, Step, verdicts
from .service import Service


def run(service: Service, paths: Sequence[str], *, rate: float, seconds: float, database: bool = False,
        progress: Callable[[str], None] = lambda _: None) -> Report:
    """All faults in turn under load.

    :param rate: requests a second.
    :param seconds: observed after each fault, at least; longer if the workers are not back by then (at most 60).
    """
    service.count()
    faults = [*FAULTS, *([("database connections dropped", drop_database_connections)] if database else [])]
    load = Load(service.url, paths, rate).start()
    steps, windows = [], []
    try:
        progress("steady load")
        time.sleep(seconds)
        before = service.memory()
        for name, fault in faults:
            progress(name)
            at = time.monotonic()
            fault(service)
            time.sleep(seconds)
            step = Step(name, restored=service.settle(60))
            steps.append(step)
            windows.append((at, time.monotonic()))
        after = service.memory()
    finally:
        service.thaw()
        result = load.stop()
    for step, (start, end) in zip(steps, windows, strict=True):
        part = result.between(start, end)
        last = part.last_failure()
        step.requests, step.failed, step.availability = part.total, part.failed, part.availability
        step.recovery, step.errors = (last - start if last is not None else 0.0), part.errors()
    return Report(steps, verdicts(steps, result, after / before if before else 1.0, database))
