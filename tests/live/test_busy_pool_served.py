"""gunicorn: all connections of one worker are held for longer than a check may take; the service stays up."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import Server, wait_until
from support_db import MariaDB

pytestmark = pytest.mark.long

APP = """
import threading
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)
let_go = threading.Event()

@app.get("/hold")
def hold():
    with stability.connection() as connection:
        connection.execute("SELECT 1")
        let_go.wait(120)
    return "held"

@app.get("/let-go")
def release():
    let_go.set()
    return "let go"
"""


def test_a_busy_pool_is_no_dead_database(server: Callable[..., Server], mariadb: MariaDB) -> None:
    """`database` goes on passing, with news, while `pool` warns; /health is 200 throughout, and all is well after."""
    one = server(source=APP, worker_class="gthread", workers=1, threads=4,
                 env={"STABILITY_DB_URL": mariadb.url, "STABILITY_DB_MAX_SIZE": "2", "STABILITY_REQUEST_TIMEOUT": "0",
                      "STABILITY_HEALTH_INTERVAL": "1", "STABILITY_HEALTH_TIMEOUT": "10",
                      "STABILITY_HEALTH_TOKEN": "a-token-of-the-tests"})

    def state() -> tuple[str, str]:
        answer = one.get("/health", headers={"Authorization": "Bearer a-token-of-the-tests"})
        assert answer.status_code == 200, answer.text
        checks = answer.json()["detailed"]
        return checks["database"]["status"], checks["checks"]["pool"]["status"]

    wait_until(lambda: state() == ("pass", "pass"), message="all is well")
    with ThreadPoolExecutor(2) as clients:
        held = [clients.submit(one.get, "/hold") for _ in range(2)]
        try:
            wait_until(lambda: state() == ("pass", "warn"), 60, message="the pool warns")
            until = time.monotonic() + 6  # several rounds of checks: none of them fails
            wait_until(lambda: state()[0] != "pass" or time.monotonic() > until)
            assert state() == ("pass", "warn")
        finally:
            assert one.get("/let-go").text == "let go"
        assert [one.result(60).text for one in held] == ["held", "held"]
    wait_until(lambda: state() == ("pass", "pass"), 60, message="there is room again")
