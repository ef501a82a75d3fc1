"""Alerts: told on transitions, delivered by a thread that can wait for nobody's good will."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.health import alerts as module
from flask_stability.health.alerts import Alerts
from flask_stability.runtime import runtime
from flask_stability.signals import health_changed
from support import wait_until


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
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Receiver]:
    """A running receiver; it is waited for as long as a slow machine needs, so that nothing is sent twice."""
    monkeypatch.setattr(module, "TIMEOUT", 60.0)
    server = _Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _alerts(url: str) -> Alerts:
    return Alerts(replace(Settings(), alert_webhook=url, service_id="orders@here"))


def _end(alerts: Alerts) -> None:
    """Stop it, and wait for its thread: what that loses is not to be counted in another test."""
    sender = alerts._sender
    alerts.stop()
    assert sender is not None
    alerts._queue.put(None)  # if it has not seen the first
    sender.join(60)
    assert not sender.is_alive()


def test_an_alert_and_its_recovery_reach_the_webhook_and_the_signal(receiver: _Receiver) -> None:
    """Stamped with service, check and an id; a receiver of the signal that raises hurts nobody."""
    seen: list[str] = []

    def listen(sender: str, **kwargs: Any) -> None:
        seen.append(kwargs["new"])
        raise RuntimeError("a receiver's own trouble")

    with health_changed.connected_to(listen):
        alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
        entry = alerts.transition("database", "pass", "fail", "timeout", "fail", 0.0)
        alerts.transition("database", "fail", "pass", "", "pass", 1.0)
        wait_until(lambda: len(receiver.got) == 2)
    _end(alerts)
    assert [one["kind"] for one in receiver.got] == ["alert", "recovery"]
    assert receiver.got[0]["id"] == entry["id"]
    assert receiver.got[0]["service"] == "orders@here"
    assert receiver.got[0]["host"] == socket.gethostname()
    assert receiver.got[0]["detail"] == "timeout"
    assert receiver.got[0]["service_status"] == "fail"
    assert seen == ["fail", "pass"]


def test_a_receiver_that_answers_500_is_asked_again(receiver: _Receiver) -> None:
    """With a growing pause, until it takes it."""
    receiver.answers = [500]
    alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
    alerts.transition("disk", "pass", "warn", "little space", "warn", 0.0)
    wait_until(lambda: receiver.got)
    _end(alerts)


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
        before = runtime.my_row().words[sb.W_ALERTS_LOST]
        alerts = _alerts(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        for number in range(module.WAITING + 20):
            alerts.transition(f"check{number}", "pass", "fail", "", "fail", 0.0)
        wait_until(lambda: runtime.my_row().words[sb.W_ALERTS_LOST] - before >= 19)
        _end(alerts)


def _kinds(receiver: _Receiver) -> list[str]:
    return [one["kind"] for one in receiver.got]


def _flap(alerts: Alerts) -> list[dict[str, Any]]:
    """Twenty failures and recoveries in forty seconds; the entries of the history."""
    entries = []
    for number in range(20):
        entries.append(alerts.transition("search", "pass", "fail", "", "fail", number * 2.0))
        entries.append(alerts.transition("search", "fail", "pass", "", "pass", number * 2.0 + 1))
    return entries


def test_a_check_that_flaps_is_told_of_once_and_its_recovery_when_it_holds(receiver: _Receiver) -> None:
    """After six changes in ten minutes nothing more is told until it has passed for a minute."""
    alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
    assert len(_flap(alerts)) == 40
    alerts.remind({}, 60.0)
    wait_until(lambda: "flapping" in _kinds(receiver))
    alerts.remind({}, 39.0 + module.HOLD)
    wait_until(lambda: _kinds(receiver)[-1] == "recovery")
    alerts.transition("search", "pass", "fail", "", "fail", 200.0)
    wait_until(lambda: _kinds(receiver)[-1] == "alert")
    alerts.stop()
    assert _kinds(receiver) == ["alert", "recovery"] * 3 + ["flapping", "recovery", "alert"]


def test_the_next_leader_tells_of_the_recovery_of_what_flapped(receiver: _Receiver) -> None:
    """It reads in the history what the last one kept to itself."""
    before = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
    entries = _flap(before)
    wait_until(lambda: len(receiver.got) == 7)
    before.stop()
    alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
    alerts.resume(entries[::-1], 100.0)
    alerts.remind({}, 101.0)
    alerts.remind({}, 101.0 + module.HOLD)
    wait_until(lambda: len(receiver.got) == 8)
    alerts.stop()
    assert _kinds(receiver)[-1] == "recovery"


def test_what_goes_on_failing_is_told_again_after_ten_minutes(receiver: _Receiver) -> None:
    """And not before."""
    alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
    alerts.transition("database", "pass", "fail", "", "fail", 0.0)
    for now in (100.0, 599.0, 601.0, 900.0, 1202.0):
        alerts.remind({"database": "fail"}, now)
    wait_until(lambda: len(receiver.got) == 3)
    alerts.stop()
    assert _kinds(receiver) == ["alert", "reminder", "reminder"]


def test_a_redirect_is_no_delivery(receiver: _Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Followed, a POST would become a GET without the alert."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    receiver.answers = [302]
    alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
    before = runtime.my_row().words[sb.W_ALERTS_LOST]
    alerts.transition("disk", "pass", "warn", "", "warn", 0.0)
    wait_until(lambda: runtime.my_row().words[sb.W_ALERTS_LOST] == before + 1)
    _end(alerts)


def test_a_receiver_that_never_comes_to_an_end_is_given_up(receiver: _Receiver,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread goes on with the next alert, and the one that was lost is counted."""
    held, release = threading.Event(), threading.Event()

    def hold(sender: str, **kwargs: Any) -> None:
        if kwargs["check"] == "first":
            held.set()
            release.wait(60)

    before = runtime.my_row().words[sb.W_ALERTS_LOST]
    with health_changed.connected_to(hold):
        alerts = _alerts(f"http://127.0.0.1:{receiver.server_port}/")
        alerts.transition("first", "pass", "fail", "", "fail", 0.0)
        assert held.wait(30)
        monkeypatch.setattr(module, "STUCK", 0.0)
        alerts.transition("second", "pass", "fail", "", "fail", 1.0)
        wait_until(lambda: [one["check"] for one in receiver.got] == ["second"])
        assert runtime.my_row().words[sb.W_ALERTS_LOST] == before + 1
        release.set()
        wait_until(lambda: [one["check"] for one in receiver.got] == ["second", "first"])
    alerts.stop()
    assert runtime.my_row().words[sb.W_ALERTS_LOST] == before + 1


def test_what_waits_when_the_worker_ends_is_delivered_or_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending takes about a second at most."""
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    before = runtime.my_row().words[sb.W_ALERTS_LOST]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        alerts = _alerts(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        for number in range(10):
            alerts.transition(f"check{number}", "pass", "fail", "", "fail", 0.0)
        alerts.stop()
    wait_until(lambda: runtime.my_row().words[sb.W_ALERTS_LOST] == before + 10)


def test_a_sender_that_takes_the_last_one_meanwhile_does_not_disturb_the_end() -> None:
    """What it took it tells of itself."""
    alerts = _alerts("http://127.0.0.1:9/")
    alerts._sender = threading.Thread(target=lambda: None)
    alerts._sender.start()
    before = runtime.my_row().words[sb.W_ALERTS_LOST]
    given = iter([None])

    def get_nowait() -> None:
        for one in given:
            return one
        raise queue.Empty

    alerts._queue.get_nowait = get_nowait  # type: ignore[method-assign]
    alerts._queue.empty = lambda: False  # type: ignore[method-assign]
    alerts.stop()
    assert runtime.my_row().words[sb.W_ALERTS_LOST] == before
