"""Burn-rate alerts for STABILITY_SLO: how fast the error budget is being spent.

Two pairs of windows, as in "The Site Reliability Workbook", chapter 5, "Multiwindow, Multi-Burn-Rate Alerts": the
longer window says that it matters, the shorter that it goes on. Every failed answer counts, including a deliberate 503:
the user got no result.
"""

from __future__ import annotations

import time
from typing import Any

from ..scoreboard import Scoreboard
from .checks_base import CheckWarning
from .history import History

#: Long and short window in seconds, and the factor of overspending the budget that alerts.
PAIRS = ((3600.0, 300.0, 14.4), (21600.0, 1800.0, 6.0))
FEWEST = 10  #: failed requests in the long window below which there is no alert: one failure of three is not a trend


class BurnRate:
    """The check.

    :param target: percent of requests to be answered without a server error, such as 99.9.
    """

    def __init__(self, target: float, shared: Scoreboard) -> None:
        self._target, self._board = target, shared

    def __call__(self) -> dict[str, Any]:
        """Return the burn rate of each window: 1.0 spends the budget exactly in the target's own period.

        :raises CheckWarning: when both windows of a pair burn too fast.
        """
        totals, now = self._board.totals(), time.time()
        history, budget = History(self._board.master.history), 1.0 - self._target / 100.0
        details: dict[str, Any] = {"target_percent": self._target}
        burning = []
        for long, short, factor in PAIRS:
            rates = []
            for window in (long, short):
                found = history.availability(now, totals.requests, totals.errors, window)
                failed = (1.0 - (found["ratio"] if found["ratio"] is not None else 1.0))
                rates.append(failed / budget)
                details[_name(window)] = {"burn_rate": round(failed / budget, 2), "requests": found["requests"],
                                          "errors": round(failed * found["requests"]),
                                          "observed_s": found["observed_s"]}
            if min(rates) > factor and details[_name(long)]["errors"] >= FEWEST:
                burning.append(f"{rates[1]:.0f} times too fast over {_name(short)} and {rates[0]:.0f} times over "
                               f"{_name(long)}")
        if burning:
            raise CheckWarning(f"the error budget of {self._target:g} % is being spent {burning[0]}", **details)
        return details


def _name(seconds: float) -> str:
    return f"{seconds / 3600:g}h" if seconds >= 3600 else f"{seconds / 60:g}m"
