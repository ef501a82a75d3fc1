"""What a connection from a pool costs: a held connection, ours, DBUtils, SQLAlchemy, side by side in one run.

``python tests/benchmarks/bench_pool.py [seconds]``: one operation is checkout, SELECT 1, check-in, in autocommit.
The contenders take turns in short rounds, so that a noisy machine disturbs all alike; printed are medians. First one
thread next to the server, both on one core (how long another core takes to wake up would be most of the figure, and
is another one in each round), then 1, 4, 20 and 100 threads through a proxy that makes each round trip 1 ms long. The
proxy is written in C (it needs gcc): one in Python would be the bottleneck. Everything shares the machine's cores
with the server, which bounds the throughput of all.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import MySQLdb
import sqlalchemy
from dbutils.pooled_db import PooledDB

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from flask_stability.config import Settings  # noqa: E402
from flask_stability.database.pool import Pool  # noqa: E402
from support_db import MariaDB  # noqa: E402

SIZE = 20
THREADS = (1, 4, 20, 100)
Contender = tuple[str, Callable[[], None], Callable[[], None]]


def select(connection: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    cursor.fetchall()
    cursor.close()


def contenders(server: MariaDB, port: int) -> list[Contender]:
    """Name, operation, end; each with connections of its own."""
    options = {"host": "127.0.0.1", "port": port, "user": server.user, "password": server.password,
               "database": server.name, "charset": "utf8mb4", "autocommit": True}
    own = threading.local()

    def held() -> None:
        if not hasattr(own, "connection"):
            own.connection = MySQLdb.connect(**options)
        select(own.connection)

    ours = Pool(Settings(db_url=server.url_for(port), db_max_size=SIZE, db_max_idle=SIZE))
    ours.start()
    dbutils = PooledDB(MySQLdb, maxconnections=SIZE, blocking=True, **options)

    def engine(pre_ping: bool) -> Any:
        return sqlalchemy.create_engine("mysql+mysqldb://", creator=lambda: MySQLdb.connect(**options),
                                        pool_size=SIZE, max_overflow=0, pool_pre_ping=pre_ping)

    pinging, trusting = engine(True), engine(False)

    def from_pool(take: Callable[[], Any]) -> Callable[[], None]:
        def operation() -> None:
            connection = take()
            try:
                select(connection)
            finally:
                connection.close()
        return operation

    return [("held connection", held, lambda: None), ("flask_stability", from_pool(ours.connection), ours.close),
            ("DBUtils", from_pool(dbutils.connection), dbutils.close),
            ("SQLAlchemy, pre-ping", from_pool(pinging.raw_connection), pinging.dispose),
            ("SQLAlchemy", from_pool(trusting.raw_connection), trusting.dispose)]


def latency(operation: Callable[[], None], count: int = 200) -> float:
    """Microseconds an operation."""
    started = time.perf_counter()
    for _ in range(count):
        operation()
    return (time.perf_counter() - started) / count * 1e6


class Crowd:
    """Threads that repeat an operation when told to; they live on between rounds, as a server's do."""

    def __init__(self, operation: Callable[[], None], threads: int) -> None:
        self._operation, self._seconds, self._ended = operation, 0.0, False
        self._gate, self._done = threading.Barrier(threads + 1), threading.Barrier(threads + 1)
        self._counts = [0] * threads
        for number in range(threads):
            threading.Thread(target=self._run, args=(number,), daemon=True).start()

    def _run(self, number: int) -> None:
        while True:
            self._gate.wait()
            if self._ended:
                return
            end, count = time.perf_counter() + self._seconds, 0
            while time.perf_counter() < end:
                self._operation()
                count += 1
            self._counts[number] = count
            self._done.wait()

    def round(self, seconds: float) -> float:
        """Operations a second."""
        self._seconds = seconds
        started = time.perf_counter()
        self._gate.wait()
        self._done.wait()
        return sum(self._counts) / (time.perf_counter() - started)

    def end(self) -> None:
        self._ended = True
        self._gate.wait()


@contextmanager
def delay_proxy(target: int, microseconds: int) -> Iterator[int]:
    """The port of a proxy that makes round trips that long."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/delay_proxy"
        subprocess.run(["gcc", "-O2", "-o", program, str(Path(__file__).with_name("delay_proxy.c"))], check=True)
        process = subprocess.Popen([program, str(target), str(microseconds)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def table(title: str, rows: dict[str, list[float]], columns: list[str], places: int) -> None:
    print(f"\n{title}\n{'':22}" + "".join(f"{column:>12}" for column in columns))
    for name, numbers in rows.items():
        print(f"{name:22}" + "".join(f"{number:>12,.{places}f}" for number in numbers))


def main(seconds: float) -> None:
    """Both tables."""
    warnings.simplefilter("ignore")  # mysqlclient's for each ping(False) of DBUtils
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    server = MariaDB()  # on that core too
    try:
        several = contenders(server, server.port)
        times: dict[str, list[float]] = {name: [] for name, _, _ in several}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, operation, _ in several:
                times[name].append(latency(operation))
        base = times["held connection"]
        table("one thread, next to the server", {
            name: [statistics.median(numbers),
                   statistics.median(one / other for one, other in zip(numbers, base, strict=True))]
            for name, numbers in times.items()}, ["µs", "× held"], 2)
        for _, _, close in several:
            close()
        server.destroy()

        os.sched_setaffinity(0, cores)
        server = MariaDB()
        with delay_proxy(server.port, 1000) as port:
            figures: dict[str, list[float]] = {}
            for threads in THREADS:
                several = contenders(server, port)
                crowds = {name: Crowd(operation, threads) for name, operation, _ in several}
                rounds: dict[str, list[float]] = {name: [] for name in crowds}
                for crowd in crowds.values():
                    crowd.round(0.2)  # connections are open now
                end = time.monotonic() + seconds
                while time.monotonic() < end or not rounds["SQLAlchemy"]:
                    for name, crowd in crowds.items():
                        rounds[name].append(crowd.round(0.3))
                for name, numbers in rounds.items():
                    figures.setdefault(name, []).append(statistics.median(numbers))
                for crowd in crowds.values():
                    crowd.end()
                for _, _, close in several:
                    close()
        table("operations a second, 1 ms round trips", figures, [f"{threads} threads" for threads in THREADS], 0)
    finally:
        server.destroy()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 6.0)
