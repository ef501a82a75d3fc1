"""Whether a client is still there, on real sockets."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from flask_stability.presence import client_gone, clients_gone, gone
from flask_stability.request import OVER, RequestRecord
from support import wait_until


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: the server's end and the client's."""
    with contextlib.ExitStack() as stack:
        if request.param == "unix":
            ends = socket.socketpair()
            yield stack.enter_context(ends[0]), stack.enter_context(ends[1])
            return
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        yield stack.enter_context(listener.accept()[0]), client


def _record(server: object, outer: RequestRecord | None = None) -> RequestRecord:
    record = RequestRecord({"gunicorn.socket": server} if server is not None else {}, time.monotonic_ns())
    record.outer = outer
    return record


def test_a_client_that_waits_is_there(pair: tuple[socket.socket, socket.socket]) -> None:
    """Also one that has sent more than was read."""
    pair[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert not gone(pair[0].fileno(), half_closed=True)
    assert not client_gone(_record(pair[0]))


def test_a_client_that_closed_has_left(pair: tuple[socket.socket, socket.socket]) -> None:
    """Even if something that it sent was not read yet."""
    pair[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    pair[1].close()
    wait_until(lambda: client_gone(_record(pair[0])))


def test_a_client_that_only_sends_no_more_is_there_if_that_is_asked(pair: tuple[socket.socket, socket.socket]) -> None:
    """A half-closed connection can still carry the answer."""
    pair[1].shutdown(socket.SHUT_WR)
    wait_until(lambda: gone(pair[0].fileno(), half_closed=True))
    assert not gone(pair[0].fileno(), half_closed=False)
    assert not client_gone(_record(pair[0]), half_closed=False)


def test_a_reset_counts_always() -> None:
    """A client that resets its connection reads nothing any more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        with listener.accept()[0] as server:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            wait_until(lambda: client_gone(_record(server), half_closed=False))


def test_a_request_inside_another_has_its_client(pair: tuple[socket.socket, socket.socket]) -> None:
    """A test client's request, made by a view, is given up with the view's own."""
    inner = _record(None, outer=_record(pair[0]))
    assert not client_gone(inner)
    pair[1].close()
    wait_until(lambda: client_gone(inner))


def test_what_has_no_socket_is_never_gone() -> None:
    """Without a server, without a request, and once the request is over."""
    assert not client_gone(_record(None))
    assert not client_gone()
    over = _record(None)
    over.environ = OVER
    assert not client_gone(over)


def test_a_socket_that_we_closed_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nobody can be answered on it."""
    pair[0].close()
    assert client_gone(_record(pair[0]))


def test_of_many_those_are_found_that_have_left() -> None:
    """With one question; a request without a client is none of them."""
    pairs = [socket.socketpair() for _ in range(4)]
    records = [_record(ours) for ours, _ in pairs]
    try:
        assert not clients_gone([*records, RequestRecord({}, 0)])
        pairs[1][1].close()
        pairs[3][0].close()  # on our side
        assert clients_gone([*records, RequestRecord({}, 0)]) == [records[1], records[3]]
    finally:
        for pair in pairs:
            for one in pair:
                one.close()
