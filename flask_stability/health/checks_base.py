"""The definition of a health check, and the exception by which it warns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Details = dict[str, Any]


class CheckWarning(Exception):
    """Raised by a check: a warning that never escalates to a failure, however often it repeats; carries details."""

    def __init__(self, text: str, **details: Any) -> None:
        super().__init__(text)
        self.details = details


@dataclass(frozen=True)
class Check:
    """A health check.

    :ivar function: raises (a failure; `CheckWarning`: a warning), or returns None or a dict of details.
    :ivar critical: its failure makes the service fail; others can only warn.
    :ivar interval, timeout: seconds; None = the settings'.
    :ivar shared: the leader alone runs it, for all workers.
    :ivar sign: a cheap probe; when its value changes, the check runs immediately.
    """

    name: str
    function: Callable[[], Details | None]
    critical: bool = False
    interval: float | None = None
    timeout: float | None = None
    shared: bool = True
    sign: Callable[[], object] | None = None
