"""Our server hooks and the user's own, chained: both are called, and none of ours can raise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from flask_stability import logs, scoreboard
from flask_stability.config import Settings
from flask_stability.runtime import runtime
from flask_stability.server import hooks, install, master
from flask_stability.server.hooks import ARITY
from flask_stability.server.process import process

#: The user's own exception refuses something there.
REFUSING = {"on_starting", "when_ready", "pre_request"}
#: The user's comes first: the ready word is the last of the boot, and what the user's may still use is freed after it.
USERS_FIRST = {"post_worker_init", "worker_exit", "on_exit"}
Records = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """The records of process-manager.log so far."""
    logs.setup(Settings(log_dir=str(tmp_path)), "master")

    def read() -> list[dict[str, Any]]:
        path = tmp_path / "process-manager.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    yield read
    logs.teardown()


def _telling(told: list[Any], who: str, arity: int, error: BaseException | None = None) -> Callable[..., None]:
    """A hook as a user writes it; gunicorn counts its parameters."""
    def tell(*args: Any) -> None:
        told.append((who, args))
        if error is not None:
            raise error

    hook: Callable[..., None] = eval(f"lambda {', '.join('abc'[:arity])}: tell({', '.join('abc'[:arity])})",
                                     {"tell": tell})
    return hook


@pytest.mark.parametrize("name", ARITY)
def test_the_users_hook_is_called_beside_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once with gunicorn's arguments, in the right order, also if the configuration installs twice."""
    told: list[Any] = []
    arity = ARITY[name]
    monkeypatch.setitem(hooks.OWN, name, _telling(told, "ours", arity))
    namespace: dict[str, Any] = {name: _telling(told, "user's", arity)}
    install(namespace)
    install(namespace)
    args = tuple(object() for _ in range(arity))
    namespace[name](*args)
    order = ["user's", "ours"] if name in USERS_FIRST else ["ours", "user's"]
    assert told == [(who, args) for who in order]


@pytest.mark.parametrize("own", [False, True])
def test_gunicorn_takes_every_hook(own: bool) -> None:
    """It looks at the number of parameters, and has a hook of each name."""
    namespace: dict[str, Any] = {name: _telling([], "", arity) for name, arity in ARITY.items()} if own else {}
    install(namespace)
    assert set(namespace) >= set(ARITY)
    for name, hook in namespace.items():
        Config().set(name, hook)


@pytest.mark.parametrize("name", [name for name in ARITY if name != "pre_request"])
@pytest.mark.parametrize("own", [False, True])
def test_ours_cannot_raise(name: str, own: bool, monkeypatch: pytest.MonkeyPatch, records: Records) -> None:
    """It is told once, and the user's is called all the same."""
    told: list[Any] = []
    monkeypatch.setitem(hooks.OWN, name, _telling(told, "ours", ARITY[name], RuntimeError("ours")))
    namespace: dict[str, Any] = {name: _telling(told, "user's", ARITY[name])} if own else {}
    install(namespace)
    namespace[name](*range(ARITY[name]))
    assert sorted(who for who, _ in told) == (["ours", "user's"] if own else ["ours"])
    record, = records()
    assert (record["event"], record["hook"], record["error"]) == ("hook_failed", name, "RuntimeError: ours")


@pytest.mark.parametrize("own", [False, True])
def test_ours_before_each_request_cannot_raise_though_it_is_not_wrapped(own: bool, monkeypatch: pytest.MonkeyPatch,
                                                                       records: Records) -> None:
    """Neither for a board that fails nor for a request that cannot be closed."""
    told: list[Any] = []
    namespace: dict[str, Any] = {"pre_request": _telling(told, "user's", 2)} if own else {}
    install(namespace)
    row = scoreboard.Scoreboard.anonymous(1).rows[0]
    row.orders[scoreboard.O_RETIRE_STATE] = scoreboard.STATE_RETIRING
    for broken, what in ((row, "AttributeError"), (SimpleNamespace(orders=[]), "IndexError")):
        monkeypatch.setattr(runtime, "row", broken)
        namespace["pre_request"](None, object())
        assert records()[-1]["error"].startswith(what)
    assert len(told) == (2 if own else 0)


@pytest.mark.parametrize("name", ARITY)
def test_the_users_can_raise_only_where_that_refuses_something(name: str, monkeypatch: pytest.MonkeyPatch,
                                                               records: Records) -> None:
    """The start of the service, or one request, as in plain gunicorn; anywhere else it is told, and ours goes on."""
    told: list[Any] = []
    arity = ARITY[name]
    monkeypatch.setitem(hooks.OWN, name, _telling(told, "ours", arity))
    namespace: dict[str, Any] = {name: _telling(told, "user's", arity, RuntimeError("no"))}
    install(namespace)
    if name in REFUSING:
        with pytest.raises(RuntimeError, match="no"):
            namespace[name](*range(arity))
        assert records() == []
    else:
        namespace[name](*range(arity))
        assert [record["hook"] for record in records()] == [name]
    assert sorted(who for who, _ in told) == ["ours", "user's"]


@pytest.mark.parametrize("name", ["on_reload", "pre_fork", "child_exit", "nworkers_changed"])
def test_sys_exit_in_a_hook_does_not_end_the_master(name: str, records: Records) -> None:
    """Once the service is up the hooks that run in the master may leave by no way."""
    namespace: dict[str, Any] = {name: _telling([], "user's", ARITY[name], SystemExit(1))}
    install(namespace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "supervisor", SimpleNamespace(forking=lambda _: None, exited=lambda _: None,
                                                             configure=lambda _: None))
        patch.setattr(master, "adjust", lambda *_: None)
        namespace[name](*range(ARITY[name]))
    assert [record["error"] for record in records()] == ["SystemExit: 1"]
