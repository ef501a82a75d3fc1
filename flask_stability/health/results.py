"""Results of checks: what a worker writes into the scoreboard, and what all workers' results say together.

A result is JSON in a blob on its way through shared memory, and a `CheckResult` on both sides of it. Whoever reads a
board trusts it no more than a file: what is not of the form is left out.
"""

from __future__ import annotations

import functools
import json
import time
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..scoreboard import M_HOLD_UNTIL_NS, O_RETIRE_SINCE_NS, Blob, Row, Scoreboard
from .state import FAIL, ORDER, PASS, WARN, CheckState, worst


@dataclass(frozen=True)
class CheckResult:
    """One result of one check.

    :ivar status: what is reported: a warning at once, a failure after STABILITY_HEALTH_FAILURE_THRESHOLD.
    :ivar settled: what alerts go by: a warning, too, only after that many in a row.
    :ivar down: it failed often enough, critical or not.
    :ivar ok: the check did not raise, or only a `CheckWarning`.
    :ivar at_ns: `time.monotonic_ns` of the result.
    :ivar failures: in a row.
    :ivar interval, timeout: of the check, seconds.
    :ivar error: class and number of what it raised, for programs.
    :ivar note: why it warns.
    :ivar cause: of an error, in words without secrets.
    :ivar state, trouble: how it goes, by failures and by failures or warnings: the next leader goes on from there.
    :ivar age_s: seconds since the result when it was read.
    """

    status: str
    settled: str
    down: bool
    ok: bool
    at_ns: int
    took_ms: float
    failures: int
    critical: bool
    shared: bool
    interval: float
    timeout: float
    error: str | None = None
    note: str | None = None
    cause: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    state: CheckState = field(default_factory=CheckState)
    trouble: CheckState = field(default_factory=CheckState)
    age_s: float = 0.0

    @property
    def reason(self) -> str:
        """Why it does not pass, in words, for clients that may see details; "" if nothing is known."""
        return self.note or self.cause or self.error or ""

    @property
    def severity(self) -> tuple[int, int]:
        """Orders results of one check, the worst last."""
        return ORDER[self.status], ORDER[self.settled]

    def judged(self, now_ns: int) -> CheckResult:
        """Return it with its age: one older than it may be says so, since a stuck checker is no good news."""
        age = (now_ns - self.at_ns) / 1e9
        shown = round(age, 1)
        interval = self.interval * 1.1
        if age > 3 * interval + self.timeout:
            status = FAIL if self.critical else WARN
            return replace(self, status=status, settled=status, note="checker stuck", down=True, age_s=shown)
        if age > 2 * interval + self.timeout:
            status = worst(WARN, self.status)
            return replace(self, status=status, settled=status, note=self.note or "checker late", age_s=shown)
        return replace(self, age_s=shown)

    def part(self) -> dict[str, Any]:
        """Return it as the health document shows it."""
        return {**self.detail, "status": self.status, "critical": self.critical, "age_s": self.age_s,
                "consecutive_failures": self.failures, "took_ms": self.took_ms, "error": self.error,
                "note": self.note, "cause": self.cause}


Results = dict[str, CheckResult]
_FIELDS = frozenset(one.name for one in fields(CheckResult))


def publish(blob: Blob, found: Results) -> None:
    """Write results; without their details if they are too long."""
    if not blob.write_json({name: asdict(result) for name, result in found.items()}):
        blob.write_json({name: asdict(replace(result, detail={})) for name, result in found.items()})


def read(blob: Blob) -> Results:
    """Return what was published; empty if that cannot be read."""
    return _decoded(blob.read())


@functools.lru_cache(maxsize=64)
def _decoded(data: bytes) -> Results:
    """What a blob says; it is read more often than it is written, and never changed."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: result for name, result in ((name, _of_json(one)) for name, one in found.items())
            if result is not None}


def _of_json(raw: Any) -> CheckResult | None:
    """A result of this version, else None."""
    try:
        known = {name: value for name, value in raw.items() if name in _FIELDS}
        known["state"], known["trouble"] = CheckState(*raw["state"]), CheckState(*raw["trouble"])
        result = CheckResult(**known)
        _ = result.severity, result.judged(0).took_ms + 0.0  # what is done with it later works
        return result if isinstance(result.detail, dict) else None
    except (AttributeError, KeyError, TypeError):
        return None


# -- of all workers ---------------------------------------------------------------------------------------------------


def results(shared: Scoreboard, now_ns: int | None = None) -> Results:
    """Each check's result over all workers, judged by its age: the newest of a shared one, the worst of a local one."""
    now = time.monotonic_ns() if now_ns is None else now_ns
    return merged([judged(row.checks, now) for row in staying(shared.live())], shared, now)


def judged(blob: Blob, now_ns: int) -> Results:
    """Return what was published, judged by its age."""
    return {name: result.judged(now_ns) for name, result in read(blob).items()}


def staying(rows: list[Row]) -> list[Row]:
    """Leave out those that have been sent SIGTERM, unless there are no others.

    They serve no request, and one that hangs would make its last results look stuck for as long as it takes to die.
    """
    return [row for row in rows if not row.orders[O_RETIRE_SINCE_NS]] or rows


def merged(own: list[Results], shared: Scoreboard, now_ns: int) -> Results:
    """Shared results are also on the master's part of the board: they outlive the leader that found them."""
    found: Results = {}
    for source in [*own, judged(shared.master.shared, now_ns)]:
        for name, result in source.items():
            known = found.get(name)
            if known is None or (result.at_ns > known.at_ns if result.shared else result.severity > known.severity):
                found[name] = result
    return found


def overall(found: Results, shared: Scoreboard) -> str:
    """Return the status of the service."""
    held = WARN if shared.master.words[M_HOLD_UNTIL_NS] else PASS
    return worst(held, *(result.status for result in found.values()))


def summary(shared: Scoreboard, now_ns: int | None = None) -> str:
    """Return the status of the service alone: what an unauthenticated client may know."""
    return overall(results(shared, now_ns), shared)


def started(shared: Scoreboard) -> bool:
    """Whether the first round of shared checks is done: only then the leader hands their results on."""
    return bool(shared.master.shared.read())


def is_down(shared: Scoreboard, name: str) -> bool:
    """Whether a check failed often enough, critical or not."""
    found = results(shared).get(name)
    return found is not None and found.down
