"""Sessions for contributors: ``nox -s lint types quick all oldest docs coverage``; see CONTRIBUTING.rst.

The tests install programs (MariaDB, Chromium, …) as well as packages, so tests/run makes the environments; sessions use
its ``.venv``.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["quick"]
nox.options.default_venv_backend = "none"

PYTHON = ".venv/bin/python"
SOURCES = ("flask_stability", "sample_app")


def _installed(session: nox.Session, *options: str) -> None:
    session.run("tests/run", *options, "--install-only", external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Look for mistakes and style with ruff."""
    _installed(session)
    session.run(PYTHON, "-m", "ruff", "check", ".", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy, strictly."""
    _installed(session)
    session.run(PYTHON, "-m", "mypy", *SOURCES, external=True)


@nox.session
def quick(session: nox.Session) -> None:
    """Run lint, types and the quick tests: a few minutes."""
    lint(session)
    types(session)
    session.run("tests/run", *session.posargs, external=True)


@nox.session(name="all")
def everything(session: nox.Session) -> None:
    """Run what CI runs: lint, types and every test, MySQL itself included."""
    session.run(".ci/run", external=True)


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the tests that concern versions on the lowest ones that setup.cfg allows."""
    _installed(session, "--all")
    session.run(PYTHON, "-m", "pytest", "-q", "-m", "lowest and long", *session.posargs, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    _installed(session)
    session.run(PYTHON, "-m", "sphinx", "-W", "--keep-going", "docs", "build/docs", external=True)


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure which branches of the package the quick tests take, forked workers included."""
    _installed(session)
    session.run(PYTHON, "-m", "coverage", "erase", external=True)
    session.run(PYTHON, "-m", "coverage", "run", "-m", "pytest", "-q", "-m", "not long and not needs", *session.posargs,
                external=True, success_codes=[0, 1])
    session.run(PYTHON, "-m", "coverage", "combine", external=True, success_codes=[0, 1])
    session.run(PYTHON, "-m", "coverage", "report", external=True)
