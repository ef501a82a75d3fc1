"""The matrix of exceptions: where each is born, and what has to become of it, on both kinds of worker.

`CASES` are the rows that leave the worker alive, asked one after the other of one server; the other rows need a
server of their own and stand as functions in test_exceptions.py and in the tests of the supervision, in `ELSEWHERE`.
``python tests/live/matrix.py`` prints how many rows have a case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ERROR: dict[str, Any] = {"event": "exception", "level": "ERROR"}
CRITICAL: dict[str, Any] = {"event": "exception", "level": "CRITICAL"}


@dataclass(frozen=True)
class Case:
    """One row or a part of one.

    :ivar row: its number in the list of all rows.
    :ivar status: what the client gets; 0 = none, a connection closed without an answer.
    :ivar whole: the client can tell that the answer is complete; False: that it was cut.
    :ivar records: fields that each expected record has, in order; none expected if empty. The key "type" is the
        class of its exception, "chain" how many exceptions it tells.
    :ivar headers: headers of the answer.
    :ivar body: a part of the body, instead of a problem document for errors.
    :ivar outside: the records are not of the request, but of a thread or the like.
    """

    row: str
    path: str
    status: int = 500
    records: tuple[dict[str, Any], ...] = ()
    method: str = "GET"
    data: bytes | None = None
    whole: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    outside: bool = False

    @property
    def name(self) -> str:
        """For the test's name."""
        return f"{self.row}{self.path.replace('/', '-')}{'' if self.method == 'GET' else '-' + self.method}"


def one(kind: str, **fields: Any) -> tuple[dict[str, Any], ...]:
    """One record of an exception of that class."""
    return ({**ERROR, "type": kind, **fields},)


def fatal(kind: str, **fields: Any) -> tuple[dict[str, Any], ...]:
    """One record of a BaseException of that class."""
    return ({**CRITICAL, "type": kind, **fields},)


