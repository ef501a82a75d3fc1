"""The admin listener: by which names it may be asked, what it says of itself, what clients that dawdle cost."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stability.config import Settings
from flask_stability.health import admin
from flask_stability.health.admin import MOST, AdminListener
from support import free_port, wait_until

PATIENCE = 30.0


@pytest.fixture
def port() -> Iterator[int]:
    """At which a listener answers."""
    with _listening() as found:
        yield found


@contextlib.contextmanager
def _listening(host: str = "127.0.0.1", **options: Any) -> Iterator[int]:
    found = free_port()
    listener = AdminListener(replace(Settings(), admin_bind=f"{host}:{found}", **options))
    listener.keep(True, 0.0)
    try:
        yield found
    finally:
        listener.close()


def _ask(port: int, head: str) -> str:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(f"GET /health {head}\r\n\r\n".encode())
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
    return found.decode()


def _status(port: int, host: str) -> int:
    return int(_ask(port, f"HTTP/1.1\r\nHost: {host}").split()[1])


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "127.0.0.1", "localhost:{port}", "LOCALHOST.", "[::1]:{port}"])
def test_it_is_asked_by_its_own_names(port: int, host: str) -> None:
    """By address, as localhost (through a tunnel), with a port or without; also without a Host, as no browser does."""
    assert _status(port, host.format(port=port)) == 200
    assert " 200 " in _ask(port, "HTTP/1.0")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example",
                                  "localhost.evil.example",
                                  "192.0.2.7", "", "a, 127.0.0.1", "127.0.0.1:x", "[::1", "[::1]evil", "127.0.0.1@evil",
                                  "0.0.0.0"])
def test_it_answers_to_no_other_name(port: int, host: str) -> None:
    """A page in a browser on this machine cannot read it by pointing its own name here."""
    said = _ask(port, "HTTP/1.1\r\nHost: " + host.format(port=port))
    assert " 421 " in said.splitlines()[0]
    assert "detailed" not in said
    assert "STABILITY_ADMIN_HOSTS" in said


def test_two_hosts_are_none(port: int) -> None:
    """Neither the first nor the last counts."""
    assert " 421 " in _ask(port, "HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example").splitlines()[0]


def test_names_can_be_given_to_it() -> None:
    """As a service's name in a cluster; a listener on all addresses is asked by the one that was reached."""
    with _listening("0.0.0.0", admin_hosts=("orders-admin", "Ops.Example")) as port:
        for host, status in (("orders-admin:9000", 200), ("ops.example", 200), ("127.0.0.1", 200),
                             ("other", 421), ("0.0.0.0", 421)):
            assert _status(port, host) == status, host


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
def test_no_text_is_an_error(host: str) -> None:
    """A Host of any form is ours or it is not."""
    check = admin._HostCheck(lambda *_: [], "127.0.0.1", ())
    assert check.is_ours(host, "127.0.0.1") in (True, False)


@pytest.mark.parametrize("head", ["HTTP/1.1\r\nHost: localhost", "HTTP/1.1\r\nHost: evil.example",
                                  "HTTP/1.1\r\nHost: localhost\r\n" + "X: y\r\n" * 200])
def test_it_names_no_versions(port: int, head: str) -> None:
    """Neither Python's nor wsgiref's, in a refusal as well."""
    said = _ask(port, head)
    assert "\r\nServer: stability\r\n" in said
    assert "Python" not in said
    assert "WSGIServer" not in said


def test_clients_that_drip_bytes_lock_nobody_out(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there is room for, and more: the oldest of them goes for each who asks; none stays for long."""
    with contextlib.ExitStack() as opened:
        dripping = [opened.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
                    for _ in range(MOST + 4)]
        end = threading.Event()

        def drip() -> None:
            while not end.wait(0.05):
                for one in dripping:
                    with contextlib.suppress(OSError):
                        one.sendall(b"G")

        thread = threading.Thread(target=drip)
        thread.start()
        opened.callback(thread.join)
        opened.callback(end.set)
        for _ in range(MOST + 4):
            assert _status(port, "localhost") == 200
        monkeypatch.setattr(admin, "LONGEST", 0.2)
        for one in dripping:
            one.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionError):
                while one.recv(4096):
                    pass


def test_a_thread_that_cannot_be_had_costs_no_room(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often: afterwards there is room for as many as before."""
    start = threading.Thread.start

    def fail(self: threading.Thread) -> None:
        if "process_request" in self.name:
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        for _ in range(2 * MOST):
            with contextlib.suppress(ConnectionError, IndexError):
                _status(port, "localhost")
    wait_until(lambda: _status(port, "localhost") == 200)
