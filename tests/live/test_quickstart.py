"""The page "ten minutes from nothing to a drill passed", done as it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from support import ROOT, free_port, wait_until
from test_docs import DOCS, blocks, commands

pytestmark = [pytest.mark.long, pytest.mark.needs("curl"), pytest.mark.timeout(400)]


def test_ten_minutes_from_nothing_to_a_drill_passed(tmp_path: Path) -> None:
    """Every command of the page works in the order that it stands there; only the virtual environment is this one's."""
    page = DOCS / "quickstart.rst"
    (tmp_path / "app.py").write_text(blocks(page, "python")[0])
    steps = list(commands(page))
    assert [re.split(r" -c| app:app|-s ", step)[0].strip() for step in steps] == [
        "python3 -m venv .venv && . .venv/bin/activate", "pip install '/path/to/the/clone/of/flask_stability[cli]'",
        "flask stability doctor", "gunicorn", "curl", "curl", "flask stability status", "flask stability drill"]
    port = free_port()
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "flask").write_text(f"#!/bin/sh\nexec {sys.executable} -m flask \"$@\"\n")
    (folder / "flask").chmod(0o755)
    env = {"PATH": f"{folder}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT),
           "HOME": str(tmp_path), "SERVER_PORT": str(port), "STABILITY_RUN_DIR": str(tmp_path), "LANG": "C.UTF-8",
           **{key: os.environ[key] for key in ("COVERAGE_PROCESS_START",) if key in os.environ}}

    def run(step: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", step.replace(":3007", f":{port}")], cwd=tmp_path, env=env, text=True,
                              capture_output=True, timeout=timeout, check=False)

    _, _, doctor, gunicorn, index, health, status, drill = steps
    found = run(doctor)
    assert found.returncode in (0, 1), found.stdout + found.stderr  # 1: a warning, such as being root
    assert "fail" not in found.stdout
    with open(tmp_path / "out", "wb") as out, subprocess.Popen(gunicorn.split(), cwd=tmp_path, env=env, stdout=out,
                                                              stderr=out) as service:
        try:
            def answers() -> bool:
                try:
                    return requests.get(f"http://127.0.0.1:{port}/health/startup", timeout=30).status_code == 200
                except requests.RequestException:
                    assert service.poll() is None, (tmp_path / "out").read_text()
                    return False

            wait_until(answers, 90)
            assert json.loads(run(index).stdout) == {"hello": "world"}
            # a check that took long at the start warns until it is run again
            wait_until(lambda: json.loads(run(health).stdout) == {"status": "pass"})
            assert re.match(r"master \d+, up .* workers\n", run(status).stdout)
        finally:
            service.terminate()
            service.wait(60)
    found = run(drill, 280)
    missed = [line for line in found.stdout.splitlines() if "MISSED" in line]
    assert found.returncode == (1 if missed else 0), found.stdout + found.stderr
    # how long requests take is the machine's business, and so is how many of them are under way when a worker is killed
    assert all("mean response time" in line or "availability" in line for line in missed), found.stdout
    available = re.search(r"availability\W+([\d.]+)% of", found.stdout)
    assert available is not None, found.stdout
    assert float(available[1]) > 97, found.stdout
