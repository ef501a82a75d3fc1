"""Sphinx: ``sphinx-build -W docs build/docs``; needs the extra ``docs`` and no network."""

from __future__ import annotations

import sys
from configparser import ConfigParser
from pathlib import Path

from pallets_sphinx_themes import get_version  # noqa: F401  the theme's package; says at once if it is missing
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import settings_page  # noqa: E402

from flask_stability.scoreboard import layout  # noqa: E402

_setup = ConfigParser()
_setup.read(ROOT / "setup.cfg")

project = "flask_stability"
release = version = _setup["metadata"]["version"]
extensions = ["sphinx.ext.autodoc", "pallets_sphinx_themes"]
html_theme = "flask"
html_logo = html_favicon = None
html_theme_options = {"index_sidebar_logo": False}
html_sidebars = {"**": ["localtoc.html", "relations.html", "searchbox.html"], "index": ["searchbox.html"]}
html_show_copyright = False
html_static_path, html_css_files = ["_static"], ["phone.css"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
default_role = "literal"  # docstrings name things in `single` quotes
nitpick_ignore_regex = [("py:.*", ".*")]


def _tables(app: Sphinx, name: str, source: list[str]) -> None:
    """Take the tables of settings and of the shared memory from the code."""
    if name == "scoreboard":
        source[0] = source[0].replace(".. the tables\n", layout.documented() + "\n")
    if name == "settings":
        source[0] = source[0].replace(".. the tables\n", settings_page.page() + "\n")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _tables)
