"""Files that are never closed."""

from __future__ import annotations

from pathlib import Path

import pytest
from supervised import starting

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
        load = Load(server.url, ["/"], 20).start()
        leaking = server.get("/files/210").json()["pid"]
        wait_until(lambda: server.exits() == ["open_files"], 60)
        server.full(1)
        assert load.stop().failed == 0
        assert leaking not in server.worker_pids()
        autopsy = server.records("error", "memory_autopsy")[0]
        assert autopsy["open_files"]["most"]["/dev/null"] >= 210
