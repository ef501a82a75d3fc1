"""Put an open-loop load on HTTP paths: send each request when it is due, whether or not earlier ones were answered.

A closed loop waits for a slow server and so hides its worst moments ("coordinated omission", Gil Tene). Here the
latency of a request counts from when it was due. One thread with its own event loop; one connection per request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Outcome:
    """One request.

    :ivar due: when it was due, `time.monotonic` seconds.
    :ivar latency: seconds from due to the last byte (or to the failure).
    :ivar status: HTTP status, 0 if there was no complete answer.
    :ivar error: name of the failure, or "".
    """

    due: float
    latency: float
    status: int
    error: str
    path: str

    @property
    def ok(self) -> bool:
        """Return whether it was answered completely and without a server error."""
        return 0 < self.status < 500


@dataclass
class Result:
    """All requests of a load so far."""

    outcomes: list[Outcome] = field(default_factory=list)

    def between(self, start: float, end: float) -> Result:
        """Return the requests that were due in that time."""
        return Result([outcome for outcome in self.outcomes if start <= outcome.due < end])

    @property
    def total(self) -> int:
        """Number of requests."""
        return len(self.outcomes)

    @property
    def ok(self) -> int:
        """Number of requests that were answered well."""
        return sum(outcome.ok for outcome in self.outcomes)

    @property
    def failed(self) -> int:
        """Number of the others."""
        return self.total - self.ok

    @property
    def availability(self) -> float:
        """Share of requests that were answered well; 1.0 without any."""
        return self.ok / self.total if self.total else 1.0

    @property
    def mean(self) -> float:
        """Mean latency in seconds of the answered requests."""
        answered = [outcome.latency for outcome in self.outcomes if outcome.status]
        return sum(answered) / len(answered) if answered else 0.0

    @property
    def worst(self) -> float:
        """Longest latency in seconds."""
        return max((outcome.latency for outcome in self.outcomes), default=0.0)

    def errors(self) -> dict[str, int]:
        """Return how often each kind of failure occurred."""
        return dict(Counter(outcome.error or f"HTTP {outcome.status}" for outcome in self.outcomes if not outcome.ok))

    def last_failure(self) -> float | None:
        """Return when the last failed request was due, monotonic seconds; None without a failure."""
        return max((outcome.due for outcome in self.outcomes if not outcome.ok), default=None)


class Load:
    """GET `paths` in turn, `rate` times a second, until stopped.

    :param timeout: seconds that a request may take once it is sent.
    :param most: most requests under way at once; one that is due beyond it fails as "client overload".
    """

    def __init__(self, url: str, paths: Sequence[str], rate: float, *, timeout: float = 30.0, most: int = 2000) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._paths, self._rate, self._timeout, self._most = list(paths), rate, timeout, most
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)
        self.result = Result()

    def start(self) -> Load:
        """Start the load."""
        self._thread.start()
        return self

    def stop(self) -> Result:
        """Send no more requests, wait for the outstanding answers, and return the result."""
        self._stop.set()
        self._thread.join(self._timeout + 10)
        return self.result

    async def _run(self) -> None:
        start, sent, pending = time.monotonic(), 0, set[asyncio.Task[None]]()
        while not self._stop.is_set():
            due = start + sent / self._rate
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            path = self._paths[sent % len(self._paths)]
            sent += 1
            if len(pending) >= self._most:
                self.result.outcomes.append(Outcome(due, 0.0, 0, "client overload", path))
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(self._one(path, due))
            pending.add(task)
            task.add_done_callback(pending.discard)
        if pending:
            await asyncio.wait(pending, timeout=self._timeout + 5)

    async def _one(self, path: str, due: float) -> None:
        status, error = 0, ""
        try:
            async with asyncio.timeout(self._timeout):
                status = await self._get(path)
        except Exception as failure:
            error = failure.__class__.__name__
        self.result.outcomes.append(Outcome(due, time.monotonic() - due, status, error, path))

    async def _get(self, path: str) -> int:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
                         "User-Agent: flask-stability-drill\r\n\r\n".encode("latin-1"))
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            body = await reader.read()
            if not _complete(head.lower(), body):
                raise ConnectionError("the answer was cut")
            return status
        finally:
            writer.close()


def _complete(head: bytes, body: bytes) -> bool:
    """Return whether the body is whole, as far as the headers tell."""
    if b"\r\ntransfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    _, found, rest = head.partition(b"\r\ncontent-length:")
    return not found or len(body) >= int(rest.split(b"\r\n", 1)[0])
