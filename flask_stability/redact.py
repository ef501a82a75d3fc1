"""Remove secrets from the texts of errors, for the health document, the dashboard and alerts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from .config import Settings

HIDDEN = "***"
LONGEST = 300  #: characters of a cause
SHORTEST = 4  #: characters of a secret; a shorter one could match inside ordinary words

_SECRET_NAME = re.compile(r"PASSW|SECRET|TOKEN|API_?KEY|CREDENTIAL|DSN", re.IGNORECASE)
_IN_URL = re.compile(r"(\w://)[^/@\s]*@")
_ASSIGNED = re.compile(r"(?i)\b([\w-]*(?:passw(?:or)?d|pwd|secret|token|api[_-]?key)[\w-]*['\"]?"
                       r"(?:\s*[=:]\s*|\s+is\s+))"
                       r"(?!YES\b|NO\b)(\"[^\"]*\"|'[^']*'|[^\s,;)&]+)")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{4,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def redact(text: str, secrets: Iterable[str] = (), longest: int = LONGEST) -> str:
    """Return `text` on one line without the given secrets, credentials in URLs and values of ``password=…``.

    :param longest: characters that are kept; a longer text ends in "…".
    """
    text = text[:4 * longest + 2000]  # enough for the kept part; bounds the work for a hostile text
    for secret in sorted({one for one in secrets if len(one) >= SHORTEST}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _IN_URL.sub(rf"\1{HIDDEN}@", _CONTROL.sub(" ", text))
    text = _BEARER.sub(rf"\1 {HIDDEN}", _ASSIGNED.sub(rf"\1{HIDDEN}", text)).strip()
    return text if len(text) <= longest else text[:longest - 1] + "…"


def secrets_of(settings: Settings, environ: Mapping[str, str] | None = None) -> frozenset[str]:
    """Return the texts to hide: secret settings, their parts, and variables whose names sound like a secret's."""
    found = {value for name, value in (os.environ if environ is None else environ).items()
             if value and _SECRET_NAME.search(name)}
    for url in (settings.db_url, settings.alert_webhook, *tuple(found)):
        if url and "://" in url:
            found.add(url)
            try:
                parts = urlsplit(url)
                found.update(filter(None, (parts.password, unquote(parts.password or ""))))
            except ValueError:
                continue
    if settings.alert_webhook:  # the key of a chat's webhook is its path or its query
        parts = urlsplit(settings.alert_webhook)
        found.update(part for part in (parts.query, parts.path.strip("/")) if len(part) >= 8)
    found.update(filter(None, (settings.health_token, settings.alert_secret)))
    return frozenset(found)


def cause_of(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Return an exception in words: its number and text, what notes say to do about it, without secrets. Never raises.
    """
    try:
        original = getattr(error, "orig", None)
        if isinstance(original, BaseException):  # SQLAlchemy's own text has the statement and its values
            error = original
        number, *rest = error.args or ("",)
        if isinstance(number, int) and not isinstance(error, OSError):
            text = f"error {number}" + (f": {rest[0]}" if rest and rest[0] else "")
        else:
            text = str(error)
        return redact("; ".join([text, *map(str, getattr(error, "__notes__", ()))]).strip("; "), secrets)
    except Exception:
        return ""
