"""Look at in-flight requests: past their deadline, long, or about to be cut."""

from __future__ import annotations

from typing import Any

from ... import logs, scoreboard
from ...errors import own_line
from ...errors.report import request_fields, stack_of
from ...request import RequestRecord, held, in_flight
from ...scoreboard import Reason, Row, Scoreboard
from ...signals import request_overdue, send
from ..slow_clients import SlowClients
from .retirement import Retirement

SHOWN_AFTER = 5.0  #: seconds after which a request appears among the hanging ones
SHOWN_ON_TRIAL = 2.0  #: the same while two releases are compared
MOST_SHOWN = 20


class Requests:
    """The in-flight requests of one worker.

    :param clients: its slow clients, None if nothing watches them.
    """

    def __init__(self, board: Scoreboard, row: Row, clients: SlowClients | None, retirement: Retirement) -> None:
        self._master = board.master.words
        self._row, self._clients, self._retirement = row, clients, retirement
        self._hung, self._hung_at = 0, 0.0

    def requests(self, now: float) -> None:
        """Log each request past its deadline with its thread's stack, and ask for the worker's replacement."""
        for record in in_flight():
            if record.deadline and now > record.deadline and not record.response_started and not record.overdue:
                if self._clients is not None and self._clients.overdue(now, record):
                    continue
                record.overdue = True
                self._row.add(scoreboard.W_OVERDUE)
                logs.error("request_overdue", level="CRITICAL", **request_fields(record),
                           stack=stack_of(record.thread_id))
                self._retirement.ask(Reason.DEADLINE, f"a request is past its deadline: {record.path[:200]}")
                send(request_overdue, "flask_stability", request_id=record.id, path=record.path,
                     seconds=record.seconds())

    def show_hung(self, now: float) -> None:
        """Publish the long requests that have not begun to answer, longest first, for the health document."""
        if now - self._hung_at < 1.0:
            return
        self._hung_at = now
        after = SHOWN_ON_TRIAL if self._master[scoreboard.M_KEEP_CODE] else SHOWN_AFTER
        found = sorted((record for record in in_flight() if record.thread_id not in held
                        and record.seconds() - record.held_ns / 1e9 > after and not record.response_started
                        and not record.taken_ns), key=lambda record: record.started_ns)
        if found or self._hung:
            entries = [{"method": record.method[:16], "route": record.route[:200], "endpoint": record.endpoint[:200],
                        "path": record.path[:200], "started_ns": record.started_ns, "request_id": record.id,
                        "where": own_line.of_thread(record.thread_id)} for record in found[:MOST_SHOWN]]
            while not self._row.hung.write_json(entries) and entries:
                entries.pop()
        self._hung = len(found)


def tell_cut() -> None:
    """Log every request in flight with its stack: it is about to be cut."""
    for record in in_flight():
        if not record.taken_ns:
            logs.error("request_cut", **request_fields(record), stack=stack_of(record.thread_id))


def with_stack(record: RequestRecord) -> dict[str, Any]:
    """Return the fields of a request and its thread's latest frames."""
    return {**request_fields(record), "stack": stack_of(record.thread_id)[-8:]}
