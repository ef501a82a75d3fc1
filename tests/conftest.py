"""Fixtures for all tests; what a test leaves behind in the process is put back."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ["support_db", "support_leaks", "support_measure", "support_mysql", "support_parallel",
                  "support_versions"]

# an example that takes long says more of the machine than of the code
hypothesis.settings.register_profile("patient", deadline=None,
                                     suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

# a shell starts what runs in the background with SIGINT and SIGQUIT ignored, and all that this starts would inherit it
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that look at a page in Chromium."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.needs("chromium"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail where a program is missing; a test that is skipped would never be missed."""
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if shutil.which(program) is None:
                pytest.fail(f"{program} is missing: tests/run --all installs it", pytrace=False)


@pytest.fixture(autouse=True)
def _process_hooks() -> Iterator[None]:
    """Hooks, handlers, background threads, counters and apps of the extension end with the test."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    yield
    from flask_stability.apps import apps
    from flask_stability.errors import hooks as process_hooks
    from flask_stability.runtime import runtime

    process_hooks.uninstall()
    apps.stop()
    apps.forget()
    runtime.forget_board()
    sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
