"""The course of a drill: one fault after the other under load."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from ...dburl import DatabaseURL
from ..loadgen import Load, Result
from .faults import FAULTS, drop_database_connections
from .overload import LEAST, flood
from .report import STEADY, Report, Step, verdicts
from .service import Service


def run(service: Service, *, rate: float, seconds: float, database: DatabaseURL | None = None,
        progress: Callable[[str], None] = lambda _: None) -> Report:
    """All faults in turn under load.

    :param rate: requests a second.
    :param database: whose connections are dropped, too.
    :param seconds: observed after each fault, at least; longer if the workers are not back by then (at most 60).
    :raises DrillError: if the paths are none to measure by.
    """
    service.count()
    notes = service.examine()
    for note in notes:
        progress(f"note: {note}")
    faults = list(FAULTS)
    if database is not None:
        faults.append(("database connections dropped", partial(drop_database_connections, database)))
    load = Load(service.url, service.paths, rate).start()
    # whatever was due before the first fault, and after the last, belongs to a row too
    steps, begun = [Step(STEADY)], [0.0]
    try:
        progress(STEADY)
        time.sleep(seconds)
        before = service.memory()
        for name, fault in faults:
            progress(name)
            at = time.monotonic()
            fault(service)
            time.sleep(seconds)
            step = Step(name, restored=service.settle(60))
            steps.append(step)
            begun.append(at)
        progress("overload")
        flooded = flood(service, max(seconds, LEAST), progress)
        time.sleep(seconds)
        steps.append(Step("overload", restored=service.settle(60)))
        begun.append(flooded.begun)
        after = service.memory()
    finally:
        service.thaw()
        result = load.stop()
    # each row reaches to the next one: no failure is in none
    ends = [*begun[1:], float("inf")]
    for step, start, end in zip(steps, begun, ends, strict=True):
        part = result.between(start, end)
        last = part.last_failure()
        step.requests, step.failed, step.availability = part.total, part.failed, part.availability
        step.recovery = last - start if last is not None and start else 0.0
        step.errors = part.errors()
    # what is refused under overload is refused on purpose: it counts from its end on
    last = result.between(flooded.ended, float("inf")).last_failure()
    steps[-1].recovery = last - flooded.ended if last is not None else 0.0
    calm = Result([one for one in result.outcomes if not flooded.begun <= one.due < flooded.ended])
    return Report(steps, verdicts(steps, calm, after / before if before else 1.0, database is not None, flooded), notes)
