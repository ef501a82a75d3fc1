"""`StabilityExt`: one line in an app, and nothing of it where the app does not ask."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest
from flask import Flask, g
from sqlalchemy import create_engine

from flask_stability import ConfigError, StabilityError, StabilityExt
from flask_stability.apps import AppState
from support import wait_until


def _app(tmp_path: Path, **config: object) -> Flask:
    app = Flask("orders", instance_path=str(tmp_path))
    app.config.update(config)
    return app


def test_a_second_registration_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Two layers would count everything twice."""
    app = _app(tmp_path)
    stability = StabilityExt(app)
    with pytest.raises(StabilityError, match="call init_app once"):
        stability.init_app(app)


def test_bad_settings_stop_the_app_at_once(tmp_path: Path) -> None:
    """Not at three in the morning."""
    with pytest.raises(ConfigError, match="STABILITY_DB_TIMEOUT"):
        StabilityExt(_app(tmp_path, STABILITY_DB_TIMEOUT="soon"))


def test_nothing_is_opened_or_started_before_it_is_needed(tmp_path: Path) -> None:
    """Neither a thread nor a file, and under TESTING no thread at all."""
    before = set(threading.enumerate())
    app = _app(tmp_path, TESTING=True)
    stability = StabilityExt(app)
    app.add_url_rule("/", view_func=lambda: "ok")
    assert app.test_client().get("/").data == b"ok"
    assert not list(tmp_path.iterdir())
    with app.app_context(), stability.connection() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert [path.name for path in tmp_path.iterdir()] == ["orders.db"]
    wait_until(lambda: set(threading.enumerate()) <= before, message="the thread that connected has ended")


def test_several_apps_share_one_extension(tmp_path: Path) -> None:
    """Each has its own pool; without an app context it has to be said which."""
    stability = StabilityExt()
    apps = [_app(tmp_path / name, TESTING=True) for name in "ab"]
    pools = []
    for app in apps:
        stability.init_app(app)
        with app.app_context():
            pools.append(stability.pool)
    assert pools[0] is not pools[1]
    with pytest.raises(StabilityError, match="several apps"):
        _ = stability.pool


def test_without_an_app_it_says_what_is_missing() -> None:
    """And so does an app that was never given to it."""
    with pytest.raises(StabilityError, match="call init_app"):
        StabilityExt().connection()
    with Flask("other").app_context(), pytest.raises(StabilityError, match="has no StabilityExt"):
        StabilityExt().connection()


def test_a_forgotten_connection_goes_back_with_the_request_and_with_the_app_context(tmp_path: Path) -> None:
    """Whether or not anything still refers to it."""
    app = _app(tmp_path, TESTING=True)
    stability = StabilityExt(app)
    kept = []

    @app.get("/")
    def forget() -> str:
        kept.append(stability.connection())
        assert stability.pool.stats()["pool_in_use"] == 1
        return "ok"

    app.test_client().get("/")
    with app.app_context():
        assert stability.pool.stats()["pool_in_use"] == 0
        kept.append(stability.connection())
    with app.app_context():
        assert stability.pool.stats()["pool_in_use"] == 0
        assert all(connection.closed for connection in kept)


def test_transactions_commit_roll_back_and_join(tmp_path: Path) -> None:
    """As a block and as a decorator; one inside another is the same transaction."""
    app = _app(tmp_path, TESTING=True)
    stability = StabilityExt(app)

    @stability.transaction
    def add(connection: object, number: int) -> None:
        connection.execute("INSERT INTO t (n) VALUES (%s)", (number,))  # type: ignore[attr-defined]

    def rows() -> list[int]:
        with stability.connection() as connection:
            return [row[0] for row in connection.execute("SELECT n FROM t ORDER BY n").fetchall()]

    with app.app_context():
        with stability.connection() as connection:
            connection.execute("CREATE TABLE t (n INTEGER)")
        add(1)
        with pytest.raises(RuntimeError), stability.transaction() as outer:
            add(2)
            outer.execute("INSERT INTO t (n) VALUES (3)")
            raise RuntimeError
        with stability.transaction():
            add(4)
        assert rows() == [1, 4]


def test_an_engine_that_a_factory_made_is_its_apps_alone(tmp_path: Path) -> None:
    """The next app does not ask it, and the extension does not keep it alive."""
    stability = StabilityExt()

    def create_app(name: str) -> Flask:
        app = _app(tmp_path / name, TESTING=True)
        stability.init_app(app)
        with app.app_context():
            stability.register_engine(create_engine("sqlite://"))
        return app

    apps = [create_app(name) for name in "ab"]
    assert [[check.name for check in app.extensions["stability"].checks] for app in apps] == [["sqlalchemy"]] * 2
    engine = create_engine("sqlite://")
    stability.register_engine(engine, "shared")
    third = create_app("c")
    assert {check.name for check in third.extensions["stability"].checks} == {"shared", "sqlalchemy"}


def test_the_health_path_is_served_out_of_reach_of_the_app(tmp_path: Path) -> None:
    """A login wall and an error handler for everything do not meet it, and the app's routes stay its own."""
    app = _app(tmp_path, TESTING=True, STABILITY_HEALTH_PATH="/up")
    StabilityExt(app)
    app.before_request(lambda: ("log in first", 401))
    app.register_error_handler(Exception, lambda error: ("handled", 418))
    client = app.test_client()
    assert client.get("/").status_code == 401
    assert client.get("/up/live").json == {"status": "pass"}
    assert client.get("/up/none").status_code == 404
    assert {rule.rule for rule in app.url_map.iter_rules()} == {"/static/<path:filename>"}


def test_the_apps_own_route_under_the_health_path_wins(tmp_path: Path) -> None:
    """It was there first."""
    app = _app(tmp_path, TESTING=True)
    StabilityExt(app)
    app.add_url_rule("/health", view_func=lambda: "mine")
    assert app.test_client().get("/health").data == b"mine"


def test_an_app_that_nobody_holds_is_freed(tmp_path: Path) -> None:
    """The extension and its middleware keep no app alive, and need no collector for that."""
    gc.collect()
    gc.disable()
    try:
        app = _app(tmp_path, TESTING=True)
        StabilityExt(app)
        with app.test_client():
            pass
        reference = weakref.ref(app)
        del app
        assert reference() is None
    finally:
        gc.enable()


def test_the_state_of_an_app_is_in_its_extensions(tmp_path: Path) -> None:
    """Where Flask's extensions keep it."""
    app = _app(tmp_path, TESTING=True)
    StabilityExt(app)
    assert isinstance(app.extensions["stability"], AppState)
    with app.app_context():
        assert not hasattr(g, "_flask_stability_connections")
