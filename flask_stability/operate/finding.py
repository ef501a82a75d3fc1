"""What a look at a service or its database found, with its remedy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    :ivar status: "ok", "warn" or "fail".
    :ivar remedy: what to do about it, "" where nothing is to be done.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


def status_of(findings: list[Finding]) -> int:
    """Exit status: 0 all is well, 1 there is a warning, 2 something fails."""
    return max(({"ok": 0, "warn": 1, "fail": 2}[finding.status] for finding in findings), default=0)
