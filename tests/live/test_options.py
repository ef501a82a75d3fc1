"""gunicorn's options win over our defaults, in a running service and after its reload."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from supervised import Supervised

from support import wait_until

SOURCE = """
import os, subprocess, threading
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
StabilityExt(app)
together = threading.Barrier(30)

@app.get("/together")
def meet():
    together.wait(60)
    return {"pid": os.getpid()}

@app.get("/ignored")
def ignored():
    return subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True).stdout
"""
OURS = "-c python:flask_stability.server.conf"
#: As nohup starts it.
NOHUP = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh")


def _thirty_at_once(server: Supervised) -> set[int]:
    with ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(lambda _: server.get("/together", timeout=90), range(30)))
    assert {answer.status_code for answer in answers} == {200}
    return {answer.json()["pid"] for answer in answers}


def test_options_and_the_platforms_variables_win(tmp_path: Path) -> None:
    """Thirty threads run thirty requests at once, with keep-alive, on the one worker and the port that were asked for;
    SIGHUP, ignored by whoever started it (nohup), reloads as in plain gunicorn, and nothing is lost by that.
    """
    server = Supervised(tmp_path / "server", source=SOURCE, prefix=NOHUP, env={
        "GUNICORN_CMD_ARGS": f"{OURS} --threads 30", "SERVER_PORT": "", "WEB_CONCURRENCY": "1"})
    server.environ["PORT"] = str(server.port)
    with server:
        before = _thirty_at_once(server)
        assert len(before) == len(server.worker_pids()) == 1
        with requests.Session() as session:
            assert session.get(f"{server.url}/ignored").headers.get("Connection") != "close"
            ignored = int(session.get(f"{server.url}/ignored").text.split()[1], 16)
        assert not ignored & 1 << signal.SIGHUP - 1
        server.reload()
        wait_until(lambda: not before & set(server.worker_pids()), message="the old worker is gone")
        server.full(1)
        assert not before & _thirty_at_once(server)


def test_sync_stays_sync(tmp_path: Path) -> None:
    """Our number of threads would make it gthread."""
    with Supervised(tmp_path / "server", source=SOURCE, env={"GUNICORN_CMD_ARGS": f"{OURS} -k sync -w 1"}) as server:
        assert "Using worker: sync" in server.logs()
        assert server.records("process-manager", "started")[0]["worker_class"] == "sync"


def test_the_master_takes_what_a_reload_reads(tmp_path: Path) -> None:
    """From ``.env`` of now: how long it drains, when it rotates logs."""
    folder = tmp_path / "server"
    with Supervised(folder, source=SOURCE, workers=1,
                    config="from flask_stability.config import load_dotenv\nload_dotenv()") as server:
        server.full(1)
        before = server.worker_pids()
        (folder / ".env").write_text("STABILITY_DRAIN_DELAY=1.5\nSTABILITY_LOG_MAX_BYTES=1000\n")
        server.reload()
        wait_until(lambda: not set(before) & set(server.worker_pids()), 60, message="the old worker is gone")
        wait_until(lambda: list(server.logs_dir.glob("process-manager.log.*")), message="the master rotates")
        server.signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    logs = "".join(path.read_text() for path in server.logs_dir.glob("process-manager.log*"))
    draining, = (json.loads(line) for line in logs.splitlines() if '"draining"' in line)
    assert draining["seconds"] == 1.5
