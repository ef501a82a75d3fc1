"""Readers: each turns a raw value (text from the environment, anything from app.config) into a checked one.

Each raises ValueError with the accepted forms; `config` adds the key and the value.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from .dburl import OTHER_DRIVER, SCHEMES, DatabaseURL

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LARGEST = 1 << 60  # bytes; a larger number does not fit into the scoreboard's words
_LONGEST = 1e9  # seconds; likewise, as nanoseconds
_WIDE = re.compile("[\uff01-\uff5e\u3002]")  # full-width forms of ASCII characters, and the full stop
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}

Reader = Callable[[Any], Any]
PREFIX = "STABILITY_"
_MOST_SHOWN = 200  # maximum characters shown of a bad value


class Spec(NamedTuple):
    """One setting: the app or process that sets it, its reader, and its text for the documents."""

    scope: str
    read: Reader
    default: Any
    unit: str
    doc: str
    shown: str
    secret: bool


def shown(raw: Any) -> str:
    """Return a bad value as text, truncated; some cannot be shown at all (integers of thousands of digits)."""
    try:
        text = repr(raw)
    except Exception:
        return f"({type(raw).__name__})"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def parse_size(value: Any) -> int:
    """Return the bytes of ``"256M"``, ``"1.5 GiB"`` or ``4096``.

    :raises ValueError: with the accepted forms.
    """
    if isinstance(value, bool):
        raise ValueError("give bytes or a size such as 256M")
    if isinstance(value, (int, float)):
        number, unit = float(max(-1, min(value, 2 * _LARGEST))), ""
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(value), re.IGNORECASE)
        if match is None:
            raise ValueError("give bytes or a size such as 256M")
        number, unit = float(match[1]), match[2].upper()
    if not 0 < number * _UNITS[unit] <= _LARGEST:
        raise ValueError("give a size above 0 and of at most 1048576T")
    return int(number * _UNITS[unit])


def number(low: float, high: float = math.inf, *, whole: bool = False, above: bool = False) -> Reader:
    """Return a reader of numbers from `low` to `high`.

    :param whole: accept only integers.
    :param above: exclude `low` itself.
    """
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
    """Read a switch: on or off."""
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("give on or off")


def choice(*choices: str) -> Reader:
    """Return a reader of one of a few words."""

    def read(value: Any) -> str:
        text = str(value).strip().lower()
        if text not in choices:
            raise ValueError(f"give one of {', '.join(choices)}")
        return text

    return read


def line(value: Any) -> str:
    """Read text without control characters."""
    text = str(value)
    if any(ord(char) < 32 for char in text):
        raise ValueError("give text without control characters")
    return text


def header(value: Any) -> str:
    """Read the name of an HTTP header."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", str(value)):
        raise ValueError("give the name of an HTTP header, such as X-Request-ID")
    return str(value)


def path(value: Any) -> str:
    """Read a path within the service."""
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", str(value)):
        raise ValueError("give a path that begins with a slash and does not end with one, such as /health")
    return str(value)


def names(value: Any) -> tuple[str, ...]:
    """Read names separated by commas, or a list of them."""
    parts: Iterable[Any] = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Iterable):
        raise ValueError("give names separated by commas")
    return tuple(name for name in (str(part).strip() for part in parts) if name)


def paths(value: Any) -> tuple[str, ...]:
    """Read paths of the service, perhaps with a query, separated by spaces or commas, or a list of them."""
    parts = re.split(r"[\s,]+", value.strip()) if isinstance(value, str) else value
    if not isinstance(parts, Iterable):
        raise ValueError("give paths separated by spaces")
    found = tuple(str(part) for part in parts if str(part))
    if len(found) > 20 or not all(re.fullmatch(r"/[\x21-\x7e]{0,499}", one) for one in found):
        raise ValueError("give at most 20 paths separated by spaces, such as / /orders")
    return found


