"""README.rst says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from docutils.utils import Reporter

from flask_stability import StabilityExt, config

ROOT = Path(__file__).resolve().parent.parent


def test_it_can_be_read_in_a_few_minutes() -> None:
    """What a newcomer does not need stands in docs/."""
    assert len((ROOT / "README.rst").read_text().splitlines()) <= 220


@pytest.mark.parametrize("name", ["README.rst", "README.zh.rst"])
def test_it_leads_to_files_that_exist(name: str) -> None:
    """Documents, pictures, folders and links."""
    text = (ROOT / name).read_text()
    named = re.findall(r"``((?:docs|tests|sample_app)/[\w./-]*)``|\.\. image:: (\S+)|<((?!http)[\w./]+)>`_", text)
    assert len(named) > 10
    for found in named:
        path = "".join(found)
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", ["README.rst", "README.zh.rst", "CHANGES.rst", "CONTRIBUTING.rst"])
def test_it_is_valid_restructured_text(name: str) -> None:
    """Shown as it is meant, on PyPI too."""
    publish_doctree((ROOT / name).read_text(), settings_overrides={"halt_level": Reporter.WARNING_LEVEL,
                                                                   "report_level": Reporter.WARNING_LEVEL})


@pytest.mark.parametrize("name", ["README.rst", "README.zh.rst"])
def test_its_python_is_python_and_names_what_there_is(name: str) -> None:
    """Each code block compiles, and each attribute of ``stability`` exists."""
    text = (ROOT / name).read_text()
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text)
    assert len(blocks) >= 3
    for block in blocks:
        compile("\n".join(line[4:] for line in block.splitlines()), name, "exec")
    for attribute in set(re.findall(r"stability\.(\w+)\(", "".join(blocks))) | {"transaction", "health_check"}:
        assert hasattr(StabilityExt(), attribute)


def test_the_count_of_the_matrix_is_the_matrixs_own() -> None:
    """As ``python tests/live/matrix.py`` prints it."""
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "live" / "matrix.py")], capture_output=True, text=True,
                          check=True, timeout=60)
    assert done.stdout.strip() in (ROOT / "README.rst").read_text()
    assert f"{done.stdout.split()[0]} 行的表" in (ROOT / "README.zh.rst").read_text()


def test_every_setting_that_it_names_exists() -> None:
    """In all texts."""
    for path in (*ROOT.glob("*.rst"), ROOT / "gunicorn.conf.py", ROOT / ".env.example"):
        for key in re.findall(r"STABILITY_[A-Z0-9_]+[A-Z0-9]", path.read_text()):
            assert key in config.KEYS, (path.name, key)


def test_both_languages_show_the_same_code() -> None:
    """Comments apart."""
    def blocks(name: str) -> list[str]:
        found = re.findall(r"\.\. code-block:: \w+\n\n((?:    .*\n|\n)+)", (ROOT / name).read_text())
        return [re.sub(r" +# .*", "", block).strip() for block in found]

    assert blocks("README.zh.rst") == blocks("README.rst")
