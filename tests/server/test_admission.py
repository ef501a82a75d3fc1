"""What becomes of a request before it has a thread: refused with a whole answer, given up, aged by a trusted proxy."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from flask_stability.config import Settings
from flask_stability.database import Pool
from flask_stability.request import held
from flask_stability.scoreboard import ABANDONED, W_THREADS, Row, Scoreboard
from flask_stability.server.classes import Route
from flask_stability.server.gunicorn.admission import Admission, Episode
from flask_stability.server.gunicorn.connections import MOST_REFUSED
from flask_stability.server.queue_delay import ENOUGH, NORMAL
from support import wait_until

ROUTE = Route(NORMAL, "GET", "index")
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def _admission(*, secure: bool = False, allowed: str = "127.0.0.1", form: str = "auto",
               limit: float = 1.0) -> tuple[Admission, Row]:
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    cfg = SimpleNamespace(is_ssl=secure, forwarded_allow_ips=allowed)
    return Admission(SimpleNamespace(cfg=cfg), Settings(error_format=form, queue_limit=limit), board, row), row


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection: the server's end and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        with listener.accept()[0] as server:
            yield server, client


def _read(client: socket.socket) -> tuple[bytes, bytes]:
    client.settimeout(30)
    found = b""
    while data := client.recv(65536):
        found += data
    head, _, body = found.partition(b"\r\n\r\n")
    return head, body


def test_a_refusal_is_a_whole_answer(pair: tuple[socket.socket, socket.socket]) -> None:
    """For a person a page, uncached, that says when to come again; counted by route."""
    admission, row = _admission()
    pair[1].sendall(HEAD)
    wait_until(lambda: pair[0].recv(10, socket.MSG_PEEK))
    assert admission.refuse(pair[0], HEAD, ROUTE)
    head, body = _read(pair[1])
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nRetry-After: " in head
    assert b"\r\nCache-Control: no-store" in head
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head
    assert b"<h1>Service Unavailable</h1>" in body
    entries = dict(row.endpoints.items(row.entries))
    assert entries["GET", "index"][8:] == (1, 1, 0)


@pytest.mark.parametrize(("form", "accept"), [("auto", b"application/json"), ("problem", b"text/html")])
def test_programs_get_problem_details(pair: tuple[socket.socket, socket.socket], form: str, accept: bytes) -> None:
    """As from the app itself."""
    admission, _ = _admission(form=form)
    assert admission.refuse(pair[0], b"GET / HTTP/1.1\r\nAccept: " + accept + b"\r\n\r\n", ROUTE)
    head, body = _read(pair[1])
    assert b"\r\nContent-Type: application/problem+json" in head
    assert json.loads(body)["status"] == 503


def test_a_refusal_of_head_has_no_body(pair: tuple[socket.socket, socket.socket]) -> None:
    """But its length."""
    admission, _ = _admission()
    assert admission.refuse(pair[0], b"HEAD / HTTP/1.1\r\n\r\n", ROUTE)
    head, body = _read(pair[1])
    assert b"\r\nContent-Length: " in head
    assert body == b""


@pytest.mark.parametrize(("secure", "head"), [(True, b"\x16\x03\x01"), (False, b"PRI * HTTP/2.0\r\n\r\n"),
                                              (False, b"")])
def test_what_cannot_be_answered_is_closed(pair: tuple[socket.socket, socket.socket], secure: bool,
                                           head: bytes) -> None:
    """TLS before its handshake, and HTTP/2: nothing is written."""
    admission, _ = _admission(secure=secure)
    assert not admission.refuse(pair[0], head, ROUTE)
    pair[0].close()
    assert _read(pair[1]) == (b"", b"")


def test_a_client_that_has_left_is_no_trouble(pair: tuple[socket.socket, socket.socket]) -> None:
    """When it is refused; it is counted by route, and one that leaves early teaches how long clients wait."""
    admission, row = _admission(limit=8.0)
    pair[1].close()
    admission.refuse(pair[0], HEAD, ROUTE)
    before = admission.delay.limit
    for _ in range(ENOUGH):
        admission.left(2.0, ROUTE)
    assert admission.delay.limit < before
    assert dict(row.endpoints.items(row.entries))["GET", "index"][ABANDONED] == ENOUGH


def test_a_client_that_only_sends_no_more_is_there_without_overload() -> None:
    """Under overload it counts as one that has left."""
    admission, _ = _admission()
    assert not admission.impatient
    admission.delay.overloaded = True
    assert admission.impatient


@pytest.mark.parametrize(("allowed", "address", "trusted"), [
    ("127.0.0.1", ("127.0.0.1", 1), True), ("127.0.0.1", ("10.0.0.1", 1), False), ("*", ("10.0.0.1", 1), True),
    ("10.0.0.0/8", ("10.0.0.1", 1), True), ("127.0.0.1", "", True), ("::1", ("::1", 1, 0, 0), True),
    ("127.0.0.1", ("nonsense", 1), False)])
def test_only_trusted_proxies_say_when_a_request_began(allowed: str, address: Any, trusted: bool) -> None:
    """gunicorn's forwarded_allow_ips; and Unix sockets, on which only proxies of this machine are."""
    admission, _ = _admission(allowed=allowed)
    one, other = socket.socketpair()
    with one, other:
        for age in (0.0, 5.0):
            head = f"GET / HTTP/1.1\r\nX-Request-Start: t={time.time() - age:.3f}\r\n\r\n".encode()
            found = admission.age(one, head, address)
    assert ((found or 0.0) > 4.0) == trusted


