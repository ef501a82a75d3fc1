"""What is known of gunicorn's insides is in one room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import flask_stability

PACKAGE = Path(flask_stability.__file__).parent
ROOM = PACKAGE / "server" / "gunicorn"
#: Of gunicorn's objects; what is no private part of theirs, but a documented one, may be used anywhere.
PRIVATE = {"_num_workers", "WORKERS", "LISTENERS", "START_CTX", "worker_age", "reexec_pid", "master_pid", "poller",
           "enqueue_req", "wait_fds", "method_queue", "nr_conns", "worker_connections", "_work_queue", "_max_workers",
           "_adjust_thread_count", "murder_workers", "manage_workers", "reap_workers", "spawn_worker", "load_wsgi"}


@pytest.mark.parametrize("path", [path for path in sorted(PACKAGE.rglob("*.py")) if ROOM not in path.parents],
                         ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_imports_gunicorn_or_knows_its_private_names(path: Path) -> None:
    """Then a new gunicorn is one room's business."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not [name.name for name in node.names if name.name.partition(".")[0] == "gunicorn"]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").partition(".")[0] != "gunicorn"
        elif isinstance(node, ast.Attribute):
            assert node.attr not in PRIVATE
