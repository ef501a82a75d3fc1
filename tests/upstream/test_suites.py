"""Installed into any Flask app, the extension changes nothing that the app's own tests would notice.

Flask's and httpbin's own test suites, from their source distributions, run with the extension in every app they make.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from support import source_distribution

ROOT = Path(__file__).resolve().parent.parent.parent

#: Flask's tests that may fail, and why.
FLASK_EXCEPTIONS = {
    "tests/test_reqctx.py::test_bad_environ_raises_bad_request":
        "fails without the extension too: this Werkzeug takes the Host header that the test sends",
}


def _run(source: Path, *path: Path) -> str:
    """Run its suite with our plugin; the output."""
    search = os.pathsep.join(map(str, [*path, ROOT, Path(__file__).parent]))
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-p", "no:cacheprovider", "-rf",
                           "tests"], cwd=source, env={**os.environ, "PYTHONPATH": search}, capture_output=True,
                          text=True, timeout=300)
    return done.stdout + done.stderr


def _counts(output: str) -> tuple[int, set[str]]:
    """Tests that passed, and the names of those that did not."""
    passed = re.search(r"(\d+) passed", output)
    return int(passed[1]) if passed else 0, set(re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_flasks_own_suite_passes_with_the_extension_in_every_app(tmp_path: Path) -> None:
    """All of Flask's tests pass, but for the exceptions named above."""
    tools = tmp_path / "tools"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", str(tools), "pytest<9", "asgiref"],
                   check=True, timeout=170)
    output = _run(source_distribution(tmp_path, f"Flask=={version('flask')}", "--no-build-isolation"), tools)
    passed, failed = _counts(output)
    assert failed <= set(FLASK_EXCEPTIONS), output[-4000:]
    assert passed > 400, output[-2000:]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_httpbins_own_suite_passes_with_the_extension(tmp_path: Path) -> None:
    """All of httpbin's tests pass."""
    source = source_distribution(tmp_path, "httpbin==0.10.4", "--no-build-isolation")
    needs = tmp_path / "needs"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", str(needs), str(source)], check=True,
                   timeout=170)
    passed, failed = _counts(output := _run(source, needs))
    assert not failed, output[-4000:]
    assert passed > 60, output[-2000:]
