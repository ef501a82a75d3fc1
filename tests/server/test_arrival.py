"""The age of a request: the kernel's word, and a proxy's."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from flask_stability.server.arrival import ProxyClock, kernel_age, proxy_start
from support import wait_until


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TCP_INFO")
def test_the_wait_in_the_kernels_queue_counts() -> None:
    """Of a connection that nobody has accepted yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.3)
        with listener.accept()[0] as server:
            assert (kernel_age(server) or 0.0) >= 0.25
            client.sendall(b"more")
            wait_until(lambda: (kernel_age(server) or 0.0) < 0.25)


def test_other_sockets_have_no_age() -> None:
    """Unix sockets, and those that are closed."""
    one, other = socket.socketpair()
    with one, other:
        assert kernel_age(one) is None
    assert kernel_age(one) is None


@pytest.mark.parametrize("value", ["t=1512379167.574", "1512379167574", "t=1512379167574000", "1512379167.574"])
def test_proxies_write_the_time_in_three_units(value: str) -> None:
    """nginx seconds, Heroku milliseconds, Apache microseconds."""
    head = f"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Start: {value}\r\n\r\n".encode()
    assert proxy_start(head) == pytest.approx(1512379167.574)


@pytest.mark.parametrize("rest", ["X-Request-Start: soon\r\n", "", "X-Request-Start: 12\r\n",
                                  "X-Request-Start: 1512379167.5\r\nContent-Length: 7\r\n",
                                  "transfer-encoding: chunked\r\nX-Request-Start: 1512379167.5\r\n"])
def test_what_says_nothing_of_the_wait(rest: str) -> None:
    """Nonsense, and a request with a body, for which a proxy waited itself."""
    assert proxy_start(f"GET / HTTP/1.1\r\nHost: a\r\n{rest}\r\n".encode()) is None


def test_an_empty_body_is_none() -> None:
    """Some clients send the length of nothing."""
    head = b"GET / HTTP/1.1\r\nContent-Length: 0\r\nX-Request-Start: 1512379167.5\r\n\r\n"
    assert proxy_start(head) == 1512379167.5


@pytest.mark.parametrize("skew", [-30.0, 0.0, 30.0])
def test_the_clocks_may_differ(skew: float) -> None:
    """What counts is how much more a request took than the fastest of the last minute."""
    clock = ProxyClock()
    ages = [clock.age(now - wait + skew, now) for now, wait in ((100.0, 0.01), (101.0, 0.51), (102.0, 0.01))]
    assert ages == pytest.approx([0.0, 0.5, 0.0])


def test_a_clock_that_was_set_is_believed_after_a_minute() -> None:
    """The smallest distance is forgotten."""
    clock = ProxyClock()
    clock.age(100.0, 100.0)
    assert clock.age(100.0, 105.0) == pytest.approx(5.0)
    for now in range(110, 200, 10):
        clock.age(now - 5.0, float(now))
    assert clock.age(195.0, 200.0) == pytest.approx(0.0)


def test_a_time_far_away_is_no_age() -> None:
    """A client's invention, or a clock that was never set."""
    assert ProxyClock().age(1e9, 1.7e9) == 0.0
