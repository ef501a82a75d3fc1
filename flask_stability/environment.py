"""What a ``.env`` file set is known to come from it, so that it can be read again.

A reload reads the file anew, and what has left it returns to what was there before. Which variables came from it
stands in the environment itself: a master that SIGUSR2 started inherits them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

#: The variable that tells: {name: digest of the value that the file gave it}.
MARK = "FLASK_STABILITY_DOTENV"


_defaults: dict[str, str] = {}


def apply(values: Mapping[str, str], defaults: Mapping[str, str] | None = None) -> None:
    """Set the variables of a ``.env`` file, and undo what an earlier reading set; what anything else set stays.

    :param defaults: set where neither the file nor anything else does; remembered for the next reading.
    """
    if defaults is not None:
        _defaults.update(defaults)
    for name, digest in from_file().items():
        if _digest(os.environ.get(name, "")) == digest:  # else something has set it since
            del os.environ[name]
    mark = {}
    for name, value in [*values.items(), *_defaults.items()]:
        if name != MARK and name not in os.environ:
            os.environ[name] = value
            mark[name] = _digest(value)
    os.environ[MARK] = json.dumps(mark)


def from_file() -> dict[str, str]:
    """The variables that a ``.env`` file set, each with a digest of its value; empty if none was read."""
    try:
        mark = json.loads(os.environ.get(MARK, ""))
    except ValueError:
        return {}
    return {name: digest for name, digest in mark.items() if name in os.environ} if isinstance(mark, dict) else {}


def was_read() -> bool:
    """Whether a ``.env`` file was looked for, by this process or the one that started it."""
    return MARK in os.environ


def as_the_service() -> None:
    """Forget what Flask's command line took from ``.env``: it looks in folders above too, and replaces ``${…}``."""
    from dotenv import dotenv_values, find_dotenv

    found = find_dotenv(".env", usecwd=True)
    for name, value in dotenv_values(found).items() if found else ():
        if value is not None and os.environ.get(name) == value and name not in from_file():
            del os.environ[name]


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()[:32]
