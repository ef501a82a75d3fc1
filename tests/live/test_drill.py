"""The drill that a team runs before it goes live."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from flask_stability.operate.drill.compare import Comparison, show_comparison
from flask_stability.operate.drill.faults import FAULTS
from flask_stability.operate.drill.report import STEADY, Report, Step, verdicts
from flask_stability.operate.drill.show import show
from flask_stability.operate.loadgen import Outcome, Result
from support import ROOT, Server, runs, wait_until
from support_db import MariaDB

APP = """
import itertools
from flask import Flask
from flask_stability import StabilityExt
app = Flask(__name__)
StabilityExt(app)
asked = itertools.count()

@app.get("/")
def index():
    return "here"

@app.get("/broken")
def broken():
    if next(asked):
        raise RuntimeError
    return "well once"
"""
SLOW_APP = APP.replace('return "here"', 'time.sleep(0.2)\n    return "here"').replace(
    "import itertools", "import itertools, time")
CONFIG = """
worker_class = "gthread"
workers = 2
threads = 4
from flask_stability.server import install
install(globals())
"""


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flask_stability.operate.drill", *arguments]


def _environ(folder: Path) -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "STABILITY_RUN_DIR": str(folder)}


def _drill(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), cwd=folder, env={**_environ(folder), **env}, capture_output=True,
                          text=True, timeout=280)


def _held(report: dict[str, Any]) -> None:
    """What no slow machine changes: all figures passed but how long requests take, and so how many of them are under
    way when a worker is killed; hardly any is lost all the same.
    """
    missed = {verdict["figure"] for verdict in report["verdicts"] if verdict["passed"] is False}
    assert missed <= {"mean response time", "availability"}, report
    assert sum(step["failed"] for step in report["steps"]) < 0.03 * sum(step["requests"] for step in report["steps"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An app of one's own with a configuration of its own."""
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    return tmp_path


