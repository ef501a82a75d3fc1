"""The scoreboard as other processes have it: whatever they do, no value is torn and none is lost."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_stability import scoreboard as sb
from flask_stability.scoreboard import Blob, Scoreboard
from support import fork, open_to_all, wait_until

Request = tuple[str, int, int]
REQUESTS = st.lists(st.tuples(st.sampled_from(["index", "orders", "café"]), st.sampled_from([0, 200, 302, 404, 500]),
                              st.integers(0, 2**36)), max_size=40)


def count(row: sb.Row, requests: list[Request]) -> None:
    """As the middleware does."""
    for endpoint, status, duration in requests:
        row.observe("GET", endpoint, status, duration)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.lists(REQUESTS, min_size=1, max_size=3), st.booleans()), min_size=1, max_size=4))
def test_whatever_forked_processes_and_their_threads_count_is_in_the_totals(
        plan: list[tuple[list[list[Request]], bool]]) -> None:
    """Each worker is a process, each list of requests a thread of it; some are killed afterwards, all are released."""
    board = Scoreboard.anonymous(len(plan))
    done = Scoreboard.anonymous(1).master.words
    pids, rows = [], []
    for number, (threads, killed) in enumerate(plan):
        row = board.allocate(number)
        assert row is not None
        rows.append(row)

        def work(row: sb.Row = row, threads: list[list[Request]] = threads, killed: bool = killed,
                 number: int = number) -> None:
            sb.install(board, row)
            running = [threading.Thread(target=count, args=(row, part)) for part in threads]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            row.exceptions.write_json([{"class": "E", "route": str(number), "count": 1, "last": 1.0}])
            done[number] = 1
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)

        pids.append(fork(work))
    requests = [one for threads, _ in plan for part in threads for one in part]
    seen, waiting = 0, set(range(len(plan)))
    while waiting:  # a reader in mid-work, and the master that releases whoever is gone
        totals = board.totals()
        assert seen <= totals.requests <= len(requests)
        seen = totals.requests
        for number in sorted(waiting):
            pid, status = os.waitpid(pids[number], os.WNOHANG)
            if pid:
                assert (status, done[number]) == (signal.SIGKILL if plan[number][1] else 0, 1)
                board.release(rows[number])
                waiting.remove(number)
    totals = board.totals()
    assert sum(totals.histogram) == totals.requests == len(requests)
    assert totals.duration_ns == sum(duration for _, _, duration in requests)
    assert totals.by_class == [sum(status // 100 == kind for _, status, _ in requests) for kind in range(6)]
    counted = {endpoint: sum(words[2:]) for (_, endpoint), words in totals.endpoints.items()}
    assert {name: number for name, number in counted.items() if number} == Counter(name for name, _, _ in requests)
    kept = sb.merged_exceptions([board.master.exceptions])
    assert {one["route"] for one in kept} == {str(number) for number in range(len(plan))}


def test_no_word_is_ever_seen_half_written() -> None:
    """Two values without a byte in common, written as fast as one process can: another sees nothing but those."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    low, high = 0x0102030405060708, 0x7172737475767778
    row.words[sb.W_RSS] = low
    row.floats[sb.F_MEMORY_TREND] = 0.1

    def write() -> None:
        while True:
            row.words[sb.W_RSS] = high
            row.floats[sb.F_MEMORY_TREND] = -7e300
            row.words[sb.W_RSS] = low
            row.floats[sb.F_MEMORY_TREND] = 0.1

    writer = fork(write)
    try:
        seen: set[int] = set()
        looks, end = 0, time.monotonic() + 30
        while (looks < 100_000 or len(seen) < 2) and time.monotonic() < end:
            looks += 1
            seen.add(row.words[sb.W_RSS])
            seen.add(row.words[:sb.W_RSS + 1].tolist()[-1])  # as the totals read it
            assert row.floats[sb.F_MEMORY_TREND] in (0.1, -7e300)
        assert seen == {low, high}
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def test_what_a_killed_worker_counted_stays() -> None:
    """SIGKILL while it counts: after its row is released and used again the totals are what they were."""
    board = Scoreboard.anonymous(1)
    for _ in range(10):
        row = board.allocate(1)
        assert row is not None
        before = board.totals().requests

        def work(row: sb.Row = row) -> None:
            sb.install(board, row)
            while True:
                row.observe("GET", "index", 200, 1000)

        worker = fork(work)
        wait_until(lambda before=before: board.totals().requests > before + 100, interval=0.001)  # type: ignore[misc]
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        counted = board.totals()
        board.release(row)
        assert board.totals() == counted
        assert counted.requests > before + 100


