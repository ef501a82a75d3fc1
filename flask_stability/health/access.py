"""Decide which clients may see details, and issue the login form's cookie.

The cookie is not the token. It holds its own expiry, signed with a key that is derived from the token slowly enough
that the owner of a stolen cookie cannot try tokens against it. Every worker accepts it without storing anything; a
logout is stored on the scoreboard (`sessions`), and a new token ends all logins. No header and no address grants
access, and wrong tokens are counted without them: behind a proxy all clients have one address.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from .. import logs
from ..config import Settings
from ..config_types import SHORTEST_TOKEN
from ..runtime import Part, runtime
from . import sessions

if TYPE_CHECKING:
    from flask import Request

COOKIE = "stability_login"
LIFETIME = 12 * 3600  #: seconds that a login lasts
ROUNDS = 100_000  #: iterations of the key's derivation; about 30 ms, once per process
TRIES = 10  #: wrong tokens that a worker answers in quick succession
REFILL = 6.0  #: seconds until it answers another one
TELL_EVERY = 60.0  #: seconds between two log records of refused tokens
WAIT = "flask_stability.wait"  #: key in the environ of a request with one wrong token too many: seconds to wait

_COOKIE = re.compile(r"([0-9]{1,12})\.([0-9a-f]{16})\.([0-9a-f]{64})")


class _Login(NamedTuple):
    """A cookie that we issued, still valid or ended."""

    issued: int
    until: int
    signature: str


class Access:
    """The rules of one app's settings."""

    def __init__(self, settings: Settings) -> None:
        self._open = settings.health_details == "always"
        token = settings.health_token if settings.health_details == "token" else None
        self._token = token.encode() if token and len(token) >= SHORTEST_TOKEN else b""
        self._path = settings.health_path
        self._key = b""
        self.guesses = Guesses()

    @property
    def is_open(self) -> bool:
        """Return whether all clients may see details."""
        return self._open

    @property
    def has_login(self) -> bool:
        """Return whether there is a token that a form can ask for."""
        return bool(self._token)

    def may_see(self, request: Request) -> bool:
        """Return whether this request may have details: all may, or it carries the token or a login's cookie.

        Count a wrong token; mark one too many in the environ (`WAIT`).
        """
        if self._open:
            return True
        if not self._token:
            return False
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self.is_token(given.strip()):
                return True
            request.environ[WAIT] = self.refuse(request, event="health_token_refused")
        cookie = request.cookies.get(COOKIE)
        return cookie is not None and self._is_login(cookie)

    def is_token(self, given: str) -> bool:
        """Return whether a text is the token, in constant time."""
        # as bytes: compare_digest refuses text beyond ASCII
        return bool(self._token) and hmac.compare_digest(given.encode(errors="replace"), self._token)

    def refuse(self, request: Request, *, event: str) -> float:
        """Count a wrong token; return 0.0, or the seconds until another one is accepted."""
        refused.count(event, request.remote_addr or "", time.monotonic())
        return self.guesses.take(time.monotonic())

    def new_login(self) -> str:
        """Return the value of the cookie for a new login."""
        until, name = str(int(time.time()) + LIFETIME), secrets.token_hex(8)
        return f"{until}.{name}.{self._signature(until, name)}"

    def end_login(self, cookie: str) -> None:
        """End the session of this cookie, for every worker."""
        login = self._login(cookie)
        if login is not None:
            sessions.end(runtime.my_row(), sessions.fingerprint(login.signature), login.until, int(time.time()))

    def _is_login(self, cookie: str) -> bool:
        login = self._login(cookie)
        return login is not None and not sessions.is_ended(
            runtime.my_board(), sessions.fingerprint(login.signature), login.issued)

    def _login(self, cookie: str) -> _Login | None:
        match = _COOKIE.fullmatch(cookie)
        if match is None or not 0 <= int(match[1]) - time.time() <= LIFETIME + 60:
            return None
        if not hmac.compare_digest(match[3], self._signature(match[1], match[2])):
            return None
        return _Login(int(match[1]) - LIFETIME, int(match[1]), match[3])

    def _signature(self, until: str, name: str) -> str:
        if not self._key:
            self._key = hashlib.pbkdf2_hmac("sha256", self._token, b"flask_stability login", ROUNDS)
        return hmac.new(self._key, f"{until} {name} {self._path}".encode(), "sha256").hexdigest()


class Guesses:
    """The wrong tokens of a process, in one bucket for the form and the header.

    It locks no user out: the right token never has to wait. It bounds the answers to guesses, and a token is too long
    to be guessed at that rate.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used, self._then = 0.0, 0.0

    def take(self, now: float) -> float:
        """Count one wrong token; return 0.0 if the bucket has room, else the seconds until it does.

        :param now: monotonic seconds.
        """
        with self._lock:
            used = max(0.0, self._used - (now - self._then) / REFILL)
            if used > TRIES - 1:
                return (used - (TRIES - 1)) * REFILL
            self._used, self._then = used + 1, now
            return 0.0


class Refused(Part):
    """Logs wrong tokens: the first one immediately, then their number once a minute."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Start over in a forked child: the parent logs its own counts."""
        self._lock = threading.Lock()
        # by event, since its last log record: the number, and the last address
        self._counts: dict[str, tuple[int, str]] = {}
        self._told: dict[str, float] = {}

    def count(self, event: str, address: str, now: float) -> None:
        """Count one more, and log it if that is due.

        :param now: monotonic seconds.
        """
        with self._lock:
            number, _ = self._counts.get(event, (0, ""))
            self._counts[event] = number + 1, address
        self.tell(now)

    def tell(self, now: float) -> None:
        """Log the counts that are due; called regularly, so that the last ones are logged too."""
        with self._lock:
            due = {event: self._counts.pop(event) for event in tuple(self._counts)
                   if now - self._told.get(event, -TELL_EVERY) >= TELL_EVERY}
            self._told.update(dict.fromkeys(due, now))
        for event, (number, address) in due.items():
            logs.error(event, level="WARNING", count=number, address=address)


refused = runtime.add("access", Refused())
