"""Which of gunicorn's options our defaults follow, and that whatever somebody gives wins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker

from flask_stability.exceptions import ConfigError
from flask_stability.server import install
from flask_stability.server.gunicorn import defaults

OURS = "python:flask_stability.server.conf"


class Own(ThreadWorker):  # type: ignore[misc]
    """A worker class as a user makes it."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No options of these tests' own command line, nothing chosen that stays."""
    for name in ("PORT", "WEB_CONCURRENCY", "SERVER_PORT", "SERVER_HOST", "GUNICORN_CMD_ARGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["gunicorn"])
    before = dict(defaults._chosen)
    yield
    defaults._chosen.clear()
    defaults._chosen.update(before)


@pytest.mark.parametrize(("worker_class", "threads", "connections", "expected"), [
    ("gthread", None, None, (4, 12)),
    ("gthread", 30, None, (30, 90)),
    ("gthread", 1, None, (1, 3)),
    ("gthread", None, 1000, (4, 1000)),
    ("gunicorn.workers.gthread.ThreadWorker", None, None, (4, 12)),
    (Own, None, None, (4, 12)),
    ("sync", None, None, (1, 1000)),
    (SyncWorker, None, None, (1, 1000)),
    ("sync", 6, None, (6, 18)),
    ("gevent", None, None, (1, 1000)),
    ("nowhere.Worker", None, None, (1, 1000)),
])
def test_threads_and_connections_follow_the_rest(worker_class: Any, threads: int | None, connections: int | None,
                                                 expected: tuple[int, int]) -> None:
    """What is given stays; a number of threads of ours makes no gthread of sync."""
    assert tuple(defaults.following(worker_class, threads, connections).values()) == expected


@pytest.mark.parametrize(("in_environment", "arguments", "expected"), [
    ("", ["--threads=30", "app:app"], {"threads": 30}),
    ("--threads 30", [], {"threads": 30}),
    ("--threads 30 -k gevent", ["--thr", "8"], {"threads": 8, "worker_class": "gevent"}),
    ("", ["--own-option", "--worker-connections", "1000"], {"worker_connections": 1000}),
    ("", ["--threads", "many"], {}),
    ("", ["--no-control-socket"], {"control_socket_disable": True}),
])
def test_options_are_read_as_gunicorn_reads_them(monkeypatch: pytest.MonkeyPatch, in_environment: str,
                                                 arguments: list[str], expected: dict[str, Any]) -> None:
    """The command line over GUNICORN_CMD_ARGS; the arguments of a program that embeds gunicorn end nothing."""
    monkeypatch.setenv("GUNICORN_CMD_ARGS", in_environment)
    monkeypatch.setattr(sys, "argv", ["gunicorn", *arguments])
    found = defaults.options()
    found.pop("args", None)
    assert found == expected


def test_the_configurations_own_values_win() -> None:
    """Over ours; what follows from them follows."""
    namespace: dict[str, Any] = {"threads": 20, "workers": 7, "timeout": 90}
    install(namespace, defaults=True)
    assert {name: namespace[name] for name in ("worker_class", "threads", "worker_connections", "workers", "timeout",
                                               "keepalive")} == {
        "worker_class": "gthread", "threads": 20, "worker_connections": 60, "workers": 7, "timeout": 90,
        "keepalive": 5}


def test_a_configuration_that_installs_only_the_hooks_keeps_gunicorns_values() -> None:
    """But for the control socket."""
    namespace: dict[str, Any] = {}
    install(namespace)
    assert namespace["control_socket_disable"] is True
    assert not {"worker_class", "workers", "threads", "worker_connections", "timeout", "keepalive"} & set(namespace)


@pytest.mark.parametrize(("own", "arguments"), [
    ({"control_socket": "/run/shop.ctl"}, []), ({"control_socket_disable": False}, []),
    ({}, ["--control-socket", "/run/shop.ctl"]), ({"control_socket_mode": 0o660}, [])])
def test_a_control_socket_that_somebody_asks_for_is_there(monkeypatch: pytest.MonkeyPatch, own: dict[str, Any],
                                                          arguments: list[str]) -> None:
    """In the configuration or by an option."""
    monkeypatch.setattr(sys, "argv", ["gunicorn", *arguments])
    namespace = dict(own)
    install(namespace)
    assert namespace.get("control_socket_disable", False) is False


@pytest.mark.parametrize(("changed", "expected"), [
    ({"threads": 20}, (20, 60)), ({"worker_class": "sync"}, (1, 1000)), ({"worker_class": "gevent"}, (1, 1000)),
    ({"worker_connections": 100}, (4, 100)), ({}, (4, 12))])
def test_a_configuration_that_imports_ours_may_change_what_follows(changed: dict[str, Any],
                                                                   expected: tuple[int, int]) -> None:
    """``from flask_stability.server.conf import *``, then values of its own: known only when the master starts."""
    namespace: dict[str, Any] = {}
    install(namespace, defaults=True)
    cfg = Config()
    for name, value in {**namespace, **changed}.items():
        cfg.set(name, value) if name in cfg.settings else None
    assert defaults.refit(SimpleNamespace(cfg=cfg)) is (expected != (4, 12) and "worker_connections" not in changed)
    assert (cfg.threads, cfg.worker_connections) == expected


@pytest.mark.parametrize("value", ["many", "-2", "", "1.5"])
def test_a_number_of_workers_that_is_none_names_its_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """It may come from ``.env``, where gunicorn has not looked."""
    monkeypatch.setenv("WEB_CONCURRENCY", value)
    with pytest.raises(ConfigError, match=r"WEB_CONCURRENCY=.*: give a number of workers"):
        install({}, defaults=True)


def _configuration(folder: Path, *arguments: str, **environ: str) -> dict[str, str]:
    done = subprocess.run([sys.executable, "-m", "gunicorn", *arguments, "--print-config", "app:app"], cwd=folder,
                          env={**os.environ, **environ}, capture_output=True, text=True, timeout=60)
    return {name.strip(): value.strip() for name, _, value in (
        line.partition("=") for line in done.stdout.splitlines())}


def test_port_and_web_concurrency_mean_what_they_mean_to_gunicorn(tmp_path: Path) -> None:
    """With our configuration as without it; our own names win over PORT, options over both."""
    (tmp_path / "app.py").write_text("app = print\n")
    environ = {"PORT": "3999", "WEB_CONCURRENCY": "7"}
    bare, ours = _configuration(tmp_path, **environ), _configuration(tmp_path, "-c", OURS, **environ)
    assert (ours["bind"], ours["workers"]) == (bare["bind"], bare["workers"]) == ("['0.0.0.0:3999']", "7")
    named = _configuration(tmp_path, "-c", OURS, "-w", "2", SERVER_PORT="4999", SERVER_HOST="127.0.0.1", **environ)
    assert (named["bind"], named["workers"]) == ("['127.0.0.1:4999']", "2")


def test_a_port_in_port_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable that it stands in."""
    from flask_stability.config import server_bind

    monkeypatch.setenv("PORT", "web")
    with pytest.raises(ConfigError, match=r"^PORT='web': give a port"):
        server_bind()
