"""Several pytest processes on one machine: what each has for itself, and which test runs when.

``pytest -n 4`` leaves out the tests marked ``alone``; ``pytest --alone`` runs only those, in one process. ``tests/run``
does one after the other.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from support import ROOT

_FOLDERS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--alone``."""
    parser.addoption("--alone", action="store_true", help="run only the tests that need the machine for themselves")


def pytest_configure(config: pytest.Config) -> None:
    """Give each process a run directory, and each of several a temporary folder.

    Scoreboards lie in the run directory. MariaDB deletes the temporary files of every server that shares its temporary
    folder.
    """
    if not hasattr(config, "workerinput"):
        _compile()
    folders = config.stash[_FOLDERS] = []

    def make(variable: str, parent: str | None) -> None:
        folders.append(tempfile.mkdtemp(prefix="stability-tests-", dir=parent))
        os.environ[variable] = folders[-1]

    make("XDG_RUNTIME_DIR", "/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    if hasattr(config, "workerinput"):
        make("TMPDIR", None)
        os.chmod(folders[-1], 0o755)  # some tests become another user
        tempfile.tempdir = None  # read the variable again


def _compile() -> None:
    """Keep the project's bytecode for the hundreds of servers that the tests start.

    Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each of them would compile the whole package again.
    """
    for name in ("flask_stability", "sample_app"):
        compileall.compile_dir(ROOT / name, quiet=2)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the folders; xdist's processes do not come to `pytest_unconfigure`."""
    pytest_unconfigure(session.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folders, after a session or without one."""
    for folder in config.stash.get(_FOLDERS, []):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the tests of this pass; among several processes, files with tests that may take longest come first.

    Otherwise one process could begin a long test when the others have finished.
    """
    parallel = hasattr(config, "workerinput")
    left: list[pytest.Item] = []
    if parallel or config.getoption("--alone"):
        left = [item for item in items if _is_alone(item) == parallel]
        items[:] = [item for item in items if _is_alone(item) != parallel]
    if left:
        config.hook.pytest_deselected(items=left)
    if parallel:
        longest: dict[Path, float] = {}
        for item in items:
            longest[item.path] = max(longest.get(item.path, 0.0), _may_take(item))
        items.sort(key=lambda item: -longest[item.path])


def _may_take(item: pytest.Item) -> float:
    """Seconds that it may take at most, by its marks."""
    timeout = item.get_closest_marker("timeout")
    return float(timeout.args[0]) if timeout else 180.0 if item.get_closest_marker("long") else 0.0


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pytest's own, with a short name: sockets in it may have about 100 characters, and each process adds a folder."""
    name = re.sub(r"\W", "_", request.node.name.removeprefix("test_"))
    return tmp_path_factory.mktemp(name[:12])


def _is_alone(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("alone")
    if marker and not (marker.args and isinstance(marker.args[0], str)):
        raise pytest.UsageError(f"{item.nodeid}: say why: @pytest.mark.alone('reason')")
    return marker is not None
