"""Tests that run twice: with the packages of this environment, and with the lowest that setup.cfg allows.

A test marked ``lowest`` has its servers started by the interpreter of ``.venv-minimum`` the second time. ``tests/run
--all`` makes that environment from ``tests/minimum.txt``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import support

PYTHON = Path(support.ROOT) / ".venv-minimum" / "bin" / "python"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Twice, the second time among the long ones."""
    if metafunc.definition.get_closest_marker("lowest"):
        metafunc.parametrize("versions", ["newest", pytest.param("lowest", marks=pytest.mark.long)], indirect=True)


@pytest.fixture(autouse=True)
def versions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which packages the servers of this test run with: "newest" or "lowest"."""
    chosen = str(getattr(request, "param", "newest"))
    if chosen == "lowest":
        if not PYTHON.exists():
            pytest.fail("the environment with the lowest versions is missing: tests/run --all makes it", pytrace=False)
        monkeypatch.setattr(support, "PYTHON", str(PYTHON))
    return chosen
