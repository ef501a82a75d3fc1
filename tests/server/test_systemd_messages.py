"""What is sent to systemd, held against real datagram sockets."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flask_stability.server.systemd import Notifier, Phase, Service

Read = Callable[[], list[str]]


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Read]]:
    """A socket's address as NOTIFY_SOCKET gives it, and what has come to it."""
    name = f"@stability-{uuid.uuid4().hex}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as line:
        line.bind("\0" + name[1:] if name.startswith("@") else name)

        def read() -> list[str]:
            found: list[str] = []
            while True:
                try:
                    found += line.recv(4096).decode().split("\n")
                except BlockingIOError:
                    return found

        yield name, read


def test_each_phase_and_status_is_told_once(systemd: tuple[str, Read]) -> None:
    """READY, RELOADING with the clock that systemd wants, STOPPING: when they begin, not at every tick."""
    address, read = systemd
    notifier = Notifier(address)
    notifier.tell(1.0)
    assert read() == []
    notifier.phase, notifier.status = Phase.READY, "2 of 2\nworkers"
    notifier.tell(2.0)
    notifier.tell(3.0)
    assert read() == ["READY=1", "STATUS=2 of 2 workers"]
    notifier.phase = Phase.RELOADING
    notifier.tell(4.0)
    first, clock = read()
    assert first == "RELOADING=1"
    assert clock.startswith("MONOTONIC_USEC=")
    assert int(clock.partition("=")[2]) > 0
    notifier.phase = Phase.STOPPING
    notifier.tell(5.0)
    assert read() == ["STOPPING=1"]


def test_the_watchdog_is_fed_four_times_in_its_time(systemd: tuple[str, Read]) -> None:
    """At the first tick, then whenever a quarter of the time has passed."""
    address, read = systemd
    notifier = Notifier.take({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "8000000"})
    for tick in range(80):
        notifier.tell(100 + tick / 10)
    assert read() == ["WATCHDOG=1"] * 4


def _fill(address: str) -> None:
    """Until nobody's datagram fits any more: a sender of its own each time, whose own limit does not come first."""
    for _ in range(10000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            try:
                sender.sendto(b"X=1", address)
            except BlockingIOError:
                return
    raise AssertionError("the queue has no end")


def test_what_could_not_be_sent_comes_with_the_next_message(tmp_path: Path) -> None:
    """Nobody listens yet, or the queue is full: nothing is raised, nothing blocks, nothing is lost."""
    address = str(tmp_path / "notify")
    notifier = Notifier(address)
    notifier.phase = Phase.READY
    notifier.tell(1.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as line:
        line.bind(address)
        _fill(address)
        notifier.tell(2.0)
        with pytest.raises(BlockingIOError):
            while True:
                assert line.recv(100) == b"X=1"
        notifier.tell(3.0)
        assert line.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "@", "relative", "vsock:2:1234", "/" + "x" * 300, "/nul\0inside"])
def test_addresses_that_are_none_are_left_alone(address: str) -> None:
    """Also one that no socket can have: nothing is raised."""
    notifier = Notifier.take({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    notifier.phase = Phase.READY
    notifier.tell(1.0)
    notifier.hand_over(1)


@pytest.mark.parametrize(("usec", "pid", "fed"), [
    ("1000000", None, True), ("1000000", str(os.getpid()), True), ("1000000", "77", True), ("1000000", "1", False),
    ("soon", None, False), ("0", None, False), ("", None, False)],
    ids=["anybody", "ours", "former", "other", "word", "zero", "empty"])  # a process id would differ between processes
def test_the_watchdog_is_ours_or_the_former_masters(systemd: tuple[str, Read], usec: str, pid: str | None,
                                                    fed: bool) -> None:
    """WATCHDOG_PID says whose it is; the variables are gone afterwards."""
    address, read = systemd
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": usec, "OTHER": "stays",
               **({} if pid is None else {"WATCHDOG_PID": pid})}
    notifier = Notifier.take(environ, before=77)
    notifier.tell(1.0)
    assert read() == (["WATCHDOG=1"] if fed else [])
    assert environ == {"OTHER": "stays"}


def test_a_forked_child_says_nothing(systemd: tuple[str, Read]) -> None:
    """A worker that inherited the object cannot speak for its master."""
    address, read = systemd
    notifier = Notifier(address, watchdog=1.0)
    child = os.fork()
    if not child:
        notifier.phase = Phase.READY
        notifier.tell(1.0)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert read() == []


def test_after_handing_over_it_is_silent(systemd: tuple[str, Read]) -> None:
    """The next main process is named, and speaks from then on."""
    address, read = systemd
    notifier = Notifier(address, watchdog=1.0)
    notifier.hand_over(4711)
    notifier.phase = Phase.STOPPING
    notifier.tell(1.0)
    assert read() == ["MAINPID=4711"]


@pytest.mark.parametrize(("service", "before", "phase", "status"), [
    (Service(0, 2), Phase.STARTING, Phase.STARTING, "0 of 2 workers serve"),
    (Service(1, 2, ever_ready=True, reloading=True), Phase.STARTING, Phase.READY, "1 of 2 workers serve; reloading"),
    (Service(2, 2, ever_ready=True, reloading=True), Phase.READY, Phase.RELOADING, "2 of 2 workers serve; reloading"),
    (Service(2, 2, ever_ready=True, stalled=True), Phase.RELOADING, Phase.READY,
     "2 of 2 workers serve; the reload's new workers do not boot"),
    (Service(1, 2, ever_ready=True, degraded=True), Phase.READY, Phase.READY,
     "1 of 2 workers serve; too many workers crash"),
    (Service(2, 2, ever_ready=True, draining=5.0), Phase.READY, Phase.STOPPING,
     "2 of 2 workers serve; draining for 5 s"),
    (Service(0, 2, stopping=True), Phase.STARTING, Phase.STOPPING, "0 of 2 workers serve; stopping"),
    (Service(2, 2, ever_ready=True, stopping=True, succeeded=True), Phase.READY, Phase.READY,
     "2 of 2 workers serve; stopping")])
def test_what_the_service_is_called(service: Service, before: Phase, phase: Phase, status: str) -> None:
    """It is ready once a worker has served, reloads only when it was ready, and stops unless another master goes on."""
    assert (service.phase(before), service.status()) == (phase, status)
