"""README.rst, done as it says: its code is an app, its commands are typed one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from support import ROOT, free_port, wait_until
from test_docs import blocks, commands

pytestmark = [pytest.mark.long, pytest.mark.needs("curl"), pytest.mark.timeout(300)]

README = ROOT / "README.rst"
#: What the code of README takes for granted.
AROUND = '''
from concurrent.futures import ThreadPoolExecutor
executor, work = ThreadPoolExecutor(1), lambda: None
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
with stability.connection() as conn:
    conn.execute("CREATE TABLE IF NOT EXISTS stock (sku VARCHAR(8), name VARCHAR(8))")

@app.get("/orders")
def orders():
    return []

'''
Run = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def _service(folder: Path, cwd: Path, *arguments: str) -> Iterator[Run]:
    """gunicorn with these arguments; runs commands beside it, in a shell that has the virtual environment."""
    port = free_port()
    tools = folder / "bin"
    tools.mkdir()
    (tools / "flask").write_text(f"#!/bin/sh\nexec {sys.executable} -m flask \"$@\"\n")
    (tools / "flask").chmod(0o755)
    env = {"PATH": f"{tools}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT),
           "HOME": str(folder), "SERVER_PORT": str(port), "STABILITY_RUN_DIR": str(folder), "LANG": "C.UTF-8",
           "STABILITY_LOG_DIR": str(folder / "logs"), "SAMPLE_INSTANCE": str(folder / "instance"),
           "STABILITY_DB_FROM_ENV": "off", "STABILITY_RELEASE_WATCH": "1", "STABILITY_RELEASE_TIME": "1",
           **{key: os.environ[key] for key in ("COVERAGE_PROCESS_START",) if key in os.environ}}

    def run(step: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", step.replace(":3007", f":{port}")], cwd=cwd, env=env, text=True,
                              capture_output=True, timeout=timeout, check=False)

    with open(folder / "out", "wb") as out, subprocess.Popen([sys.executable, "-m", "gunicorn", *arguments], cwd=cwd,
                                                             env=env, stdout=out, stderr=out) as service:
        def answers() -> bool:
            assert service.poll() is None, (folder / "out").read_text()[-3000:]
            with suppress(requests.RequestException):
                return requests.get(f"http://127.0.0.1:{port}/health/startup", timeout=30).status_code == 200
            return False

        try:
            wait_until(answers, 90, message="it serves")
            yield run
        finally:
            service.terminate()
            service.wait(60)


def test_the_sample_is_looked_at_and_a_worker_killed(tmp_path: Path) -> None:
    """The section "Try it"; ``sample_app/run`` itself has tests of its own (test_run)."""
    start, health, activate, status, kill = list(commands(README))[:5]
    assert (start, activate) == ("sample_app/run", ". .venv/bin/activate")
    with _service(tmp_path, ROOT) as run:
        assert '"status"' in run(health).stdout
        assert re.match(r"master \d+, up .* workers\n", run(status).stdout)
        before = run("flask stability status --pids").stdout.split()
        assert run(kill).stdout.startswith('{"orders"')
        wait_until(lambda: len(set(run("flask stability status --pids").stdout.split()) - set(before)) == 1, 60,
                   message="another worker is in its place")


def test_the_code_is_an_app_and_every_command_to_operate_it_works(tmp_path: Path) -> None:
    """The sections "In your app" and "Operate it"; the drill is passed by test_quickstart."""
    app, models, install, rest = blocks(README, "python")
    (tmp_path / "app.py").write_text(app + AROUND + models + rest)
    (tmp_path / "gunicorn.conf.py").write_text(install)
    steps = list(commands(README))[5:]
    assert [re.split(r" +#", step)[0] for step in steps] == [
        "pip install '/path/to/this/clone[mysql,metrics,cli]'",
        "gunicorn -c python:flask_stability.server.conf app:app",
        "flask stability status", "flask stability reload --wait", "flask stability releases", "flask stability stacks",
        "flask stability quarantine", "flask stability retire", "flask --app app stability check-db",
        "flask stability doctor -c gunicorn.conf.py 'app:app'", "flask stability drill 'app:app'"]
    _, gunicorn, status, reload, releases, stacks, quarantine, retire, check_db, doctor, _ = steps
    with _service(tmp_path, tmp_path, *gunicorn.split()[1:]) as run:
        for step, said in ((status, r"master \d+, up .* workers\n"), (reload, "release .* serves"),
                           (releases, "release .* serves"), (stacks, r"Thread|thread"),
                           (quarantine, "nothing is in quarantine"), (check_db, "ok")):
            done = run(step)
            assert done.returncode == 0, (step, done.stdout, done.stderr)
            assert re.search(said, done.stdout), (step, done.stdout, done.stderr)
        before = run("flask stability status --pids").stdout.split()
        assert run(retire).returncode == 0
        wait_until(lambda: not set(before) & set(run("flask stability status --pids").stdout.split()), 90,
                   message="every worker was replaced")
        looked = run(doctor)
        assert looked.returncode in (0, 1), looked.stdout + looked.stderr  # 1: a warning, such as being root
        assert "fail" not in looked.stdout.splitlines()[-1]