DATABASE_APP = APP + """
@app.get("/note")
def note():
    with app.extensions["stability"].pool.connection() as connection:
        return {"one": connection.execute("SELECT 1").fetchone()[0]}
"""


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_dropped_connections_are_part_of_it_if_the_user_allows_it(folder: Path, mariadb: MariaDB,
                                                                  worker_class: str) -> None:
    """All connections to a real MariaDB are ended under load, and hardly a request notices. Four workers that start
    one after the other are all counted."""
    (folder / "shop.py").write_text(DATABASE_APP)
    (folder / "gunicorn.conf.py").write_text(CONFIG.replace("gthread", worker_class).replace("= 2", "= 4"))
    before = mariadb.status("Connections")
    done = _drill(folder, "shop:app", "--database", "--path", "/note", "--path", "/", "--rate", "30", "--seconds", "2",
                  "--json", STABILITY_DB_URL=mariadb.url)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["passed"] else 1)
    _held(report)
    step = report["steps"][-1]
    assert (step["name"], step["restored"]) == ("database connections dropped", True)
    assert step["requests"] > 30
    assert {verdict["figure"]: verdict["passed"] for verdict in report["verdicts"]}["database connections"] is True
    assert mariadb.status("Connections") > before + 4
    wait_until(lambda: mariadb.sessions() == [], message="the service is gone")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_an_app_passes_the_drill(folder: Path) -> None:
    """Every fault in turn, each figure against its target; for a person, a program and a CI server."""
    done = _drill(folder, "shop:app", "--rate", "30", "--seconds", "2", "--json", "--junit", "drill.xml")
    report = json.loads(done.stdout)
    assert [step["name"] for step in report["steps"]] == [STEADY, *(name for name, _ in FAULTS)]
    assert all(step["requests"] > 0 for step in report["steps"])
    assert all(step["restored"] for step in report["steps"]), report
    assert {verdict["figure"]: verdict["passed"] for verdict in report["verdicts"]}["database connections"] is None
    _held(report)
    suite = ElementTree.parse(folder / "drill.xml").getroot()
    assert suite.get("tests") == str(len(report["verdicts"]))
    assert done.returncode == (0 if report["passed"] else 1)
    assert report["summary"].startswith("PASSED" if report["passed"] else "FAILED")


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_an_overload_is_part_of_it_if_the_user_asks_for_it(server: Callable[..., Server], tmp_path: Path,
                                                           worker_class: str) -> None:
    """Its requests are in a row of their own, and spoil no other figure; the service is itself again."""
    one = server(source=SLOW_APP, worker_class=worker_class,
                 env={"STABILITY_RUN_DIR": str(tmp_path), "STABILITY_QUEUE_LIMIT": "1"})
    done = _drill(tmp_path, "--url", one.url, "--rate", "2", "--seconds", "1", "--overload", "--json")
    report = json.loads(done.stdout)
    assert [step["name"] for step in report["steps"]] == [STEADY, *(name for name, _ in FAULTS), "overload"]
    assert report["steps"][-1]["restored"]
    verdict, = (one for one in report["verdicts"] if one["figure"].startswith("overload"))
    assert verdict["passed"] is not None, verdict
    assert one.alive()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_running_service_that_fails_is_told_so(server: Callable[..., Server], tmp_path: Path) -> None:
    """Found by its run directory; a path that begins to fail misses the target, and the exit status says so."""
    one = server(source=APP, env={"STABILITY_RUN_DIR": str(tmp_path)})
    done = _drill(tmp_path, "--url", one.url, "--path", "/broken", "--rate", "30", "--seconds", "1")
    assert done.returncode == 1, done.stderr
    assert "MISSED" in done.stdout
    assert "HTTP 500" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("FAILED: availability")
    assert one.alive()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_drill_leaves_nothing_behind(folder: Path, number: signal.Signals) -> None:
    """Ctrl-C, or the end of its time, ends the service that it started."""
    said = folder / "said"
    with said.open("w") as stderr:
        drill = subprocess.Popen(_command("shop:app", "--seconds", "60"), cwd=folder, env=_environ(folder),
                                 stdout=subprocess.DEVNULL, stderr=stderr,
                                 preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        me = psutil.Process(drill.pid)
        wait_until(lambda: "steady load" in said.read_text(), 120, message="the drill has begun")
        family = me.children(recursive=True)
        assert len(family) >= 3  # master and workers
        drill.send_signal(number)
        assert drill.wait(90) != 0
    finally:
        drill.kill()
        drill.wait()
    wait_until(lambda: not any(runs(process) for process in family), message="all have gone")


@pytest.mark.parametrize(("arguments", "said"), [
    (("nosuch:app",), "No module named 'nosuch'"),
    (("--url", "http://127.0.0.1:9"), "--run-dir"),
    (("--url", "http://example.org"), "--anywhere"),
    (("--pid", "1"), "--url"),
    (("--url", "http://127.0.0.1:9", "--compare"), "--compare"),
    (("shop:app", "--compare", "--overload"), "STABILITY_QUEUE_LIMIT"),
    (("shop:app", "--database"), "STABILITY_DB_URL"),
    (("shop:app", "--path", "/", "--path", "/nowhere"), "/nowhere answers 404"),
    (("shop:app", "--junit", "none/drill.xml"), "--junit none/drill.xml: No such file"),
])
def test_a_drill_that_cannot_be_run_says_why(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    """With an exit status of its own."""
    done = _drill(folder, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_every_failure_is_in_a_row_and_the_end_says_passed_or_failed(capsys: pytest.CaptureFixture[str],
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what failed before the first fault; on a narrow terminal nothing is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    steps = [Step(STEADY, 100, 3, 0.97, errors={"HTTP 500": 3}),
             Step("database connections dropped", 1000, 20, 0.98, 1.5, errors={"ConnectionResetError": 20})]
    result = Result([Outcome(0.0, 0.01, 200, "", "/")] * 1077 + [Outcome(0.0, 0.01, 500, "", "/")] * 23)
    show(Report(steps, verdicts(steps, result, 1.0, True), ["/ answers 302: that answer"]))
    said = capsys.readouterr().out
    assert "steady load: 3 × HTTP 500" in said
    assert "database connections dropped: 20 × ConnectionResetError" in said
    assert "…" not in said
    assert "note: / answers 302" in said
    assert said.splitlines()[-1].startswith("FAILED: availability 97.909% of 1100, target > 99.5%")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_the_same_app_with_and_without_the_extension_side_by_side(folder: Path, worker_class: str) -> None:
    """Without it there is no /health, no error document and no hook, with it all of them; the faults are the same."""
    (folder / "gunicorn.conf.py").write_text(CONFIG.replace("gthread", worker_class))
    (folder / "shop.py").write_text(APP + """
import os
with open("seen", "a") as file:
    print("extension" if type(app.wsgi_app).__name__ == "StabilityMiddleware" else "plain", file=file)
""")
    done = _drill(folder, "shop:app", "--compare", "--rate", "20", "--seconds", "1", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["with"]["passed"] else 1), done.stderr
    for side in ("without", "with"):
        assert [step["name"] for step in found[side]["steps"]] == [STEADY, *(name for name, _ in FAULTS)]
        assert all(step["requests"] > 0 for step in found[side]["steps"])
    _held(found["with"])
    seen = (folder / "seen").read_text().split()
    assert set(seen) == {"plain", "extension"}
    assert seen == sorted(seen, key=("plain", "extension").index), "first without, then with"


def test_a_comparison_is_one_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault once, both sides in its row, all requests in the last; the verdict is that of the extension."""
    monkeypatch.setenv("COLUMNS", "160")
    bad = [Step(STEADY, 100, 0), Step("worker frozen", 100, 40, 0.6, 31.0, False, {"TimeoutError": 40})]
    good = [Step(STEADY, 100, 0), Step("worker frozen", 100, 1, 0.99, 1.0, True, {"TimeoutError": 1})]
    result = Result([Outcome(0.0, 0.01, 200, "", "/")] * 1000)
    show_comparison(Comparison(Report(bad, verdicts(bad, result, 1.0, False)),
                               Report(good, verdicts(good, result, 1.0, False))))
    said = capsys.readouterr().out
    row, = (line.split() for line in said.splitlines() if line.strip().startswith("worker frozen"))
    assert row == ["worker", "frozen", "40", "of", "100", "1", "of", "100", "31.0", "s", "1.0", "s", "NO", "yes"]
    assert "in all" in said
    assert "20.00%" in said
    assert "0.50%" in said
    assert "without, worker frozen: 40 × TimeoutError" in said
    assert said.splitlines()[-1].startswith("with the extension: PASSED")
