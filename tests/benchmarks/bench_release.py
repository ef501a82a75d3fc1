"""Bad releases under load: how many requests fail, and how soon the old state is back, without anybody.

``python tests/benchmarks/bench_release.py [RELEASE …]``: gthread and sync, 120 requests a second on twenty routes, from
SIGHUP to 30 s after it. ``good``: reloads in a row (50; ``GOOD=10`` for fewer), every third with 1 % of 5xx by itself.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1]),
                str(Path(__file__).resolve().parents[1] / "live")]

from release_app import PATHS, SOURCE  # noqa: E402

from support import Load, Server, wait_until  # noqa: E402

RATE, SECONDS = 120, 30.0
BAD = ("fails", "one", "slow", "leaks", "segv", "hangs")


def _server(folder: Path, worker_class: str, watch: float) -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(folder, source=SOURCE, worker_class=worker_class, workers=4,
                    env={"STABILITY_RELEASE_WATCH": str(watch), "STABILITY_RELEASE_JUDGE": "on",
                         "STABILITY_RUN_DIR": str(folder)})
    server.start()
    wait_until(lambda: len(server.worker_pids()) == 4)
    return server


def bad(release: str, worker_class: str) -> None:
    """One bad release."""
    with tempfile.TemporaryDirectory() as temporary:
        server = _server(Path(temporary), worker_class, 60.0)
        try:
            load = Load(server.url, PATHS, RATE).start()
            time.sleep(8.0)
            before, old = load.result.failed, set(server.worker_pids())
            (server.folder / "release").write_text(release)
            began = time.monotonic()
            server.signal(signal.SIGHUP)
            refused = back = 0.0
            while time.monotonic() - began < SECONDS:
                if not refused and server.records("process-manager", "release_refused"):
                    refused = time.monotonic() - began
                if refused and not back and set(server.worker_pids()) == old:
                    back = time.monotonic() - began
                time.sleep(0.1)
            result = load.stop()
            window = result.between(began, began + SECONDS)
            told = server.records("process-manager", "release_refused")
            print(f"{worker_class:8} {release:6} refused after {refused:5.1f} s, back after {back:5.1f} s, failed "
                  f"{window.failed} of {window.total} ({window.failed / window.total:.2%}; before: {before}) "
                  f"{window.errors()}; {told[0]['text'] if told else 'NOT REFUSED'}", flush=True)
        finally:
            server.stop()


def good(worker_class: str, number: int) -> None:
    """Good releases in a row."""
    with tempfile.TemporaryDirectory() as temporary:
        server = _server(Path(temporary), worker_class, 2.0)
        try:
            (server.folder / "release").write_text("good")
            load = Load(server.url, PATHS, RATE).start()
            time.sleep(5.0)
            times = []
            for turn in range(number):
                old, done = set(server.worker_pids()), len(server.records("process-manager", "release_settled"))
                (server.folder / "release").write_text("noisy" if turn % 6 in (3, 4) else f"good {turn}")
                began = time.monotonic()
                server.signal(signal.SIGHUP)
                wait_until(lambda done=done: len(server.records("process-manager", "release_settled")) > done, 120)
                times.append(time.monotonic() - began)
                wait_until(lambda old=old: old.isdisjoint(server.worker_pids()), 60)
            result = load.stop()
            refused = server.records("process-manager", "release_refused")
            print(f"{worker_class:8} {number} good releases: refused {len(refused)}, lost {result.errors()} of "
                  f"{result.total}, seconds to the end of the watch of 2 s: median {sorted(times)[number // 2]:.1f}, "
                  f"most {max(times):.1f}", flush=True)
        finally:
            server.stop()


def main() -> None:
    """Run what is asked for."""
    wanted = sys.argv[1:] or [*BAD, "good"]
    for worker_class in os.environ.get("CLASSES", "gthread sync").split():
        for release in wanted:
            if release == "good":
                good(worker_class, int(os.environ.get("GOOD", "50")))
            else:
                bad(release, worker_class)


if __name__ == "__main__":
    main()
