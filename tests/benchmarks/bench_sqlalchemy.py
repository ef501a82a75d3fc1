"""What `StabilityPool` costs an engine: against QueuePool with and without pre-ping, side by side in one run.

``python tests/benchmarks/bench_sqlalchemy.py [seconds]``: one operation is checkout, SELECT 1, check-in, through an
Engine and through a Session. First one thread next to the server on one core, with the round trips that the server
counts, then 20 threads through a proxy that makes each round trip 1 ms long. Printed are medians of short rounds in
turn, and ratios to QueuePool without pre-ping in the same round.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

from bench_pool import SIZE, Contender, Crowd, delay_proxy, latency, table
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flask_stability.sqlalchemy import StabilityPool
from support_db import MariaDB

QUERY = text("SELECT 1")
BASE = "QueuePool"


def contenders(server: MariaDB, port: int, session: bool) -> list[Contender]:
    """Name, operation, end; each with connections of its own."""
    url = server.url_for(port).replace("mysql://", "mysql+mysqldb://")

    def one(name: str, engine: Engine) -> Contender:
        def by_engine() -> None:
            with engine.connect() as connection:
                connection.execute(QUERY).all()

        def by_session() -> None:
            with Session(engine) as own:
                own.execute(QUERY).all()

        operation: Callable[[], None] = by_session if session else by_engine
        return name, operation, engine.dispose

    size = {"pool_size": SIZE, "max_overflow": 0}
    return [one("StabilityPool", create_engine(url, poolclass=StabilityPool, **size)),
            one("QueuePool, pre-ping", create_engine(url, pool_pre_ping=True, **size)),
            one(BASE, create_engine(url, **size))]


def _commands(server: MariaDB) -> int:
    """That the server has got so far."""
    return sum(server.status(name) for name in ("Questions", "Com_admin_commands"))


def _print(title: str, rounds: dict[str, list[float]], unit: str, more: dict[str, float] | None = None) -> None:
    columns = [unit, "× QueuePool"] + (["round trips"] if more else [])
    table(title, {name: [statistics.median(numbers), statistics.median(
        one / other for one, other in zip(numbers, rounds[BASE], strict=True)), *([more[name]] if more else [])]
        for name, numbers in rounds.items()}, columns, 2)


def main(seconds: float) -> None:
    """All tables."""
    cores = os.sched_getaffinity(0)
    for session in (False, True):
        kind = "Session" if session else "Engine"
        os.sched_setaffinity(0, {max(cores)})
        server = MariaDB()  # on that core too
        try:
            several = contenders(server, server.port, session)
            rounds: dict[str, list[float]] = {name: [] for name, _, _ in several}
            trips = {}
            for name, operation, _ in several:
                operation()
                before = _commands(server)
                latency(operation)
                trips[name] = (_commands(server) - before) / 200
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for name, operation, _ in several:
                    rounds[name].append(latency(operation))
            _print(f"{kind}, one thread, next to the server", rounds, "µs", trips)
            for _, _, close in several:
                close()
        finally:
            server.destroy()
            os.sched_setaffinity(0, cores)
        server = MariaDB()
        try:
            with delay_proxy(server.port, 1000) as port:
                several = contenders(server, port, session)
                crowds = {name: Crowd(operation, 20) for name, operation, _ in several}
                rounds = {name: [] for name in crowds}
                for crowd in crowds.values():
                    crowd.round(0.2)  # connections are open now
                end = time.monotonic() + seconds
                while time.monotonic() < end or not rounds[BASE]:
                    for name, crowd in crowds.items():
                        rounds[name].append(crowd.round(0.3))
                _print(f"{kind}, 20 threads, 1 ms round trips", rounds, "op/s")
                for crowd in crowds.values():
                    crowd.end()
                for _, _, close in several:
                    close()
        finally:
            server.destroy()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 6.0)
