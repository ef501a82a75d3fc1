"""Alerts on transitions: to health.log, to a blinker signal, and to a webhook if one is set.

A thread of its own serves signal and webhook: a receiver that hangs or fails loses only that alert, which is counted. A
check that flaps alerts once, and again when its status holds; every alert has its recovery. A check that an operator
muted (``flask stability mute``) is still logged and signalled, but not posted.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import random
import socket
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

from .. import logs, scoreboard
from ..config import Settings
from ..redact import redact, secrets_of
from ..runtime import runtime
from ..signals import health_changed, send
from .alert_formats import AGAIN, DELIVERED, message, verdict
from .state import PASS

ATTEMPTS = 4
TIMEOUT = 5.0  #: seconds for the receiver to connect, to read and to answer, each
STUCK = 120.0  #: seconds after which a delivery is abandoned, and its thread with it
REMINDER = 600.0
FLAPS = 6  #: transitions of one check within `FLAP_WINDOW` after which it flaps
FLAP_WINDOW = 600.0
HOLD = 60.0  #: seconds that a check must pass after it flapped
WAITING = 100
LONGEST_PAUSE = 30.0  #: maximum seconds of a receiver's Retry-After that are respected
MOST_ANSWER = 4096  #: bytes of a receiver's answer to read


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: a redirected POST would become a GET without the alert."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


Open = Callable[..., Any]


def post(settings: Settings, alert: dict[str, Any], send: Open | None = None) -> tuple[str, str, float]:
    """Post one alert to STABILITY_ALERT_WEBHOOK, once. Never raise.

    :returns: the outcome (`alert_formats.DELIVERED`, `AGAIN` or `REFUSED`), the reason, and the seconds that the
        receiver asks to wait.
    """
    send = send or urllib.request.build_opener(_NoRedirect).open
    form, pause = settings.alert_format, 0.0
    try:
        url, body, kind = message(form, alert, settings.alert_webhook or "", settings.alert_secret)
        request = urllib.request.Request(url, body, method="POST", headers={"Content-Type": kind,
                                                                            "User-Agent": "flask_stability"})
        try:
            with send(request, timeout=TIMEOUT) as answer:
                return (*verdict(form, answer.status, answer.read(MOST_ANSWER)), pause)
        except urllib.error.HTTPError as error:
            with error:
                asked = error.headers.get("Retry-After", "")
                pause = min(LONGEST_PAUSE, float(asked)) if asked.isdecimal() else 0.0
                return (*verdict(form, error.code, error.read(MOST_ANSWER)), pause)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return AGAIN, type(getattr(error, "reason", error)).__name__, pause


class Alerts:
    """The sender of one worker. Only the leader uses its own, and only in the monitor's thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stamp = {"service": settings.service_id or "", "host": socket.gethostname()}
        # alerts, each with whether it goes to the signal and to the webhook
        self._queue: queue.Queue[tuple[dict[str, Any], bool, bool] | None] = queue.Queue(WAITING)
        self._sender: threading.Thread | None = None
        self._busy_since = 0.0
        self._stopped = threading.Event()
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._recent: dict[str, list[float]] = {}
        self._told: dict[str, float] = {}
        self._muted: dict[str, float | None] = {}  # checks that flap; since when they pass
        self._details: dict[str, str] = {}  # why each check that does not pass fails
        self._silenced: frozenset[str] = frozenset()  # checks that an operator muted

    # -- transitions and reminders -------------------------------------------------------------------------------

    def transition(self, check: str, old: str, new: str, reason: str, service_status: str,
                   now: float) -> dict[str, Any]:
        """Report a check's change of status; return the entry for the history.

        :param service_status: of the service as a whole.
        :param now: monotonic seconds.
        """
        entry = {"id": uuid.uuid4().hex[:12], "time": round(time.time(), 3), "check": check, "old": old, "new": new,
                 "detail": reason[:200]}
        logs.health("transition", level="INFO" if new == PASS else "WARNING" if new == "warn" else "ERROR", **entry)
        silenced = check in self._silenced
        self._details[check] = reason[:200] if new != PASS else ""
        recent = [moment for moment in self._recent.get(check, []) if now - moment < FLAP_WINDOW] + [now]
        self._recent[check] = recent
        kind = "recovery" if new == PASS else "alert"
        told = check not in self._muted
        if not told:
            self._muted[check] = now if new == PASS else None
        elif len(recent) > FLAPS and new != PASS:
            self._muted[check] = None
            kind = "flapping"
        if silenced:  # an alert that was posted still gets its recovery
            told = new == PASS and check in self._told
        if new == PASS:
            self._told.pop(check, None)
        elif told:
            self._told[check] = now
        self._put({**entry, "kind": kind, "service_status": service_status}, signal=True, post=told)
        return {**entry, "muted": True} if check in self._muted else entry

    def remind(self, failing: dict[str, str], now: float) -> None:
        """Alert again about checks that fail ten minutes after their last alert, and about those that no longer flap.
        """
        for check, status in failing.items():
            if check in self._silenced:
                continue
            if now - self._told.setdefault(check, now) >= REMINDER:
                self._told[check] = now
                self._later("reminder", check, status)
        for check, passing in list(self._muted.items()):
            if passing is not None and now - passing >= HOLD:
                del self._muted[check]
                self._recent.pop(check, None)
                self._later("recovery", check, PASS)
        if self._busy_since and not self._queue.empty():
            self._ensure_sender()

    def silence(self, checks: frozenset[str], failing: dict[str, str], now: float) -> None:
        """Post no more alerts about these checks; alert immediately about one that still fails when its mute ends.

        :param failing: status of each check that does not pass.
        """
        ended, self._silenced = self._silenced - checks, checks
        for check in ended & failing.keys():
            if check not in self._muted:
                self._told[check] = now
                self._later("reminder", check, failing[check])

    def resume(self, transitions: list[dict[str, Any]], now: float) -> None:
        """Continue as a new leader: checks that flapped when the last leader ended still need their alert.

        :param transitions: of the history, the newest first.
        """
        latest = {str(one.get("check")): one for one in reversed(transitions)}
        self._muted = {check: now if one.get("new") == PASS else None
                       for check, one in latest.items() if one.get("muted")}
        failing = {check: one for check, one in latest.items() if one.get("new") != PASS}
        self._details = {check: str(one.get("detail") or "") for check, one in failing.items()}
        self._told = dict.fromkeys(failing, now)

    def stop(self) -> None:
        """Stop sending; a started or waiting alert has one more second."""
        sender = self._sender
        self._stopped.set()
        if sender is None:
            return
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            pass
        sender.join(1.0)
        self._sender = None
        with contextlib.suppress(queue.Empty):  # not "while not empty": the sender may take the last one in between
            while True:
                if self._queue.get_nowait() is not None:
                    self._lost("shutdown")

    def _later(self, kind: str, check: str, status: str) -> None:
        self._put({"id": uuid.uuid4().hex[:12], "time": round(time.time(), 3), "check": check, "new": status,
                   "kind": kind, "detail": self._details.get(check, "")}, signal=False, post=True)

    # -- how it is sent ------------------------------------------------------------------------------------------

    def _put(self, entry: dict[str, Any], *, signal: bool, post: bool) -> None:
        signal, post = signal and bool(health_changed.receivers), post and self._settings.alert_webhook is not None
        if not (signal or post) or self._stopped.is_set():
            return
        self._ensure_sender()
        try:
            self._queue.put_nowait(({**self._stamp, **entry}, signal, post))
        except queue.Full:
            self._lost("queue full")

    def _ensure_sender(self) -> None:
        """Start the sending thread; start another if a receiver has held it for too long."""
        if self._sender is not None:
            if not self._busy_since or time.monotonic() - self._busy_since < STUCK:
                return
            self._lost("the receiver hangs")
        self._busy_since = 0.0
        sender = threading.Thread(target=self._run, name="stability-alerts", daemon=True)
        try:
            sender.start()
        except RuntimeError:  # no thread can be started: the next alert tries again
            return
        self._sender = sender

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            item = self._queue.get()
            if item is None:
                return
            entry, signal, post = item
            self._busy_since = time.monotonic()
            lost = ""
            if signal:
                self._signal(entry)
            if post:
                lost = self._deliver({**entry, "pid": os.getpid()})
            if self._sender is not me and self._sender is not None:
                return  # abandoned meanwhile, and counted
            self._busy_since = 0.0
            if lost:
                self._lost(lost)

    def _signal(self, entry: dict[str, Any]) -> None:
        for failure in send(health_changed, entry["service"], check=entry["check"], old=entry["old"], new=entry["new"],
                            detail=entry["detail"], id=entry["id"]):
            logs.error("signal_receiver_failed", signal="health-changed", error=type(failure).__name__)

    def _deliver(self, alert: dict[str, Any]) -> str:
        """Post an alert, several times if needed; return why it was lost, or "" if it was not. Never raise."""
        why, pause = "", 0.0
        for attempt in range(ATTEMPTS):
            if attempt and self._stopped.wait(max(pause, random.uniform(0.5, 1.0) * 2 ** (attempt - 1))):
                break
            outcome, why, pause = post(self._settings, alert, self._open)
            if outcome == DELIVERED:
                runtime.my_row().add(scoreboard.W_ALERTS_SENT)
                return ""
            if outcome != AGAIN:
                break
        return redact(why, secrets_of(self._settings))  # a receiver's answer may contain our address

    def _lost(self, why: str) -> None:
        runtime.my_row().add(scoreboard.W_ALERTS_LOST)
        logs.health("alert_lost", level="ERROR", why=why)
