"""Alerts as each receiver wants them, posted to receivers that check what they get as the real ones document it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from flask_stability import scoreboard as sb
from flask_stability.config import CHATS, ConfigError, Settings
from flask_stability.health import alerts as module
from flask_stability.health.alert_formats import AGAIN, DELIVERED, REFUSED, in_words, message, verdict
from flask_stability.health.alerts import Alerts, post
from flask_stability.runtime import runtime
from support import wait_until

SECRET = "SEC0123456789abcdef"
ALERT = {"id": "ab12", "time": 1795783623.484, "check": "database", "old": "pass", "new": "fail", "kind": "alert",
         "detail": "error 2002 <start the server> & wait", "service": "orders@web1", "host": "web1",
         "service_status": "fail"}
Answer = tuple[int, str]


def _slack(path: str, kind: str, body: bytes) -> Answer:
    """Incoming webhooks: a JSON object with text (or blocks), else 400 invalid_payload or no_text."""
    try:
        document = json.loads(body)
    except ValueError:
        return 400, "invalid_payload"
    if not isinstance(document.get("text"), str) or not document["text"]:
        return 400, "no_text"
    if re.search(r"[<>]|&(?!amp;|lt;|gt;)", document["text"]):
        return 400, "invalid_payload"
    return 200, "ok"


def _feishu(path: str, kind: str, body: bytes) -> Answer:
    """Custom bots: 200 with a code; 9499 for a bad body, 19021 for a signature that is wrong or an hour old."""
    document = json.loads(body)
    if document.get("msg_type") != "text" or not document.get("content", {}).get("text"):
        return 200, '{"code": 9499, "msg": "Bad Request"}'
    stamp = document.get("timestamp", "0")
    sign = base64.b64encode(hmac.new(f"{stamp}\n{SECRET}".encode(), b"", hashlib.sha256).digest()).decode()
    if document.get("sign") != sign or abs(time.time() - int(stamp)) > 3600:
        return 200, '{"code": 19021, "msg": "sign match fail or timestamp is not within one hour from current time"}'
    return 200, '{"StatusCode": 0, "StatusMessage": "success", "code": 0, "data": {}, "msg": "success"}'


def _dingtalk(path: str, kind: str, body: bytes) -> Answer:
    """Custom robots: 200 with errcode; 310000 for a signature that is wrong, in the address, milliseconds."""
    query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
    stamp = query.get("timestamp", "0")
    sign = base64.b64encode(hmac.new(SECRET.encode(), f"{stamp}\n{SECRET}".encode(), hashlib.sha256).digest()).decode()
    if query.get("access_token") != "t0" or query.get("sign") != sign or abs(time.time() * 1000 - int(stamp)) > 3.6e6:
        return 200, '{"errcode": 310000, "errmsg": "sign not match"}'
    document = json.loads(body)
    if document.get("msgtype") != "text" or not document.get("text", {}).get("content"):
        return 200, '{"errcode": 40035, "errmsg": "missing parameter"}'
    return 200, '{"errcode": 0, "errmsg": "ok"}'


def _wecom(path: str, kind: str, body: bytes) -> Answer:
    """Group robots: text of at most 2,048 bytes, 200 with errcode."""
    document = json.loads(body)
    text = document.get("text")
    content = text.get("content", "") if isinstance(text, dict) else ""
    if document.get("msgtype") != "text" or not 0 < len(content.encode()) <= 2048:
        return 200, '{"errcode": 40058, "errmsg": "invalid Request Parameter"}'
    return 200, '{"errcode": 0, "errmsg": "ok"}'


def _pagerduty(path: str, kind: str, body: bytes) -> Answer:
    """Events API v2: 202, or 400 with the errors."""
    document = json.loads(body)
    errors = []
    if document.get("routing_key") != SECRET:
        errors.append("'routing_key' is invalid")
    if document.get("event_action") not in ("trigger", "acknowledge", "resolve") or not document.get("dedup_key"):
        errors.append("'event_action' is invalid")
    payload = document.get("payload", {})
    if document.get("event_action") == "trigger" and not (
            0 < len(payload.get("summary", "")) <= 1024 and payload.get("source")
            and payload.get("severity") in ("critical", "error", "warning", "info")):
        errors.append("'payload' is invalid")
    if errors or kind != "application/json":
        return 400, json.dumps({"status": "invalid event", "errors": errors})
    return 202, json.dumps({"status": "success", "message": "Event processed", "dedup_key": document["dedup_key"]})


def _text(path: str, kind: str, body: bytes) -> Answer:
    """Any receiver of plain text."""
    return (200, "") if kind.startswith("text/plain") and body.startswith(b"[") else (400, "no text")


RECEIVERS: dict[str, Callable[[str, str, bytes], Answer]] = {
    "slack": _slack, "feishu": _feishu, "dingtalk": _dingtalk, "wecom": _wecom, "pagerduty": _pagerduty,
    "text": _text}


class _Receiver(HTTPServer):
    """Answers as the service named in the path's first part does."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, Answer]] = []
        self.answers: list[Answer] = []

        class Handler(BaseHTTPRequestHandler):
            server: _Receiver

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                check = RECEIVERS[self.path.split("?")[0].split("/")[1]]
                status, said = answer = (self.server.answers.pop(0) if self.server.answers else
                                         check(self.path, self.headers["Content-Type"], body))
                self.server.got.append((body, answer))
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(said.encode())

            def log_message(self, *args: Any) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Receiver]:
    """A running one."""
    monkeypatch.setattr(module, "TIMEOUT", 60.0)
    server = _Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _settings(receiver: _Receiver, form: str) -> Settings:
    query = "?access_token=t0" if form == "dingtalk" else ""
    return replace(Settings(), alert_webhook=f"http://127.0.0.1:{receiver.server_port}/{form}{query}",
                   alert_format=form, alert_secret=SECRET, service_id="orders@web1")


