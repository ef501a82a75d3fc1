"""What a request that kills its worker costs the others: workers that die, and requests beside it that are lost.

``python tests/benchmarks/bench_poison.py [poison …]``: a real gunicorn of two workers on sync and on gthread. A client
sends the poison 15 times, a second apart; another sends 20 requests of 0.15 s each second meanwhile.
"""

from __future__ import annotations

import concurrent.futures
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "live")]

SOURCE = '''
import collections, ctypes, faulthandler, functools, itertools, os, sys, time
from flask import Flask, request
from flask_stability import StabilityExt

app = Flask(__name__)
StabilityExt(app)
faulthandler.enable()

@app.get("/work")
def work():
    time.sleep(0.15)
    return "done"

def poison(kind):
    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "abort":
        os.abort()
    elif kind == "hang":
        collections.deque(itertools.repeat(None), maxlen=0)  # in C, for ever, with the interpreter's lock
    elif kind == "exit":
        os._exit(7)
    elif kind == "overflow":
        sys.setrecursionlimit(10 ** 9)
        found = None
        for _ in range(1_000_000):
            found = functools.partial(id, found)
        repr(found)
    elif kind == "memory":
        held = []
        while True:
            held.append(bytearray(16 << 20))

@app.get("/poison")
def poisoned():
    poison(request.args.get("kind"))
    return "survived"

@app.get("/search")
def search():
    q = request.args.get("q")
    if q.startswith("poison"):
        poison(q.partition("-")[2])
    return f"results of {q}"
'''
TIMES, RATE = 15, 20.0


def run(kind: str, worker_class: str, path: str, timeout: float = 30.0) -> dict[str, Any]:
    """One run; what died and what was lost."""
    from supervised import Supervised

    with tempfile.TemporaryDirectory() as folder:
        server = Supervised(Path(folder) / "server", source=SOURCE, worker_class=worker_class, workers=2, threads=4,
                            config="timeout = 6\ngraceful_timeout = 3")
        server.start()
        try:
            server.full(2)
            return _measure(server, path, timeout, kind, worker_class)
        finally:
            server.stop()


def _measure(server: Any, path: str, timeout: float, kind: str, worker_class: str) -> dict[str, Any]:
    results: list[str] = []
    others: list[str] = []
    stop = time.monotonic() + 3600

    def one(where: str, into: list[str]) -> None:
        try:
            into.append(str(server.get(where, timeout=60).status_code))
        except requests.RequestException as error:
            into.append(type(error).__name__)

    def beside() -> None:
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            number = 0
            begun = time.monotonic()
            while time.monotonic() < stop:
                pool.submit(one, "/work" if number % 2 else f"/search?q=good{number % 10}", others)
                number += 1
                time.sleep(max(0.0, begun + number / RATE - time.monotonic()))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(beside)
        time.sleep(2.0)
        for _ in range(TIMES):
            try:
                results.append(str(server.get(path, timeout=timeout).status_code))
            except requests.RequestException as error:
                results.append(type(error).__name__)
            time.sleep(1.0)
        stop = 0.0
        running.result()
    exits = server.records("process-manager", "worker_exit")
    ordinary = [record for record in exits if not record.get("isolated") and record["reason"] != "scale"]
    events = [record["event"] for record in server.records("process-manager") if record["event"].startswith("poison")]
    return {"poison": kind, "worker_class": worker_class, "path": path, "ordinary_workers_died": len(ordinary),
            "isolated_died": sum(bool(record.get("isolated")) for record in exits),
            "beside": len(others), "lost_beside": sum(one != "200" for one in others),
            "lost_kinds": sorted({one for one in others if one != "200"}), "answers": results, "events": events}


def main(kinds: list[str]) -> None:
    """Run each poison on both kinds of worker."""
    for kind in kinds:
        for worker_class in ("sync", "gthread"):
            path = f"/search?q=poison-{kind}" if kind == "segfault" else f"/poison?kind={kind}"
            print(json.dumps(run(kind, worker_class, path)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["segfault", "abort", "hang", "exit", "overflow", "memory"])
