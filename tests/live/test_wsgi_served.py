"""What WSGI promises, seen by a client of the real server."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from support import Server, wait_until

SOURCE = '''
import time
from pathlib import Path
from flask import Flask, send_file
from flask_stability import StabilityExt

app = Flask(__name__)
StabilityExt(app)

@app.get("/stream")
def stream():
    def body():
        yield "first"
        while not Path("go").exists():
            time.sleep(0.01)
        yield "second"
    return body()

@app.get("/file")
def file():
    return send_file(Path("large").absolute())
'''
#: The server's way of a file, and of whatever is written in pieces.
TELLING = """
from gunicorn.http.wsgi import Response
_sendfile = Response.sendfile
def _telling(self, *args):
    sent = _sendfile(self, *args)
    with open("sendfile", "a") as told:
        told.write(f"{sent} {type(args[0]).__name__}\\n")
    return sent
Response.sendfile = _telling
"""


@pytest.mark.parametrize("preload", [False, True])
def test_a_file_is_sent_by_the_kernel(server: Callable[..., Server], worker_class: str, preload: bool) -> None:
    """Through both layers gunicorn still knows its own wrapper, and the file is whole and counted."""
    one = server(source=SOURCE, worker_class=worker_class, config=f"preload_app = {preload}\n{TELLING}")
    content = bytes(range(256)) * 4096
    (one.folder / "large").write_bytes(content)
    answer = one.get("/file")
    assert (answer.status_code, answer.content) == (200, content)
    told = one.folder / "sendfile"
    wait_until(lambda: told.exists() and told.read_text() == "True FileWrapper\n", message="the server's way is told")
    wait_until(lambda: one.health()["detailed"]["requests"]["by_class"]["2xx"] == 1, message="it is counted")


def test_a_streams_first_piece_is_with_the_client_before_the_second_is_made(server: Callable[..., Server],
                                                                           worker_class: str) -> None:
    """The view waits for a sign that the client gives only then."""
    one = server(source=SOURCE, worker_class=worker_class)
    with socket.create_connection(("127.0.0.1", one.port), 30) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        got = b""
        while b"first" not in got:
            piece = client.recv(4096)
            assert piece, got
            got += piece
        assert b"second" not in got
        (one.folder / "go").touch()
        while piece := client.recv(4096):
            got += piece
    assert b"second" in got
