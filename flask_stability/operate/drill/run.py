"""The course of a drill: one fault after the other under load."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import psutil

from ...dburl import DatabaseURL
from ..loadgen import Load, Result
from .faults import FAULTS, drop_database_connections
from .overload import NAME, flood
from .report import STEADY, Report, Step, verdicts
from .service import DrillError, Service


def run(service: Service, *, rate: float, seconds: float, database: DatabaseURL | None = None,
        progress: Callable[[str], None] = lambda _: None, tolerant: bool = False, overload: bool = False) -> Report:
    """Put the service under load and do one fault after the other to it.

    :param rate: requests a second.
    :param database: drop the connections of this database as well.
    :param seconds: how long each fault is observed; up to 60 s longer until the workers are back.
    :param tolerant: go on measuring a service that a fault leaves without a worker, instead of raising.
    :param overload: at last, send it three times as much as it can answer.
    :raises DrillError: if the paths cannot be measured.
    """
    service.count()
    notes = service.examine()
    for note in notes:
        progress(f"note: {note}")
    faults = list(FAULTS)
    if database is not None:
        faults.append(("database connections dropped", partial(drop_database_connections, database)))
    load = Load(service.url, service.paths, rate).start()
    # requests before the first fault and after the last belong to a row too
    steps, begun, flooded = [Step(STEADY)], [0.0], None
    try:
        progress(STEADY)
        time.sleep(seconds)
        before = service.memory()
        for name, fault in faults:
            progress(name)
            at = time.monotonic()
            try:
                fault(service)
            except (DrillError, psutil.Error):
                if not tolerant:
                    raise
            time.sleep(seconds)
            step = Step(name, restored=service.settle(60))
            steps.append(step)
            begun.append(at)
        if overload:
            progress(NAME)
            flooded = flood(service, seconds, progress)
            time.sleep(seconds)
            steps.append(Step(NAME, restored=service.settle(60)))
            begun.append(flooded.begun)
        after = service.memory()
    finally:
        service.thaw()
        result = load.stop()
    # each row reaches to the next one, so every failure is in one
    ends = [*begun[1:], float("inf")]
    for step, start, end in zip(steps, begun, ends, strict=True):
        part = result.between(start, end)
        last = part.last_failure()
        step.requests, step.failed, step.availability = part.total, part.failed, part.availability
        step.recovery = last - start if last is not None and start else 0.0
        step.errors = part.errors()
    if flooded is not None:
        # what is refused under overload is refused on purpose: the recovery counts from its end
        last = result.between(flooded.ended, float("inf")).last_failure()
        steps[-1].recovery = last - flooded.ended if last is not None else 0.0
        result = Result([one for one in result.outcomes if not flooded.begun <= one.due < flooded.ended])
    return Report(steps, verdicts(steps, result, after / before if before else 1.0, database is not None, flooded),
                  notes)
