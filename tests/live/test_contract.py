"""What we rely on in gunicorn, on the newest of each major version from the oldest we take to the newest there is."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from supervised import starting

from flask_stability.server.gunicorn import compat
from support import ROOT, Load, wait_until

CACHE = ROOT / ".venv" / "gunicorns"
ENV = {"STABILITY_RETIRE_MERCY": "4", "STABILITY_REQUEST_TIMEOUT": "20"}
CONFIG = "graceful_timeout = 3\nkeepalive = 1\n"


def gunicorn(version: int) -> Path:
    """A folder with the newest gunicorn of a major version, fetched once."""
    folder = CACHE / str(version)
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            fetched = CACHE / f"{version}.new"
            shutil.rmtree(fetched, ignore_errors=True)
            done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target",
                                   str(fetched), f"gunicorn=={version}.*"], capture_output=True, text=True, timeout=170)
            assert done.returncode == 0, done.stderr[-2000:]
            fetched.rename(folder)
    return folder


def served_by(folder: Path, at: Path) -> dict[str, str]:
    """The environment in which a server in the folder `at` runs on that gunicorn."""
    return {**ENV, "PYTHONPATH": f"{folder}:{at}:{ROOT}"}


@pytest.mark.long
@pytest.mark.parametrize("version", compat.TESTED)
def test_a_whole_life_on_every_gunicorn(version: int, tmp_path: Path) -> None:
    """Boot, serve, kill, retire, reload, a boot that fails, max_requests, hang and SIGTERM: each has its reason, and
    only what was in a killed or hung worker is lost. Sync and gthread at the same time: most of it is waiting.
    """
    folder = gunicorn(version)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(_whole_life, folder, version, kind, tmp_path / kind) for kind in ("sync", "gthread")]:
            done.result()


def _whole_life(gunicorn: Path, version: int, worker_class: str, folder: Path) -> None:
    with starting(folder) as start:
        server = start(worker_class=worker_class, config=CONFIG,
                       env=served_by(gunicorn, folder / "server0"))
        server.full(2)
        assert f"Starting gunicorn {version}." in server.logs()
        assert "among the tested versions" not in server.logs()
        seen: list[str] = []

        def exits() -> list[str]:
            """But those of the helpers that sync workers get which a busy machine keeps in their requests."""
            return [reason for reason in server.exits() if reason != "scale"]

        def reasons(number: int) -> list[str]:
            """Of the next exits."""
            wait_until(lambda: len(exits()) >= len(seen) + number, 60, message=f"{number} exits after {seen}")
            server.full(2, 90)
            found = exits()[len(seen):]
            seen.extend(found)
            return found

        server.kill(server.worker_pids()[0])
        assert reasons(1) == ["crash_signal"]

        load = Load(server.url, ["/"], 30).start()
        try:
            pid = server.worker_pids()[0]
            server.retire(pid)
            server.retired(pid)
            assert reasons(1) == ["asked"]
            server.reload()
            assert reasons(2) == ["reload", "reload"]
        finally:
            result = load.stop()
        assert result.failed == 0, result.errors()
        server.full(2, 90)  # helpers that came under load are gone
        seen[:] = exits()

        (server.folder / "broken").touch()
        server.kill(server.worker_pids()[0])
        wait_until(lambda: "boot_failure" in exits(), message="a worker that does not boot")
        (server.folder / "broken").unlink()
        found = reasons(2)
        assert found[0] == "crash_signal"
        assert set(found[1:]) == {"boot_failure"}
        assert server.alive()

        hung = threading.Thread(target=server.lost, args=("/own-deadline",))
        hung.start()
        assert reasons(1) == ["deadline"]
        hung.join(30)

        with (server.folder / "gunicorn.conf.py").open("a") as file:
            file.write("\nmax_requests = 5\n")
        server.reload()
        assert reasons(2) == ["reload", "reload"]
        wait_until(lambda: not server.get("/").ok or len(exits()) > len(seen), message="five requests")
        assert set(reasons(1)) == {"max_requests"}

        answers = []
        slow = threading.Thread(target=lambda: answers.append(server.get("/slow/1.5").status_code))
        slow.start()
        server.busy()
        server.signal(signal.SIGTERM)
        slow.join(30)
        assert answers == [200]
        assert server.process.wait(20) == 0
        assert [record["reason"] for record in server.records("process-manager", "worker_exit")][-1] == "shutdown"
        assert not server.records("process-manager", "internal_error")
        assert not server.records("process-manager", "hook_failed")
        assert not server.records("error", "guard_failed")


@pytest.mark.long
def test_an_unknown_gunicorn_says_in_one_line_what_it_lacks(worker_class: str, tmp_path: Path) -> None:
    """It serves as well as it can."""
    folder = tmp_path / "gunicorn99"
    shutil.copytree(gunicorn(27), folder)
    for name, old, new in (("__init__.py", "version_info = (27", "version_info = (99"),
                           ("arbiter.py", "spawn_workers(", "start_workers("),
                           ("arbiter.py", "os.waitpid(-1", "_wait(-1"),
                           ("arbiter.py", "import os\n", "import os\nfrom os import waitpid as _wait\n")):
        path = folder / "gunicorn" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    with starting(tmp_path) as start:
        server = start(worker_class=worker_class, config=CONFIG, env=served_by(folder, tmp_path / "server0"))
        server.full(2)
        lines = [line for line in server.logs().splitlines() if "among the tested versions" in line]
        assert len(lines) == 1
        assert all(text in lines[0] for text in ("gunicorn 99", "Arbiter.spawn_workers (", "os.waitpid"))
        server.kill(server.worker_pids()[0])
        server.full(2)
        assert server.exits() == ["crash_signal"]
        pid = server.worker_pids()[0]
        server.retire(pid)
        server.retired(pid)
        server.full(2)
        assert server.exits() == ["crash_signal", "asked"]


@pytest.mark.long
@pytest.mark.parametrize("version", compat.TESTED)
def test_an_idle_kept_alive_connection_does_not_hold_the_end_up(version: int, tmp_path: Path) -> None:
    """Alone, gunicorn 24 to 26 wait for all of graceful_timeout."""
    with starting(tmp_path) as start:
        server = start(worker_class="gthread", workers=1, config="graceful_timeout = 60\nkeepalive = 120\n",
                       env={**served_by(gunicorn(version), tmp_path / "server0"), "STABILITY_RETIRE_MERCY": "70"})
        with requests.Session() as client:
            assert client.get(server.url + "/", timeout=30).headers.get("Connection", "").lower() != "close"
            begun = time.monotonic()
            server.signal(signal.SIGTERM)
            assert server.process.wait(45) == 0
        assert time.monotonic() - begun < 40
