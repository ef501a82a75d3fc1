"""To ask where a thread is must not hang the process."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

import flask_stability
from flask_stability import stacks
from flask_stability.runtime import runtime


@pytest.fixture(autouse=True)
def as_before_312(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take every Python for one that can hang; garbage is collected again after the test."""
    monkeypatch.setattr(stacks, "_HANGS", True)
    yield
    gc.enable()


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_while_frames_are_listed(monkeypatch: pytest.MonkeyPatch, collects: bool) -> None:
    """And what the app has chosen for it stays, also if the list cannot be made."""
    def listed() -> dict[int, FrameType]:
        assert not gc.isenabled()
        raise MemoryError

    if not collects:
        gc.disable()
    found = stacks.frame_of(threading.get_ident())
    assert found is not None
    assert gc.isenabled() is collects
    monkeypatch.setattr(sys, "_current_frames", listed)
    with pytest.raises(MemoryError):
        stacks.frame_of(threading.get_ident())
    assert gc.isenabled() is collects


def test_many_that_ask_at_once_leave_it_on() -> None:
    """While threads come and go."""
    wrong: list[str] = []

    def ask() -> None:
        for _ in range(20):
            if stacks.frame_of(threading.get_ident()) is None:
                wrong.append("a thread that runs has no frame")

    threads = [threading.Thread(target=ask) for _ in range(30)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert not wrong
    assert gc.isenabled()


def test_one_that_never_comes_back_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread has the lock: the answer is that nothing is known."""
    monkeypatch.setattr(stacks, "PATIENCE", 0.01)
    with runtime.parts["stacks"].lock:  # type: ignore[attr-defined]
        assert stacks.frame_of(threading.get_ident()) is None


def test_a_child_collects_garbage_again() -> None:
    """It was forked while another thread had switched that off."""
    part = runtime.parts["stacks"]
    part.paused = True  # type: ignore[attr-defined]
    gc.disable()
    part.reset_after_fork()
    assert gc.isenabled()


def test_nobody_else_asks_the_interpreter() -> None:
    """The one place knows how."""
    package = Path(flask_stability.__file__).parent
    assert [path.name for path in package.rglob("*.py") if "sys._current_" in path.read_text()] == ["stacks.py"]
