"""The results of a drill, compared with its targets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any
from xml.etree import ElementTree

from ..loadgen import Result
from .overload import Flood

TARGETS = {"availability": 0.995, "mean_latency": 0.2, "recovery": 30.0, "restarts": 0.95, "database": 0.99,
           "memory": 1.5, "overload": 0.5}


STEADY = "steady load"  #: the row of the time before the first fault


@dataclass
class Step:
    """One fault and its effect.

    :ivar availability: share of requests answered well, from this fault to the next.
    :ivar recovery: seconds from the fault to the last failed request, 0 if none failed.
    :ivar restored: all workers were back at the end.
    """

    name: str
    requests: int = 0
    failed: int = 0
    availability: float = 1.0
    recovery: float = 0.0
    restored: bool = True
    errors: dict[str, int] = field(default_factory=dict)


@dataclass
class Verdict:
    """One figure and its target."""

    figure: str
    measured: str
    target: str
    passed: bool | None


@dataclass
class Report:
    """The results of a whole drill.

    :ivar notes: remarks about the paths, to read before the figures.
    """

    steps: list[Step]
    verdicts: list[Verdict]
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return the closing line: PASSED or FAILED, and why."""
        missed = [f"{verdict.figure} {verdict.measured}, target {verdict.target}" for verdict in self.verdicts
                  if verdict.passed is False]
        untold = [verdict.figure for verdict in self.verdicts if verdict.passed is None]
        told = f" (not told: {', '.join(untold)})" if untold else ""
        return f"FAILED: {'; '.join(missed)}" if missed else f"PASSED: every target was met{told}"

    @property
    def passed(self) -> bool:
        """Return whether no target was missed."""
        return all(verdict.passed is not False for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for machines."""
        return {"passed": self.passed, "summary": self.summary(), "notes": self.notes,
                "steps": [asdict(step) for step in self.steps],
                "verdicts": [asdict(verdict) for verdict in self.verdicts]}

    def as_json(self) -> str:
        """Return `as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=2)

    def as_junit(self) -> str:
        """Return a JUnit file with one test case per figure, for CI."""
        suite = ElementTree.Element("testsuite", name="flask stability drill", tests=str(len(self.verdicts)),
                                    failures=str(sum(verdict.passed is False for verdict in self.verdicts)))
        for verdict in self.verdicts:
            case = ElementTree.SubElement(suite, "testcase", classname="drill", name=verdict.figure)
            if verdict.passed is False:
                ElementTree.SubElement(case, "failure", message=f"{verdict.measured}, target {verdict.target}")
            elif verdict.passed is None:
                ElementTree.SubElement(case, "skipped", message=verdict.measured)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def verdicts(steps: list[Step], result: Result, growth: float, database: bool,
             flood: Flood | None = None) -> list[Verdict]:
    """Compare the figures with their targets.

    :param result: the drill's own load, without the time of an overload.
    :param growth: memory of the workers, end / start.
    :param database: connections were dropped.
    """
    recovery = max((step.recovery for step in steps), default=0.0)
    faults = [step for step in steps if step.name != STEADY]
    restored = sum(step.restored for step in faults) / len(faults)
    link = next((step.availability for step in steps if step.name.startswith("database")), 1.0)
    target = TARGETS
    few = result.total * (1 - target["availability"]) < 1  # a single failure would decide
    return [
        Verdict("availability", f"{result.availability:.3%} of {result.total}" + (": too few to tell" if few else ""),
                f"> {target['availability']:.1%}", None if few else result.availability > target["availability"]),
        Verdict("mean response time", f"{result.mean * 1000:.1f} ms", f"< {target['mean_latency'] * 1000:.0f} ms",
                result.mean < target["mean_latency"]),
        Verdict("recovery", f"{recovery:.1f} s", f"< {target['recovery']:.0f} s", recovery < target["recovery"]),
        Verdict("restarts", f"{restored:.0%}", f"> {target['restarts']:.0%}", restored > target["restarts"]),
        Verdict("database connections", f"{link:.2%}" if database else "not tried", f"> {target['database']:.0%}",
                link > target["database"] if database else None),
        Verdict("memory, end / start", f"{growth:.2f}", f"< {target['memory']:.1f}", growth < target["memory"]),
        *([_overload(flood)] if flood is not None else []),
    ]


def _overload(flood: Flood) -> Verdict:
    """Return how much of its capacity the service gave to clients that still waited."""
    target = TARGETS["overload"]
    said = (f"{flood.in_time:.0%} of {flood.capacity:.0f}/s at {flood.rate:.0f}/s" if flood.enough else
            f"not tried: the drill cannot send much more than the {flood.capacity:.0f} requests/s that are answered")
    return Verdict("overload, capacity answered in time", said, f"> {target:.0%}",
                   flood.in_time > target if flood.enough else None)
