"""Fixtures of the live tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import Server


@pytest.fixture(params=["sync", "gthread"])
def worker_class(request: pytest.FixtureRequest) -> str:
    """Both kinds of worker."""
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    started: list[Server] = []

    def start(**options: Any) -> Server:
        one = Server(tmp_path / f"server{len(started)}", **options)
        started.append(one)
        return one.start()

    yield start
    for one in started:
        one.stop()
