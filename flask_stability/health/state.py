"""From single results to a status: pure.

``threshold`` failures in a row make a fail (a warn where the check is not critical), ``recovery`` successes in a row
a pass; the opposite result starts the count anew.
"""

from __future__ import annotations

from typing import NamedTuple

PASS, WARN, FAIL = "pass", "warn", "fail"
ORDER = {PASS: 0, WARN: 1, FAIL: 2}


def worst(*statuses: str) -> str:
    """The worst of some statuses; pass without any."""
    return max(statuses, key=lambda status: ORDER[status], default=PASS)


class CheckState(NamedTuple):
    """Where a check stands.

    :ivar down: it failed often enough, and has not yet succeeded often enough.
    :ivar failures, successes: in a row.
    """

    down: bool = False
    failures: int = 0
    successes: int = 0

    def after(self, ok: bool, *, threshold: int, recovery: int) -> CheckState:
        """The state after one more result."""
        if ok:
            successes = self.successes + 1
            return CheckState(self.down and successes < recovery, 0, successes)
        failures = self.failures + 1
        return CheckState(self.down or failures >= threshold, failures, 0)

    def status(self, *, critical: bool, worried: bool = False) -> str:
        """What is reported; `worried`: there is cause for a warning."""
        if self.down:
            return FAIL if critical else WARN
        return WARN if worried else PASS
