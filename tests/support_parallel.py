"""Several pytest processes on one machine: what each has for itself, and which test runs when.

``pytest -n 4`` leaves out the tests marked ``alone``; ``pytest --alone`` runs only those, in one process. ``tests/run``
does one after the other.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

_FOLDERS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--alone``."""
    parser.addoption("--alone", action="store_true", help="run only the tests that need the machine for themselves")


def pytest_configure(config: pytest.Config) -> None:
    """Give each process a run directory, and each of several a temporary folder.

    Scoreboards lie in the run directory. MariaDB deletes the temporary files of every server that shares its temporary
    folder.
    """
    folders = config.stash[_FOLDERS] = []

    def make(variable: str, parent: str | None) -> None:
        folders.append(tempfile.mkdtemp(prefix="stability-tests-", dir=parent))
        os.environ[variable] = folders[-1]

    make("XDG_RUNTIME_DIR", "/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    if hasattr(config, "workerinput"):
        make("TMPDIR", None)
        os.chmod(folders[-1], 0o755)  # some tests become another user
        tempfile.tempdir = None  # read the variable again


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folders."""
    for folder in config.stash.get(_FOLDERS, []):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the tests of this pass; among several processes, files with long tests come first.

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
        long = {item.path for item in items if item.get_closest_marker("long")}
        items.sort(key=lambda item: item.path not in long)


def _is_alone(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("alone")
    if marker and not (marker.args and isinstance(marker.args[0], str)):
        raise pytest.UsageError(f"{item.nodeid}: say why: @pytest.mark.alone('reason')")
    return marker is not None
