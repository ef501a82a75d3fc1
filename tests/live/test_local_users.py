"""A master that is root, its workers as a user of their own who does what a break-in could do; and honest links."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from supervised import SOURCE, Supervised, starting

from flask_stability.operate.cli import stability
from flask_stability.scoreboard import W_PID
from second_user import NOBODY, as_nobody, needs_root, reachable
from support import wait_until
from test_docs import DOCS, blocks

pytestmark = pytest.mark.long

Start = Callable[..., Supervised]
#: App and codec are loaded as root: a second user may not be able to read the interpreter's libraries.
AS_NOBODY = f"import encodings.idna\nuser = {NOBODY}\ngroup = {NOBODY}\npreload_app = True\n"


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that end with the test."""
    with starting(tmp_path) as start:
        yield start


def events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []


def lines(path: Path, event: str) -> int:
    return events(path).count(event)


def command(server: Supervised, *arguments: str) -> Result:
    """``flask stability …`` for this service."""
    return CliRunner().invoke(stability, arguments, env={"STABILITY_RUN_DIR": server.environ["STABILITY_RUN_DIR"]})


def told(server: Supervised, path: Path) -> None:
    """SIGUSR1, until the master's answer to it is in a log."""
    known = lines(path, "status")
    server.signal(signal.SIGUSR1)
    wait_until(lambda: lines(path, "status") > known, message=f"the status is in {path}")


@needs_root
def test_root_does_nothing_for_a_worker_that_it_could_not_do_itself(supervised: Start, tmp_path: Path,
                                                                    worker_class: str) -> None:
    """It replaces logs by links, names others' processes on its board and plants boards; the service goes on."""
    reachable(tmp_path)
    victim, made = tmp_path / "victim", tmp_path / "made"
    victim.write_text("root's\n")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        server = supervised(worker_class=worker_class, config=AS_NOBODY)
        assert {process.uids().real for process in server.workers()} == {NOBODY}
        logs = server.logs_dir
        wait_until(lambda: (logs / "health.log").exists())
        for file in logs.iterdir():
            assert (file.stat().st_uid, stat.S_IMODE(file.stat().st_mode)) == (NOBODY, 0o640), file

        def break_in() -> None:
            for name, target in (("process-manager.log", victim), ("health.log.1", victim), ("error.log", made)):
                (logs / name).unlink(missing_ok=True)
                (logs / name).symlink_to(target)

        as_nobody(break_in)
        server.signal(signal.SIGUSR1)
        wait_until(lambda: '"event": "status"' in server.logs(), message="the status is on stderr")
        assert '"event": "log_refused"' in server.logs()
        board = server.board(write=True)
        row, = (row for row in board.live() if row.pid == server.worker_pids()[0])
        pid = row.pid
        row.words[W_PID] = other.pid
        done = command(server, "gc", str(other.pid))
        assert (done.exit_code, done.output) == (1, f"Error: no worker {other.pid} is serving\n")
        row.words[W_PID] = pid
        assert command(server, "gc").exit_code == 0
        assert command(server, "retire", str(pid)).exit_code == 0
        server.retired(pid)
        assert server.get("/").ok
        assert victim.read_text() == "root's\n"
        assert not made.exists()
        assert other.poll() is None
        other.kill()
    as_nobody((logs / "process-manager.log").unlink)
    wait_until(lambda: (server.signal(signal.SIGUSR1), events(logs / "process-manager.log"))[1])
    assert (logs / "process-manager.log").stat().st_uid == NOBODY


@needs_root
def test_the_workers_user_asks_and_orders_as_before(supervised: Start, tmp_path: Path) -> None:
    """`status`, `gc` and `retire` as the user of the workers, of a master that is root."""
    reachable(tmp_path)
    server = supervised(worker_class="gthread", config=AS_NOBODY)
    os.chown(server.run_dir, NOBODY, NOBODY)
    pid = server.worker_pids()[0]

    def ask() -> None:
        for arguments in (["status"], ["gc"], ["retire", str(pid)]):
            done = command(server, *arguments)
            assert done.exit_code == 0, done.output

    as_nobody(ask)
    server.retired(pid)


def test_a_directory_that_was_moved_is_left_at_usr1(supervised: Start, worker_class: str) -> None:
    """By the master and by its workers."""
    server = supervised(worker_class=worker_class)
    old = server.logs_dir.rename(server.folder / "old")
    server.logs_dir.mkdir()
    told(server, server.logs_dir / "process-manager.log")
    wait_until(lambda: events(server.logs_dir / "health.log"), message="a worker writes to the new directory")
    assert events(old / "process-manager.log")


def test_links_of_who_runs_the_service_go_on_working(supervised: Start, tmp_path: Path, worker_class: str) -> None:
    """A directory that is a link, error.log on stdout, as containers have them."""
    folder = tmp_path / "server0"
    (folder / "elsewhere").mkdir(parents=True)
    (folder / "logs").symlink_to("elsewhere")
    (folder / "elsewhere/error.log").symlink_to("/dev/stdout")
    server = supervised(worker_class=worker_class,
                        source=SOURCE + '\n@app.get("/fail")\ndef fail():\n    return "no", 500\n')
    assert server.get("/fail").status_code == 500
    wait_until(lambda: '"event": "server_error"' in server.logs())
    assert "started" in events(folder / "elsewhere/process-manager.log")
    assert "log_refused" not in server.logs()


@pytest.mark.needs("logrotate")
@pytest.mark.parametrize("how", ["create", "copytruncate"])
@pytest.mark.parametrize("user", ["one", pytest.param("two", marks=needs_root)])
def test_logrotate_goes_on_working(supervised: Start, tmp_path: Path, how: str, user: str) -> None:
    """With its files made by logrotate, or cut in their place; where the master is root as well."""
    reachable(tmp_path)
    server = supervised(worker_class="gthread", config=AS_NOBODY if user == "two" else "")
    snippet, = (block for block in blocks(DOCS / "logs.rst", "text") if "postrotate" in block)
    (tmp_path / "pid").write_text(str(server.pid))
    config, logs = tmp_path / "logrotate.conf", server.logs_dir
    owner = f"su {NOBODY} {NOBODY}" if user == "two" else ""
    text = snippet.replace("/var/log/orders", str(logs)).replace("/run/orders/gunicorn.pid", str(tmp_path / "pid"))
    config.write_text(text.replace("    daily\n", f"    daily\n    {how}\n    {owner}\n"))
    logs.chmod(0o750)
    for number in range(2):
        wait_until(lambda: events(logs / "health.log"))
        subprocess.run(["logrotate", "--force", "--state", str(tmp_path / "state"), str(config)], check=True,
                       timeout=60, env={**os.environ, "PATH": "/usr/sbin:" + os.environ["PATH"]})
        told(server, logs / "process-manager.log")
        assert events(logs / "process-manager.log.1"), number
    wait_until(lambda: events(logs / "health.log"))
    assert "log_refused" not in server.logs()


def test_the_default_run_directory(supervised: Start, tmp_path: Path) -> None:
    """Without STABILITY_RUN_DIR: private, found by the command line, and its file is gone at the end."""
    server = supervised(worker_class="gthread", env={"STABILITY_RUN_DIR": "", "XDG_RUNTIME_DIR": ""})
    started, = server.records("process-manager", "started")
    board: Any = Path(started["board"])
    assert board.parent.parent == Path("/dev/shm")
    assert stat.S_IMODE(board.parent.stat().st_mode) == 0o700
    done = command(server, "status", "--master", str(server.pid), "--json")
    assert json.loads(done.output)["master_pid"] == server.pid
    server.stop()
    assert not board.exists()
