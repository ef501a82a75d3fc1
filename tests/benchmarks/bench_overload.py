"""Overload: how much of its capacity a service still gives to clients that wait for it, here and with gunicorn alone.

``python tests/benchmarks/bench_overload.py [--class gthread|sync] [--only ours|off|bare] [--runs 3] [--part PART]``,
from the project's folder, on a machine that does nothing else. ``/dear`` needs 40 ms of processor time, ``/cheap``
1 ms. Clients come on their own schedule, whether or not earlier ones were answered, each on a connection of its own,
and leave 2 s after they were due. Capacity is what a closed loop gets out of the same service in the same run. *useful
cpu* is the share of the workers' processor time that went into answers in time, whatever else the machine does.

Parts: *flood*, 3 × capacity for 15 s, with cheap requests beside it (10 a second); then how long until cheap and dear
requests are again answered as before it. *load*, 0.9 × capacity for 15 s, where nothing may be refused. *storm*,
10 × capacity for 30 s: the workers' memory, and whether all of them are still the same.

The contenders: *ours*, with ``STABILITY_QUEUE_LIMIT=1``; *off*, the same with 0, as by default; *bare*, gunicorn alone.
The load comes from one process with an event loop; its own processor time is told, since the service lacks that.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import multiprocessing
import os
import random
import select
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from support import Server

APP = '''
import os, time
from flask import Flask
app = Flask(__name__)
if os.environ["STABILITY_LOG_DIR"]:
    from flask_stability import StabilityExt
    StabilityExt(app)
else:
    app.add_url_rule("/health/live", "live", lambda: "ok")

def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return "done"

app.add_url_rule("/dear", "dear", lambda: work(0.04))
app.add_url_rule("/cheap", "cheap", lambda: work(0.001))
'''
PATIENCE = 2.0  #: seconds after which a client leaves
CHEAP = 10.0  #: cheap requests a second beside the flood
WELL = 0.5  #: seconds within which a request is answered by a service that is itself again


@dataclass
class Outcome:
    """One request: when it was due, seconds to its answer or to the client's leaving, status (0 = it got none)."""

    path: str
    due: float
    seconds: float
    status: int


@dataclass
class Load:
    """What a load came to.

    :ivar cpu: seconds of processor time of the generator.
    :ivar late: the longest delay of a request by the generator itself, seconds.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    late: float = 0.0

    def of(self, path: str) -> list[Outcome]:
        return [one for one in self.outcomes if one.path == path]


class _Client:
    __slots__ = ("data", "due", "path", "sent", "sock")

    def __init__(self, path: str, due: float, sock: socket.socket) -> None:
        self.path, self.due, self.sock = path, due, sock
        self.sent, self.data = False, b""


def schedule(path: str, rate: float, seconds: float, arrivals: str, seed: int) -> Iterator[tuple[float, str]]:
    """When requests are due, from 0."""
    chance, due = random.Random(seed), 0.0
    while due < seconds and rate:
        yield due, path
        due += chance.expovariate(rate) if arrivals == "poisson" else chance.uniform(0.8, 1.2) / rate


def generate(port: int, plan: list[tuple[float, str]], patience: float) -> Load:
    """Send each request when it is due."""
    with contextlib.suppress(PermissionError):
        os.nice(-15)  # clients have machines of their own
    epoll, clients, load = select.epoll(), dict[int, _Client](), Load()
    leave: list[tuple[float, int, _Client]] = []
    number, begun, cpu = 0, time.monotonic(), time.process_time()

    def end(client: _Client, status: int, now: float) -> None:
        clients.pop(client.sock.fileno(), None)
        client.sock.close()
        load.outcomes.append(Outcome(client.path, client.due, now - begun - client.due, status))

    while number < len(plan) or clients:
        now = time.monotonic()
        while number < len(plan) and begun + plan[number][0] <= now:
            due, path = plan[number]
            load.late = max(load.late, now - begun - due)
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            client = clients[sock.fileno()] = _Client(path, due, sock)
            epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
            heapq.heappush(leave, (begun + due + patience, number, client))
            number += 1
        while leave and leave[0][0] <= now:
            client = heapq.heappop(leave)[2]
            if client.sock.fileno() >= 0:
                end(client, 0, now)
        next_due = begun + plan[number][0] if number < len(plan) else now + patience
        wait = min(next_due, leave[0][0] if leave else next_due) - time.monotonic()
        for descriptor, event in epoll.poll(max(0.0, wait)):
            found = clients.get(descriptor)
            if found is None:
                continue
            try:
                if not found.sent and event & select.EPOLLOUT:
                    found.sock.send(f"GET {found.path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
                    found.sent = True
                    epoll.modify(descriptor, select.EPOLLIN)
                elif data := found.sock.recv(65536):
                    found.data += data
                    continue
                elif not found.data.partition(b"\r\n\r\n")[2]:
                    end(found, -1, time.monotonic())
                else:
                    end(found, int(found.data[9:12]), time.monotonic())
            except OSError:
                end(found, -1, time.monotonic())
    load.seconds, load.cpu = time.monotonic() - begun, time.process_time() - cpu
    epoll.close()
    return load


def run(port: int, seconds: float, arrivals: str = "paced", **rates: float) -> Load:
    """A load from a process of its own: requests a second by the path's name."""
    plan = sorted(itertools.chain.from_iterable(
        schedule(f"/{name}", rate, seconds, arrivals, number) for number, (name, rate) in enumerate(rates.items())))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(generate, (port, plan, PATIENCE))


