"""Tell systemd the state of the service (sd_notify, Type=notify).

gunicorn sends READY=1 as soon as it listens, before any worker exists. `Notifier.take` removes NOTIFY_SOCKET from the
environment, which silences gunicorn; this module sends READY=1 once a worker serves. Workers inherit neither the
variable nor an open socket, so no worker can feed the watchdog for a hung master.

Nothing here blocks or raises. A message that cannot be sent now becomes part of the next one.
"""

from __future__ import annotations

import enum
import os
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass


class Phase(enum.Enum):
    """The phase of the service, with systemd's name for it."""

    STARTING = ""
    READY = "READY=1"
    RELOADING = "RELOADING=1"
    STOPPING = "STOPPING=1"


@dataclass(frozen=True)
class Service:
    """The state of the service, as far as systemd cares.

    :ivar serving, base: workers that serve, and configured ones.
    :ivar ever_ready: a worker has served.
    :ivar reloading: a reload waits for its new workers.
    :ivar stalled: those do not boot.
    :ivar draining: seconds for which the service still serves before it ends, 0.0 = it does not drain.
    :ivar stopping: the service ends.
    :ivar succeeded: a second master serves on.
    :ivar degraded: too many workers crash.
    """

    serving: int
    base: int
    ever_ready: bool = False
    reloading: bool = False
    stalled: bool = False
    draining: float = 0.0
    stopping: bool = False
    succeeded: bool = False
    degraded: bool = False

    def phase(self, before: Phase) -> Phase:
        """Return the phase that follows from this state."""
        if (self.stopping or self.draining) and not self.succeeded:
            return Phase.STOPPING
        if before is Phase.STARTING and not self.ever_ready:
            return before
        # systemd accepts RELOADING=1 only from a service that is ready
        return Phase.RELOADING if self.reloading and before is not Phase.STARTING else Phase.READY

    def status(self) -> str:
        """Return the line that `systemctl status` shows."""
        return f"{self.serving} of {self.base} workers serve{self._condition()}"

    def _condition(self) -> str:
        if self.stopping:
            return "; stopping"
        if self.draining:
            return f"; draining for {self.draining:g} s"
        if self.stalled:
            return "; the reload's new workers do not boot"
        if self.reloading:
            return "; reloading"
        return "; too many workers crash" if self.degraded else ""


class Notifier:
    """The master's connection to systemd; without an address it does nothing.

    :param address: a socket's path, or its abstract name after ``@``.
    :param watchdog: seconds within which systemd expects a sign of life, 0.0 = it expects none.
    :ivar phase, status: what the next `tell` sends.
    """

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval = watchdog / 4
        self._pid = os.getpid()
        self._told = Phase.STARTING, ""
        self._fed = float("-inf")
        self.phase, self.status = self._told

    @classmethod
    def take(cls, environ: MutableMapping[str, str], *, before: int = 0) -> Notifier:
        """Return the notifier that the environment names, and remove its variables.

        :param before: process id of the master that this one replaces, 0 = none. Its watchdog is then ours.
        """
        address, usec, pid = (environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        wanted = usec.isdecimal() and len(usec) < 20 and pid in ("", str(os.getpid()), str(before))
        return cls(address if address[:1] in ("/", "@") and len(address) > 1 else "",
                   int(usec) / 1e6 if wanted else 0.0)

    @property
    def wanted(self) -> bool:
        """Return whether systemd listens."""
        return bool(self._address)

    def follow(self, service: Service, now: float) -> None:
        """Send the new state of the service.

        :param now: monotonic seconds.
        """
        self.phase, self.status = service.phase(self.phase), service.status()
        self.tell(now)

    def tell(self, now: float) -> None:
        """Send changes, and the sign of life when it is due.

        :param now: monotonic seconds.
        """
        if not self._address:
            return
        lines, wanted = [], (self.phase, self.status[:200].replace("\n", " "))
        if self.phase is not self._told[0]:
            lines.append(self.phase.value)
            if self.phase is Phase.RELOADING:
                lines.append(f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        if wanted[1] != self._told[1]:
            lines.append(f"STATUS={wanted[1]}")
        feed = self._interval > 0 and now - self._fed >= self._interval
        if feed:
            lines.append("WATCHDOG=1")
        if lines and self._send("\n".join(lines)):
            self._told = wanted
            self._fed = now if feed else self._fed

    def hand_over(self, pid: int) -> None:
        """Make another process the service's main process."""
        self._send(f"MAINPID={pid}")
        self._address = ""

    def _send(self, message: str) -> bool:
        if not self._address or os.getpid() != self._pid:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as line:
                line.sendto(message.encode("utf-8", "replace"), self._address)
        except (OSError, ValueError):  # no receiver, a full queue, or no such address
            return False
        return True
