"""Who may see details, and the login form's cookie.

The cookie is not the token: it says until when it is good, under a key that is derived from the token slowly enough
that whoever got hold of a cookie cannot try tokens against it. Nothing is kept for it, so every worker takes it, and a
new token ends all logins. No header and no address lets anyone in; the address of the connection only tells whose wrong
tokens to count.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from typing import TYPE_CHECKING

from ..config import Settings

if TYPE_CHECKING:
    from flask import Request

COOKIE = "stability_login"
LIFETIME = 12 * 3600  #: seconds that a login lasts
ROUNDS = 100_000  #: of the key's derivation; about 30 ms, once in a process
TRIES = 10  #: logins that an address may try at once
REFILL = 6.0  #: seconds until it may try another one
ADDRESSES = 256  #: addresses counted apart; all others are counted as one

_COOKIE = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})")


class Access:
    """The rules of one app's settings."""

    def __init__(self, settings: Settings) -> None:
        self._open = settings.health_details == "always"
        token = settings.health_token if settings.health_details == "token" else None
        self._token = token.encode() if token else b""
        self._path = settings.health_path
        self._key = b""
        self.attempts = Attempts()

    @property
    def has_login(self) -> bool:
        """Whether there is a token that a form could ask for."""
        return bool(self._token)

    def may_see(self, request: Request) -> bool:
        """Whether this request may have details: all may, or it carries the token or a login's cookie."""
        if self._open:
            return True
        if not self._token:
            return False
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        cookie = request.cookies.get(COOKIE)
        return cookie is not None and self._is_login(cookie)

    def is_token(self, given: str) -> bool:
        """Whether it is the token, in constant time."""
        # as bytes: text beyond ASCII is refused by compare_digest
        return bool(self._token) and hmac.compare_digest(given.encode(errors="replace"), self._token)

    def new_login(self) -> str:
        """The value of the cookie that a login from now on gets."""
        until = str(int(time.time()) + LIFETIME)
        return f"{until}.{self._signature(until)}"

    def _is_login(self, cookie: str) -> bool:
        match = _COOKIE.fullmatch(cookie)
        if match is None or not 0 <= int(match[1]) - time.time() <= LIFETIME + 60:
            return False
        return hmac.compare_digest(match[2], self._signature(match[1]))

    def _signature(self, until: str) -> str:
        if not self._key:
            self._key = hashlib.pbkdf2_hmac("sha256", self._token, b"flask_stability login", ROUNDS)
        return hmac.new(self._key, f"{until} {self._path}".encode(), "sha256").hexdigest()


class Attempts:
    """A bucket of tries for each address that logs in, per process. Bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[str, tuple[float, float]] = {}  # tries used, and when that was so

    def take(self, address: str, now: float) -> float:
        """Use up one; 0.0 if there was one, else the seconds until there is.

        :param now: monotonic seconds.
        """
        with self._lock:
            key = self._key(address, now)
            used = self._left(key, now)
            if used > TRIES - 1:
                return (used - (TRIES - 1)) * REFILL
            self._used[key] = used + 1, now
            return 0.0

    def _left(self, key: str, now: float) -> float:
        used, then = self._used.get(key, (0.0, now))
        return max(0.0, used - (now - then) / REFILL)

    def _key(self, address: str, now: float) -> str:
        if address not in self._used and len(self._used) >= ADDRESSES:
            self._used = {key: value for key, value in self._used.items() if self._left(key, now) > 0}
            if len(self._used) >= ADDRESSES:
                return ""
        return address