@pytest.mark.parametrize("form", RECEIVERS)
@pytest.mark.parametrize("change", [{}, {"new": "pass", "kind": "recovery"}, {"new": "warn", "kind": "reminder"},
                                    {"detail": "Größe 数据库 " * 2000}], ids=["alert", "recovery", "reminder", "long"])
def test_each_receiver_takes_what_it_is_sent(receiver: _Receiver, form: str, change: dict[str, Any]) -> None:
    """Alerts, recoveries, reminders, and one that is far too long."""
    assert post(_settings(receiver, form), {**ALERT, **change}) == (DELIVERED, "", 0.0), receiver.got
    assert len(receiver.got) == 1


@pytest.mark.parametrize("form", ["slack", "feishu", "dingtalk", "wecom", "pagerduty"])
def test_a_receiver_refuses_the_format_of_another(receiver: _Receiver, form: str) -> None:
    """What ours checks is worth something; a refusal says what it said."""
    other = "slack" if form != "slack" else "feishu"
    settings = replace(_settings(receiver, form), alert_format=other)
    result = message(other, ALERT, settings.alert_webhook or "", SECRET)
    status, said = RECEIVERS[form](urlsplit(result.url).path, result.content_type, result.body)
    outcome, why = verdict(form, status, said.encode())
    assert (outcome, bool(why)) == (REFUSED, True)


def test_a_permanent_refusal_is_not_tried_again(receiver: _Receiver) -> None:
    """Counted as lost after the first."""
    receiver.answers = [(400, "invalid_payload")] * 9
    alerts = Alerts(_settings(receiver, "slack"))
    before = runtime.my_row().words[sb.W_ALERTS_LOST]
    alerts.transition("disk", "pass", "warn", "", "warn", 0.0)
    wait_until(lambda: runtime.my_row().words[sb.W_ALERTS_LOST] == before + 1)
    alerts.stop()
    assert len(receiver.got) == 1


