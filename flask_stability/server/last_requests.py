"""Describe a worker's last requests for the log: the master reads them from the black box."""

from __future__ import annotations

import time
from typing import Any

from ..scoreboard import Reason, black_box
from ..scoreboard.black_box import InFlight
from ..wsgi import routes
from ..wsgi.routes import Routes
from .workers import Child

MOST = 10  #: maximum number of requests that one record names
#: Exits that memory causes: the heaviest request comes first.
_OF_MEMORY = frozenset({Reason.OUT_OF_MEMORY, Reason.MEMORY, Reason.MEMORY_HARD, Reason.MEMORY_PRESSURE})


class LastRequests:
    """The master's reader of the black box. It never raises or waits."""

    def __init__(self) -> None:
        self._routes, self._read = Routes(), 0

    @staticmethod
    def part_of(child: Child) -> int:
        """Return the number of a worker's part of the black box.

        It is the row's number, the last one for the isolation worker, -1 = none.
        """
        box = black_box.current()
        if box is None:
            return -1
        part = box.rows - 1 if child.alone else child.row.slot if child.row is not None else -1
        return part if part < box.rows else -1

    def forget(self, child: Child) -> None:
        """Clear the part of the black box that a new worker gets."""
        box, part = black_box.current(), self.part_of(child)
        if box is not None and part >= 0:
            box.clear(part)

    def of(self, child: Child) -> list[InFlight]:
        """Return the requests that a worker serves, or served when it ended, the oldest first."""
        box, part = black_box.current(), self.part_of(child)
        try:
            return box.read(part) if box is not None and part >= 0 else []
        except Exception:  # the worker wrote this memory, and may have written anything
            return []

    def route_of(self, request: InFlight) -> str:
        """Return the URL rule that a request matches, or "" if it is unknown."""
        return self._table().of(request.method, request.path)

    def endpoints_of(self, route: str) -> set[str]:
        """Return the app's endpoints of a URL rule."""
        return self._table().endpoints_of(route)

    def _table(self) -> Routes:
        box = black_box.current()
        if box is not None and box.routes.writes != self._read:
            self._read = box.routes.writes
            self._routes = routes.decode(box.routes.read())
        return self._routes

    def in_words(self, requests: list[InFlight], reason: str, now_ns: int | None = None) -> dict[str, Any]:
        """Return fields for the record of an exit: the oldest requests first.

        :param reason: of the exit; for one that memory causes, the requests that made the worker grow most come first.
        """
        if not requests:
            return {}
        now = time.monotonic_ns() if now_ns is None else now_ns
        if reason in _OF_MEMORY:
            requests = sorted(requests, key=lambda one: (-one.grown_bytes, -one.body_bytes, one.started_ns))
        return {"in_flight_count": len(requests),
                "in_flight": [self.fields(one, now) for one in requests[:MOST]]}

    def fields(self, one: InFlight, now_ns: int) -> dict[str, Any]:
        """Return a record's fields for one request."""
        found: dict[str, Any] = {
            "request_id": one.request_id, "method": one.method, "path": one.path, "route": self.route_of(one),
            "fingerprint": in_hex(one.fingerprint), "seconds": round(one.seconds(now_ns), 3)}
        for name in ("body_bytes", "grown_bytes"):
            if getattr(one, name):
                found[name] = getattr(one, name)
        if one.answering:
            found["answering"] = True
        return found


def in_hex(fingerprint: int) -> str:
    """Return a fingerprint as logs and the command line show it."""
    return f"{fingerprint & 0xFFFF_FFFF_FFFF_FFFF:016x}"
