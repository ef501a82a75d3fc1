"""The wheel in an empty environment: it imports without mysqlclient, and says what to install where that is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support import copy_project


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_wheel_works_without_mysqlclient_and_names_the_extra(tmp_path: Path) -> None:
    """Built from the source distribution, installed alone, taken by gunicorn's configuration check."""
    project = copy_project(tmp_path / "project")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "-o", str(tmp_path), str(project)],
                   check=True, capture_output=True, timeout=170)
    wheel, = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    pages = [path for part in ("static", "templates") for path in (project / "flask_stability/health" / part).iterdir()]
    assert {str(path.relative_to(project)) for path in pages} <= packed
    assert any(name.endswith("uPlot.LICENSE.txt") and ".dist-info/" in name for name in packed)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), *map(str, tmp_path.glob("*.gz"))],
                   check=True, capture_output=True, timeout=170)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=280)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True, timeout=280)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "STABILITY", "DB_"))}
    program = ("from flask import Flask\nfrom flask_stability import StabilityExt, ConfigError\napp = Flask('a')\n"
               "s = StabilityExt(app)\nprint(app.test_client().get('/health').json)\n"
               "c = Flask('c')\nc.config['STABILITY_HEALTH_DETAILS'] = 'always'\nStabilityExt(c)\n"
               "print([c.test_client().get('/health/dashboard' + one).status_code for one in ('', '/app.js')])\n"
               "b = Flask('b')\nb.config['STABILITY_DB_URL'] = 'mysql://u@h/d'\n"
               "try:\n    s.init_app(b)\nexcept ConfigError as error:\n    print(error)\n")
    done = subprocess.run([python, "-c", program], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=170)
    assert "{'status': 'pass'}" in done.stdout, done.stderr
    assert "[200, 200]" in done.stdout, done.stderr
    assert "pip install 'flask_stability[mysql]'" in done.stdout
    checked = subprocess.run([str(tmp_path / "venv" / "bin" / "gunicorn"), "--check-config", "-c",
                              "python:flask_stability.server.conf", "wsgiref.simple_server:demo_app"], cwd=tmp_path,
                             env=clean, capture_output=True, text=True, timeout=170)
    assert checked.returncode == 0, checked.stderr
    commands = subprocess.run([str(tmp_path / "venv" / "bin" / "flask"), "stability", "--help"], cwd=tmp_path,
                              env=clean, capture_output=True, text=True, timeout=170)
    assert {"status", "retire", "drill", "check-db"} <= set(commands.stdout.split()), commands.stdout