@pytest.mark.parametrize(("form", "answer"), [
    ("slack", (429, "rate_limited")), ("slack", (503, "")), ("dingtalk", (200, '{"errcode": 130101}')),
    ("feishu", (200, '{"code": 11232}')), ("wecom", (200, '{"errcode": 45009}'))])
def test_a_receiver_that_is_busy_is_asked_again(receiver: _Receiver, form: str, answer: Answer) -> None:
    """Until it takes it."""
    receiver.answers = [answer]
    alerts = Alerts(_settings(receiver, form))
    before = runtime.my_row().words[sb.W_ALERTS_SENT]
    alerts.transition("disk", "pass", "warn", "", "warn", 0.0)
    wait_until(lambda: runtime.my_row().words[sb.W_ALERTS_SENT] == before + 1)
    alerts.stop()
    assert len(receiver.got) == 2


@pytest.mark.parametrize(("form", "status", "body", "expected"), [
    ("json", 200, b"anything", DELIVERED), ("json", 204, b"", DELIVERED), ("json", 302, b"", REFUSED),
    ("slack", 404, b"no_service", REFUSED), ("slack", 408, b"", AGAIN), ("feishu", 200, b"no JSON", DELIVERED),
    ("dingtalk", 200, b'{"errcode": "nonsense"}', DELIVERED), ("wecom", 200, b"[1]", DELIVERED),
    ("feishu", 200, b'{"StatusCode": 19024}', REFUSED), ("pagerduty", 202, b"", DELIVERED)])
def test_answers_are_read_as_documented(form: str, status: int, body: bytes, expected: str) -> None:
    """Whatever a receiver, or what stands in its place, says."""
    assert verdict(form, status, body)[0] == expected


def test_pagerduty_ends_the_incident_that_it_began() -> None:
    """By the same key."""
    began, ended = (json.loads(message("pagerduty", {**ALERT, "new": new}, "", SECRET).body)
                    for new in ("fail", "pass"))
    assert (began["event_action"], ended["event_action"]) == ("trigger", "resolve")
    assert began["dedup_key"] == ended["dedup_key"] == "orders@web1/database"


def test_a_format_that_lacks_its_key_is_refused_at_the_start() -> None:
    """And one that nobody knows."""
    with pytest.raises(ConfigError, match="STABILITY_ALERT_SECRET"):
        Settings.from_environ({"STABILITY_ALERT_FORMAT": "pagerduty"})
    with pytest.raises(ConfigError, match=", ".join(CHATS)):
        Settings.from_environ({"STABILITY_ALERT_FORMAT": "teams"})


def test_an_alert_in_words_names_service_check_and_cause() -> None:
    """On one line."""
    assert in_words(ALERT) == "[FAIL] orders@web1: database: error 2002 <start the server> & wait"
    recovery = {**ALERT, "new": "pass", "kind": "recovery", "detail": ""}
    assert in_words(recovery) == "[OK] orders@web1: database (recovered)"


def test_a_muted_check_is_not_posted_and_told_of_when_that_ends(receiver: _Receiver) -> None:
    """Its recovery is posted if its alert was; nothing is lost that still holds."""
    alerts = Alerts(_settings(receiver, "text"))

    def said() -> list[str]:
        return [body.decode().partition(": ")[2] for body, _ in receiver.got]

    alerts.transition("disk", "pass", "warn", "full", "warn", 0.0)
    alerts.silence(frozenset({"disk", "database"}), {"disk": "warn"}, 1.0)
    alerts.transition("database", "pass", "fail", "gone", "fail", 2.0)
    alerts.transition("disk", "warn", "pass", "", "fail", 3.0)
    alerts.remind({"database": "fail"}, 2000.0)
    wait_until(lambda: said() == ["disk: full", "disk (recovered)"])
    alerts.silence(frozenset(), {"database": "fail"}, 2001.0)
    wait_until(lambda: said()[2:] == ["database: gone (still so)"])
    alerts.stop()
