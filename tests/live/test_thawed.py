"""The whole service, or its machine, stood still for longer than gunicorn's timeout."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from supervised import starting

from flask_stability.scoreboard import M_TICK_NS
from support import wait_until

TIMEOUT = 3


@pytest.mark.long
def test_a_standstill_that_the_master_shared_costs_no_worker(tmp_path: Path, worker_class: str) -> None:
    """SIGSTOP to all of them, as a suspended machine looks from inside, and then SIGCONT."""
    with starting(tmp_path) as start:
        server = start(worker_class=worker_class, config=f"timeout = {TIMEOUT}", env={"STABILITY_REQUEST_TIMEOUT": "0"})
        server.full(2)
        before, words = server.worker_pids(), server.board().master.words
        os.killpg(server.pid, signal.SIGSTOP)
        frozen = words[M_TICK_NS]
        wait_until(lambda: time.monotonic() - frozen / 1e9 > 2 * TIMEOUT + 1, message="it stood still")
        os.killpg(server.pid, signal.SIGCONT)
        thawed = time.monotonic()
        wait_until(lambda: words[M_TICK_NS] / 1e9 > thawed + TIMEOUT + 1, message="the master has looked for a while")
        assert "WORKER TIMEOUT" not in server.logs()
        assert server.worker_pids() == before
        assert server.exits() == []
        assert len(server.records("process-manager", "master_paused")) == 1
        assert server.get("/").ok
