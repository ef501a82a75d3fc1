"""What a request costs: bare Flask, flask_stability with everything on, and two others, side by side in one run.

``python tests/benchmarks/bench_request.py [seconds]``: each app answers the same WSGI request in process. It lives in
interpreters of its own, since sentry-sdk changes Flask for the whole process, and in several, since the place of
things in memory is worth a microsecond; they take turns of a few requests each, so that a noisy machine disturbs all
alike. A process tells the lower quartile of its single requests, printed is the median of its processes.
The others are wanted from ``pip install prometheus-flask-exporter sentry-sdk``; what is not installed is left out.
"""

from __future__ import annotations

import gc
import io
import itertools
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flask import Flask

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PROCESSES, TURN, WARM = 5, 40, 5
WSGI = Callable[..., Any]


def bare() -> WSGI:
    app = Flask("bench")

    @app.get("/hello/<name>")
    def hello(name: str) -> str:
        return f"Hello, {name}!"

    return app


def ours() -> WSGI:
    """As an app is with ``StabilityExt(app)``: under gunicorn that layer is the only one."""
    from flask_stability import StabilityExt

    app: Any = bare()
    StabilityExt(app)
    app.wsgi_app.on_first_request = None  # the background threads are no request's cost
    return app  # type: ignore[no-any-return]


def any_length() -> WSGI:
    """The heads of a real app's answers seldom repeat: each is as long as its content."""
    app: Any = ours()
    numbers = itertools.count()
    app.view_functions["hello"] = lambda name: "x" * (next(numbers) % 1500)
    return app  # type: ignore[no-any-return]


def both() -> WSGI:
    """With a second layer around it, as the server puts one around an app with middleware of its own."""
    from flask_stability import StabilityMiddleware

    return StabilityMiddleware(ours())


def socket_given() -> WSGI:
    """With the client's socket in the environ, as gunicorn has it there."""
    app = ours()
    client, _ = pair = socket.socketpair()
    app.config["pair"] = pair  # type: ignore[attr-defined]  # kept open

    def served(environ: dict[str, Any], start: Any) -> Any:
        environ["gunicorn.socket"] = client
        return app(environ, start)

    return served


def prometheus() -> WSGI:
    from prometheus_client import CollectorRegistry
    from prometheus_flask_exporter import PrometheusMetrics

    app: Any = bare()
    PrometheusMetrics(app, registry=CollectorRegistry())
    return app  # type: ignore[no-any-return]


def sentry() -> WSGI:
    import sentry_sdk

    sentry_sdk.init()
    return bare()


CONTENDERS = {"bare Flask": bare, "flask_stability": ours, "  in two layers": both,
              "  bodies of any length": any_length, "  with gunicorn's socket": socket_given,
              "prometheus-flask-exporter": prometheus, "sentry-sdk without a DSN": sentry}


def environ() -> dict[str, Any]:
    return {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/hello/world", "QUERY_STRING": "",
            "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost",
            "SERVER_SOFTWARE": "bench", "REMOTE_ADDR": "127.0.0.1", "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr,
            "wsgi.multithread": False, "wsgi.multiprocess": True, "wsgi.run_once": False,
            "wsgi.file_wrapper": _FileWrapper}


class _FileWrapper:
    pass


def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
    assert status == "200 OK"
    return _write


def _write(data: bytes) -> None:
    return None


def turn(app: WSGI, times: list[int]) -> None:
    """Some requests; how many nanoseconds each took goes to `times`, but for the first few after a pause."""
    clock = time.perf_counter_ns
    for number in range(TURN):
        each = environ()
        start = clock()
        body = app(each, start_response)
        for _ in body:
            pass
        close = getattr(body, "close", None)
        if close is not None:
            close()
        if number >= WARM:
            times.append(clock() - start)


def serve(make: Callable[[], WSGI], pipe: Connection) -> None:
    """A process: a turn for each word from the pipe; at its end the lower quartile in microseconds."""
    try:
        app = make()
    except ImportError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    times: list[int] = []
    gc.collect()
    gc.disable()
    while pipe.recv():
        turn(app, times)
        pipe.send(None)
    pipe.send(statistics.quantiles(times, n=4)[0] / 1000)


def measure(seconds: float) -> dict[str, list[float]]:
    """Microseconds per request, of each process of each contender."""
    spawn = multiprocessing.get_context("spawn")
    pipes: list[tuple[str, Connection]] = []
    left_out: set[str] = set()
    for name, make in list(CONTENDERS.items()) * PROCESSES:
        if name in left_out:
            continue
        mine, its = spawn.Pipe()
        spawn.Process(target=serve, args=(make, its), daemon=True).start()
        problem = mine.recv()
        if problem:
            print(f"{name}: left out, {problem}")
            left_out.add(name)
        else:
            pipes.append((name, mine))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _, pipe in pipes:
            pipe.send(True)
            pipe.recv()
    found: dict[str, list[float]] = {}
    for name, pipe in pipes:
        pipe.send(False)
        found.setdefault(name, []).append(pipe.recv())
    return found


def main(seconds: float) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # inherited: all take turns on one core
    found = measure(seconds)
    plain = statistics.median(found["bare Flask"])
    cost = statistics.median(found["flask_stability"]) - plain
    print("a WSGI request in process: microseconds, more than bare Flask, and how many times our cost that is")
    for name, each in found.items():
        extra = statistics.median(each) - plain
        times = f"{extra / cost:6.1f} ×" if name != "bare Flask" else ""
        print(f"{name:28} {statistics.median(each):7.1f} {extra:+8.1f} {times}   "
              f"(processes: {min(each) - plain:+.1f} to {max(each) - plain:+.1f})")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