def steps(value: Any) -> tuple[float, ...]:
    """Read seconds separated by commas, or a list of them."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        steps = tuple(float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        steps = ()
    if not steps or any(not 0 <= step <= 3600 for step in steps):
        raise ValueError("give seconds separated by commas, such as 0,1,2,4,8,15")
    return steps


def target(value: Any) -> float:
    """Read a service level in percent."""
    found = float(number(0, 100, above=True)(str(value).strip().removesuffix("%").strip()))
    if not 50 <= found < 100:
        raise ValueError("give a percentage of at least 50 and below 100, such as 99.9")
    return found


def mode(value: Any) -> int:
    """Read a file's permissions in octal digits: its owner reads and writes, others may not write, no user executes."""
    text = str(value).strip().removeprefix("0o")
    bits = int(text, 8) if re.fullmatch(r"0?[0-7]{3}", text) else 0
    if bits & 0o713 != 0o600:
        raise ValueError("give permissions in octal digits that let the owner read and write and nobody execute: "
                         "0600, 0640, 0660 or 0644")
    return bits


def port(value: Any) -> int | None:
    """Return the number of a port, None if it is not a port."""
    text = str(value)
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and 0 < int(text) < 65536 else None


def _parts(value: Any) -> SplitResult | None:
    """Return the parts of a URL that has a host and a valid port, None for any other.

    Never raise Python's own error, which would quote the URL with its password.
    """
    try:
        parts = urlsplit(str(value))
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _slip(value: Any) -> str:
    """Return a hint at the likely cause, or ""."""
    found = _WIDE.search(str(value))
    return f"; it contains a full-width character (U+{ord(found[0]):04X}): write it as ASCII" if found else ""


def database_url(value: Any) -> str:
    """Read the address of a database: MySQL, MariaDB or SQLite. The error shows no part of it."""
    text = str(value)
    if text.startswith("sqlite:"):
        if not text.startswith("sqlite:///") or len(text) <= len("sqlite:///"):
            raise ValueError("give sqlite:///path/to/file.db")
        if "?" in text or "#" in text:
            raise ValueError("a ? or # in sqlite:///path: options of SQLite are not taken from the address, and a "
                             "file's name cannot contain them")
        return text
    if text.partition(":")[0].lower() not in SCHEMES:
        other = text.lower().startswith(("mysql+", "mariadb+"))
        driver = f"; {OTHER_DRIVER}" if other else ""
        raise ValueError("give mysql://user:password@host:port/database or sqlite:///path/to/file.db "
                         f"(special characters in a password percent-encoded){driver}{_slip(text)}")
    DatabaseURL.parse(text).check_files()
    return text


def secret_file(path: Any) -> str:
    """Return the content of a file without the line's end; a secret.

    :raises ValueError: naming the file, if it cannot be read or does not hold exactly one line.
    """
    try:
        descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, encoding="utf-8") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)  # opening or reading anything else might block
            text = file.read(65537) if regular else ""
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"cannot be read ({type(error).__name__}): name a text file that the service's user may "
                         "read") from None
    lines = text.splitlines()
    if len(lines) != 1 or not lines[0].strip() or len(text) > 65536:
        raise ValueError("has to hold one line, the secret")
    return lines[0]


def web_url(value: Any) -> str:
    """Read an http or https address."""
    text = str(value)
    parts = _parts(text)
    if parts is None or parts.scheme not in ("http", "https") or re.search(r"[\x00-\x20\x7f]", text):
        raise ValueError(f"give an http:// or https:// address without spaces{_slip(text)}")
    return text


def bind(value: Any) -> str:
    """Read a listening address: address:port or a Unix socket."""
    text = str(value)
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})", text)
    if not (text.startswith("unix:/") or (match and 0 < int(match[2]) < 65536)):
        raise ValueError("give address:port, such as 127.0.0.1:9001, or unix:/path/to/socket")
    return text


SHORTEST_TOKEN = 16  #: characters of a token that shows details; with a shorter one the service runs and shows none


def token(value: Any) -> str:
    """Read a secret that can stand in a header."""
    if not re.fullmatch(r"[\x21-\x7e]+", str(value)):
        raise ValueError(f"give at least {SHORTEST_TOKEN} printable characters without spaces")
    return str(value)


seconds = number(0, _LONGEST)
positive = number(0, _LONGEST, above=True)
ratio = number(0, 1)
