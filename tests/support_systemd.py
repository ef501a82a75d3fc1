"""The listening end of systemd: the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import itertools
import socket
import sys
import threading
import time
from pathlib import Path

from support import wait_until

WATCHDOG = 12.0  #: seconds; signs of life are due every quarter of it


class Systemd:
    """The socket, and what came to it: (monotonic seconds, line, sender's process id)."""

    def __init__(self, path: Path) -> None:
        self.path, self.heard = path, list[tuple[float, str, int]]()
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._line.bind(str(path))
        self._line.settimeout(0.2)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._end.is_set():
            try:
                message, extra, _, _ = self._line.recvmsg(4096, 256)
            except TimeoutError:
                continue
            pid = int.from_bytes(extra[0][2][:4], sys.byteorder)
            self.heard += [(time.monotonic(), line, pid) for line in message.decode().split("\n")]

    def flush(self) -> None:
        """Wait until all that was said so far is heard: a word of our own comes after it."""
        word = f"X_FLUSH={time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.sendto(word.encode(), str(self.path))
        wait_until(lambda: self.times(word))

    def close(self) -> None:
        """No more."""
        self._end.set()
        self._thread.join()
        self._line.close()

    @property
    def env(self) -> dict[str, str]:
        """What systemd puts into a service's environment."""
        return {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": str(int(WATCHDOG * 1e6))}

    def times(self, line: str) -> list[float]:
        """When a line came."""
        return [when for when, said, _ in list(self.heard) if said == line]

    def said(self, start: str) -> list[str]:
        """The lines that begin so."""
        return [said for _, said, _ in list(self.heard) if said.startswith(start)]

    def patient(self) -> bool:
        """A watchdog would not have barked."""
        fed = self.times("WATCHDOG=1")
        return len(fed) > 1 and all(after - before < WATCHDOG for before, after in itertools.pairwise(fed))
