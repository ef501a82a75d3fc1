"""A request that is handed over to another worker: what is refused, and by whom; how it arrives is a live test."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flask_stability.wsgi import handover
from flask_stability.wsgi.handover import NotTaken, hand_over
from wsgi_client import environ


def send(path: Path, timeout: float = 5.0) -> None:
    """Hand a request over; nothing answers it."""
    hand_over(environ(), lambda *_: None, str(path), request_id="", exact=1, timeout=timeout, knock=lambda: None)


def test_no_more_may_wait_than_the_kernel_lets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses at once; those that wait are not counted by anybody who may die with his count."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listener.listen(1)
        held = []
        for _ in range(2):
            held.append(socket.socket(socket.AF_UNIX))
            held[-1].connect("s")
        with pytest.raises(NotTaken) as error:
            send(tmp_path / "s")
        assert error.value.full
        for one in held:
            one.close()


def test_a_worker_that_ends_or_never_answers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets another answer for it; a folder's long name is no obstacle."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    with pytest.raises(NotTaken) as error:
        send(folder / "s")
    assert not error.value.full
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listener.listen(1)
        with pytest.raises(NotTaken) as error:
            send(folder / "s", timeout=0.1)
        assert not error.value.full
    with pytest.raises(NotTaken):
        send(folder / "s")


def test_a_request_from_nowhere_is_none() -> None:
    """Whoever writes to the socket without what the service says is refused."""
    heads: list[str] = []
    app = handover.restored(lambda environ, start_response: [b"never"])
    for given in (None, "no base64", "bm8ganNvbg=="):
        made = environ(**({handover.KEY: given} if given else {}))
        assert list(app(made, lambda status, headers: heads.append(status))) == []
    assert heads == ["400 Bad Request"] * 3
