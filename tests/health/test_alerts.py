"""Alerts: told on transitions, delivered by a thread that can wait for nobody's good will."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from support import wait_until

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.health import alerts as module
from flask_stability.health.alerts import Alerts
from flask_stability.signals import health_changed


class _Receiver(HTTPServer):
    """A webhook's receiver that answers as it is told."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.answers: list[int] = []

        class Handler(BaseHTTPRequestHandler):
            server: _Receiver

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = self.server.answers.pop(0) if self.server.answers else 200
                if status == 200:
                    self.server.got.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def receiver() -> Iterator[_Receiver]:
    """A running receiver."""
    server = _Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _alerts(url: str) -> Alerts:
    return Alerts(replace(Settings(), alert_webhook=url, service_id="orders@here"))


def test_an_alert_and_its_recovery_reach_the_webhook_and_the_signal(receiver: _Receiver) -> None:
    """Stamped with service, check and an id; a receiver of the signal that raises hurts nobody."""
    seen: list[str] = []

    def listen(sender: str, **kwargs: Any) -> None:
        seen.append(kwargs["new"])
        raise RuntimeError("a receiver's own trouble")

    with health_changed.connected_to(listen):
        alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
        entry = alerts.transition("database", "pass", "fail", "timeout")
        alerts.transition("database", "fail", "pass", "")
        wait_until(lambda: len(receiver.got) == 2)
    alerts.stop()
    assert [one["kind"] for one in receiver.got] == ["alert", "recovery"]
    assert receiver.got[0]["id"] == entry["id"]
    assert receiver.got[0]["service"] == "orders@here"
    assert seen == ["fail", "pass"]


def test_a_receiver_that_answers_500_is_asked_again(receiver: _Receiver) -> None:
    """With a growing pause, until it takes it."""
    receiver.answers = [500]
    alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
    alerts.transition("disk", "pass", "warn", "little space")
    wait_until(lambda: receiver.got)
    alerts.stop()


@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_a_receiver_that_hangs_or_refuses_loses_that_alert_and_it_is_counted(
        kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And blocks nobody who alerts."""
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "hangs":
            listener.listen()
        before = sb.my_row().words[sb.W_ALERTS_LOST]
        alerts = _alerts(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        for number in range(module.WAITING + 20):
            alerts.transition(f"check{number}", "pass", "fail", "")
        wait_until(lambda: sb.my_row().words[sb.W_ALERTS_LOST] - before >= 19)
        alerts.stop()


def test_a_check_that_flaps_is_told_of_once_and_its_recovery_always(receiver: _Receiver) -> None:
    """After six changes in ten minutes."""
    alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
    for number in range(20):
        alerts.transition("search", "pass", "fail", "", now=number * 2.0)
        alerts.transition("search", "fail", "pass", "", now=number * 2.0 + 1)
    wait_until(lambda: len([one for one in receiver.got if one["kind"] == "recovery"]) == 20)
    alerts.stop()
    kinds = [one["kind"] for one in receiver.got]
    assert kinds.count("alert") == 3
    assert "flapping" in kinds


def test_what_goes_on_failing_is_told_again_after_ten_minutes(receiver: _Receiver) -> None:
    """And not before."""
    alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
    alerts.transition("database", "pass", "fail", "", now=0.0)
    for now in (100.0, 599.0, 601.0, 900.0, 1202.0):
        alerts.remind({"database": "fail"}, now=now)
    wait_until(lambda: len(receiver.got) == 3)
    alerts.stop()
    assert [one["kind"] for one in receiver.got] == ["alert", "reminder", "reminder"]
