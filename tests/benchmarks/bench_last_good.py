"""The last good answer: what a hit costs beside the view's own SELECT, and what clients see of an outage.

``python tests/benchmarks/bench_last_good.py [seconds of outage]``: a real MariaDB; in process the same view with and
without ``keep``, taking turns, lower quartiles of single requests; then gunicorn (gthread, 2 × 4) under 120 requests/s
with the database killed, its 500 misses at once, and the time until a killed worker's computation is taken over.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_TESTS / "live"), str(_TESTS), str(_TESTS.parent)]

from flask import Flask  # noqa: E402
from supervised import starting  # noqa: E402
from test_last_good_served import SOURCE, ask, runs  # noqa: E402

from flask_stability import StabilityExt  # noqa: E402
from flask_stability.operate.loadgen import Load, Result  # noqa: E402
from support import wait_until  # noqa: E402
from support_db import MariaDB  # noqa: E402
from wsgi_client import call  # noqa: E402

ROUNDS, TURN = 100, 20


def quartile(times: list[float]) -> float:
    return statistics.quantiles(times, n=4)[0] * 1e6


def hit(database: MariaDB, folder: str) -> None:
    """A row by its key, the cheapest SELECT that a view does."""
    app = Flask("bench", instance_path=folder)
    app.config.update(STABILITY_DB_URL=database.url, STABILITY_KEEP_DIR=folder)
    stability = StabilityExt(app)
    app.wsgi_app.on_first_request = None  # type: ignore[attr-defined]

    def view() -> dict[str, str]:
        with stability.connection() as connection:
            return {"name": connection.execute("SELECT name FROM bench WHERE sku = 'a'").fetchone()[0]}

    app.add_url_rule("/plain", "plain", view)
    app.add_url_rule("/bare", "bare", lambda: {"name": "Kettle"})
    app.add_url_rule("/kept", "kept", stability.keep(fresh=1e6, stale=1)(view))
    with app.app_context(), stability.connection() as connection:
        connection.execute("CREATE TABLE bench (sku VARCHAR(9) PRIMARY KEY, name VARCHAR(99))")
        connection.execute("INSERT INTO bench VALUES ('a', 'Kettle')")
    times: dict[str, list[float]] = {"/plain": [], "/bare": [], "/kept": []}
    for _ in range(ROUNDS):
        for path, found in times.items():
            for _ in range(TURN):
                begin = time.perf_counter()
                assert call(app, path).status == 200
                found.append(time.perf_counter() - begin)
    plain, bare, kept = (quartile(times[path]) for path in ("/plain", "/bare", "/kept"))
    print(f"in process, µs: without database {bare:.0f}, the view with its SELECT {plain:.0f} (+ {plain - bare:.0f}), "
          f"a hit {kept:.0f} (+ {kept - bare:.0f}): {(kept - bare) / (plain - bare):.2f} of the SELECT")


def tell(name: str, load: Load) -> None:
    """Of each path: one that needs no database is the peer."""
    result = load.stop()
    for path in sorted({outcome.path for outcome in result.outcomes}):
        found = Result([outcome for outcome in result.outcomes if outcome.path == path])
        times = sorted(outcome.latency * 1000 for outcome in found.outcomes)
        print(f"{name}: {path} {found.total} requests, failed {found.errors() or 0}, "
              f"median {times[len(times) // 2]:.1f} ms, p99 {times[len(times) * 99 // 100]:.1f} ms, "
              f"worst {times[-1]:.1f} ms")


def outage(database: MariaDB, folder: Path, seconds: float) -> None:
    with starting(folder) as start:
        server = start(source=SOURCE, workers=2, env={"STABILITY_DB_URL": database.url})
        server.full(2)
        assert ask(server, "/kept")[0] == 200
        for name, fault in (("killed", database.kill9), ("frozen", database.freeze)):
            wait_until(lambda: int(ask(server, "/kept")[1].get("Age", 0)) == 0)
            fault()
            load = Load(server.url, ["/kept", "/"], 120).start()
            threading.Event().wait(seconds)
            tell(f"database {name} for {seconds:g} s, 120 requests/s", load)
            (database.start if name == "killed" else database.thaw)()
        load = Load(server.url, ["/slow"], 2000, timeout=60).start()
        wait_until(lambda: runs(server))
        threading.Event().wait(0.25)
        (server.folder / "told").touch()
        tell("misses at once", load)
        print(f"the view ran {len(runs(server))} time(s)")
        assert ask(server, "/stale")[0] == 200
        (server.folder / "hold").touch()
        load = Load(server.url, ["/stale"], 60).start()
        before = len(runs(server))
        wait_until(lambda: len(runs(server)) > before)
        os.kill(runs(server)[-1], signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: len(runs(server)) > before + 1, interval=0.005)
        seconds = time.monotonic() - killed
        print(f"kill -9 of the worker that computes: another one does after {seconds * 1000:.0f} ms")
        (server.folder / "hold").unlink()
        load.stop()


def main(seconds: float) -> None:
    database = MariaDB()
    try:
        with tempfile.TemporaryDirectory() as folder:
            hit(database, folder)
            outage(database, Path(folder), seconds)
    finally:
        database.destroy()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
