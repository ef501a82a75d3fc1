"""What the live tests of health share: an app with a login wall and checks that can be made to fail, and receivers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SOURCE = '''
import os, time
from pathlib import Path
from flask import Flask, abort, redirect, request
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)

@app.before_request
def login_wall():
    if request.path.startswith("/broken"):
        raise RuntimeError("no database")
    if "user" not in request.cookies:
        return redirect("/login")

@app.after_request
def mark(response):
    response.headers["X-App"] = "mine"
    return response

@app.errorhandler(Exception)
def all_errors(error):
    return "the app's own page", 500

@app.get("/")
def index():
    return {"pid": os.getpid()}

@app.get("/give-up")
def give_up():
    stability.declare_broken("on purpose")
    return {}

@stability.health_check("search", critical=True, interval=float(os.environ.get("SEARCH_INTERVAL", 1)),
                        timeout=float(os.environ.get("SEARCH_TIMEOUT", 10)))
def search():
    with open("search.runs", "a") as file:
        file.write(f"{os.getpid()}\\n")
    while Path("search.hangs").exists():
        time.sleep(0.05)
    if Path("search.fails").exists():
        raise ConnectionError(111, "search:9200 refused, password=hunter2")
'''


class Receiver(ThreadingHTTPServer):
    """A webhook's receiver: keeps what it takes, answers each as it is told, then 200."""

    daemon_threads = True

    def __init__(self, *answers: int) -> None:
        self.got: list[dict[str, Any]] = []
        self.asked = 0
        self.answers = list(answers)

        class Handler(BaseHTTPRequestHandler):
            server: Receiver

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.server.asked += 1
                status = self.server.answers.pop(0) if self.server.answers else 200
                if status == 200:
                    self.server.got.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """Where it takes alerts."""
        return f"http://127.0.0.1:{self.server_port}/alerts"


@contextmanager
def receiving(*answers: int) -> Iterator[Receiver]:
    """A running receiver."""
    with Receiver(*answers) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()
