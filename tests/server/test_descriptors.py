"""Open files and sockets that become more and more."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator

import pytest

from flask_stability.memory.trackers import descriptors
from flask_stability.server.descriptors import ROOM, Filling, limit, make_room


@pytest.fixture
def small_limit() -> Iterator[int]:
    """Few descriptors more than are open are allowed."""
    gc.collect()  # no other test's files are to be closed meanwhile
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = descriptors() + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    yield number
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_worker_whose_descriptors_become_more_has_to_go_before_they_are_all_taken() -> None:
    """Told with the numbers; connections of clients do not count."""
    filling = Filling(20)
    assert [filling.look(number, 0, 100) for number in (40, 60, 80)] == ["", "", ""]
    assert filling.look(90, 10, 100) == ""
    assert filling.look(91, 10, 100) == "81 open files and sockets beside 10 connections of clients, 100 are allowed"


def test_worker_that_needs_many_from_the_start_stays() -> None:
    """A newcomer would not be better."""
    filling = Filling(85)
    assert [filling.look(number, 0, 100) for number in (85, 99, 100)] == ["", "", ""]


def test_where_no_descriptor_is_left_all_are_counted_and_there_is_room_again(small_limit: int) -> None:
    """The count itself needs one."""
    taken = []
    with pytest.raises(OSError, match="Too many open files"):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    assert descriptors() == limit() == small_limit
    make_room()
    taken.append(os.open(os.devnull, os.O_RDONLY))
    assert limit() > small_limit
    assert limit() <= small_limit + ROOM
    for one in taken:
        os.close(one)
