"""What a dashboard that is open costs a worker: CPU time per poll, against 0.1 % of a core at one poll in 5 seconds.

``python tests/benchmarks/bench_dashboard.py [polls]``: the sample app under gunicorn with 24 hours of history (written
to the board beforehand), a connection for each poll, as after gunicorn's keep-alive; CPU time is that of all workers as
the kernel counts it. In turns with `/` of the same app, so that the figures can be compared.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flask_stability.health.history import SAMPLES, History, Memory, Sample
from flask_stability.scoreboard import Scoreboard, board_files
from support import Server

BUDGET_MS = 0.001 * 5000  # 0.1 % of a core, one poll in 5 s


def cpu_ms(server: Server) -> float:
    """CPU time of the workers so far; the kernel counts in ticks of 10 ms."""
    return sum(sum(worker.cpu_times()[:2]) for worker in server.workers()) * 1000


def measure(server: Server, paths: dict[str, str], polls: int) -> dict[str, tuple[float, int]]:
    """CPU milliseconds per request and bytes of an answer, rounds of the paths in turns, less what rest costs."""
    spent, sizes = dict.fromkeys(paths, 0.0), dict.fromkeys(paths, 0)
    begin, before = time.monotonic(), cpu_ms(server)
    time.sleep(5)
    rest = (cpu_ms(server) - before) / (time.monotonic() - begin)
    for _ in range(5):
        for name, path in paths.items():
            begin, before = time.monotonic(), cpu_ms(server)
            for _ in range(polls // 5):
                sizes[name] = len(server.get(path).content)
            spent[name] += cpu_ms(server) - before - rest * (time.monotonic() - begin)
    print(f"at rest all workers take {rest / 10:.2f} % of a core")
    return {name: (spent[name] / (polls // 5 * 5), sizes[name]) for name in paths}


def main(polls: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "server", app="sample_app:create_app()", workers=2,
                        env={"STABILITY_HEALTH_INTERVAL": "30", "STABILITY_RUN_DIR": folder})
        with server:
            (_, path), = board_files(folder)
            history = History(Scoreboard.attach(path, write=True).master.history)
            for number in range(SAMPLES):
                history.append(Sample(time.time() - 30 * (SAMPLES - number), requests=300.0 * number, p95_ms=1.234),
                               [Memory(slot, 1, 50 << 20) for slot in range(4)], {"disk": 0, "memory": 0, "pool": 1})
            for number in range(40):
                history.transition({"id": str(number), "time": time.time(), "check": "disk", "old": "pass",
                                    "new": "warn", "detail": "little space on /"})
            for _ in range(50):
                server.get("/stock")
            first = server.get("/health/history").json()
            tail = f"since={first['cursor']}&changes={first['changes']}&limit=480&with=health"
            figures = measure(server, {
                "a poll without a new round": f"/health/history?{tail}", "the document /health": "/health",
                "the app's own /": "/", "480 rounds at once, when a page opens": "/health/history?since=0&limit=480",
            }, polls)
            for name, (cost, size) in figures.items():
                print(f"{name:40} {cost:7.2f} ms CPU {size:8} bytes")
            cost = figures["a poll without a new round"][0]
            print(f"an open page costs {cost / 50:.3f} % of a core; to reach: 0.1 % ({BUDGET_MS:g} ms a poll)")
            print(json.dumps({"poll_cpu_ms": round(cost, 3)}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
