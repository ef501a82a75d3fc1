"""What the health endpoints cost while the database is frozen: WSGI calls in process, through the middleware.

``python tests/benchmarks/bench_health.py [seconds]``: a board of 64 rows with 4 live workers of 50 routes and 24 hours
of history; the background checks run and hang on a database that accepts connections and never says a word. Then a
scrape after so many replaced workers, beside prometheus_client's multiprocess files.
"""

from __future__ import annotations

import gc
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flask import Flask

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flask_stability import StabilityExt
from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.health import metrics
from flask_stability.health.history import SAMPLES, History, Sample
from flask_stability.runtime import runtime
from flask_stability.scoreboard import Scoreboard

WORKERS, ROUTES, ROWS = 4, 50, 64
MULTIPROCESS = """
import os, sys, time
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
requests = Counter("requests", "", ["method", "endpoint", "status"])
duration = Histogram("duration", "", ["method", "endpoint"])
for _ in range(int(sys.argv[1])):
    child = os.fork()
    if not child:
        for number in range(int(sys.argv[2])):
            requests.labels("GET", f"route{number}", "200").inc()
            duration.labels("GET", f"route{number}").observe(0.01)
        os._exit(0)
    os.waitpid(child, 0)
def scrape():
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    generate_latest(registry)
times = []
for _ in range(3):
    begin = time.perf_counter()
    scrape()
    times.append(time.perf_counter() - begin)
print(sorted(times)[1] * 1000, len(os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])))
"""


def work(row: sb.Row) -> None:
    for number in range(ROUTES):
        row.observe("GET", f"route{number}", 200, 3_000_000 + number * 100_000)


def full_board() -> Scoreboard:
    board = Scoreboard.anonymous(ROWS)
    for age in range(WORKERS):
        row = board.allocate(age)
        assert row is not None
        row.words[sb.W_PID], row.words[sb.W_STATE] = os.getpid() if not age else 10**6 + age, sb.STATE_READY
        row.words[sb.W_STARTED_NS] = row.words[sb.W_HEARTBEAT_NS] = time.monotonic_ns()
        work(row)
    history = History(board.master.history)
    for number in range(SAMPLES + 100):
        history.append(Sample(time.time() - 30 * (SAMPLES + 100 - number), requests=number / 20))
    return board


def frozen_database() -> socket.socket:
    """Accepts connections, as the kernel of a stopped server does, and says nothing."""
    return socket.create_server(("127.0.0.1", 0), backlog=64)


def make_app(database: socket.socket) -> Flask:
    app = Flask("bench")
    port = database.getsockname()[1]
    app.config.update(STABILITY_DB_URL=f"mysql://app:secret@127.0.0.1:{port}/app", STABILITY_HEALTH_DETAILS="always")
    stability = StabilityExt(app)

    @app.get("/")
    def index() -> str:
        with stability.connection() as connection:
            connection.cursor().execute("SELECT 1")
        return "never"

    return app


def call(app: Callable[..., Any], path: str) -> tuple[str, bytes]:
    given: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        given.append(status)
        return lambda data: None

    environ = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "",
               "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
               "HTTP_HOST": "localhost", "SERVER_SOFTWARE": "bench", "REMOTE_ADDR": "127.0.0.1",
               "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(),
               "wsgi.errors": sys.stderr, "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False}
    body = app(environ, start_response)
    data = b"".join(body)
    if hasattr(body, "close"):
        body.close()
    return given[0], data


def endpoints(seconds: float) -> None:
    board = full_board()
    runtime.install(board, board.rows[0])
    database = frozen_database()
    app = make_app(database)
    call(app, "/health")  # starts the background checks
    end = time.monotonic() + 20
    while b'"fail"' not in call(app, "/health")[1] and time.monotonic() < end:
        board.rows[0].words[sb.W_HEARTBEAT_NS] = time.monotonic_ns()  # the guard's part
        time.sleep(0.1)
    status, data = call(app, "/health")
    found = json.loads(data)["detailed"]["database"]
    print(f"/health says {status} in {len(data)} bytes; database: {found['status']}, {found['error']}")
    paths = ["/health/live", "/health/ready", "/health", "/health/metrics"]
    times: dict[str, list[float]] = {path: [] for path in paths}
    gc.collect()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        board.rows[0].words[sb.W_HEARTBEAT_NS] = time.monotonic_ns()
        for path in paths:
            begin = time.perf_counter()
            call(app, path)
            times[path].append((time.perf_counter() - begin) * 1000)
    print(f"{'':20} {'median':>9} {'p99':>9} {'worst':>9}  ms, of {len(times['/health'])} each")
    for path, each in times.items():
        each.sort()
        print(f"{path:20} {statistics.median(each):9.3f} {each[int(len(each) * 0.99)]:9.3f} {each[-1]:9.3f}")


def scrapes() -> None:
    board, settings = full_board(), replace(Settings())

    def scrape() -> float:
        times = []
        for _ in range(50):
            begin = time.perf_counter()
            metrics.exposition(board, settings, "")
            times.append(time.perf_counter() - begin)
        return statistics.median(times) * 1000

    print("a scrape after so many replaced workers, ms")
    print(f"{'':20} {'flask_stability':>16} {'multiprocess files':>20}")
    done = 0
    for replaced in (0, 16, 64, 256):
        while done < replaced:
            row = board.rows[1]
            board.release(row)
            fresh = board.allocate(1)
            assert fresh is not None
            fresh.words[sb.W_PID] = 2 * 10**6 + done
            work(fresh)
            done += 1
        with tempfile.TemporaryDirectory() as folder:
            other = subprocess.run(
                [sys.executable, "-c", MULTIPROCESS, str(replaced + WORKERS), str(ROUTES)], check=True, text=True,
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder}, capture_output=True).stdout.split()
        print(f"{replaced:20} {scrape():16.2f} {float(other[0]):20.1f}   ({other[1]} files)")


if __name__ == "__main__":
    endpoints(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
    scrapes()
    os._exit(0)  # threads that wait for the frozen database need not be waited for
