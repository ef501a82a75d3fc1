"""What the doctor finds, in facts made up and in real configurations."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flask_stability.config import Settings
from flask_stability.operate.cli import stability
from flask_stability.operate.doctor import _database, configuration, machine
from flask_stability.operate.finding import Finding
from flask_stability.operate.inspect import AppFacts, Facts
from support import Server

MB = 1 << 20
GOOD = Facts(
    gunicorn={"workers": 4, "threads": 4, "timeout": 30, "graceful_timeout": 30, "keepalive": 5,
              "worker_connections": 12, "max_requests": 0, "max_requests_jitter": 0, "preload_app": False,
              "reuse_port": False, "reload": False, "daemon": False, "forwarded_allow_ips": ["127.0.0.1"], "uid": 1000,
              "gid": 1000, "chdir": "/"},
    worker_class="gunicorn.workers.gthread.ThreadWorker", worker_modules=("gunicorn.workers.gthread",),
    binds=(["127.0.0.1", 8000],), hooked=True, loaded=True,
    apps=(AppFacts("shop", "/nowhere", False, Settings()),), resident=50 * MB)


def _changed(**values: Any) -> Facts:
    """The good facts with other values; what is no field of theirs is gunicorn's."""
    own = {name: value for name, value in values.items() if hasattr(GOOD, name)}
    rest = {name: value for name, value in values.items() if name not in own}
    return replace(GOOD, **own, gunicorn={**GOOD.gunicorn, **rest})


def _bad(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.name: finding.status for finding in findings if finding.status != "ok"}


def _all(facts: Facts) -> dict[str, str]:
    return {name: status for look in configuration.LOOKS for name, status in _bad(look(facts)).items()}


def test_a_good_configuration_has_no_findings() -> None:
    """Nothing to do."""
    assert _all(GOOD) == {}
    assert _bad(configuration.memory(GOOD, container=None, total=8192 * MB)) == {}


SYNC = ("gunicorn.workers.sync", "gunicorn.workers.base")
DEBUG = (AppFacts("shop", "/", True, Settings()),)
LONG = (AppFacts("shop", "/", False, Settings(), longest=120.0),)
OPEN = (AppFacts("shop", "/", False, Settings(health_details="always")),)
ADMIN = (AppFacts("shop", "/", False, Settings(admin_bind="0.0.0.0:9001")),)
MERCY = (AppFacts("shop", "/", False, Settings(retire_mercy=10.0)),)
SLOW = (AppFacts("shop", "/", False, Settings(db_timeout=90.0)),)
OWN = (AppFacts("shop", "/", False, Settings(), health_own=("/health",)),)
HIDDEN = (AppFacts("shop", "/", False, Settings(), health_hidden=("/<project>",)),)


