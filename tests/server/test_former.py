"""What a reload has changed is put back."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from flask_stability.server.gunicorn.former import Former


def _config(**settings: Any) -> Config:
    found = Config()
    for name, value in {"bind": "127.0.0.1:8000", "worker_class": "sync", **settings}.items():
        found.set(name, value)
    return found


def _arbiter(**settings: Any) -> Any:
    cfg = _config(**settings)
    log = SimpleNamespace(setup=lambda cfg: None)
    return SimpleNamespace(cfg=cfg, _num_workers=2, worker_class=cfg.worker_class, address=cfg.address, timeout=30,
                           proc_name="app", pidfile=None, pid=os.getpid(), log=log,
                           app=SimpleNamespace(cfg=cfg, app_uri="app:app"))


def test_configuration_app_and_environment_are_those_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed, added and removed variables too."""
    monkeypatch.setenv("RELEASE_TEST_CHANGED", "1")
    monkeypatch.setenv("RELEASE_TEST_GONE", "1")
    monkeypatch.delenv("RELEASE_TEST_NEW", raising=False)
    arbiter = _arbiter()
    cfg, former = arbiter.cfg, Former(arbiter)
    arbiter.cfg = arbiter.app.cfg = _config(workers=5)
    arbiter._num_workers, arbiter.app.app_uri, arbiter.timeout = 5, "other:app", 99
    monkeypatch.setenv("RELEASE_TEST_CHANGED", "2")
    monkeypatch.setenv("RELEASE_TEST_NEW", "1")
    monkeypatch.delenv("RELEASE_TEST_GONE")
    former.restore()
    assert (arbiter.cfg, arbiter.app.cfg, arbiter._num_workers, arbiter.app.app_uri, arbiter.timeout) == (
        cfg, cfg, 2, "app:app", 30)
    assert (os.environ["RELEASE_TEST_CHANGED"], os.environ["RELEASE_TEST_GONE"]) == ("1", "1")
    assert "RELEASE_TEST_NEW" not in os.environ


def test_the_file_of_the_process_id_is_that_of_before(tmp_path: Any) -> None:
    """gunicorn's reload has made the new one."""
    arbiter = _arbiter(pidfile=str(tmp_path / "old.pid"))
    former = Former(arbiter)
    arbiter.cfg = _config(pidfile=str(tmp_path / "new.pid"))
    former.restore()
    assert (tmp_path / "old.pid").read_text().strip() == str(os.getpid())
    assert not (tmp_path / "new.pid").exists()


@pytest.mark.parametrize(("settings", "problem"), [
    ({}, ""), ({"bind": "127.0.0.1:8001"}, "bind"), ({"worker_class": "gthread"}, "worker_class"),
    ({"preload_app": True}, "preload_app"), ({"user": 65534}, "user"), ({"workers": 7}, "")])
def test_what_keeps_two_releases_from_serving_side_by_side(settings: dict[str, Any], problem: str) -> None:
    """In words."""
    arbiter = _arbiter()
    former = Former(arbiter)
    arbiter.cfg = _config(**settings)
    assert problem in former.problem()
    assert bool(former.problem()) is bool(problem)
