"""What systemd hears of a real service: the test holds the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
from supervised import SOURCE, Supervised, starting

from flask_stability.scoreboard import W_READY_NS
from support import Load, runs, wait_until
from support_systemd import WATCHDOG, Systemd

SOURCE_ENV = SOURCE + """
@app.get("/env")
def env():
    return {name: value for name, value in os.environ.items() if name.startswith(("NOTIFY", "WATCHDOG"))}
"""

Start = Callable[..., Supervised]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """The listening end."""
    one = Systemd(tmp_path / "notify")
    yield one
    one.close()


@pytest.fixture
def service(tmp_path: Path, systemd: Systemd) -> Iterator[Start]:
    """Starts services that systemd watches."""
    with starting(tmp_path) as start:
        yield lambda env=None, **options: start(env={**systemd.env, **(env or {})}, **options)


def test_ready_comes_once_when_a_worker_serves(service: Start, systemd: Systemd, worker_class: str) -> None:
    """Not when gunicorn listens: the app takes its time to load. Nothing of systemd's is in a worker's environment."""
    server = service(worker_class=worker_class, wait=False, env={"IMPORT_SECONDS": "2"}, source=SOURCE_ENV)
    ready = wait_until(lambda: systemd.times("READY=1"))[0]
    assert ready > min(row.words[W_READY_NS] for row in server.board().live() if row.words[W_READY_NS]) / 1e9
    assert server.get("/env").json() == {}
    wait_until(lambda: "STATUS=2 of 2 workers serve" in systemd.said("STATUS="))
    assert len(systemd.times("READY=1")) == 1
    assert "STATUS=Gunicorn arbiter booted" not in systemd.said("STATUS=")
    assert {pid for _, _, pid in systemd.heard} == {server.pid}


def test_a_service_that_cannot_start_is_never_ready(service: Start, systemd: Systemd) -> None:
    """It ends, for systemd to act on."""
    server = service(wait=False, source="raise RuntimeError('broken on purpose')")
    assert server.process.wait(60) == 3
    assert not systemd.times("READY=1")


@pytest.mark.long
def test_signs_of_life_come_through_reload_drain_and_a_slow_end(service: Start, systemd: Systemd,
                                                                 worker_class: str) -> None:
    """Under load, while gunicorn's own loops keep the master from its ticks; the phases are told in their order."""
    server = service(worker_class=worker_class, workers=3, env={"STABILITY_DRAIN_DELAY": "8"},
                     config="graceful_timeout = 40")
    server.full(3)
    wait_until(lambda: systemd.times("READY=1"))
    load = Load(server.url, ["/"], 20).start()
    server.signal(signal.SIGHUP)
    wait_until(lambda: len(systemd.times("READY=1")) == 2, 60)
    assert systemd.times("READY=1")[0] < systemd.times("RELOADING=1")[0] < systemd.times("READY=1")[1]
    assert systemd.said("MONOTONIC_USEC=")
    server.full(3)
    assert load.stop().failed == 0
    slow = threading.Thread(target=lambda: server.get("/until-told", timeout=100))
    slow.start()
    server.busy()
    server.signal(signal.SIGTERM)
    wait_until(lambda: systemd.times("STOPPING=1"))
    assert server.get("/health/ready").status_code == 503, "it says so before it stops to listen"
    wait_until(lambda: server.records("process-manager", "stopping"))
    fed = len(systemd.times("WATCHDOG=1"))
    wait_until(lambda: len(systemd.times("WATCHDOG=1")) >= fed + 2, message="signs of life while the end is waited for")
    (server.folder / "told").touch()
    slow.join(60)
    assert server.process.wait(60) == 0
    assert systemd.patient(), systemd.times("WATCHDOG=1")
    assert any("draining for 8 s" in status for status in systemd.said("STATUS="))
    assert len(systemd.times("STOPPING=1")) == 1


@pytest.mark.long
def test_a_frozen_master_gives_no_sign_of_life(service: Start, systemd: Systemd) -> None:
    """Its workers go on, and cannot speak for it."""
    server = service()
    wait_until(lambda: len(systemd.times("WATCHDOG=1")) >= 2)
    server.signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(server.pid).status() == psutil.STATUS_STOPPED)
    systemd.flush()
    before = systemd.times("WATCHDOG=1")
    assert server.get("/").ok
    time.sleep(WATCHDOG)  # nothing is to come: that takes its time
    assert systemd.times("WATCHDOG=1") == before
    server.signal(signal.SIGCONT)
    wait_until(lambda: systemd.times("WATCHDOG=1") > before)


def test_a_reload_that_fails_ends_ready(service: Start, systemd: Systemd) -> None:
    """A configuration that cannot be read, and code that does not start: the service goes on, and says so."""
    server = service()
    server.full(2)
    wait_until(lambda: systemd.times("READY=1"))
    (server.folder / "broken").touch()
    server.signal(signal.SIGHUP)
    wait_until(lambda: any("do not boot" in status for status in systemd.said("STATUS=")), 60)
    wait_until(lambda: len(systemd.times("READY=1")) == 2)
    (server.folder / "broken").unlink()
    wait_until(lambda: systemd.said("STATUS=")[-1] == "STATUS=2 of 2 workers serve", 90)
    (server.folder / "gunicorn.conf.py").write_text("this is no Python")
    server.signal(signal.SIGHUP)
    wait_until(lambda: len(systemd.times("READY=1")) == 3)
    assert len(systemd.times("RELOADING=1")) == 2
    assert server.get("/").ok


def test_sigterm_without_a_drain_says_stopping(service: Start, systemd: Systemd) -> None:
    """And SIGINT likewise."""
    for number in (signal.SIGTERM, signal.SIGINT):
        server = service()
        count = len(systemd.times("STOPPING=1"))
        server.signal(number)
        server.process.wait(60)
        wait_until(lambda count=count: len(systemd.times("STOPPING=1")) == count + 1)


@pytest.mark.long
def test_a_binary_upgrade_hands_the_service_over(service: Start, systemd: Systemd) -> None:
    """SIGUSR2: the second master is silent until the first is done; that one names it to systemd as its last word."""
    server = service()
    server.full(2)
    first = server.pid
    server.signal(signal.SIGUSR2)
    second = wait_until(lambda: next((child for child in server.workers() if child.children()), None))
    wait_until(lambda: len(second.children()) == 2)
    server.signal(signal.SIGTERM)
    server.process.wait(60)
    wait_until(lambda: any(pid == second.pid for _, _, pid in systemd.heard))
    spoken = [(said, pid) for _, said, pid in list(systemd.heard)]
    handed = spoken.index((f"MAINPID={second.pid}", first))
    assert {pid for _, pid in spoken[:handed]} == {first}
    assert {pid for _, pid in spoken[handed + 1:]} == {second.pid}
    assert not systemd.times("STOPPING=1")
    wait_until(lambda: len(systemd.times("READY=1")) == 2)
    assert requests.get(server.url, timeout=30).ok
    os.kill(second.pid, signal.SIGTERM)
    wait_until(lambda: not runs(second))
