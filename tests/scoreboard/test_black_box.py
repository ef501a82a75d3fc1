"""The black box: what is noted of a request, what a reader makes of it, and what no kill can falsify."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from flask_stability import StabilityExt
from flask_stability.scoreboard import black_box
from flask_stability.scoreboard.black_box import BlackBox, InFlight
from support import wait_until
from wsgi_client import call, environ


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> BlackBox:
    """A box of two rows, of which this process has the second."""
    for name in ("slots", "words", "places", "_claiming", "_box"):
        monkeypatch.setattr(black_box, name, getattr(black_box, name))
    made = black_box.make(2)
    black_box.install(1, "abcdef")
    return made


def begin(path: str = "/", thread: int = 1, given_id: str | None = None, **extra: Any) -> int:
    """Note a request."""
    made = environ(path, **extra)
    return black_box.begin(made, made["PATH_INFO"], thread, 1000 + thread, given_id)


def test_a_request_is_read_as_long_as_it_runs(box: BlackBox) -> None:
    """By its row, with the id that its records have."""
    place = begin("/orders", QUERY_STRING="token=secret")
    assert box.read(0) == []
    one, = box.read(1)
    assert (one.method, one.path, one.request_id, one.thread_id) == ("GET", "/orders", "abcdef-3e9", 1)
    black_box.words[place] = 0
    assert box.read(1) == []


def test_no_query_no_body_and_no_address_is_noted(box: BlackBox) -> None:
    """Only a hash of them is: nothing of it can be read."""
    begin("/orders", thread=2, method="POST", QUERY_STRING="token=SECRET1", REMOTE_ADDR="192.0.2.77",
          CONTENT_LENGTH="12", CONTENT_TYPE="text/SECRET2")
    raw = bytes(box.part(1))
    assert b"/orders" in raw
    for secret in (b"token", b"SECRET1", b"SECRET2", b"192.0.2.77"):
        assert secret not in raw


@pytest.mark.parametrize("path", ["/" + "x" * length for length in (0, 70, 71, 72, 73, 190, 191, 192, 500)]
                         + ["/h\xc3\xa9", "/" + "\xc3\xa9" * 150, "/\x00"])
def test_a_path_of_any_length_is_noted_as_far_as_there_is_room(box: BlackBox, path: str) -> None:
    """Also one that is cut in the middle of a character; its fingerprint is the whole request's."""
    begin(path)
    one, = box.read(1)
    assert black_box.readable(path).startswith(one.path.rstrip("�"))
    assert len(one.path) >= min(len(black_box.readable(path)), 48) - path.count("\0")
    assert one.fingerprint == black_box.fingerprint_of(environ(path))


def test_fingerprints_differ_in_each_part_of_a_request_and_in_nothing_else() -> None:
    """Method, path, query, content type and length count; headers and the client do not."""
    requests = [environ("/a"), environ("/b"), environ("/a", "HEAD"), environ("/a", QUERY_STRING="q=1"),
                environ("/a", QUERY_STRING="q=2"), environ("/a", CONTENT_LENGTH="5"),
                environ("/a", CONTENT_LENGTH="5", CONTENT_TYPE="text/plain"), environ("/a", SCRIPT_NAME="/x"),
                environ("/" + "a" * 300 + "1"), environ("/" + "a" * 300 + "2")]
    found = [black_box.fingerprint_of(one) for one in requests]
    assert len(set(found)) == len(requests)
    assert black_box.fingerprint_of(environ("/a", HTTP_COOKIE="x", REMOTE_ADDR="192.0.2.9")) == found[0]


def test_what_is_noted_has_the_fingerprint_of_the_request(box: BlackBox) -> None:
    """For each kind of request that is written in a way of its own."""
    for number, one in enumerate((environ("/a"), environ("/a", "PUT"), environ("/a", "BREW"), environ("/a" * 99),
                                  environ("/a", QUERY_STRING="b=c"), environ("/a", "POST", CONTENT_LENGTH="7"),
                                  environ("/a", SCRIPT_NAME="/s"))):
        black_box.begin(one, one["PATH_INFO"], number, number + 1, "an-id" if number % 2 else None)
        assert box.read(1)[-1].fingerprint == black_box.fingerprint_of(one), one