@pytest.mark.parametrize(("values", "expected"), [
    ({"problems": ("STABILITY_DB_TIMEOUT='x': give a number",)}, {"settings": "fail"}),
    ({"unknown": {"STABILITY_DB_TIMOUT": "STABILITY_DB_TIMEOUT"}}, {"settings": "warn"}),
    ({"unknown": {"STABILITY_OF_OTHERS": None}}, {}),
    ({"hooked": False}, {"hooks": "fail"}),
    ({"apps": (), "app_error": "ImportError: no"}, {"app": "fail"}),
    ({"apps": ()}, {"app": "fail"}),
    ({"apps": (), "loaded": False}, {}),
    ({"workers": 1}, {"workers": "warn"}),
    ({"worker_connections": 1000}, {"worker_connections": "warn"}),
    ({"worker_modules": ("gunicorn.workers.ggevent",)}, {"worker class": "warn"}),
    ({"worker_modules": SYNC, "timeout": 65}, {}),
    ({"worker_modules": SYNC, "apps": LONG}, {"timeouts": "warn"}),
    ({"max_requests": 1000}, {"max_requests": "warn"}),
    ({"max_requests": 1000, "max_requests_jitter": 100}, {}),
    ({"preload_app": True}, {"preload_app": "warn"}),
    ({"settings": Settings(gc_freeze=True)}, {"gc_freeze": "warn"}),
    ({"preload_app": True, "settings": Settings(gc_freeze=True)}, {"preload_app": "warn"}),
    ({"reload": True}, {"reload": "warn"}),
    ({"daemon": True}, {"daemon": "warn"}),
    ({"reuse_port": True}, {"reuse_port": "warn"}),
    ({"control_shared": True, "control_socket": "/run/user/1/gunicorn.ctl"}, {"control socket": "warn"}),
    ({"http_protocols": ["h1", "h2"]}, {"HTTP/2": "warn"}),
    ({"http_protocols": ["h2"], "worker_modules": ("gunicorn.workers.ggevent",)}, {"worker class": "warn"}),
    ({"timeout": 0}, {"timeout": "warn"}),
    ({"apps": DEBUG}, {"debug": "fail"}),
    ({"apps": MERCY}, {"timeouts": "warn"}),
    ({"apps": SLOW}, {"timeouts": "warn"}),
    ({"settings": Settings(request_timeout=0.0)}, {"request deadline": "warn"}),
    ({"apps": OPEN, "binds": (["0.0.0.0", 80],)}, {"health details": "warn"}),
    ({"apps": OPEN}, {}),
    ({"apps": OWN}, {"health paths": "warn"}),
    ({"apps": HIDDEN}, {"hidden routes": "warn"}),
    ({"apps": ADMIN}, {"admin listener": "warn"}),
    ({"forwarded_allow_ips": ["*"]}, {"forwarded_allow_ips": "warn"}),
])
def test_each_contradiction_is_found_by_itself(values: dict[str, Any], expected: dict[str, str]) -> None:
    """One change, what it means, and a remedy."""
    facts = _changed(**values)
    assert _all(facts) == expected
    for look in configuration.LOOKS:
        for finding in look(facts):
            assert finding.status == "ok" or finding.remedy or finding.name == "settings", finding


@pytest.mark.parametrize(("limit", "container", "total", "expected"), [
    (200 * MB, None, 8192 * MB, {}),
    (500 * MB, 1024 * MB, 8192 * MB, {"memory limit": "warn"}),
    (None, 1024 * MB, 8192 * MB, {}),
    (None, 256 * MB, 8192 * MB, {"memory limit": "warn"}),
    (None, None, 200 * MB, {"memory": "warn"}),
])
def test_memory_has_to_fit(limit: int | None, container: int | None, total: int, expected: dict[str, str]) -> None:
    """The limit of all workers, and what the app takes with nothing to do, against what there is."""
    facts = _changed(settings=Settings(memory_limit=limit))
    assert _bad(configuration.memory(facts, container=container, total=total)) == expected


