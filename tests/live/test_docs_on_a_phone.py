"""The documentation in a real Chromium, as wide as a phone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import ROOT
from support_browser import Tab, browser, tabs

__all__ = ["browser", "tabs"]
WHOLE = ("settings", "faults", "logs")


@pytest.mark.long
@pytest.mark.needs("chromium")
def test_its_tables_fit_a_phone(tabs: Callable[..., Tab], tmp_path: Path) -> None:
    """No cell of a table is cut off; the settings, the faults and the events are no wider than the window."""
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", str(tmp_path / "doctrees"),
                    str(ROOT / "docs"), str(tmp_path / "html")], check=True, timeout=300, capture_output=True)
    for name in (*WHOLE, "health", "supervision"):
        tab = tabs((tmp_path / "html" / f"{name}.html").as_uri(), width=390, height=844)
        assert name not in WHOLE or tab.overflow() <= 0, name
        cut = tab.page.evaluate("[...document.querySelectorAll('table.docutils td')].filter((cell) => "
                                "cell.getBoundingClientRect().right > innerWidth + 1).length")
        assert cut == 0, name