def test_a_clients_id_and_a_body_are_those_of_this_request_alone(box: BlackBox) -> None:
    """The next request in the same slot has neither."""
    begin("/a", given_id="the-clients", method="POST", CONTENT_LENGTH="1234")
    one, = box.read(1)
    assert (one.request_id, one.method, one.body_bytes) == ("the-clients", "POST", 1234)
    begin("/b")
    one, = box.read(1)
    assert (one.request_id, one.method, one.body_bytes) == ("abcdef-3e9", "GET", 0)


def test_lengths_that_are_none_are_no_error(box: BlackBox) -> None:
    """A client may claim anything; the server refuses most of it before."""
    for length in ("-5", "x", "9" * 400, ""):
        begin(method="POST", CONTENT_LENGTH=length)
        assert box.read(1)[0].body_bytes == 0


def test_threads_that_are_gone_leave_their_slots_to_others(box: BlackBox) -> None:
    """However many threads, or greenlets, there were; of those that run at once some go without."""
    for thread in range(1000):
        place = begin(thread=thread)
        assert place >= 0
        black_box.words[place] = 0
    places = [begin(thread=2000 + number) for number in range(black_box.SLOTS + 3)]
    assert places.count(-1) == 3
    assert len(box.read(1)) == black_box.SLOTS


def test_memory_counts_from_the_first_look_at_a_request(box: BlackBox) -> None:
    """And a look that comes late notes nothing of the request that follows in the same slot."""
    place = begin()
    for memory in (500, 700, 600):
        black_box.grown(place, 1001, memory)
    assert box.read(1)[0].grown_bytes == 200
    begin("/next")
    black_box.grown(place, 999, 5000)
    assert box.read(1)[0].grown_bytes == 0


def test_a_forked_child_leaves_its_parents_slots_alone(box: BlackBox) -> None:
    """A view may fork; what the child does with the request is no end of it in the parent."""
    place = begin("/forks")
    pid = os.fork()
    if not pid:
        black_box.words[place] = 0
        begin("/child")
        os._exit(0)
    os.waitpid(pid, 0)
    assert [one.path for one in box.read(1)] == ["/forks"]


def test_a_reader_never_sees_parts_of_two_requests(box: BlackBox) -> None:
    """While a writer is as fast as it can; path and start belong together."""
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            path = f"/{number}/" + "x" * (number % 120)
            place = black_box.begin({"REQUEST_METHOD": "GET"}, path, 7, number, None)
            if number % 3 == 0:
                black_box.words[place] = 0

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(2000):
            for one in box.read(1):
                assert one.path.split("/")[1] == str(one.started_ns)
    finally:
        done.set()
        thread.join()


def test_a_kill_at_any_moment_leaves_whole_slots(box: BlackBox) -> None:
    """SIGKILL in the middle of a write: what is read was begun so, or nothing is."""
    for _ in range(20):
        box.clear(1)
        pid = os.fork()
        if not pid:
            black_box.install(1, "abcdef")
            number = 0
            while True:
                number += 1
                black_box.begin({"REQUEST_METHOD": "GET"}, f"/{number}/" + "x" * (number % 120), 7, number, None)
        wait_until(lambda: box.read(1), message="it writes")
        time.sleep(random.uniform(0, 0.005))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for one in box.read(1):
            assert one.path.split("/")[1] == str(one.started_ns)


def test_the_middleware_notes_a_request_and_its_end(box: BlackBox) -> None:
    """Also that its answer has begun; a health endpoint's never."""
    app = Flask("boxed")
    StabilityExt(app)
    seen: list[list[InFlight]] = []

    @app.get("/plain")
    def plain() -> str:
        seen.append(box.read(1))
        return "x"

    @app.get("/stream")
    def stream() -> Any:
        def body() -> Iterator[bytes]:
            yield b"x"
            seen.append(box.read(1))
        return app.response_class(body())

    @app.get("/fails")
    def fails() -> str:
        raise RuntimeError("on purpose")

    for path in ("/plain", "/stream", "/fails", "/health/live", "/nothing"):
        call(app, path)
        assert box.read(1) == [], path
    assert [[(one.path, one.answering) for one in found] for found in seen] == [
        [("/plain", False)], [("/stream", True)]]
