"""What the tests of the middleware and of the errors share: the error log as records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_stability import logs
from flask_stability.config import Settings
from flask_stability.request import in_flight, inflight
from wsgi_client import Answer, call, environ


@pytest.fixture
def serve() -> Callable[..., Answer]:
    """`call` as a fixture."""
    return call


@pytest.fixture
def make_environ() -> Callable[..., dict[str, Any]]:
    """`environ` as a fixture."""
    return environ


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The records of error.log so far."""
    logs.setup(Settings(log_dir=str(tmp_path / "logs")), "worker")
    logs.forget_storms()

    def read() -> list[dict[str, Any]]:
        path = tmp_path / "logs" / "error.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    yield read
    logs.teardown()


@pytest.fixture(autouse=True)
def nothing_left_in_flight() -> Iterator[None]:
    """Every request that a test began has ended."""
    inflight.clear()
    yield
    assert not in_flight()
