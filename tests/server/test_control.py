"""The control socket: orders in, answers out, and nothing that a client does keeps the master."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_stability import scoreboard as sb
from flask_stability.health import report
from flask_stability.operate.control import ask
from flask_stability.scoreboard import Scoreboard
from flask_stability.server import control
from flask_stability.server.commands import carry_out
from flask_stability.server.control import CLIENTS, MOST, ControlError, Listener
from support import fork, wait_until

DEEP = "a-folder-with-a-long-name/" * 5  # an address of a Unix socket has 107 bytes


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Of a socket, in a folder whose path is too long for an address."""
    folder = tmp_path / DEEP
    folder.mkdir(parents=True)
    return control.path_of(str(folder / "flask_stability-1.board"))


@pytest.fixture
def listener(path: str) -> Iterator[Listener]:
    """Served once in a while, as the master's tick does."""
    def handle(order: dict[str, Any], uid: int) -> dict[str, Any]:
        if order.get("command") == "break":
            raise ZeroDivisionError
        return {"said": order, "uid": uid}

    one, done = Listener(path, handle), threading.Event()
    assert one.open() == ""

    def serve() -> None:
        while not done.wait(0.01):
            one.serve(time.monotonic())

    thread = threading.Thread(target=serve)
    thread.start()
    yield one
    done.set()
    thread.join()
    one.close()


def _connect(path: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with control.reachable(path) as name:
        link.connect(name)
    return link


def test_an_order_is_answered_and_the_kernel_says_who_asks(path: str, listener: Listener) -> None:
    """Only the owner may open the socket; a fault in an order is its answer."""
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert ask(path, {"command": "x"}, 60) == {"ok": True, "said": {"command": "x"}, "uid": os.geteuid()}
    with pytest.raises(ControlError, match="ZeroDivisionError"):
        ask(path, {"command": "break"}, 60)


@pytest.mark.parametrize("data", [b"no JSON", b"[1]", b"\xff" * 10, b"{" * MOST, b'{"a": ' + b"[" * 4000])
def test_nonsense_is_refused(path: str, listener: Listener, data: bytes) -> None:
    """And the next one is answered."""
    with _connect(path) as link:
        link.settimeout(60)
        link.send(data)
        assert b'"ok": false' in link.recv(MOST)
    assert ask(path, {}, 60)["ok"]


def test_clients_that_say_nothing_are_let_go(path: str, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many; whoever asks after them is answered, and one that left before its answer does no harm."""
    monkeypatch.setattr(control, "PATIENCE", 0.2)
    links = [_connect(path) for _ in range(CLIENTS + 4)]
    assert ask(path, {}, 60)["ok"]
    for link in links:
        link.close()
    with _connect(path) as link:
        link.send(b'{"command": "x"}')
    assert ask(path, {}, 60)["ok"]


def test_another_user_is_refused(tmp_path: Path) -> None:
    """By the file's mode, and by the master where he gets past that."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    folder = Path("/tmp") / f"control-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o755)
    place = str(folder / "x.control")
    one = Listener(place, lambda order, uid: {"uid": uid})
    try:
        assert one.open() == ""
        for mode, said in ((0o600, "another user's"), (0o666, "own user and from root")):
            os.chmod(place, mode)

            def try_it(said: str = said) -> None:
                os.setuid(65534)
                with pytest.raises(ControlError, match=said):
                    ask(place, {}, 30)

            pid = fork(try_it)
            found: list[int] = []

            def ended(pid: int = pid, found: list[int] = found) -> bool:
                one.serve(time.monotonic())
                done, status = os.waitpid(pid, os.WNOHANG)
                found.append(status)
                return done == pid

            wait_until(ended, 60)
            assert found[-1] == 0, mode
    finally:
        one.close()
        folder.rmdir()


def test_what_is_in_its_place_is_not_removed_unless_it_is_a_socket_of_ours(path: str) -> None:
    """A leftover of an earlier process is; a file is not, and the service does without."""
    first = Listener(path, lambda order, uid: {})
    assert first.open() == ""
    assert first._socket is not None
    first._socket.close()  # killed: its file stays
    second = Listener(path, lambda order, uid: {})
    assert second.open() == ""
    second.close()
    assert not os.path.exists(path)
    Path(path).write_text("somebody's")
    assert "no control socket at" in Listener(path, lambda order, uid: {}).open()
    assert Path(path).read_text() == "somebody's"


def test_a_forked_child_leaves_the_socket_to_the_master(path: str, listener: Listener) -> None:
    """Its end is closed, the file stays."""
    pid = fork(lambda: listener.close(inherited=True))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ask(path, {}, 60)["ok"]


def test_a_master_that_is_gone_or_silent_is_told(path: str) -> None:
    """With what to do."""
    with pytest.raises(ControlError, match="no control socket"):
        ask(path, {})
    one = Listener(path, lambda order, uid: {})
    assert one.open() == ""
    with pytest.raises(ControlError, match=r"did not answer within 0\.2 s"):
        ask(path, {}, 0.2)
    assert one._socket is not None
    one._socket.close()
    with pytest.raises(ControlError, match="the master is gone"):
        ask(path, {})


def _board() -> Scoreboard:
    board = Scoreboard.anonymous(1)
    board.master.shared.write_json({"disk": {
        "at_ns": time.monotonic_ns(), "status": "pass", "settled": "pass", "shared": True, "interval": 30,
        "timeout": 2, "critical": False}})
    return board


def test_mutes_are_kept_until_their_time_is_over() -> None:
    """A second one of the same check replaces the first; unmuting what is not muted is an error."""
    board = _board()
    carry_out({"command": "mute", "check": "disk", "seconds": 60}, 0, board, ())
    done = carry_out({"command": "mute", "check": "disk", "seconds": 7200}, 0, board, ())
    mute, = report.mutes(board)
    assert (mute["check"], mute["until"], mute["by"]) == ("disk", done["until"], 0)
    assert report.mutes(board, time.time() + 7300) == []
    carry_out({"command": "unmute", "check": "disk"}, 0, board, ())
    assert report.mutes(board) == []
    with pytest.raises(ControlError, match="is not muted"):
        carry_out({"command": "unmute", "check": "disk"}, 0, board, ())


@pytest.mark.parametrize(("order", "said"), [
    ({"command": "mute", "check": "disc", "seconds": 60}, "there are disk"),
    ({"command": "mute", "check": ["disk"], "seconds": 60}, "there are disk"),
    ({"command": "mute", "check": "disk", "seconds": 1e9}, "at most 30 days"),
    ({"command": "mute", "check": "disk", "seconds": "x"}, "at most 30 days"),
    ({"command": "mute", "check": "disk", "seconds": float("nan")}, "at most 30 days"),
    ({"command": "retire"}, "no worker is serving"), ({"command": "gc", "pid": 1}, "no worker 1 is serving"),
    ({"command": "rm -rf"}, "is no order"), ({}, "is no order")])
def test_an_order_that_makes_no_sense_is_refused(order: dict[str, Any], said: str) -> None:
    """With what would."""
    board = _board()
    with pytest.raises(ControlError, match=said):
        carry_out(order, 0, board, ())
    assert sb.Blob.read(board.master.mutes) == b""
