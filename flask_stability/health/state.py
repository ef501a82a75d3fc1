"""Derive a status from single results: pure.

``threshold`` failures in a row make a fail (a warn if the check is not critical), ``recovery`` successes in a row a
pass; the opposite result restarts the count.
"""

from __future__ import annotations

from typing import NamedTuple

PASS, WARN, FAIL = "pass", "warn", "fail"
ORDER = {PASS: 0, WARN: 1, FAIL: 2}


def worst(*statuses: str) -> str:
    """Return the worst of some statuses; pass without any."""
    return max(statuses, key=lambda status: ORDER[status], default=PASS)


class CheckState(NamedTuple):
    """The counts of one check.

    :ivar down: it failed often enough, and has not yet succeeded often enough.
    :ivar failures, successes: in a row.
    """

    down: bool = False
    failures: int = 0
    successes: int = 0

    def after(self, ok: bool, *, threshold: int, recovery: int) -> CheckState:
        """Return the state after one more result."""
        if ok:
            successes = self.successes + 1
            return CheckState(self.down and successes < recovery, 0, successes)
        failures = self.failures + 1
        return CheckState(self.down or failures >= threshold, failures, 0)

    def status(self, *, critical: bool, worried: bool = False) -> str:
        """Return the reported status.

        :param worried: there is a reason for a warning.
        """
        if self.down:
            return FAIL if critical else WARN
        return WARN if worried else PASS
