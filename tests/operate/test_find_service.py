"""The operator's commands find the service, whatever the operator's own environment says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click
import pytest

from flask_stability import durations
from flask_stability.operate import find_service
from flask_stability.scoreboard import Scoreboard
from support import ROOT, Server

SOURCE = """
from flask import Flask
from flask_stability import StabilityExt
app = Flask(__name__)
app.config["STABILITY_SERVICE_ID"] = "orders"
StabilityExt(app)
"""
COMMAND = [sys.executable, "-c", "from flask_stability.operate.cli import stability; stability()"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose configuration sets a run directory of its own."""
    folder = tmp_path_factory.mktemp("found")
    (folder / "run").mkdir()
    with Server(folder / "server", source=SOURCE,
                config=f"import os\nos.environ['STABILITY_RUN_DIR'] = {str(folder / 'run')!r}") as one:
        yield one


def _run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STABILITY_")}
    return subprocess.run([*COMMAND, *arguments], cwd=folder, env={**kept, "PYTHONPATH": str(ROOT), **env}, text=True,
                          capture_output=True, timeout=60, check=False)


def test_status_finds_a_service_wherever_its_board_is(service: Server, tmp_path: Path) -> None:
    """By its configuration, or by its process id; a bad variable of the operator's shell does not stop it."""
    for folder, arguments, env in (
            (service.folder, ("-c", "gunicorn.conf.py"), {"SERVER_PORT": str(service.port)}),
            (tmp_path, (), {"STABILITY_RUN_DIR": str(service.folder.parent / "run"), "STABILITY_DB_URL": "oracle://"})):
        done = _run(folder, "status", *arguments, **env)
        assert re.match(rf"master {service.pid}, up [\d.]+ (s|min)", done.stdout), done.stderr
    assert service.pid in dict(find_service._mapped())
    done = _run(tmp_path, "status", "--json", STABILITY_RUN_DIR=str(service.folder.parent / "run"))
    assert json.loads(done.stdout)["master_pid"] == service.pid


def test_without_a_service_it_says_where_it_looked(tmp_path: Path) -> None:
    """And what to do."""
    done = _run(tmp_path, "status", STABILITY_RUN_DIR=str(tmp_path))
    assert done.returncode == 1
    assert f"looked in {tmp_path}. Run this as the service's user, or set STABILITY_RUN_DIR" in done.stderr
    done = _run(tmp_path, "retire", "--master", "1")
    assert done.returncode == 1
    assert "/dev/shm" in done.stderr


@pytest.mark.parametrize(("seconds", "words"), [
    (0.0, "0 s"), (3.25, "3.2 s"), (59.4, "59 s"), (59.7, "1 min"), (504, "8 min 24 s"), (3600, "1 h"),
    (7384, "2 h 3 min"), (90061, "1 d 1 h"), (None, "–")])
def test_spans_of_time_read_as_people_say_them(seconds: float | None, words: str) -> None:
    """In the two largest units."""
    assert durations.in_words(seconds) == words


def test_spans_of_time_are_read() -> None:
    """With their unit."""
    assert [durations.parse(text) for text in ("30m", "2h", "1.5h", "14d", "2 w", "5s")] == [
        1800, 7200, 5400, 1209600, 1209600, 5]
    for text in ("2", "h", "-1h", "1e3s", ""):
        with pytest.raises(ValueError, match="30m, 12h, 14d or 2w"):
            durations.parse(text)


@pytest.mark.parametrize(("config", "there", "environ", "expected"), [
    ("x.py", True, "", ["-c", "x.py", "app:app"]), (None, True, "", ["app:app"]),
    (None, False, "", ["-c", find_service.OURS, "app:app"]), (None, False, "--config=y.py", ["app:app"]),
    (None, False, "-c y.py", ["app:app"]), (None, False, "--log-config z", ["-c", find_service.OURS, "app:app"])])
def test_all_commands_have_the_same_default_configuration(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None, there: bool, environ: str,
        expected: list[str]) -> None:
    """A gunicorn.conf.py in the folder, else ours; GUNICORN_CMD_ARGS counts."""
    monkeypatch.setenv("GUNICORN_CMD_ARGS", environ)
    if there:
        (tmp_path / "gunicorn.conf.py").touch()
    assert find_service.gunicorn_arguments(config, "app:app", str(tmp_path)) == expected


@pytest.mark.parametrize("answer", [200, 400])
def test_alert_test_says_whether_an_alert_arrives(tmp_path: Path, answer: int) -> None:
    """As the service would post it: with the address that its configuration sets, under its own name."""
    got: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(answer)
            self.end_headers()
            self.wfile.write(b"no_service")

        def log_message(self, *args: Any) -> None:
            return

    (tmp_path / "app.py").write_text(SOURCE)
    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        (tmp_path / "gunicorn.conf.py").write_text(
            f"import os\nos.environ['STABILITY_ALERT_WEBHOOK'] = 'http://127.0.0.1:{server.server_port}/secret-path'\n"
            "os.environ['STABILITY_ALERT_FORMAT'] = 'slack'\nwsgi_app = 'app:app'\n")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            done = _run(tmp_path, "alert-test")
        finally:
            server.shutdown()
            thread.join()
    assert "[WARN] orders: alert-test: flask stability alert-test (a test" in json.loads(got[0])["text"]
    assert len(got) == 1
    assert done.returncode == (0 if answer == 200 else 1), done.stderr
    assert ("delivered as slack" in done.stdout) if answer == 200 else "answered 400: no_service" in done.stderr
    assert "secret-path" not in done.stdout + done.stderr
    (tmp_path / "gunicorn.conf.py").write_text("wsgi_app = 'app:app'\n")
    assert _run(tmp_path, "alert-test").returncode == 2


def test_a_service_that_cannot_be_attached_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback: a file that is no board, and one of another version."""
    (tmp_path / f"flask_stability-{os.getpid()}.board").write_text("nonsense")
    monkeypatch.setenv("STABILITY_RUN_DIR", str(tmp_path))
    with pytest.raises(click.ClickException, match="no running service"):
        find_service.find(None)
    board, problem = Scoreboard.create(1, str(tmp_path))
    assert (problem, find_service.find_master(None)[0]) == ("", os.getpid())
    assert board.path is not None
    with open(board.path, "r+b") as file:
        file.write(b"FSTABLE0")
    with pytest.raises(click.ClickException, match="no scoreboard of this version"):
        find_service.find(None)
    board.unlink()