def test_a_port_in_use_names_the_process(tmp_path: Path) -> None:
    """And is free again when that has gone."""
    holder = subprocess.Popen(
        [sys.executable, "-c", "import socket, time\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n"
                               "print(s.getsockname()[1], flush=True)\ntime.sleep(600)"],
        stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        facts = _changed(binds=(["127.0.0.1", port],), settings=Settings(run_dir=str(tmp_path)))
        finding, = machine.ports(facts)
        assert finding.status == "fail"
        assert f"process {holder.pid}" in finding.detail
    finally:
        holder.kill()
        holder.communicate()
    finding, = machine.ports(facts)
    assert finding.status == "ok"


def test_a_running_service_holds_its_own_port(tmp_path: Path) -> None:
    """Whichever of its processes the kernel names; the worst stands first, a sum at the end."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with Server(tmp_path / "server", source=APP, env={"STABILITY_RUN_DIR": str(run_dir)}) as server:
        facts = _changed(binds=(["127.0.0.1", server.port],), settings=Settings(run_dir=str(run_dir)))
        finding, = machine.ports(facts)
        assert (finding.status, finding.detail) == ("ok", f"in use by the running service (master {server.pid})")
        worker = server.workers()[0]
        assert machine._master(worker, facts) == server.pid
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(server.folder)
            environ = {name: str(server._env[name]) for name in ("SERVER_PORT", "STABILITY_RUN_DIR", "PYTHONPATH")}
            result = CliRunner().invoke(stability, ["doctor", "app:app"], env=environ)
    lines = [line for line in result.output.splitlines() if line and not line.startswith("      ")]
    order = [line.split()[0] for line in lines[:-1]]
    assert order == sorted(order, key=("fail", "warn", "ok").index)
    assert lines[-1].startswith(("PASSED", "PASSED with warnings", "FAILED"))
    assert f"{order.count('ok')} ok)" in lines[-1]


@pytest.mark.parametrize(("limit", "workers", "total", "remedy"), [
    (55, 2, 8192, "raise STABILITY_MEMORY_LIMIT to 75M"), (55, 9, 600, "use fewer workers"),
    (None, 2, 100, "use fewer workers")])
def test_a_memory_limit_set_by_hand_is_raised_if_there_is_room(limit: int | None, workers: int, total: int,
                                                              remedy: str) -> None:
    """The app takes 50 MB: fewer workers would not help a limit below what one of them takes."""
    facts = _changed(workers=workers, settings=Settings(memory_limit=limit * MB if limit else None))
    found = [finding for finding in configuration.memory(facts, container=total * MB, total=total * MB)
             if finding.status == "warn"]
    assert found
    assert all(remedy in finding.remedy for finding in found), found


def test_what_is_no_port_is_told() -> None:
    """The resolver would take it for another one."""
    finding, = machine.ports(_changed(binds=(["127.0.0.1", 99999],)))
    assert (finding.name, finding.status) == ("port 99999", "fail")


def test_a_unix_socket_somebody_listens_on_is_told(tmp_path: Path) -> None:
    """A file that nobody listens on is not."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert [finding.status for finding in machine.ports(_changed(binds=(path,)))] == ["warn"]
    assert [finding.status for finding in machine.ports(_changed(binds=(path,)))] == ["ok"]
    missing = str(tmp_path / "none" / "s")
    assert [finding.status for finding in machine.ports(_changed(binds=(missing,)))] == ["fail"]


def test_pins_are_held_against_what_is_needed_and_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too old fails, one that differs warns, others are nobody's business."""
    (tmp_path / "requirements.txt").write_text(
        "DBUtils==2.0\nflask==3.0.0  # old\npsutil>=5.9\nnumpy==1.0\n-r other.txt\nnonsense ==\n")
    monkeypatch.chdir(tmp_path)
    wanted = {"dbutils": machine.Requirement("DBUtils>=3.2,<3.3"), "flask": machine.Requirement("Flask>=3.0"),
              "psutil": machine.Requirement("psutil>=5.9")}
    found = [(finding.status, finding.detail.split()[2]) for finding in machine._pins(wanted)]
    assert found == [("fail", "DBUtils"), ("warn", "flask")]


def test_an_env_file_for_all_eyes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is the owner's alone."""
    monkeypatch.chdir(tmp_path)
    env = tmp_path / ".env"
    env.write_text("DB_PASSWORD=secret\n")
    env.chmod(0o644)
    assert [finding.remedy for finding in machine.permissions(GOOD)
            if finding.status == "warn" and ".env" in finding.detail] == ["chmod 600 .env"]
    env.chmod(0o600)
    assert not [finding for finding in machine.permissions(GOOD) if ".env" in finding.detail]


def test_directories_that_every_user_may_write_are_told(tmp_path: Path) -> None:
    """Of the logs and of the scoreboard: others could take names there first."""
    folder = tmp_path / "shared"
    folder.mkdir()
    facts = _changed(settings=Settings(run_dir=str(folder)),
                     apps=(AppFacts("shop", "/", False, Settings(log_dir=str(folder))),))
    assert "permissions" not in _bad(machine.permissions(facts))
    folder.chmod(0o1777)
    told = [finding.detail for finding in machine.permissions(facts) if finding.status == "warn"]
    assert [detail.partition(":")[0] for detail in told if str(folder) in detail] == ["STABILITY_LOG_DIR",
                                                                                    "STABILITY_RUN_DIR"]


def _doctor(folder: Path, *arguments: str, **environ: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """Exit status, findings by name, and all that was printed, of the command in a folder."""
    runner = CliRunner()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = runner.invoke(stability, ["doctor", "--json", *arguments], env=environ)
    return result.exit_code, {finding["name"]: finding for finding in json.loads(result.stdout)}, result.output


CONFIG = """
bind = "127.0.0.1:0"
worker_class = "gthread"
workers = 2
threads = 4
worker_connections = 12
print("noise on stdout")
from flask_stability.server import install
install(globals())
"""
APP = """
from flask import Flask
from flask_stability import StabilityExt
app = Flask(__name__)
StabilityExt(app)
plain = Flask("plain")
"""


def test_a_real_configuration_is_read_as_gunicorn_reads_it(tmp_path: Path) -> None:
    """Whatever it prints; the app is loaded, and one without the extension is told apart."""
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    (tmp_path / "shop.py").write_text(APP)
    status, found, _ = _doctor(tmp_path, "shop:app")
    assert found["hooks"]["status"] == found["worker class"]["status"] == "ok"
    assert found["app"]["detail"] == "shop"
    assert status < 2, found
    _, found, _ = _doctor(tmp_path, "shop:app", GUNICORN_CMD_ARGS="--workers=1")
    assert found["workers"]["status"] == "warn"
    (tmp_path / "gunicorn.conf.py").write_text("bind = '127.0.0.1:0'\n")
    (tmp_path / "other.py").write_text("def app(environ, start_response): pass\n")
    status, found, _ = _doctor(tmp_path, "other:app")
    assert (status, found["hooks"]["status"], found["app"]["status"]) == (2, "fail", "fail")


@pytest.mark.parametrize(("config", "said"), [
    ("raise ValueError('broken here')", "broken here"), ("import os; os._exit(7)", "exit status 7"),
    ("import time; time.sleep(600)", "longer than 2 s"), ("workers = 'many'", "many"),
    ("this is no Python", "SyntaxError"),
])
def test_a_configuration_that_cannot_be_read_is_told(tmp_path: Path, config: str, said: str) -> None:
    """It may raise, exit or hang: the doctor answers."""
    (tmp_path / "gunicorn.conf.py").write_text(config)
    status, found, _ = _doctor(tmp_path, "shop:app", "--timeout", "2" if "sleep" in config else "60")
    assert status == 2
    assert said in found["gunicorn"]["detail"]


def test_routes_of_the_apps_under_the_health_path_are_told(tmp_path: Path) -> None:
    """Which of ours the app answers, and which of its rules ours hide; under another path none."""
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    (tmp_path / "shop.py").write_text(APP + """
app.add_url_rule("/health", "own", lambda: "mine")
app.add_url_rule("/health/<name>", "named", lambda name: name)
""")
    _, found, _ = _doctor(tmp_path, "shop:app")
    assert "/health itself" in found["health paths"]["detail"]
    assert "STABILITY_HEALTH_PATH" in found["health paths"]["remedy"]
    assert "/health/<name>" in found["hidden routes"]["detail"]
    _, found, _ = _doctor(tmp_path, "shop:app", STABILITY_HEALTH_PATH="/-/stability")
    assert not {"health paths", "hidden routes"} & set(found)


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """Neither the password of a database that is away nor a token."""
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    (tmp_path / "shop.py").write_text(APP)
    status, found, output = _doctor(tmp_path, "shop:app", STABILITY_HEALTH_TOKEN="hunter2-token",
                                    STABILITY_DB_URL="mysql://me:hunter2-password@127.0.0.1:1/shop")
    assert status == 2
    assert found["database: reachable"]["status"] == "fail"
    assert "fewer than 16 characters" in found["health details"]["detail"]
    assert "hunter2" not in output
    _, _, output = _doctor(tmp_path, "shop:app", STABILITY_HEALTH_TOKEN="h2",
                           STABILITY_DB_URL="mysql://me:hunter2-password@/")
    assert "hunter2" not in output


def test_an_app_that_gives_its_own_credentials_is_not_judged_without_them() -> None:
    """The doctor looks from outside; check-db asks the app."""
    shop = AppFacts("shop", "/", False, Settings(db_url="mysql://app@127.0.0.1:1/shop"), credentials=True)
    findings = list(_database(_changed(apps=(shop,))))
    assert [(finding.name, finding.status) for finding in findings] == [("database: credentials", "ok")]
