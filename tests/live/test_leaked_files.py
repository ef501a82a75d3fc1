"""Files that are never closed."""

from __future__ import annotations

from pathlib import Path

import pytest
from supervised import starting

from flask_stability.scoreboard import W_HEARTBEAT_NS, W_READY_NS
from support import Load, wait_until

LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""


@pytest.mark.long
def test_worker_that_leaks_files_is_replaced_before_it_can_open_none(tmp_path: Path, worker_class: str) -> None:
    """The newcomer first, no request is lost, the log says what it held."""
    with starting(tmp_path) as start:
        server = start(worker_class=worker_class, workers=1, config=LIMIT)
        server.full(1)
        words = server.board().live()[0].words
        wait_until(lambda: words[W_HEARTBEAT_NS] > words[W_READY_NS], message="the guard has seen it while it was warm")
        load = Load(server.url, ["/"], 20).start()
        leaking = server.get("/files/210").json()["pid"]
        wait_until(lambda: "open_files" in server.exits(), 60)
        server.full(1)
        assert set(server.exits()) <= {"open_files", "scale"}  # a spare worker may have helped
        assert load.stop().failed == 0
        assert leaking not in server.worker_pids()
        autopsy = server.records("error", "memory_autopsy")[0]
        assert autopsy["open_files"]["most"]["/dev/null"] >= 210
