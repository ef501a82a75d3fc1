"""A finding about a service or its database, with its remedy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    :ivar status: "ok", "warn" or "fail".
    :ivar remedy: what to do about it, "" if nothing.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


def status_of(findings: list[Finding]) -> int:
    """Return the exit status: 0 all is well, 1 there is a warning, 2 something fails."""
    return max(({"ok": 0, "warn": 1, "fail": 2}[finding.status] for finding in findings), default=0)