def capacity(port: int, clients: int = 8, seconds: float = 5.0) -> float:
    """Answers a second of a closed loop."""
    answers, end = [0] * clients, time.monotonic() + seconds

    def ask(number: int) -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
                sock.sendall(b"GET /dear HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                found = b""
                while data := sock.recv(65536):
                    found += data
                answers[number] += b" 200 " in found and time.monotonic() < end

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answers) / seconds


def recovery(port: int, most: float = 45.0) -> float:
    """Seconds until requests of both kinds are answered in `WELL` again, ten times in a row."""
    begun, good, well = time.monotonic(), 0, 0.0
    while good < 10 and time.monotonic() - begun < most:
        started = time.monotonic()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=WELL) as sock:
            path = ("dear", "cheap")[good % 2]
            sock.sendall(f"GET /{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            found = b""
            while (data := sock.recv(65536)) and time.monotonic() - started < WELL:
                found += data
            if b" 200 " in found and b"done" in found:
                well = well or time.monotonic() - begun
                good += 1
                continue
        good, well = 0, 0.0
    return well or most


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def flood(server: Server, full: float, arrivals: str) -> dict[str, float]:
    cpu = cpu_of(server)
    load = run(server.port, 15.0, arrivals, dear=3 * full, cheap=CHEAP)
    cpu = cpu_of(server) - cpu
    recovered = recovery(server.port) + load.seconds - 15.0  # the last clients leave after the flood
    dear, cheap = load.of("/dear"), load.of("/cheap")
    return {"in time / capacity": sum(one.status == 200 for one in dear) / 15.0 / full,
            "useful cpu": 0.04 * sum(one.status == 200 for one in dear) / cpu,
            "503": sum(one.status == 503 for one in dear), "cut": sum(one.status < 0 for one in dear),
            "left": sum(one.status == 0 for one in dear),
            "cheap ok": sum(one.status == 200 for one in cheap) / len(cheap),
            "cheap p50 ms": 1000 * percentile([one.seconds for one in cheap], 0.5),
            "cheap p99 ms": 1000 * percentile([one.seconds for one in cheap], 0.99),
            "recovery s": recovered, "generator cpu": load.cpu / load.seconds, "generator late ms": 1000 * load.late}


def calm(server: Server, full: float, arrivals: str) -> dict[str, float]:
    load = run(server.port, 15.0, arrivals, dear=0.9 * full, cheap=CHEAP)
    counts = Counter(one.status for one in load.outcomes)
    return {"ok a second": counts[200] / 15.0, "not ok": len(load.outcomes) - counts[200], "503": counts[503],
            "p50 ms": 1000 * percentile([one.seconds for one in load.of("/dear")], 0.5),
            "p99 ms": 1000 * percentile([one.seconds for one in load.of("/dear")], 0.99),
            "generator cpu": load.cpu / load.seconds}


def storm(server: Server, full: float, arrivals: str) -> dict[str, float]:
    before, pids = sum(one.memory_info().rss for one in server.workers()), server.worker_pids()
    load = run(server.port, 30.0, arrivals, dear=10 * full, cheap=CHEAP)
    after = sum(one.memory_info().rss for one in server.workers())
    same = sum(one.pid in pids for one in map(psutil.Process, server.worker_pids()))
    dear, cheap = load.of("/dear"), load.of("/cheap")
    return {"in time / capacity": sum(one.status == 200 for one in dear) / 30.0 / full,
            "503": sum(one.status == 503 for one in dear), "cut": sum(one.status < 0 for one in dear),
            "left": sum(one.status == 0 for one in dear),
            "cheap ok": sum(one.status == 200 for one in cheap) / len(cheap),
            "cheap p99 ms": 1000 * percentile([one.seconds for one in cheap], 0.99),
            "more MB": (after - before) / 1e6, "workers kept": same, "recovery s": recovery(server.port),
            "generator cpu": load.cpu / load.seconds}


PARTS = {"flood": flood, "load": calm, "storm": storm}


def cpu_of(server: Server) -> float:
    """Seconds of processor time that the workers have used."""
    return sum(sum(one.cpu_times()[:2]) for one in server.workers())


def measure(name: str, worker_class: str, part: str, arrivals: str, given: float) -> dict[str, float]:
    """One contender, one part."""
    options: dict[str, object] = {"env": {"STABILITY_QUEUE_LIMIT": "0" if name == "off" else "1"}}
    if name == "bare":
        options = {"use_hooks": False, "env": {"STABILITY_LOG_DIR": ""}}
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), source=APP, worker_class=worker_class,
                                                         **options) as server:  # type: ignore[arg-type]
        time.sleep(2.0)  # the second worker, and the first round of checks
        full = given or capacity(server.port)
        return {"capacity": full, **PARTS[part](server, full, arrivals)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--class", dest="worker_class", default="gthread", choices=("gthread", "sync"))
    parser.add_argument("--only", choices=("ours", "off", "bare"))
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--capacity", type=float, default=0.0, help="taken as given, not measured")
    parser.add_argument("--arrivals", default="paced", choices=("paced", "poisson"))
    given = parser.parse_args()
    for part in [given.part] if given.part else PARTS:
        names = [given.only] if given.only else ["ours", "off", "bare"] if part == "load" else ["ours", "bare"]
        runs = [{name: measure(name, given.worker_class, part, given.arrivals, given.capacity) for name in names}
                for _ in range(given.runs)]
        print(f"{part}, {given.worker_class}, {given.arrivals} arrivals, medians of {given.runs}")
        for key in runs[0][names[0]]:
            print(f"  {key:20}" + "".join(
                f"{name:>6} {statistics.median(one[name][key] for one in runs):8.2f}" for name in names), flush=True)


if __name__ == "__main__":
    main()
