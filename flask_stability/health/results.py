"""Results of checks: how a worker writes them into the scoreboard, and how all workers' results are combined.

A result is JSON in a blob in shared memory, and a `CheckResult` on both sides of it. A reader trusts a board no more
than a file: it skips anything malformed.
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

    :ivar status: the reported status: a warning immediately, a failure after STABILITY_HEALTH_FAILURE_THRESHOLD.
    :ivar settled: the status that alerts use: a warning, too, only after that many in a row.
    :ivar down: it failed often enough, critical or not.
    :ivar ok: the check did not raise, or only a `CheckWarning`.
    :ivar at_ns: `time.monotonic_ns` of the result.
    :ivar failures: in a row.
    :ivar interval, timeout: of the check, seconds.
    :ivar error: class and number of its exception, for programs.
    :ivar note: why it warns.
    :ivar cause: of an error, in words without secrets.
    :ivar state, trouble: the counts of failures, and of failures or warnings, from which the next leader continues.
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
        """Return why the check does not pass, for clients that may see details; an empty text if that is unknown."""
        return self.note or self.cause or self.error or ""

    @property
    def severity(self) -> tuple[int, int]:
        """Return the sort key of results of one check, the worst last."""
        return ORDER[self.status], ORDER[self.settled]

    def judged(self, now_ns: int) -> CheckResult:
        """Return the result with its age; an overdue one becomes a warning or failure, since its checker is stuck."""
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
        """Return the result as the health document shows it."""
        return {**self.detail, "status": self.status, "critical": self.critical, "age_s": self.age_s,
                "consecutive_failures": self.failures, "took_ms": self.took_ms, "error": self.error,
                "note": self.note, "cause": self.cause}


Results = dict[str, CheckResult]
_FIELDS = frozenset(one.name for one in fields(CheckResult))


def publish(blob: Blob, found: Results) -> None:
    """Write results; omit their details if they are too long."""
    if not blob.write_json({name: asdict(result) for name, result in found.items()}):
        blob.write_json({name: asdict(replace(result, detail={})) for name, result in found.items()})


def read(blob: Blob) -> Results:
    """Return the published results; none if they cannot be read."""
    return _decoded(blob.read())


@functools.lru_cache(maxsize=64)
def _decoded(data: bytes) -> Results:
    """Decode a blob. It is read more often than written, and the caller never changes the result."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: result for name, result in ((name, _of_json(one)) for name, one in found.items())
            if result is not None}


def _of_json(raw: Any) -> CheckResult | None:
    """Return a result of this version, else None."""
    try:
        known = {name: value for name, value in raw.items() if name in _FIELDS}
        known["state"], known["trouble"] = CheckState(*raw["state"]), CheckState(*raw["trouble"])
        result = CheckResult(**known)
        _ = result.severity, result.judged(0).took_ms + 0.0  # verifies that later uses of it work
        return result if isinstance(result.detail, dict) else None
    except (AttributeError, KeyError, TypeError):
        return None


# -- of all workers ---------------------------------------------------------------------------------------------------


def results(shared: Scoreboard, now_ns: int | None = None) -> Results:
    """Return each check's result over all workers, judged by its age.

    That is the newest result of a shared check, and the worst one of a local check.
    """
    now = time.monotonic_ns() if now_ns is None else now_ns
    return merged([judged(row.checks, now) for row in staying(shared.live())], shared, now)


def judged(blob: Blob, now_ns: int) -> Results:
    """Return the published results, judged by their age."""
    return {name: result.judged(now_ns) for name, result in read(blob).items()}


def staying(rows: list[Row]) -> list[Row]:
    """Return the rows of workers that were not sent SIGTERM, or all rows if there are no such workers.

    Terminated workers serve no request, and a hanging one would make its last results look stuck until it dies.
    """
    return [row for row in rows if not row.orders[O_RETIRE_SINCE_NS]] or rows


def merged(own: list[Results], shared: Scoreboard, now_ns: int) -> Results:
    """Merge the results of all workers with the shared ones on the master's part of the board.

    Those outlive the leader that found them.
    """
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
    """Return whether the first round of shared checks is done: only then does the leader publish their results."""
    return bool(shared.master.shared.read())


def is_down(shared: Scoreboard, name: str) -> bool:
    """Return whether a check failed often enough, critical or not."""
    found = results(shared).get(name)
    return found is not None and found.down