CASES = [
    # 1: inside Flask
    Case("1", "/at/view/value", records=one("ValueError", route="/at/<place>/<kind>", chain=1)),
    Case("1", "/at/before_request/value", records=one("ValueError")),
    # (the second: Flask saves the session that was never opened)
    Case("1", "/at/session/value", records=(*one("ValueError"), {"event": "finalizing_failed", "level": "WARNING"})),
    Case("1", "/template", records=one("ZeroDivisionError")),
    Case("1", "/async", records=one("ValueError")),
    Case("1", "/none", records=one("TypeError")),
    Case("1", "/at/view/memory", records=one("MemoryError")),
    Case("1", "/at/view/recursion", records=one("RecursionError")),
    Case("1", "/at/view/stop", records=one("StopIteration")),
    Case("1", "/at/view/mute", records=one("app.Mute")),
    # 2: HTTP exceptions
    Case("2", "/abort/404", 404),
    Case("2", "/json", 413, method="POST", data=b'"longer than ten"'),
    Case("2", "/json", 400, method="POST", data=b"{"),
    Case("2", "/ok", 405, method="POST", data=b"", headers={"Allow": "GET"}),
    Case("2", "/busy", 429, headers={"Retry-After": "7"}),
    Case("2", "/login", 401, headers={"WWW-Authenticate": "Basic realm"}),
    # 3: abort(500)
    Case("3", "/abort/500", records=({"event": "server_error", "level": "ERROR", "status": 500, "chain": 0},)),
    Case("3", "/abort/response", records=({"event": "server_error", "chain": 0},), body="kept"),
    # 4, 5: after the view
    Case("4", "/at/after_request/value", records=one("ValueError")),
    Case("5", "/at/teardown_request/value", records=one("ValueError")),
    Case("5", "/at/teardown_appcontext/value", records=one("ValueError")),
    # 6: handlers
    Case("6", "/handler/one", records=one("ValueError", chain=2), body="the app's own page"),
    Case("6", "/handler/both", records=(*one("ValueError", chain=2), *one("OSError"))),
    # 7: receivers of signals
    Case("7", "/at/request_started/value", records=one("ValueError")),
    Case("7", "/at/request_finished/value", records=one("ValueError")),
    Case("7", "/at/got_request_exception/value", records=(*one("KeyError"), *one("ValueError", chain=2))),
    # 8: what gunicorn takes for a client that left
    *(Case(row, f"{place}/{kind}", records=one(name))
      for row, kind, name in (("8a", "oserror", "OSError"), ("8b", "reset", "ConnectionResetError"),
                              ("8b", "pipe", "BrokenPipeError"), ("8b", "stop", "StopIteration"))
      for place in ("/outside", "/at/teardown_request")),
    Case("8a", "/first/oserror", records=one("OSError")),
    Case("8b", "/first/reset", records=one("ConnectionResetError")),
    Case("8b", "/first/stop", records=one("RuntimeError", chain=2)),
    # 10 to 13: bodies
    Case("10", "/first/value", records=one("ValueError")),
    Case("11", "/middle/value", 200, one("ValueError", response_started=True), whole=False),
    Case("11", "/middle/oserror", 200, one("OSError", response_started=True), whole=False),
    Case("12", "/middle/exit3", 200, fatal("SystemExit", response_started=True), whole=False),
    Case("12", "/middle/genexit", 200, fatal("GeneratorExit"), whole=False),
    Case("12", "/middle/odd", 200, fatal("app.Odd"), whole=False),
    Case("13", "/close/value", 200, one("ValueError", response_started=True), body="whole"),
    Case("13", "/close/exit3", 200, fatal("SystemExit"), body="whole"),
    # 14 to 16: outside of Flask
    Case("14", "/outside/value", records=one("ValueError")),
    *(Case("15", f"/garbage/{name}", records=one(kind))
      for name, kind in (("none", "TypeError"), *((name, "flask_stability.wsgi.validation.InvalidResponse")
                                                  for name in ("status", "header", "twice")))),
    Case("16", "/garbage/str", records=one("flask_stability.wsgi.validation.InvalidResponse")),
    Case("16", "/garbage/no-start", records=one("flask_stability.wsgi.validation.InvalidResponse")),
    Case("16", "/garbage/short", 200, ({"event": "content_length_mismatch", "level": "WARNING", "sent": 5},),
         whole=False),
    # 17 to 19: what would end the worker
    *(Case("17", f"{place}/{kind}", records=fatal("SystemExit"))
      for place, kind in (("/at/view", "exit0"), ("/at/view", "exit3"), ("/at/view", "exit4"),
                          ("/at/before_request", "exit3"), ("/at/after_request", "exit3"),
                          ("/at/teardown_request", "exit3"), ("/first", "exit3"), ("/outside", "exit4"))),
    *(Case("18", f"{place}/interrupt", records=fatal("KeyboardInterrupt"))
      for place in ("/at/view", "/first", "/outside")),
    *(Case("19", f"{place}/{kind}", records=fatal(name))
      for kind, name in (("genexit", "GeneratorExit"), ("odd", "app.Odd"),
                         ("cancelled", "asyncio.exceptions.CancelledError"))
      for place in ("/at/view", "/first")),
    # 21 to 24: outside of the request
    Case("21", "/thread/value", 200, ({"event": "thread_failed", "level": "ERROR", "thread": "matrix-thread"},),
         outside=True),
    Case("21", "/thread/exit3", 200, ({"event": "thread_failed", "type": "SystemExit"},), outside=True),
    Case("21", "/timer", 200, ({"event": "thread_failed", "type": "ValueError"},), outside=True),
    Case("22", "/future", 200, ({"event": "future_failed", "type": "ValueError"},), outside=True),
    Case("23", "/task", 200, ({"event": "asyncio", "type": "ValueError"},), outside=True),
    Case("23", "/coroutine", 200, ({"event": "warning", "category": "RuntimeWarning"},), outside=True),
    Case("24", "/del", 200, ({"event": "unraisable", "type": "ValueError"},), outside=True),
    Case("24", "/weakref", 200, ({"event": "unraisable", "type": "ValueError"},), outside=True),
    # 38: what a client writes into a log
    Case("38", "/a%0a%1b%5b31mforged%0d", records=one("ValueError", path="/a\n\x1b[31mforged\r")),
]

#: Rows with a test of their own, by its name: in test_exceptions.py, or the file that is named.
ELSEWHERE = {
    "9": "test_a_log_that_cannot_be_written_costs_no_request",
    "20": "test_a_worker_that_dies_is_replaced_and_the_master_lives",
    "24": "test_an_atexit_function_that_fails_is_recorded",
    "25": "test_a_signal_handler_that_raises",
    "26": "test_a_forked_child_that_raises_leaves_the_worker_alone",
    "27": "test_an_app_that_never_worked_fails_fast",
    "28": "test_an_app_that_never_worked_fails_fast",
    "29": "test_system_exit_at_import_is_retried_with_backoff",
    "30": "test_a_worker_that_fails_to_boot_leaves_the_others_serving",
    "31": "test_a_worker_that_dies_is_replaced_and_the_master_lives",
    "32": "test_a_worker_that_dies_is_replaced_and_the_master_lives",
    "33": "test_a_hang_is_ended_and_told",
    "34": "test_a_hang_is_ended_and_told",
    "35": "test_a_body_that_never_ends_holds_no_thread_for_ever",
    "36": "test_a_client_that_leaves_is_no_error",
    "37": "test_a_malformed_request_is_gunicorns",
    "39": "test_a_hook_that_raises_leaves_the_master_alive",
    "40": "test_what_sigterm_cuts_is_told",
}

ROWS = [*(str(number) for number in range(1, 8)), "8a", "8b", *(str(number) for number in range(9, 41))]


def observed() -> list[str]:
    """The rows that have a case."""
    covered = {case.row for case in CASES} | set(ELSEWHERE)
    return [row for row in ROWS if row in covered]


if __name__ == "__main__":
    missing = [row for row in ROWS if row not in observed()]
    print(f"{len(observed())} of {len(ROWS)} rows observed" + (f"; not: {', '.join(missing)}" if missing else ""))
