"""Fixtures for all tests; what a test leaves behind in the process is put back."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ["support_db", "support_mysql"]

# an example that takes long says more of the machine than of the code
hypothesis.settings.register_profile("patient", deadline=None,
                                     suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _process_hooks() -> Iterator[None]:
    """Hooks, handlers and background threads of the extension end with the test."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    yield
    from flask_stability import extension
    from flask_stability.errors import hooks as process_hooks

    process_hooks.uninstall()
    extension.stop_process()
    sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
