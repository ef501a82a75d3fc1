"""What a worker on trial asks itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from flask_stability.config import Settings
from flask_stability.server import probes


def _app() -> Callable[..., Any]:
    app = Flask("probed")

    @app.get("/orders")
    def orders() -> str:
        return "orders"

    @app.get("/broken")
    def broken() -> str:
        raise KeyError("price")

    @app.get("/slow")
    def slow() -> str:
        time.sleep(2.0)
        return "late"

    app.config["PROPAGATE_EXCEPTIONS"] = False
    return app


@pytest.mark.parametrize(("path", "problem"), [
    ("/orders", ""), ("/orders?page=2", ""), ("/nowhere", ""), ("/broken", "probe GET /broken: 500"),
    ("/slow", "probe GET /slow: no answer within 0.")])
def test_a_probe_fails_for_5xx_or_no_answer(path: str, problem: str) -> None:
    """A missing page is an answer."""
    settings = replace(Settings(), release_probes=("/orders", path), request_timeout=0.5)
    found = probes.failing(_app(), settings)
    assert found.startswith(problem)
    assert bool(found) is bool(problem)


def test_an_app_that_raises_or_says_nothing_fails() -> None:
    """Whatever WSGI app it is."""
    def raises(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise RuntimeError("no")

    def silent(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return []

    settings = replace(Settings(), release_probes=("/",))
    assert probes.failing(raises, settings) == "probe GET /: RuntimeError: no"
    assert probes.failing(silent, settings) == "probe GET /: no answer"
