"""Report a port in use in one line that names the setting, instead of gunicorn's fourteen.

gunicorn tries five times, a second apart, since the previous service may be about to end. That stays.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import psutil

from ...config import server_bind
from ...exceptions import ConfigError

_FIRST = re.compile(r"Connection in use: (.*)")
_MORE = re.compile(r"connection to .* failed: .*Address already in use|Retrying in 1 second|Can't connect to ")


class OneLine(logging.Filter):
    """Filter gunicorn's log during its start. Never raises.

    :param addresses: the addresses that gunicorn will listen on, ``(host, port)`` or paths.
    """

    def __init__(self, addresses: Any) -> None:
        super().__init__()
        self._addresses = {str(address): address for address in addresses}
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write the record; reword the first one of each address."""
        try:
            text = record.getMessage()
            found = _FIRST.match(text)
            if found is None:
                return not (self._told and _MORE.match(text))
            if found[1] in self._told:
                return False
            self._told.add(found[1])
            record.msg, record.args = in_words(self._addresses.get(found[1], found[1])), ()
        except Exception:
            return True
        return True


def in_words(address: Any) -> str:
    """Return which process has an address, and which setting chooses another."""
    if not isinstance(address, tuple):
        return f"{address} is in use: end the service that listens there, or choose another socket (-b, bind)"
    owner = listener(address[1])
    by = f" by {owner.name()}, process {_head(owner).pid}" if owner is not None else ""
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    setting = "bind, or gunicorn's -b"
    try:
        if server_bind().endswith(f":{address[1]}"):
            setting = "SERVER_PORT, or gunicorn's -b"
    except ConfigError:
        pass
    return (f"flask_stability: {host}:{address[1]} is in use{by}: end it, or choose another port ({setting}); this "
            "start gives up after 5 s")


def _head(process: psutil.Process) -> psutil.Process:
    """Return the master of a worker that listens on its socket: its first ancestor of that name."""
    try:
        parent = process.parent()
        while parent is not None and parent.pid > 1 and parent.name() == process.name():
            process, parent = parent, parent.parent()
    except psutil.Error:
        pass
    return process


def watch(server: Any) -> logging.Filter | None:
    """Add the filter to an arbiter's log and return it for `leave`; None if the log is of another kind."""
    log = getattr(server.log, "error_log", None)
    if not isinstance(log, logging.Logger):
        return None
    found = OneLine(server.cfg.address)
    log.addFilter(found)
    return found


def leave(server: Any, found: logging.Filter | None) -> None:
    """Remove the filter again, once the service listens."""
    if found is not None:
        server.log.error_log.removeFilter(found)


def listener(port: int) -> psutil.Process | None:
    """Return the process that listens on a TCP port, the oldest if it shares it with its children; None if unknown."""
    try:
        pids = {found.pid for found in psutil.net_connections("tcp")
                if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid}
        return min((psutil.Process(pid) for pid in pids), key=lambda process: process.create_time(), default=None)
    except (psutil.Error, OSError):
        return None
