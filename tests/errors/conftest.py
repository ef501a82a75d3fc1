"""What the tests of the middleware and of the errors share: a server in miniature, and the error log as records."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest

from flask_stability import logs
from flask_stability.config import Settings
from flask_stability.request import inflight


@dataclass
class Answer:
    """What a client saw of one request."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    starts: int = 0
    cut: BaseException | None = None
    source: Any = None

    @property
    def problem(self) -> dict[str, Any]:
        """The body as a problem document."""
        assert self.headers["Content-Type"] == "application/problem+json"
        document: dict[str, Any] = json.loads(self.body)
        return document


def environ(path: str = "/", method: str = "GET", **extra: Any) -> dict[str, Any]:
    """As gunicorn makes it."""
    return {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "",
            "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost",
            "SERVER_SOFTWARE": "tests/1", "REMOTE_ADDR": "192.0.2.1", "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr,
            "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper, **extra}


def call(app: Any, path: str = "/", method: str = "GET", **extra: Any) -> Answer:
    """Serve one request as gunicorn does; what reaches the server is in `cut`."""
    answer = Answer()

    def write(data: bytes) -> None:
        assert type(data) is bytes
        answer.body += data

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        if answer.starts and exc_info is not None and answer.body:
            raise exc_info[1]
        assert answer.starts == 0 or exc_info is not None
        answer.starts += 1
        answer.status = int(status[:3])
        answer.headers = dict(headers)
        return write

    body: Any = None
    try:
        body = answer.source = app(environ(path, method, **extra), start_response)
        try:
            for chunk in body:
                write(chunk)
        finally:
            if hasattr(body, "close"):
                body.close()
    except BaseException as error:
        answer.cut = error
    return answer


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
    assert not inflight
