"""Readers: from a raw value (text from the environment, anything from app.config) to a checked one.

Each raises ValueError saying what is accepted; `config` adds the key and the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}

Reader = Callable[[Any], Any]


def parse_size(value: Any) -> int:
    """Bytes of ``"256M"``, ``"1.5 GiB"``, ``4096``; ValueError says what is accepted."""
    if isinstance(value, bool):
        raise ValueError("give bytes or a size such as 256M")
    if isinstance(value, (int, float)):
        number, unit = float(value), ""
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(value), re.IGNORECASE)
        if match is None:
            raise ValueError("give bytes or a size such as 256M")
        number, unit = float(match[1]), match[2].upper()
    if not math.isfinite(number) or number <= 0:
        raise ValueError("give a size above 0")
    return int(number * _UNITS[unit])


def number(low: float, high: float = math.inf, *, whole: bool = False, above: bool = False) -> Reader:
    """A number from `low` (`above`: more than it) to `high`; `whole`: an integer."""
    kind = "a whole number" if whole else "a number"

    def read(value: Any) -> float | int:
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
            if whole and number != int(number):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"give {kind}") from None
        if not low <= number <= high or (above and number == low) or not math.isfinite(number):
            bounds = f"above {low:g}" if above else f"of at least {low:g}"
            raise ValueError(f"give {kind} {bounds}" + (f" and at most {high:g}" if high < math.inf else ""))
        return int(number) if whole else number

    return read


def switch(value: Any) -> bool:
    """On or off."""
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("give on or off")


def choice(*choices: str) -> Reader:
    """One of a few words."""

    def read(value: Any) -> str:
        text = str(value).strip().lower()
        if text not in choices:
            raise ValueError(f"give one of {', '.join(choices)}")
        return text

    return read


def line(value: Any) -> str:
    """Text without control characters."""
    text = str(value)
    if any(ord(char) < 32 for char in text):
        raise ValueError("give text without control characters")
    return text


def header(value: Any) -> str:
    """The name of an HTTP header."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", str(value)):
        raise ValueError("give the name of an HTTP header, such as X-Request-ID")
    return str(value)


def path(value: Any) -> str:
    """A path within the service."""
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", str(value)):
        raise ValueError("give a path that begins with a slash and does not end with one, such as /health")
    return str(value)


def names(value: Any) -> tuple[str, ...]:
    """Names separated by commas, or a list of them."""
    parts: Iterable[Any] = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Iterable):
        raise ValueError("give names separated by commas")
    return tuple(name for name in (str(part).strip() for part in parts) if name)


def steps(value: Any) -> tuple[float, ...]:
    """Seconds separated by commas, or a list of them."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        steps = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        steps = ()
    if not steps or any(not 0 <= step <= 3600 for step in steps):
        raise ValueError("give seconds separated by commas, such as 0,1,2,4,8,15")
    return steps


def target(value: Any) -> float:
    """A service level in percent."""
    found = float(number(0, 100, above=True)(str(value).strip().removesuffix("%").strip()))
    if not 50 <= found < 100:
        raise ValueError("give a percentage of at least 50 and below 100, such as 99.9")
    return found


def database_url(value: Any) -> str:
    """Address of a database: MySQL, MariaDB or SQLite."""
    parts = urlsplit(str(value))
    if parts.scheme == "sqlite" and str(value).startswith("sqlite:///") and len(str(value)) > len("sqlite:///"):
        return str(value)
    try:
        usable = parts.scheme in ("mysql", "mariadb") and parts.hostname and parts.path.strip("/") and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("give mysql://user:password@host:port/database or sqlite:///path/to/file.db "
                         "(special characters in a password percent-encoded)")
    return str(value)


def web_url(value: Any) -> str:
    """An http or https address."""
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give an http:// or https:// address")
    return str(value)


def bind(value: Any) -> str:
    """Where to listen: address:port or a Unix socket."""
    text = str(value)
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})", text)
    if not (text.startswith("unix:/") or (match and 0 < int(match[2]) < 65536)):
        raise ValueError("give address:port, such as 127.0.0.1:9001, or unix:/path/to/socket")
    return text


def token(value: Any) -> str:
    """A secret that can stand in a header."""
    if not re.fullmatch(r"[\x21-\x7e]{8,}", str(value)):
        raise ValueError("give at least 8 printable characters without spaces")
    return str(value)


seconds = number(0)
positive = number(0, above=True)
ratio = number(0, 1)
