"""What clients see of views with ``keep`` while the database is away for a minute.

``python tests/benchmarks/bench_keep.py [--seconds 60]``: 100 requests/s of four pages, fresh for 1 s, stale for 300 s;
MariaDB is killed and stays away. It prints the share that was answered and the latencies during the outage.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_TESTS / "live"), str(_TESTS), str(_TESTS.parent)]

from bench_outage import p99, pause  # noqa: E402
from supervised import starting  # noqa: E402

from flask_stability.operate.loadgen import Load  # noqa: E402
from support import wait_until  # noqa: E402
from support_db import MariaDB  # noqa: E402

SOURCE = '''
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
stability = StabilityExt(app)

@app.get("/")
def index():
    return {}

@app.get("/page/<int:number>")
@stability.keep(fresh=1, stale=300)
def page(number):
    with stability.connection() as connection:
        return {"one": connection.execute("SELECT 1").fetchall(), "page": number}
'''


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    database = MariaDB()
    try:
        with tempfile.TemporaryDirectory() as folder, starting(Path(folder)) as start:
            server = start(source=SOURCE, worker_class="gthread", workers=2, env={"STABILITY_DB_URL": database.url})
            server.full(2)
            for number in range(4):
                wait_until(lambda number=number: server.get(f"/page/{number}").ok)  # type: ignore[misc]
            load = Load(server.url, [f"/page/{number}" for number in range(4)], 100, timeout=60).start()
            pause(3.0)
            began = time.monotonic()
            database.kill9()
            pause(given.seconds)
            ended = time.monotonic()
            database.start()
            pause(3.0)
            result = load.stop()
            away = result.between(began, ended)
            print(f"away for {ended - began:.0f} s: {away.total - away.failed} of {away.total} answered, "
                  f"{away.errors() or 'none failed'}; p99 {p99(away):.1f} ms, worst {away.worst * 1000:.0f} ms; "
                  f"before, p99 {p99(result.between(0.0, began)):.1f} ms")
    finally:
        database.destroy()


if __name__ == "__main__":
    main()
