"""The master's side of the quarantine: when it starts the isolation worker, and what it tells the others."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flask_stability.exceptions import StabilityError
from flask_stability.scoreboard import Reason, Scoreboard, black_box
from flask_stability.scoreboard.black_box import BlackBox, InFlight
from flask_stability.server import isolation
from flask_stability.server.isolation import AGAIN, PATIENCE, RARELY, Isolation
from flask_stability.server.last_requests import LastRequests
from flask_stability.server.workers import Child

SUSPECT = InFlight("a-1", 1, "GET", "/x", 7, 1)


class Service:
    """A master without a fork: the isolation worker is a record, the clock is given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        board, problem = Scoreboard.create(4, str(folder))
        assert not problem
        self.board, self.now, self.started = board, 1000.0, 0
        self.box = BlackBox(5)
        monkeypatch.setattr(black_box, "_box", self.box)
        monkeypatch.setattr(isolation.time, "monotonic", lambda: self.now)
        self.isolation = Isolation(board, LastRequests(), self.start, lambda: 10.0)

    def start(self, listener: Any) -> None:
        self.started += 1
        self.isolation.child = Child(SimpleNamespace(pid=None), None, self.now, alone=True)

    def suspect(self) -> None:
        """Have a request isolated."""
        self.isolation.quarantine.crashed(self.now, [isolation.Seen(7, "GET", "/x", "/x")], 0)
        self.isolation.quarantine.crashed(self.now, [isolation.Seen(7, "GET", "/x", "/x")], 20)
        self.isolation.tick(self.now)

    def knock(self) -> socket.socket:
        """A worker hands a request over."""
        assert self.isolation.listener is not None
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.isolation.listener.path)
        return client

    def crash(self) -> dict[str, Any]:
        """The isolation worker dies of the suspect."""
        child = self.isolation.child
        assert child is not None
        child.status = int(signal.SIGSEGV)
        return self.isolation.ended(child, Reason.CRASH_SIGNAL, [SUSPECT], oom=False)

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.box.quarantine.read() or b"{}")
        return found


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """With its socket, which ends with the test."""
    # a socket's name has room for 107 bytes
    monkeypatch.chdir(tmp_path)
    found = Service(Path("run"), monkeypatch)
    yield found
    found.isolation.close()
    found.board.unlink()


def test_nothing_is_listed_and_nothing_listens_while_nobody_is_suspected(service: Service) -> None:
    """A request costs a look at one word."""
    service.isolation.tick(service.now)
    assert service.box.listed[0] == 0
    assert service.isolation.listener is None


def test_the_socket_is_the_services_own(service: Service) -> None:
    """Nobody else may hand requests over, or be handed any."""
    service.suspect()
    assert service.isolation.listener is not None
    mode = os.stat(service.isolation.listener.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_it_is_started_at_a_knock_and_ended_after_a_quiet_minute(service: Service) -> None:
    """Not before, and not while it serves."""
    service.suspect()
    assert service.started == 0
    with service.knock():
        service.isolation.tick(service.now)
        assert service.started == 1
        service.isolation.tick(service.now + 59.0)
        assert service.isolation.child is not None
        assert not service.isolation.child.term_at
        service.isolation.tick(service.now + 61.0)
        assert service.isolation.child.asked is Reason.SCALE
        assert service.isolation.child.term_at


def test_one_that_does_not_end_is_killed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first SIGTERM may have come before its signal handlers: it gets more, and SIGKILL in the end."""
    sent: list[int] = []
    monkeypatch.setattr(Child, "send", lambda child, number: sent.append(number))
    service.suspect()
    with service.knock():
        service.isolation.tick(service.now)
        service.isolation.end()
        service.isolation.tick(service.now + 5.0)
        service.isolation.tick(service.now + 11.0)
    assert sent == [signal.SIGTERM, signal.SIGTERM, signal.SIGKILL]


def test_one_that_keeps_dying_is_started_more_and_more_rarely(service: Service) -> None:
    """Whoever has it killed at will must not keep a processor busy with starts; meanwhile suspects are refused."""
    service.suspect()
    pauses = []
    with service.knock():
        for _ in range(8):
            service.isolation.tick(service.now)
            assert service.isolation.child is not None
            began = service.now
            assert service.crash() == {"isolated": True}
            while service.isolation.child is None:
                service.now += 0.25
                left = began + RARELY - service.now
                service.isolation.tick(service.now)
                if service.isolation.child is None and pauses and pauses[-1] == RARELY and left > PATIENCE:
                    assert service.told()["closed"]
            pauses.append(service.now - began)
    assert pauses == sorted(pauses)
    assert pauses[0] > AGAIN
    assert pauses[-1] == pytest.approx(RARELY, abs=0.5)


def test_none_is_started_with_code_that_does_not_serve(service: Service) -> None:
    """A release is on trial, or was refused: the workers refuse suspects, until it may be started again."""
    service.suspect()
    with service.knock():
        service.isolation.tick(service.now, may_start=False)
        assert service.told()["closed"]
        assert service.started == 0
        service.isolation.tick(service.now, may_start=True)
        assert not service.told()["closed"]
        assert service.started == 1
        service.isolation.tick(service.now, may_start=False)  # it has the old code
        assert not service.told()["closed"]


def test_only_what_it_was_serving_exactly_is_refused(service: Service) -> None:
    """The list names fingerprint and exact fingerprint."""
    service.suspect()
    with service.knock():
        service.isolation.tick(service.now)
    service.box.part(4)[48:56] = (99).to_bytes(8, "little")
    service.crash()
    (fingerprint, exact, _, until), = service.told()["convicted"]
    assert (fingerprint, exact) == (7, 99)
    assert until == service.now + 30.0
    assert service.told()["cases"][0][2] is True


def test_switched_off_nothing_is_learnt_and_rules_count_on(service: Service) -> None:
    """STABILITY_QUARANTINE=off; also at a reload."""
    service.suspect()
    service.isolation.carry_out({"what": "add", "path": "/y"}, 0)
    service.isolation.learn(False)
    child = Child(SimpleNamespace(pid=None), None, service.now, status=int(signal.SIGSEGV))
    for _ in range(3):
        assert service.isolation.ended(child, Reason.CRASH_SIGNAL, [SUSPECT], oom=False) == {}
    assert service.told()["cases"] == []
    assert [rule["path"] for rule in service.told()["rules"]] == ["/y"]


def test_rules_that_do_not_fit_are_refused_by_name(service: Service) -> None:
    """The list has a fixed size; what is in force stays so."""
    added = 0
    with pytest.raises(StabilityError, match="too long together"):
        while added < isolation.MOST_RULES:
            service.isolation.carry_out({"what": "add", "path": f"/{added}" + "字" * 190, "route": "字" * 200}, 0)
            added += 1
    assert len(service.told()["rules"]) == added > 0
