"""The other end of the service's output is a pipe that nobody reads any more."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from supervised import starting

from support import wait_until

LOGGERS = {
    "gunicorn's": "accesslog = '-'",
    "by logconfig": """accesslog = '-'
logconfig_dict = {'version': 1, 'disable_existing_loggers': False, 'root': {'level': 'INFO', 'handlers': ['console']},
                  'loggers': {'gunicorn.error': {'propagate': True}, 'gunicorn.access': {'propagate': True}}}""",
}


def fill(descriptor: int) -> None:
    """Until nothing more fits; those that share the descriptor do not become non-blocking by it."""
    own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        for size in (4096, 1):
            try:
                while True:
                    os.write(own, b"." * size)
            except BlockingIOError:
                continue
    finally:
        os.close(own)


@pytest.mark.parametrize("logger", LOGGERS)
def test_an_output_that_nobody_reads_stops_neither_master_nor_workers(tmp_path: Path, worker_class: str,
                                                                      logger: str) -> None:
    """Answers, a replacement, a reload and the end come about, with gunicorn's own log and access log in the pipe."""
    reader, writer = os.pipe()
    try:
        with starting(tmp_path) as start:
            server = start(worker_class=worker_class, output=writer, config=LOGGERS[logger])
            server.full(2)
            fill(writer)
            for _ in range(5):
                assert server.get("/").ok
            server.kill(server.worker_pids()[0])
            server.full(2)
            old = set(server.worker_pids())
            server.reload()
            wait_until(lambda: old.isdisjoint(server.worker_pids()), message="all workers are new")
            server.full(2)
            fill(writer)
            assert server.get("/").ok
            server.signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
    finally:
        os.close(reader)
        os.close(writer)
