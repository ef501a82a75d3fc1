"""The first commands of a new user: ``sample_app/run`` in a fresh copy of the project, ``gunicorn`` alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from support import ROOT, copy_project, free_port, wait_until

ORDER = {"sku": "A-1", "quantity": 1, "customer": "Ada"}


@contextmanager
def _served(command: list[str], cwd: Path, folder: Path, output: Path, timeout: float) -> Iterator[str]:
    """The address of the service that the command starts; Ctrl-C ends it well."""
    port = free_port()
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(("STABILITY_", "DB_", "SAMPLE_", "PYTHONPATH"))}
    env = {**clean, "SERVER_PORT": str(port), "SERVER_HOST": "127.0.0.1", "STABILITY_LOG_DIR": str(folder / "logs"),
           "SAMPLE_INSTANCE": str(folder / "instance"), "STABILITY_DB_FROM_ENV": "off"}
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=file,
                                   stderr=file, start_new_session=True)

    def answers() -> bool:
        assert process.poll() is None, output.read_text()[-3000:]
        with suppress(requests.RequestException):  # its first worker may take long to start
            return requests.get(f"http://127.0.0.1:{port}/health/live", timeout=10).status_code == 200
        return False

    try:
        wait_until(answers, timeout, message="the service answers")
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_gunicorn_alone_serves_the_sample(tmp_path: Path) -> None:
    """In the project's root, without an argument."""
    with _served([sys.executable, "-m", "gunicorn"], ROOT, tmp_path, tmp_path / "output", 60) as url:
        assert requests.post(f"{url}/orders", json=ORDER, timeout=30).status_code == 201
        assert "memory" in requests.get(f"{url}/health", timeout=30).json()["detailed"]
        said = (tmp_path / "output").read_text()
        assert f"dashboard  {url}/health/dashboard\n" in said
        assert f"logs       {tmp_path}/logs\n" in said


def test_an_ordinary_user_is_told_at_once_of_all_that_is_missing(tmp_path: Path) -> None:
    """On a machine with nothing, without sudo: one list; the quick tests ask for MariaDB alone."""
    for name in ("tests/run", "sample_app/run", "sample_app/setup.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "grep", "readlink"):
        (tools / name).symlink_to(str(shutil.which(name)))
    for name, line in (("dpkg-query", "exit 1"), ("id", "echo 1000"), ("sudo", "exit 1")):
        (tools / name).write_text(f"#!{tools}/bash\n{line}\n")
        (tools / name).chmod(0o755)

    def packages(*command: str) -> list[str]:
        done = subprocess.run([str(tools / "bash"), *command], cwd=tmp_path, env={"PATH": str(tools)}, text=True,
                              capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        return done.stderr.partition("As root: apt-get install ")[2].split()

    venv, build = ["python3", "python3-venv"], ["pkg-config", "libmariadb-dev", "gcc", "libc6-dev", "python3-dev"]
    quick = [*venv, *build, "mariadb-server-core", "mariadb-client-core"]
    assert packages("sample_app/run") == venv
    assert packages("tests/run") == quick
    assert packages("tests/run", "--all") == [*quick, "prometheus", "nginx", "haproxy", "systemd", "logrotate",
                                              "chromium", "curl", "npm"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_run_script_sets_everything_up_once(tmp_path: Path) -> None:
    """From any folder; the second time nothing is installed, and arguments reach gunicorn."""
    project = copy_project(tmp_path / "project")
    run = str(project / "sample_app" / "run")
    first, second = tmp_path / "first", tmp_path / "second"
    with _served([run, "--workers", "1"], Path("/"), project, first, 400) as url:
        assert requests.post(f"{url}/orders", json=ORDER, timeout=30).status_code == 201
        assert len(requests.get(f"{url}/health", timeout=30).json()["detailed"]["workers"]) == 1
    assert "Installing the project" in first.read_text()
    with _served([run], Path("/"), project, second, 60) as url:
        assert len(requests.get(f"{url}/orders", timeout=30).json()["orders"]) == 1
    assert "Installing" not in second.read_text()
