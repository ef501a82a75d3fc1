"""Several apps in one process: the order of `init_app` decides, never chance."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_stability import StabilityExt, extension, logs, scoreboard
from flask_stability.scoreboard import W_DB_IN_USE, W_DB_MAX
from support import wait_until


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A process of its own, as it were; what error.log is told."""
    gc.collect()
    scoreboard.forget()
    monkeypatch.setattr(extension, "_process", extension._Process())
    records: list[dict[str, Any]] = []
    monkeypatch.setattr(logs, "error", lambda event, **fields: records.append({"event": event, **fields}))
    yield records
    extension.stop_process()


def _app(name: str, tmp_path: Path, stability: StabilityExt, **config: Any) -> Flask:
    app = Flask(name, instance_path=str(tmp_path / name))
    app.config.update(STABILITY_DB_URL=f"sqlite:///{tmp_path}/{name}.db", **config)
    stability.init_app(app)
    return app


def _names() -> set[str]:
    monitor = extension._process.monitor
    assert monitor is not None
    return {name for name in monitor._runs if "database" in name or "search" in name or "sqlalchemy" in name}


def test_the_first_app_rules_the_process(tmp_path: Path, told: list[dict[str, Any]]) -> None:
    """Its settings are the monitor's, and its checks keep their names, in each of many processes."""
    for _ in range(20):
        stability = StabilityExt()
        shop = _app("shop", tmp_path, stability, STABILITY_HEALTH_INTERVAL=3, STABILITY_ALERT_WEBHOOK="http://127.0.0.1:9/x")
        admin = _app("admin", tmp_path, stability, STABILITY_HEALTH_INTERVAL=30)
        extension.start_process()
        monitor = extension._process.monitor
        assert monitor is not None
        assert monitor._settings is shop.extensions["stability"].settings
        assert _names() == {"database", "admin:database"}
        extension.stop_process()
        told.clear()
        del shop, admin, stability
        gc.collect()


def test_settings_that_disagree_are_told_once(tmp_path: Path, told: list[dict[str, Any]]) -> None:
    """With both apps' names and the keys, and no value, which may be a secret; also of an app that comes late."""
    stability = StabilityExt()
    shop = _app("shop", tmp_path, stability, STABILITY_ALERT_WEBHOOK="http://127.0.0.1:9/x")
    same = _app("same", tmp_path, stability, STABILITY_ALERT_WEBHOOK="http://127.0.0.1:9/x")
    extension.start_process()
    assert not [record for record in told if record["event"] == "settings_disagree"]
    late = _app("late", tmp_path, stability, STABILITY_HEALTH_INTERVAL=7)
    extension.stop_process()
    extension.start_process()
    found = [record for record in told if record["event"] == "settings_disagree"]
    assert [(record["app"], record["used_app"], record["settings"]) for record in found] == [
        ("late", "shop", ["STABILITY_ALERT_WEBHOOK", "STABILITY_HEALTH_INTERVAL"])]
    assert "127.0.0.1" not in str(found)
    assert len({shop, same, late}) == 3


def test_an_app_that_comes_late_is_looked_after(tmp_path: Path) -> None:
    """A dispatcher makes its apps when they are asked for: their databases and checks are watched like the first's."""
    stability = StabilityExt()
    kept = [_app("shop", tmp_path, stability)]
    extension.start_process()
    stability.health_check("search")(lambda: None)
    kept.append(_app("late", tmp_path, stability))
    kept.append(_app("late", tmp_path, stability))
    assert _names() == {"database", "late:database", "late-2:database", "search"}


def test_the_figures_of_all_pools_count(tmp_path: Path) -> None:
    """Each pool's keeper writes to the worker's one row: together, not the last one's alone."""
    stability = StabilityExt()
    apps = [_app(name, tmp_path, stability, STABILITY_DB_MAX_SIZE=size) for name, size in (("shop", 3), ("admin", 4))]
    extension.start_process()
    words = scoreboard.my_row().words
    with apps[0].app_context(), stability.connection(), apps[1].app_context(), stability.connection():
        wait_until(lambda: words[W_DB_IN_USE] == 2, message="the connections of both")
        assert words[W_DB_MAX] == 7
    wait_until(lambda: words[W_DB_IN_USE] == 0)
