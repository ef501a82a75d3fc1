"""The lowest versions that setup.cfg allows: pinned as declared, and used by the tests marked ``lowest``."""

from __future__ import annotations

import configparser
from collections.abc import Callable

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from support import ROOT, Server

SOURCE = '''
from importlib.metadata import version
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
StabilityExt(app)

@app.get("/<path:names>")
def versions(names):
    return {name: version(name) for name in names.split("/")}
'''


def _pinned() -> dict[str, Version]:
    lines = (ROOT / "tests" / "minimum.txt").read_text().splitlines()
    return {name: Version(number) for name, number in (line.split("==") for line in lines if not line.startswith("#"))}


def test_what_is_pinned_is_the_lowest_that_is_declared() -> None:
    """Of every requirement and of the extras that a service uses."""
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    lines = [found["options"]["install_requires"], *(found["options.extras_require"][name]
                                                     for name in ("mysql", "pymysql", "sqlalchemy", "flask-sqlalchemy",
                                                                  "metrics", "cli"))]
    declared = {}
    for requirement in map(Requirement, filter(None, "\n".join(lines).split("\n"))):
        if requirement.name == "flask_stability":  # an extra that brings another one
            continue
        lowest, = (one.version for one in requirement.specifier if one.operator == ">=")
        declared[requirement.name] = Version(lowest)
    assert _pinned() == declared, "tests/minimum.txt and setup.cfg go together"


@pytest.mark.lowest
def test_the_servers_run_with_them(server: Callable[..., Server], versions: str) -> None:
    """Else these tests would say nothing."""
    pinned = _pinned()
    answer = server(source=SOURCE).get("/" + "/".join(pinned)).json()
    served = {name: Version(number) for name, number in answer.items()}
    assert (served == pinned) == (versions == "lowest"), served
