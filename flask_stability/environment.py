"""Track which variables a ``.env`` file has set, so that the file can be read again.

A reload reads the file again, and variables that have left it get their former state. The environment itself stores
which variables came from the file, so a master that SIGUSR2 started inherits the list.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping

from .config_types import port, shown
from .exceptions import ConfigError

#: The variable that stores the list: {name: digest of the value that the file gave it}.
MARK = "FLASK_STABILITY_DOTENV"


_defaults: dict[str, str] = {}


def apply(values: Mapping[str, str], defaults: Mapping[str, str] | None = None) -> None:
    """Set the variables of a ``.env`` file, and undo an earlier reading; variables set by anything else stay.

    :param defaults: set where neither the file nor anything else sets them; remembered for the next reading.
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


def load_dotenv(path: str = ".env", *, defaults: Mapping[str, str] | None = None) -> None:
    """Add the variables of a ``.env`` file to the environment; what anything else has set stays.

    A further call undoes the former one: a variable that has left the file gets its former state.

    :param defaults: set where neither the file nor anything else sets them, now and whenever the file is read again.

    :raises ConfigError: naming file and line of what cannot be parsed or read.
    """
    from dotenv.parser import parse_stream

    try:
        _refuse_planted(os.stat(path), path)
        with open(path, encoding="utf-8") as stream:
            _refuse_planted(os.fstat(stream.fileno()), path)
            bindings = list(parse_stream(stream))
    except FileNotFoundError:
        apply({}, defaults)
        return
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error.__class__.__name__}): "
                          "make it a readable UTF-8 text file or remove it") from error
    broken = [binding.original.line for binding in bindings
              if binding.error or "\0" in f"{binding.key}{binding.value}"]
    if broken:
        raise ConfigError([f"{path}, line {line}: not of the form NAME=value: correct it or comment it out with #"
                           for line in broken])
    apply({binding.key: binding.value for binding in bindings
                       if binding.key and binding.value is not None}, defaults)


def _refuse_planted(found: os.stat_result, path: str) -> None:
    """Refuse a file that another user could have planted.

    The environment decides what the service runs, so only a user that could replace the file's folder may decide it.

    :raises ConfigError: if all users may write the file, or its owner is neither root, nor this user, nor the folder's.
    """
    folder = os.stat(os.path.dirname(path) or ".")
    # file systems of other systems (WSL, shared folders) show every mode as 0777
    open_to_all = folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX
    if found.st_mode & stat.S_IWOTH and not open_to_all:
        raise ConfigError(f"{path}: every user of this machine may write it: chmod o-w {path}")
    if found.st_uid not in (0, os.geteuid(), folder.st_uid):
        raise ConfigError(f"{path}: it belongs to user {found.st_uid}, who owns neither the folder nor the service: "
                          "give it to root or to the service's user")


def from_file() -> dict[str, str]:
    """Return the variables that a ``.env`` file set, each with a digest of its value; empty if none was read."""
    try:
        mark = json.loads(os.environ.get(MARK, ""))
    except ValueError:
        return {}
    return {name: digest for name, digest in mark.items() if name in os.environ} if isinstance(mark, dict) else {}


def was_read() -> bool:
    """Return whether this process, or the one that started it, has looked for a ``.env`` file."""
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


def server_bind(host: str = "0.0.0.0") -> str:
    """Return where our gunicorn configurations listen.

    The address comes from SERVER_HOST and SERVER_PORT, or PORT as gunicorn reads it; the default port is 3007.

    :param host: used without SERVER_HOST.
    :raises ConfigError: if the port is not valid.
    """
    name = "SERVER_PORT" if os.environ.get("SERVER_PORT") else "PORT"
    given = os.environ.get(name) or "3007"
    number = port(given)
    if number is None:
        raise ConfigError(f"{name}={shown(given)}: give a port between 1 and 65535")
    return f"{os.environ.get('SERVER_HOST') or host}:{number}"
