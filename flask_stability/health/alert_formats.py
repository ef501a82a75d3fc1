"""Format alerts for their receivers, and read the receivers' answers. Pure: no I/O.

Documented at: docs.slack.dev (incoming webhooks), open.feishu.cn (custom bots), open.dingtalk.com (custom robots),
developer.work.weixin.qq.com (group robots), developer.pagerduty.com (Events API v2). Three of the five answer 200 to
what they refuse, with a number in the body.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

DELIVERED, AGAIN, REFUSED = "delivered", "again", "refused"
LONGEST = 1500  #: characters of a text; wecom takes 2,048 bytes, pagerduty 1,024 characters of a summary
MOST_BYTES = 2000

#: Statuses below 500 after which another attempt makes sense: timeout, too early, too many requests.
_AGAIN = frozenset({408, 425, 429})
#: Numbers in a body of 200 that mean "too fast" or "busy"; any other but 0 is a refusal.
_BUSY = {"feishu": frozenset({11232, 11233, 99991400}), "dingtalk": frozenset({-1, 130101, 90018}),
         "wecom": frozenset({-1, 45009, 45033})}
_SEVERITY = {"fail": "critical", "warn": "warning", "pass": "info"}


class Message(NamedTuple):
    """The message that is posted."""

    url: str
    body: bytes
    content_type: str


def message(form: str, alert: Mapping[str, Any], url: str, secret: str | None = None,
            now: float | None = None) -> Message:
    """Return an alert in the format of its receiver.

    :param form: STABILITY_ALERT_FORMAT.
    :param alert: kind, check, new, detail, service, host, time, …
    :param secret: STABILITY_ALERT_SECRET.
    :param now: seconds since the epoch, for a signature.
    """
    now = time.time() if now is None else now
    text = in_words(alert)
    document: dict[str, Any]
    if form == "text":
        return Message(url, text.encode(), "text/plain; charset=utf-8")
    if form == "slack":
        document = {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    elif form == "feishu":
        document = {"msg_type": "text", "content": {"text": text}}
        if secret:
            moment = str(int(now))
            document = {"timestamp": moment, "sign": _signature(f"{moment}\n{secret}", ""), **document}
    elif form == "dingtalk":
        document = {"msgtype": "text", "text": {"content": text}}
        if secret:
            moment = str(int(now * 1000))
            url += ("&" if "?" in url else "?") + urlencode(
                {"timestamp": moment, "sign": _signature(secret, f"{moment}\n{secret}")})
    elif form == "wecom":
        document = {"msgtype": "text", "text": {"content": text.encode()[:MOST_BYTES].decode(errors="ignore")}}
    elif form == "pagerduty":
        document = _pagerduty(alert, text, secret or "")
    else:
        document = dict(alert)
    return Message(url, json.dumps(document, default=str).encode(), "application/json")


def in_words(alert: Mapping[str, Any]) -> str:
    """Return an alert as one line: ``[FAIL] orders@web1: database: error 2002 … (alert)``."""
    status = str(alert.get("new", "")).upper()
    service = alert.get("service") or alert.get("host") or "service"
    head = f"[{'OK' if status == 'PASS' else status}] {service}: {alert.get('check')}"
    detail = str(alert.get("detail") or "")
    kind = str(alert.get("kind") or "")
    tail = {"recovery": "recovered", "reminder": "still so", "flapping": "changes to and fro: told again once it holds",
            "test": "a test of this address: nothing is wrong"}.get(kind, "")
    return ": ".join(part for part in (head, detail) if part)[:LONGEST] + (f" ({tail})" if tail else "")


def _pagerduty(alert: Mapping[str, Any], text: str, key: str) -> dict[str, Any]:
    service = str(alert.get("service") or alert.get("host") or "service")
    over = alert.get("new") == "pass"
    event = {"routing_key": key, "event_action": "resolve" if over else "trigger",
             "dedup_key": f"{service}/{alert.get('check')}"[:255]}
    if over:
        return event
    moment = datetime.fromtimestamp(float(alert.get("time") or 0.0), UTC).isoformat(timespec="milliseconds")
    return {**event, "payload": {
        "summary": text[:1024], "source": str(alert.get("host") or service),
        "severity": _SEVERITY.get(str(alert.get("new")), "error"), "timestamp": moment,
        "component": str(alert.get("check")), "custom_details": dict(alert)}, "client": "flask_stability"}


def _signature(key: str, text: str) -> str:
    return base64.b64encode(hmac.new(key.encode(), text.encode(), hashlib.sha256).digest()).decode()


def verdict(form: str, status: int, body: bytes) -> tuple[str, str]:
    """Return the outcome of a message and the reason in words.

    The outcome is `DELIVERED`, `AGAIN` (worth another attempt) or `REFUSED` (another attempt is no use).
    """
    if not 200 <= status < 300:
        why = f"answered {status}"
        said = " ".join(body[:200].decode("utf-8", "replace").split())
        return AGAIN if status >= 500 or status in _AGAIN else REFUSED, f"{why}: {said}" if said else why
    number = _number(form, body)
    if not number:
        return DELIVERED, ""
    why = f"answered {number}: " + " ".join(body[:200].decode("utf-8", "replace").split())
    return AGAIN if number in _BUSY[form] else REFUSED, why


def _number(form: str, body: bytes) -> int:
    """Return the receiver's own error number in a body of 200; 0 for success and for receivers that have none."""
    if form not in _BUSY:
        return 0
    try:
        document = json.loads(body)
        found = document.get("errcode", document.get("code", document.get("StatusCode", 0)))
        return int(found or 0)
    except (ValueError, TypeError, AttributeError):
        return 0
