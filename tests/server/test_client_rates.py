"""Who waits for whom: rates, threads given in place of those that wait, and the body of a request while it is read."""

from __future__ import annotations

import io

import pytest
from werkzeug.exceptions import RequestTimeout

from flask_stability.scoreboard import CRASHES
from flask_stability.server import threads
from flask_stability.server.exit_reasons import Known, reason_of
from flask_stability.wsgi import upload
from flask_stability.wsgi.upload import Meter, Upload


def test_a_client_is_judged_by_what_passes_while_it_is_waited_for() -> None:
    """500 bytes a second over 20 s; what passed before, or what the app's own pauses last, is not held against it."""
    meter = Meter()
    assert not meter.look(0.0, 0, 500)
    assert [meter.look(1.0, 499 * second, 500) for second in range(1, 21)] == [False] * 19 + [True]
    meter = Meter()
    meter.look(0.0, 10_000_000, 500)
    assert [meter.look(1.0, 10_000_000, 500) for _ in range(20)].count(True) == 1
    meter = Meter()
    assert not any(meter.look(1.0, 500 * second, 500) for second in range(1, 100))
    meter = Meter()
    assert not any(meter.look(0.0 if second % 10 else 1.0, 600 * second // 10, 500) for second in range(1, 1000))


def test_threads_that_wait_for_clients_get_others_in_their_place() -> None:
    """The worker's own number is free for others, more of them the more wait; and there is an end."""
    assert threads.for_clients(4, now=4, waiting=0, room=99) == 0
    assert threads.for_clients(4, now=4, waiting=4, room=99) == 4
    assert threads.for_clients(4, now=8, waiting=8, room=99) == 8
    assert threads.for_clients(4, now=16, waiting=16, room=5) == 5
    assert threads.for_clients(4, now=16, waiting=2, room=99) == 0
    assert threads.for_clients(4, now=4, waiting=4, room=-3) == 0


@pytest.mark.parametrize(("most", "free", "room"), [(128, None, 118), (128, 40 << 20, 20), (10, None, 0), (3, None, 0)])
def test_spare_threads_have_one_cap_that_counts_memory(most: int, free: int | None, room: int) -> None:
    """STABILITY_SPARE_MAX, whatever they were given for."""
    assert threads.room(10, most, free) == room


class _Body(io.BytesIO):
    """Notes how it was read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.sizes: list[int] = []

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        self.sizes.append(size)
        return super().read(size)


@pytest.mark.parametrize("size", [None, -1, 200_000, 200_001])
def test_a_body_is_read_in_pieces_that_grow(size: int | None) -> None:
    """So that it can be told how far it is, and a fast one is not slowed down."""
    content = bytes(range(256)) * 782
    body = _Body(content)
    upload_ = Upload(body)
    assert upload_.read(size) == (content if size in (None, -1) else content[:size])
    assert body.sizes[:3] == [8192, 16384, 32768]
    assert upload_.received == min(len(content), size if size and size > 0 else len(content))
    assert not upload_.reading


def test_a_body_is_read_like_a_file() -> None:
    """Lines, hints, and whatever else the server's own has."""
    content = b"one\ntwo\nthree"
    assert list(Upload(_Body(content))) == [b"one\n", b"two\n", b"three"]
    assert Upload(_Body(content)).readlines(5) == [b"one\n", b"two\n"]
    assert Upload(_Body(content)).readlines() == [b"one\n", b"two\n", b"three"]
    assert Upload(_Body(content)).readline(2) == b"on"
    assert Upload(_Body(content)).read(0) == b""
    assert Upload(_Body(content)).getvalue() == content


def test_what_came_before_the_connection_was_cut_is_not_taken_for_the_whole_body() -> None:
    """The view gets 408 instead."""
    body = Upload(_Body(b"half of it"))
    body.cut_at = 1.0
    with pytest.raises(RequestTimeout):
        body.read()


def test_a_slow_client_gets_small_pieces_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody could tell how far it is."""
    monkeypatch.setattr(upload, "FAST", -1.0)
    body = _Body(b"x" * 40_000)
    assert len(Upload(body).read()) == 40_000
    assert set(body.sizes) == {8192}


def test_a_worker_that_a_client_kept_past_its_timeout_did_not_crash() -> None:
    """Clients neither trip the restart limit nor stop the service."""
    assert reason_of(6, Known(aborted=True, ready=True))[0] in CRASHES
    assert reason_of(6, Known(aborted=True, ready=True, client=True))[0] not in CRASHES