def test_a_blob_tells_its_version() -> None:
    """Each write is a new one, in the reading process too; what does not fit is none."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    assert row.checks.writes == 0

    def write() -> None:
        row.checks.renew_lock()
        assert row.checks.write(b"one")
        assert row.checks.write(b"two")
        assert not row.checks.write(bytes(row.checks.capacity + 1))

    assert os.waitpid(fork(write), 0)[1] == 0
    assert (row.checks.writes, row.checks.read()) == (2, b"two")


def test_the_file_is_opened_for_reading_alone(tmp_path: Path) -> None:
    """Whoever looks cannot write, not by mistake either; the command line asks for it where it gives an order."""
    board, _ = Scoreboard.create(1, str(tmp_path))
    assert board.path is not None
    row = board.allocate(1)
    assert row is not None
    reader = Scoreboard.attach(board.path)
    for area in (reader.master.words, reader.rows[0].words, reader.rows[0].orders, reader.rows[0].histogram):
        assert area.readonly
        with pytest.raises(TypeError):
            area[0] = 1
    with pytest.raises(TypeError):
        reader.rows[0].checks.write(b"x")
    Scoreboard.attach(board.path, write=True).rows[0].orders[sb.O_RETIRE_REASON] = 7
    assert row.orders[sb.O_RETIRE_REASON] == 7
    board.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_file_belongs_to_the_workers_user(tmp_path: Path) -> None:
    """A master that is root gives it away, and that user reads it while nobody else may."""
    board, problem = Scoreboard.create(1, str(tmp_path), 65534, 65534)
    assert (problem, board.path is None) == ("", False)
    status = os.stat(str(board.path))
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 65534, 0o600)
    open_to_all(tmp_path)

    def as_worker() -> None:
        os.setgid(65534)
        os.setuid(65534)
        assert Scoreboard.attach(str(board.path)).totals().requests == 0

    assert os.waitpid(fork(as_worker), 0)[1] == 0
    board.unlink()


def test_latencies_from_a_tenth_of_a_millisecond_to_a_hundred_seconds_have_buckets_of_equal_width() -> None:
    """On a logarithmic scale: each bound is at most a quarter above the one before, in between there is no gap."""
    bounds = [sb.bucket_bound(bucket) for bucket in range(sb.BUCKETS)]
    assert bounds[0] <= 0.0001
    assert bounds[-2] >= 100.0
    assert bounds[-1] == float("inf")
    ratios = [bound / before for before, bound in itertools.pairwise(bounds[:-1])]
    assert all(1.1 < ratio <= 1.25 for ratio in ratios)
    assert [sb.bucket_of(int(bound * 1e9)) for bound in bounds[:-1]] == list(range(1, sb.BUCKETS))


def test_threads_that_meet_new_endpoints_at_once_share_no_entry() -> None:
    """Each of 6 threads its own 20 names, switched as often as the interpreter can: every name has its own counts."""
    between = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(40):
            board = Scoreboard.anonymous(1)
            row, begin = board.rows[0], threading.Barrier(6)
            row.orders[sb.O_ALLOCATED] = 1

            def work(mine: int, row: sb.Row = row, begin: threading.Barrier = begin) -> None:
                begin.wait(60)
                count(row, [(f"{mine}-{number}", 200, 1000) for number in range(20)] * 2)

            running = [threading.Thread(target=work, args=(mine,)) for mine in range(6)]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            found = {endpoint: sum(words[2:]) for (_, endpoint), words in board.totals().endpoints.items()}
            assert found == {f"{mine}-{number}": 2 for mine in range(6) for number in range(20)}
    finally:
        sys.setswitchinterval(between)


def _at_every_line(function: Callable[[], object], look: Callable[[], None]) -> int:
    """Call a function, and another one before each line that it runs of the scoreboard; gives how often."""
    looks = 0
    files = {Scoreboard.release.__code__.co_filename, sb.Row.observe.__code__.co_filename,
             Blob.write.__code__.co_filename}

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal looks
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            looks += 1
            sys.settrace(None)
            try:
                look()
            finally:
                sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return looks


def test_wherever_in_folding_a_reader_looks_the_totals_are_the_same() -> None:
    """Before each line of a row's release, and of its next worker's beginning: nothing is missing or twice in them."""
    board = Scoreboard.anonymous(3)
    rows = [board.allocate(age) for age in range(3)]
    for number, row in enumerate(rows):
        assert row is not None
        count(row, [("index", 200, 10**6), ("orders", 500, 10**9), (f"own-{number}", 0, 10**7)])
    expected = board.totals()
    assert expected.requests == 9

    def look() -> None:
        assert board.totals() == expected

    for row in rows[:2]:
        assert row is not None
        assert _at_every_line(lambda row=row: board.release(row), look) > 30  # type: ignore[misc]
        assert _at_every_line(lambda: board.allocate(7), look) > 3
        look()


def test_wherever_in_its_writing_a_reader_looks_a_blob_is_whole() -> None:
    """Before each line of a write: the former content, or the new one, never a mixture and never nothing."""
    row = Scoreboard.anonymous(1).rows[0]
    contents = [bytes([number]) * (number * 700) for number in range(1, 12)]
    row.checks.write(contents[0])
    for before, after in itertools.pairwise(contents):
        def look(before: bytes = before, after: bytes = after) -> None:
            assert row.checks.read() in (before, after)

        assert _at_every_line(lambda after=after: row.checks.write(after), look) > 5  # type: ignore[misc]
        assert row.checks.read() == after
