"""A WSGI server in miniature, that does with an app what gunicorn does."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from wsgiref.util import FileWrapper


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
    """As gunicorn makes it; without what is given as None."""
    made = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "",
            "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost",
            "SERVER_SOFTWARE": "tests/1", "REMOTE_ADDR": "192.0.2.1", "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr,
            "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper, **extra}
    return {name: value for name, value in made.items() if value is not None}


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
