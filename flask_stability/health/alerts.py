"""Alerts on transitions: to health.log, to a blinker signal, and to a webhook if one is set.

They are sent from a thread of their own; a receiver that hangs or fails loses nothing but that alert, which is
counted. A check that flaps is told of once, and its recovery always.
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
import urllib.request
import uuid
from typing import Any

from .. import logs, scoreboard
from ..config import Settings
from ..signals import health_changed, send

ATTEMPTS = 4
TIMEOUT = 5.0
REMINDER = 600.0
FLAPS = 6  #: transitions of one check within `FLAP_WINDOW` after which only recoveries that hold are told
FLAP_WINDOW = 600.0
WAITING = 100


class Alerts:
    """The sender of one worker; only the leader's is used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._recent: dict[str, list[float]] = {}
        self._told: dict[str, float] = {}
        self._muted: set[str] = set()

    def transition(self, check: str, old: str, new: str, detail: str, now: float | None = None) -> dict[str, Any]:
        """A check changed its status; returns the record of it, with an id."""
        now = time.monotonic() if now is None else now
        entry = {"id": uuid.uuid4().hex[:12], "time": round(time.time(), 3), "check": check, "old": old, "new": new,
                 "detail": detail[:120], "service": self._settings.service_id}
        recent = [moment for moment in self._recent.get(check, []) if now - moment < FLAP_WINDOW] + [now]
        self._recent[check] = recent
        logs.health("transition", level="INFO" if new == "pass" else "WARNING" if new == "warn" else "ERROR", **entry)
        failures = send(health_changed, self._settings.service_id or "", check=check, old=old, new=new, detail=detail,
                        id=entry["id"])
        for failure in failures:
            logs.error("signal_receiver_failed", error=type(failure).__name__)
        if len(recent) > FLAPS and new != "pass":
            if check not in self._muted:
                self._muted.add(check)
                self._post({**entry, "kind": "flapping"})
            return entry
        if new == "pass":
            self._muted.discard(check)
            self._told.pop(check, None)
        else:
            self._told[check] = now
        self._post({**entry, "kind": "recovery" if new == "pass" else "alert"})
        return entry

    def remind(self, failing: dict[str, str], now: float | None = None) -> None:
        """Tell again of what has been failing for ten minutes since it was told of last."""
        now = time.monotonic() if now is None else now
        for check, status in failing.items():
            if now - self._told.setdefault(check, now) >= REMINDER:
                self._told[check] = now
                self._post({"id": uuid.uuid4().hex[:12], "time": round(time.time(), 3), "check": check, "new": status,
                            "kind": "reminder", "service": self._settings.service_id})

    def stop(self) -> None:
        """Send nothing more."""
        if self._thread is not None:
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                pass

    def _post(self, entry: dict[str, Any]) -> None:
        if not self._settings.alert_webhook:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stability-alerts", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._lost("queue full")

    def _run(self) -> None:
        while True:
            entry = self._queue.get()
            if entry is None:
                return
            try:
                self._deliver(json.dumps(entry).encode())
            except Exception as error:
                self._lost(type(error).__name__)

    def _deliver(self, data: bytes) -> None:
        url = self._settings.alert_webhook or ""
        for attempt in range(ATTEMPTS):
            try:
                request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
                with urllib.request.urlopen(request, timeout=TIMEOUT):
                    scoreboard.my_row().add(scoreboard.W_ALERTS_SENT)
                    return
            except OSError:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(random.uniform(0.5, 1.0) * 2 ** attempt)

    def _lost(self, why: str) -> None:
        scoreboard.my_row().add(scoreboard.W_ALERTS_LOST)
        logs.health("alert_lost", level="ERROR", why=why)
