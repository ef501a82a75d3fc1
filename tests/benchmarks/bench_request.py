"""What a request costs: bare Flask, flask_stability with everything on, and two others, side by side in one run.

``python tests/benchmarks/bench_request.py [seconds]``: each app answers the same WSGI request in process; the apps
take turns in short rounds so that a noisy machine disturbs all alike; printed is the median of the rounds and the
median of the differences to bare Flask.
"""

from __future__ import annotations

import gc
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

ROUND = 200


def bare() -> Flask:
    app = Flask("bench")

    @app.get("/hello/<name>")
    def hello(name: str) -> str:
        return f"Hello, {name}!"

    return app


def ours() -> Callable[..., Any]:
    """Both layers, as under gunicorn with the server's hooks: the inner one steps aside."""
    from flask_stability import StabilityExt, StabilityMiddleware
    from flask_stability.config import Settings

    app = bare()
    StabilityExt(app)
    app.wsgi_app.on_first_request = None  # type: ignore[attr-defined]  # the background threads are no request's cost
    return StabilityMiddleware(app, settings=Settings())


def prometheus() -> Flask:
    from prometheus_client import CollectorRegistry
    from prometheus_flask_exporter import PrometheusMetrics

    app = bare()
    PrometheusMetrics(app, registry=CollectorRegistry())
    return app


def sentry() -> Flask:
    """Without a DSN. It patches Flask for the whole process: built last, measured on an app of its own."""
    import sentry_sdk

    sentry_sdk.init()
    return bare()


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


def one_round(app: Callable[..., Any]) -> float:
    """Microseconds per request."""
    environs = [environ() for _ in range(ROUND)]
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    for each in environs:
        body = app(each, start_response)
        for _ in body:
            pass
        if hasattr(body, "close"):
            body.close()
    elapsed = time.perf_counter() - start
    gc.enable()
    return elapsed / ROUND * 1e6


def measure(apps: dict[str, Callable[..., Any]], seconds: float) -> dict[str, list[float]]:
    rounds: dict[str, list[float]] = {name: [] for name in apps}
    for app in apps.values():
        one_round(app)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, app in apps.items():
            rounds[name].append(one_round(app))
    return rounds


def show(rounds: dict[str, list[float]], base: str) -> None:
    for name, times in rounds.items():
        extra = statistics.median(mine - plain for mine, plain in zip(times, rounds[base], strict=True))
        print(f"{name:28} {statistics.median(times):8.1f} µs   {extra:+8.1f} µs")


def main(seconds: float) -> None:
    apps: dict[str, Callable[..., Any]] = {"bare Flask": bare(), "flask_stability": ours()}
    try:
        apps["prometheus-flask-exporter"] = prometheus()
    except ImportError:
        print("prometheus-flask-exporter is not installed: left out")
    print(f"WSGI requests in process, median of rounds of {ROUND}")
    rounds = measure(apps, seconds)
    show(rounds, "bare Flask")
    try:
        patched = sentry()
    except ImportError:
        print("sentry-sdk is not installed: left out")
        return
    # sentry-sdk patches Flask.__call__ and the signals of every app: bare Flask is what was measured before
    rounds["sentry-sdk without a DSN"] = measure({"sentry": patched}, seconds / 3)["sentry"]
    size = min(len(times) for times in rounds.values())
    rounds = {name: times[:size] for name, times in rounds.items() if "sentry" in name or name == "bare Flask"}
    show({"bare Flask": rounds["bare Flask"], "sentry-sdk without a DSN": rounds["sentry-sdk without a DSN"]},
         "bare Flask")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
