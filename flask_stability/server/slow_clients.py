"""A worker's guard against slow clients: finds the threads that wait for one, and cuts connections that are too slow.

A thread that waits for a client does not hang: the request's deadline, and gunicorn's ``timeout`` on sync, are about
the app. A minimum rate of the client bounds the wait; below it, the guard cuts that connection and does nothing else.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from typing import Any

from .. import logs
from ..config import Settings
from ..errors.report import request_fields
from ..request import RequestRecord, inflight, min_rate
from ..wsgi.upload import Meter, Upload
from .gunicorn.connections import Connections, Served

PATIENCE = 5.0  #: seconds that a client may hold a thread when others find no thread and the worker can add none
AGAIN = 60.0  #: seconds between two log records about cut clients
AFTER_CUT = 5.0  #: seconds that a view has to end after the guard cut its client
HEAD, BODY, RESPONSE = "head", "body", "response"
_BYTES_ACKED = 120  #: offset in Linux's struct tcp_info


class _Watched:
    """The guard's notes on one connection."""

    __slots__ = ("alone", "looked", "meters", "since", "waits_for")

    def __init__(self, now: float) -> None:
        self.looked = now
        self.since = self.alone = 0.0
        self.waits_for = ""
        self.meters = {BODY: Meter(), RESPONSE: Meter()}


class SlowClients:
    """The slow clients of one worker.

    :ivar waiting: how many threads wait for a client now.
    """

    def __init__(self, connections: Connections, settings: Settings) -> None:
        self._connections, self._settings = connections, settings
        self.waiting = 0
        self._blocked: list[tuple[float, Served, RequestRecord | None]] = []
        self._cut: dict[str, int] = {}
        self._example: dict[str, Any] = {}
        self._tell_at = 0.0

    def look(self, now: float, *, pressed: bool) -> None:
        """Find the threads that wait for a client, and cut the connections that are too slow.

        :param now: monotonic seconds.
        :param pressed: other requests wait for a thread.
        """
        late = self._connections.too_late(now, self._settings.header_timeout)
        if late:
            self._cut[HEAD] = self._cut.get(HEAD, 0) + late
        self._blocked = []
        # `list(….items())` may run the garbage collector midway
        for thread, served in self._connections.serving.copy().items():
            self._one(now, served, _outermost(inflight.get(thread)), pressed)
        self.waiting = sum(since < now or served.watched.waits_for != HEAD for since, served, _ in self._blocked)
        if self._cut and now >= self._tell_at:
            self._tell(now)

    def _one(self, now: float, served: Served, record: RequestRecord | None, pressed: bool) -> None:
        watched: _Watched = served.watched or _Watched(now)
        served.watched = watched
        seconds, watched.looked = now - watched.looked, now
        before, watched.waits_for = watched.waits_for, _waits_for(served, record)
        if record is not None:
            watched.alone = 0.0
        if not watched.waits_for:
            watched.since = 0.0
            self._pass(served, record)
            return
        if watched.waits_for != before:
            watched.since, seconds = now, 0.0  # the wait began at an unknown time since the last look
        self._blocked.append((watched.since, served, record))
        if served.cut:
            return
        if record is None:
            watched.alone += seconds
            if self._settings.header_timeout and watched.alone > self._settings.header_timeout:
                self.cut(served, None, HEAD)
            return
        rate = min_rate(record, self._settings.client_min_rate)
        if not rate:
            return
        total = _received(record) if watched.waits_for == BODY else _sent(served)
        if total >= 0 and watched.meters[watched.waits_for].look(seconds, total, rate) and (
                pressed or watched.waits_for == BODY):
            self.cut(served, record, watched.waits_for)

    def _pass(self, served: Served, record: RequestRecord | None) -> None:
        """Take note of the bytes received while the thread does not wait; they count in the client's favour."""
        upload = _upload(record)
        if upload is not None and served.watched is not None:
            served.watched.meters[BODY].look(0.0, upload.received, 0.0)

    def patient(self) -> bool:
        """Return whether all awaited clients may take their time; on sync, gunicorn should then be patient as well."""
        return bool(self._blocked) and all(not served.cut and (record is not None or not served.connection)
                                           and isinstance(served.address, tuple)
                                           for _, served, record in self._blocked)

    def give_way(self, now: float, number: int) -> int:
        """Cut the clients that threads have awaited longest, since other requests find no thread.

        Return how many were late.

        :param now: monotonic seconds.
        :param number: how many to cut at most.
        """
        late = sorted((item for item in self._blocked if now - item[0] > PATIENCE and not item[1].cut),
                      key=lambda item: item[0])[:number]
        for _, served, record in late:
            if record is None or min_rate(record, self._settings.client_min_rate):
                self.cut(served, record, served.watched.waits_for)
        return len(late)

    def overdue(self, now: float, record: RequestRecord) -> bool:
        """Return whether the client is to blame for a request past its deadline; cut it in that case."""
        upload = _upload(record)
        if upload is None:
            return False
        if upload.cut_at:
            return now - upload.cut_at < AFTER_CUT
        served = self._connections.serving.get(record.thread_id)
        if served is None or not upload.reading:
            return False
        logs.error("upload_overdue", level="WARNING", received_bytes=upload.received, **request_fields(record))
        self.cut(served, record, BODY)
        return True

    def cut(self, served: Served, record: RequestRecord | None, what: str) -> None:
        """Cut one connection. An awaited body ends there, so that the app can still answer the client.

        :param what: the part that the thread waits for: `HEAD`, `BODY` or `RESPONSE`.
        """
        upload = _upload(record)
        if upload is not None:
            upload.cut_at = served.watched.looked if served.watched else 1.0
        served.shut(socket.SHUT_RD if what == BODY else socket.SHUT_RDWR)
        self._cut[what] = self._cut.get(what, 0) + 1
        if record is not None:
            self._example = request_fields(record)

    def _tell(self, now: float) -> None:
        """Log the cut clients, at most once a minute."""
        cut, example = self._cut, self._example
        self._cut, self._example, self._tell_at = {}, {}, now + AGAIN
        logs.error("slow_clients_cut", level="WARNING", heads=cut.get(HEAD, 0), bodies=cut.get(BODY, 0),
                   responses=cut.get(RESPONSE, 0), **example)


def _outermost(record: RequestRecord | None) -> RequestRecord | None:
    while record is not None and record.outer is not None:
        record = record.outer
    return record


def _upload(record: RequestRecord | None) -> Upload | None:
    found = record.environ.get("wsgi.input") if record is not None else None
    return found if isinstance(found, Upload) else None


def _received(record: RequestRecord) -> int:
    upload = _upload(record)
    return upload.received if upload is not None else -1


def _waits_for(served: Served, record: RequestRecord | None) -> str:
    """Return which part of the client's exchange a thread waits for; "" = none."""
    if record is None:
        return "" if getattr(served.connection, "is_http2", False) else HEAD
    upload = _upload(record)
    if upload is not None and upload.reading:
        return BODY
    return RESPONSE if record.response_started and not _writable(served.descriptor) else ""


def _writable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _sent(served: Served) -> int:
    """Return the bytes that the client's system has acknowledged; -1 where the kernel does not report it.

    That is so for Unix sockets, whose client is a proxy of ours.
    """
    found = served.duplicate()
    if found is None:
        return -1
    with found, contextlib.suppress(OSError, struct.error):
        return int(struct.unpack_from("=Q", found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256),
                                      _BYTES_ACKED)[0])
    return -1
