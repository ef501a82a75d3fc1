"""Texts of errors for people, without their secrets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flask_stability.config import Settings
from flask_stability.exceptions import CircuitOpen
from flask_stability.redact import HIDDEN, cause_of, redact, secrets_of


@pytest.mark.parametrize("text", [
    "connect to mysql://shop:hunter2@db/shop failed", "password=hunter2;host=db", "the password is hunter2",
    '{"api_key": "hunter2"}', "Authorization: Bearer hunter2hunter2", "DB_PASSWORD='hunter2'", "token:hunter2, more",
    "postgresql://me:hunter2@[::1]/x"])
def test_credentials_are_taken_out_whatever_form_they_have(text: str) -> None:
    """In URLs, assignments, JSON, headers, sentences."""
    assert "hunter2" not in redact(text)
    assert HIDDEN in redact(text)


@pytest.mark.parametrize("text", ["Access denied for user 'app'@'db' (using password: YES)",
                                  "error 2002: start the server, or correct host and port", "passed 3 of 4 tokens"])
def test_what_is_no_secret_stays(text: str) -> None:
    """The text is the remedy."""
    assert redact(text) == text


def test_secrets_of_the_settings_and_the_environment_are_known_by_their_value() -> None:
    """Also where nothing around them says what they are, and percent-encoded."""
    settings = replace(Settings(), db_url="mysql://me:p%40ss-word@db/x", health_token="token-of-health",
                       alert_webhook="https://hooks.example/services/T000/B000/XXXX", alert_secret="routing-key")
    secrets = secrets_of(settings, {"STRIPE_API_KEY": "sk_live_1", "HOME": "/root"})
    text = "p%40ss-word p@ss-word token-of-health services/T000/B000/XXXX routing-key sk_live_1 /root"
    assert redact(text, secrets) == " ".join([HIDDEN] * 6) + " /root"


def test_a_cause_is_one_line_of_bounded_length_with_its_remedy() -> None:
    """Numbers, notes; an exception whose text cannot be had is told without."""
    error = RuntimeError(2002, "Can't connect\n to server")
    error.add_note("start the server")
    assert cause_of(error) == "error 2002: Can't connect  to server; start the server"
    assert cause_of(OSError(5, "broken")) == "[Errno 5] broken"
    assert "error 2002" in cause_of(CircuitOpen("the database does not answer (error 2002: start the server)"))
    assert len(cause_of(RuntimeError("x" * 100_000))) == 300

    wrapped = RuntimeError("(x.OperationalError) (1, 'gone') [SQL: SELECT 1] [parameters: ('Ada',)]")
    wrapped.orig = RuntimeError(2006, "gone")  # type: ignore[attr-defined]  # as SQLAlchemy does
    assert cause_of(wrapped) == "error 2006: gone"

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert cause_of(Mute()) == ""
