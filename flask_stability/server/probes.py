"""Probe a worker whose release is on trial before it serves: STABILITY_RELEASE_PROBES, and the app's checks.

Each probe and check runs in a thread of its own, with a deadline. A probe is a GET request, made in process like a
client's request; no statistic counts it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from werkzeug.test import EnvironBuilder

from ..apps import apps
from ..config import Settings
from ..health import results
from ..health.checks_base import CheckWarning
from ..health.state import PASS
from ..runtime import runtime

PATIENCE = 10.0  #: seconds for the answer to one probe, unless the request timeout is shorter


def failing(app: Callable[..., Any], settings: Settings) -> str:
    """Run all probes and checks; return the first failure in words, or "" if all pass.

    :param app: the WSGI app that the server calls.
    """
    seconds = min(PATIENCE, settings.request_timeout or PATIENCE)
    for path in settings.release_probes:
        problem = _within(seconds, lambda path=path: _ask(app, path))  # type: ignore[misc]
        if problem:
            return f"probe GET {path}: {problem}"
    return _checks(settings)


def _checks(settings: Settings) -> str:
    """Run the app's critical checks that pass in the serving release; return the first failure in words, or "" if none.
    """
    known = results.results(runtime.my_board())
    for state in apps.all():
        for check in state.checks:
            before = known.get(check.name)
            if not check.critical or not check.shared or before is None or before.status != PASS:
                continue
            problem = _within(check.timeout or settings.health_timeout, lambda check=check: _run(check))  # type: ignore[misc]
            if problem:
                return f"check {check.name}: {problem}"
    return ""


def _run(check: Any) -> str:
    try:
        check.function()
    except CheckWarning:
        pass
    return ""


def _ask(app: Callable[..., Any], path: str) -> str:
    status: list[str] = []

    def start_response(given: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        status.append(given)
        return lambda data: None

    builder = EnvironBuilder(path=path, headers=[("User-Agent", "flask_stability probe")])
    try:
        body = app(builder.get_environ(), start_response)
        try:
            for _ in body:
                pass
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
    finally:
        builder.close()
    if not status:
        return "no answer"
    return status[-1][:100] if status[-1][:1] == "5" else ""


def _within(seconds: float, ask: Callable[[], str]) -> str:
    found: list[str] = []

    def run() -> None:
        try:
            found.append(ask())
        except BaseException as error:
            found.append(f"{type(error).__name__}: {error}"[:200])

    thread = threading.Thread(target=run, name="stability-probe", daemon=True)
    began = time.monotonic()
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"no answer within {time.monotonic() - began:.1f} s"
