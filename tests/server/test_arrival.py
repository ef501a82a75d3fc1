"""How long a request has waited, as the kernel knows it, on real sockets."""

from __future__ import annotations

import socket
import time

from flask_stability.server.arrival import kernel_age


def test_the_wait_in_the_kernels_queue_counts() -> None:
    """From the last byte that came, accepted or not."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        sent = time.monotonic()
        time.sleep(0.3)
        with listener.accept()[0] as server:
            age = kernel_age(server)
            assert age is not None
            assert 0.25 <= age <= time.monotonic() - sent + 0.05
            client.sendall(b"\r\n")
            server.recv(100)
            later = kernel_age(server)
            assert later is not None
            assert later <= time.monotonic() - sent


def test_where_the_kernel_does_not_say_there_is_no_age() -> None:
    """Unix sockets, and what is closed."""
    one, other = socket.socketpair()
    with one, other:
        assert kernel_age(one) is None
    assert kernel_age(one) is None
