"""The share of requests that fail, over one and five minutes, per route and in all.

A deliberate 503 (database away, overload, drain) counts separately: it says nothing about the app.
"""

from __future__ import annotations

import time
from typing import Any

from ..config import Settings
from ..scoreboard import ANSWERS, M_STARTED_NS, Entry, Scoreboard
from .checks_base import CheckWarning

NAME = "errors"
MINUTE, FIVE = 60.0, 300.0
INTERVAL = 5.0  #: seconds between looks
COARSE = 25.0  #: seconds between the looks kept beyond the last minute
FEWEST = 20  #: requests below which a share means nothing
ROUTES = 5  #: maximum number of routes named, those with the most errors

Key = tuple[str, str]
Counts = tuple[int, int, int]  # answered, failed, refused on purpose
NONE: Counts = (0, 0, 0)


class TooManyErrors(Exception):
    """The share of failed requests is above STABILITY_HEALTH_FAIL_ERROR_RATE; carries details."""

    def __init__(self, text: str, **details: Any) -> None:
        super().__init__(text)
        self.details = details


class ErrorRate:
    """The leader's check. A new leader starts over: ``observed_s`` is the time that it has observed."""

    def __init__(self, settings: Settings, shared: Scoreboard) -> None:
        self._settings, self._board = settings, shared
        self._looks: list[tuple[float, dict[Key, Counts]]] = []

    def __call__(self) -> dict[str, Any]:
        """Return the shares.

        :raises CheckWarning: above STABILITY_HEALTH_ERROR_RATE.
        :raises TooManyErrors: above STABILITY_HEALTH_FAIL_ERROR_RATE, where that is set.
        """
        return self.at(time.monotonic())

    def at(self, now: float) -> dict[str, Any]:
        """Look at this moment of `time.monotonic`, and return or raise as the check does."""
        self._look(now)
        details = self.details(now)
        recent, longer = details["1m"], details["5m"]
        for most, fails in ((self._settings.health_fail_error_rate, True), (self._settings.health_error_rate, False)):
            if most is None:
                continue
            for words, window in (("minute", recent), ("five minutes", longer)):
                # the longer window catches a slow trickle, but must not report failures that are over
                if window["requests"] - window["refused"] >= FEWEST and window["rate"] > most and recent["errors"]:
                    text = _in_words(window, words, details["routes"])
                    raise TooManyErrors(text, **details) if fails else CheckWarning(text, **details)
        return details

    def _look(self, now: float) -> None:
        """Store the counts up to now, finely for a minute and coarsely for five."""
        if self._looks and now - self._looks[-1][0] > FIVE:  # another worker led meanwhile
            self._looks.clear()
        begun = self._board.master.words[M_STARTED_NS] / 1e9
        if not self._looks and 0.0 < now - begun < FIVE:
            self._looks.append((begun, {}))  # no count is older than the service
        before = self._looks[-1][1] if self._looks else {}
        counts = {}
        for key, words in self._board.totals().endpoints.items():
            found, known = _counts(words), before.get(key)
            counts[key] = known if known == found and known is not None else found  # equal counts share one object
        kept: list[tuple[float, dict[Key, Counts]]] = []
        for look in self._looks:
            if kept and now - look[0] > MINUTE + INTERVAL and look[0] - kept[-1][0] < COARSE:
                continue
            kept.append(look)
        while len(kept) > 1 and now - kept[1][0] >= FIVE:
            del kept[0]
        self._looks = [*kept, (now, counts)]

    def details(self, now: float) -> dict[str, Any]:
        """Return the shares over one and five minutes, in all and of the routes that failed most."""
        latest = self._looks[-1][1]
        windows = {name: self._since(now - seconds) for name, seconds in (("1m", MINUTE), ("5m", FIVE))}
        found: dict[str, Any] = {name: _share(_sum(latest.values()), _sum(then.values()))
                                 for name, then in windows.items()}
        routes: list[dict[str, Any]] = [
            {"method": key[0], "endpoint": key[1],
             **{name: _share(counts, then.get(key, NONE)) for name, then in windows.items()}}
            for key, counts in latest.items() if counts[1] > windows["5m"].get(key, NONE)[1]]
        routes.sort(key=lambda route: (-route["1m"]["errors"], -route["5m"]["errors"]))
        return {**found, "routes": routes[:ROUTES], "observed_s": round(min(FIVE, now - self._looks[0][0]), 1)}

    def _since(self, moment: float) -> dict[Key, Counts]:
        """Return the counts of the latest look at or before `moment`, else of the oldest look."""
        return next((counts for at, counts in reversed(self._looks) if at <= moment), self._looks[0][1])


def _counts(words: Entry) -> Counts:
    return sum(words[ANSWERS]), words[2] + words[7], words[8]


def _sum(counts: Any) -> Counts:
    answered = failed = refused = 0
    for one in counts:
        answered, failed, refused = answered + one[0], failed + one[1], refused + one[2]
    return answered, failed, refused


def _share(now: Counts, then: Counts) -> dict[str, Any]:
    requests, errors, refused = (max(0, new - old) for new, old in zip(now, then, strict=True))
    asked = requests - refused
    return {"requests": requests, "errors": errors, "refused": refused,
            "rate": round(errors / asked, 4) if asked > 0 else 0.0}


def _in_words(window: dict[str, Any], words: str, routes: list[dict[str, Any]]) -> str:
    name = "1m" if words == "minute" else "5m"
    worst = max(routes, key=lambda route: route[name]["errors"], default=None)
    where = f", most of them {worst['method']} {worst['endpoint']}" if worst is not None else ""
    return (f"{window['rate']:.0%} of {window['requests'] - window['refused']} requests failed in the last {words}"
            + where)