def test_held_time_is_no_queue() -> None:
    """While requests are held for a database that is away nothing has waited."""
    admission, _ = _admission()
    held[1] = time.monotonic()
    try:
        assert not any(admission.too_old(60.0, ROUTE, number) for number in range(5))
        assert not admission.delay.watchful
    finally:
        held.clear()


def _stand(admission: Admission, begun: float) -> bool:
    """A queue that stands for three seconds; whether it is taken for overload."""
    found = False
    for step in range(30):
        admission.delay.note(begun + step / 10, 2.0, 9)
        found = found or admission.delay.overloaded
        if step % 10 == 5:
            admission.look(begun + step / 10)
    return found


def test_a_queue_for_which_threads_come_is_no_overload() -> None:
    """Threads that wait for the database get spare ones beside them: what waits for those is not refused."""
    admission, row = _admission()
    assert _stand(admission, 100.0)
    admission, row = _admission()
    row.words[W_THREADS] = 4
    admission.look(199.0)
    pool = Pool(Settings(db_url="sqlite://"))
    try:
        pool.bulkhead.inside.update(dict.fromkeys(range(1, 4), 190.0))
        assert not _stand(admission, 200.0)
        pool.bulkhead.inside.clear()
        assert _stand(admission, 300.0)
        for _ in range(2):
            row.words[W_THREADS] *= 2
            admission.look(400.0)
            assert not admission.delay.overloaded
    finally:
        pool.bulkhead.inside.clear()
        pool.close()


def test_an_overload_is_told_in_figures() -> None:
    """What was refused and given up since it began, the most refused routes first."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    row.shed("GET", "before")
    episode = Episode(10.0, board.totals())
    for _ in range(3):
        row.shed("GET", "dear")
    row.shed("GET", "before")
    row.abandon("GET", "dear")
    episode.last = 12.5
    assert episode.figures(board.totals()) == {"seconds": 2.5, "refused": 4, "clients_gone": 1, "wait_p95_ms": 0.0,
                                               "routes": {"GET dear": 3, "GET before": 1}}


def test_a_large_body_does_not_hide_the_answer(pair: tuple[socket.socket, socket.socket]) -> None:
    """What a refused client still sends is read, up to a limit, so that it sees the 503 and no reset."""
    from flask_stability.server.gunicorn.connections import Connections

    worker = SimpleNamespace(cfg=SimpleNamespace(is_ssl=True), alive=True)
    connections, (admission, _) = Connections(worker), _admission()
    body = b"x" * (MOST_REFUSED // 2)
    sender = threading.Thread(target=lambda: (pair[1].sendall(HEAD), time.sleep(0.1), pair[1].sendall(body)))
    sender.start()
    wait_until(lambda: pair[0].recv(10, socket.MSG_PEEK))
    assert admission.refuse(pair[0], HEAD, ROUTE)
    connections.refused(pair[0])
    sender.join()
    head, _ = _read(pair[1])
    assert head.startswith(b"HTTP/1.1 503 ")
    pair[1].close()
    wait_until(lambda: not (connections._events() or connections.aside))
    connections._epoll.close()
