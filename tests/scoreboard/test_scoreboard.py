"""The scoreboard among really forked processes and threads."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_stability import scoreboard as sb
from flask_stability.runtime import runtime
from flask_stability.scoreboard import Blob, Scoreboard, board_files, running
from flask_stability.scoreboard.primitives import BUCKET_STARTS
from support import fork, open_to_all, wait_until


def _join(pid: int) -> None:
    assert os.waitpid(pid, 0)[1] == 0


def test_no_count_is_lost_among_the_threads_of_forked_workers() -> None:
    """Four processes of four threads: every request is in the totals, each once."""
    board = Scoreboard.anonymous(4)
    pids = []
    for age in range(4):
        row = board.allocate(age)
        assert row is not None

        def work(row: sb.Row = row) -> None:
            runtime.install(board, row)
            threads = [threading.Thread(target=lambda: [row.observe("GET", f"e{i % 7}", 200 if i % 10 else 500, 10**6)
                                                        for i in range(2000)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        pids.append(fork(work))
    for pid in pids:
        _join(pid)
    totals = board.totals()
    assert totals.requests == 4 * 4 * 2000 == sum(totals.histogram)
    assert totals.errors == 4 * 4 * 200
    assert len(totals.endpoints) == 7
    assert totals.duration_ns == totals.requests * 10**6


@pytest.mark.parametrize("whole_statements", sorted({False, sb.WHOLE_STATEMENTS}))
def test_no_count_is_lost_where_threads_and_signals_interrupt_each_other(whole_statements: bool,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """However often: threads are switched each microsecond, and a signal's handler counts as well."""
    monkeypatch.setattr(sb.row, "WHOLE_STATEMENTS", whole_statements)
    row = Scoreboard.anonymous(1).rows[0]
    handled = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        row.observe("GET", "index", 200, 10**6)

    def work() -> None:
        for _ in range(30_000):
            row.observe("GET", "index", 200, 10**6)

    interval, before = sys.getswitchinterval(), signal.signal(signal.SIGALRM, handle)
    try:
        sys.setswitchinterval(1e-6)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.setswitchinterval(interval)
    sent = 4 * 30_000 + handled
    (_, words), = row.endpoints.items(row.entries)
    assert handled > 10
    assert (row.requests, row.by_class[2], words[0]) == (sent, sent, sent * 10**6)


def test_a_new_endpoint_has_one_entry_also_where_a_signals_handler_meets_it_too() -> None:
    """Interrupted anywhere, thousands of times: what the handler counts is under the same name, or under its own."""
    row = Scoreboard.anonymous(1).rows[0]
    name, handled = "", 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        row.observe("GET", name, 200, 1)
        row.observe("PUT", name, 200, 1)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        for _ in range(300):
            row.clear()
            for number in range(50):
                name = f"e{number}"
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number))
                row.observe("GET", name, 200, 1)
                signal.setitimer(signal.ITIMER_REAL, 0)
            keys = [key for key, _ in row.endpoints.items(row.entries)]
            assert len(keys) == len(set(keys))
            assert {("GET", f"e{number}") for number in range(50)} <= set(keys)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled > 100


def test_totals_never_fall_while_workers_come_and_go() -> None:
    """A reader in another process sees only growing numbers while rows are folded in."""
    board = Scoreboard.anonymous(3)
    stop = Scoreboard.anonymous(1)

    def read() -> None:
        last = 0
        while not stop.master.words[0]:
            now = board.totals().requests
            assert now >= last, (now, last)
            stop.master.words[1] += now > last
            last = now

    reader = fork(read)
    expected, end = 0, time.monotonic() + 60
    while stop.master.words[1] < 50 and time.monotonic() < end and not os.waitpid(reader, os.WNOHANG)[0]:
        row = board.allocate(1)
        assert row is not None
        for _ in range(5):
            row.observe("GET", "index", 200, 1000)
            expected += 1
        board.release(row)
    stop.master.words[0] = 1
    _join(reader)
    assert stop.master.words[1] >= 50
    assert board.totals().requests == expected


def test_exceptions_of_workers_that_are_gone_are_remembered() -> None:
    """Summed up by class and route, the latest first, the oldest forgotten; what is no list of them does no harm."""
    board = Scoreboard.anonymous(2)

    def gone(written: object) -> None:
        row = board.allocate(1)
        assert row is not None
        row.exceptions.write_json(written)
        board.release(row)

    def entry(name: str, count: int, last: float) -> dict[str, object]:
        return {"class": name, "route": "/", "count": count, "last": last, "where": f"a.py:{last:g}", "request_id": "r"}

    gone([entry("ValueError", 3, 10.0), entry("KeyError", 1, 20.0)])
    gone([entry("ValueError", 2, 30.0)])
    for harmful in ([{"class": "x"}], [1], "x", {"class": 1}, [None]):
        gone(harmful)
    assert sb.merged_exceptions([board.master.exceptions]) == [entry("ValueError", 5, 30.0), entry("KeyError", 1, 20.0)]
    for number in range(2 * sb.EXCEPTIONS_KEPT):
        gone([entry(f"Error{number}", 1, 100.0 + number)])
    kept = sb.merged_exceptions([board.master.exceptions])
    assert [one["last"] for one in kept] == [100.0 + sb.EXCEPTIONS_KEPT * 2 - 1 - n for n in range(sb.EXCEPTIONS_KEPT)]


def test_a_master_killed_while_folding_leaves_whole_totals() -> None:
    """Wherever it was, each request of a row of 100 is in the totals once."""
    board = Scoreboard.anonymous(2)
    start = Scoreboard.anonymous(1).master.words

    def fold_for_ever() -> None:
        while True:
            row = board.allocate(1)
            assert row is not None
            for number in range(100):
                row.observe("GET", f"e{number}", 200, 10**6)
            start[0] += 1
            board.release(row)

    for _ in range(15):
        rounds = start[0]
        master = fork(fold_for_ever)
        wait_until(lambda rounds=rounds: start[0] > rounds + 3)  # type: ignore[misc]
        os.kill(master, signal.SIGKILL)
        os.waitpid(master, 0)
        totals = board.totals()
        # it may have been killed while it counted a request: that one is in some figures and not yet in others
        assert abs(totals.requests - sum(totals.histogram)) <= 1
        assert abs(totals.requests - sum(sum(words[2:]) for words in totals.endpoints.values())) <= 1
        assert start[0] * 100 - 100 <= totals.requests <= start[0] * 100 + 100
        board = Scoreboard.anonymous(2)
        start[0] = 0


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=120), st.sampled_from([0, 200, 302, 404, 500, 799]),
                          st.integers(0, 2**40), st.booleans()), max_size=60))
def test_totals_are_the_sum_of_all_that_was_observed(steps: list[tuple[int, str, int, int, bool]]) -> None:
    """Whatever endpoints are called and whenever workers end."""
    board = Scoreboard.anonymous(3)
    rows = [board.allocate(age) for age in range(3)]
    count, duration = 0, 0
    for slot, endpoint, status, duration_ns, ends in steps:
        row = rows[slot]
        assert row is not None
        row.observe("GET", endpoint, status, duration_ns)
        count, duration = count + 1, duration + duration_ns
        names = set(board.totals().endpoints)
        if ends:
            board.release(row)
            rows[slot] = board.allocate(1)
        totals = board.totals()
        assert (totals.requests, sum(totals.histogram), totals.duration_ns) == (count, count, duration)
        assert set(totals.endpoints) == names
        assert sum(totals.by_class) == sum(sum(words[2:]) for words in totals.endpoints.values())


def test_more_endpoints_than_there_is_room_for_are_counted_as_other() -> None:
    """In a worker and over all of them; none is lost."""
    board = Scoreboard.anonymous(1)
    for age in range(6):
        row = board.allocate(age)
        assert row is not None
        for number in range(200):
            row.observe("GET", f"{age}-{number}", 200, 10**6)
        board.release(row)
    totals = board.totals()
    assert totals.requests == sum(sum(words[2:]) for words in totals.endpoints.values()) == 1200
    assert len(totals.endpoints) == sb.TOTAL_ENDPOINTS
    assert totals.endpoints["", "other"][3 + 1] == 1200 - (sb.TOTAL_ENDPOINTS - 1)


def test_five_hundred_workers_over_time_fit_into_a_few_rows() -> None:
    """Rows are used again, and what the workers counted stays."""
    board = Scoreboard.anonymous(4)
    for age in range(500):
        row = board.allocate(age)
        assert row is not None
        assert row.requests == 0
        row.observe("POST", "orders", 201, 5000)
        row.checks.write_json({"age": age})
        board.release(row)
        board.add_restart(sb.Reason.MEMORY, 1000 + age, 1.0, row.slot)
    totals = board.totals()
    assert totals.requests == 500
    assert totals.restarts == {"memory": 500}
    assert [entry["pid"] for entry in board.master.restarts.read_json()] == list(range(1450, 1500))


def test_a_full_board_gives_no_row_and_says_so() -> None:
    """The worker then keeps its own books."""
    board = Scoreboard.anonymous(1)
    assert board.allocate(1) is not None
    assert board.allocate(2) is None


def test_a_reader_sees_one_whole_writing_at_any_moment() -> None:
    """While another process writes as fast as it can; and never nothing."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    row.checks.write(b"\0")
    stop = Scoreboard.anonymous(1).master.words

    def write() -> None:
        row.checks.renew_lock()
        number = 0
        while not stop[0]:
            number += 1
            assert row.checks.write(bytes([number % 251]) * (1 + number * 37 % 16000))

    writer = fork(write)
    try:
        seen, begun = set(), time.monotonic()
        while len(seen) <= 5 or time.monotonic() < begun + 1.5:
            data = row.checks.read()
            assert len(set(data)) == 1
            seen.add(data[:1])
            assert time.monotonic() < begun + 60, "the writer writes nothing"
    finally:
        stop[0] = 1
        _join(writer)


def test_a_reader_does_not_wait_for_a_writer_that_is_stopped() -> None:
    """A frozen or killed worker leaves its last whole writing behind, wherever in the writing it was met."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    row.checks.write(b"\0")

    def write() -> None:
        row.checks.renew_lock()
        number = 0
        while True:
            number += 1
            row.checks.write(bytes([number % 251]) * (1 + number * 37 % 16000))

    for _ in range(5):
        writer = fork(write)
        before = row.checks.read()
        wait_until(lambda before=before: row.checks.read() != before)  # type: ignore[misc]
        for _ in range(20):
            os.kill(writer, signal.SIGSTOP)
            assert os.waitpid(writer, os.WUNTRACED)[0] == writer
            data = row.checks.read()
            assert len(set(data)) == 1
            assert row.checks.read() == data
            os.kill(writer, signal.SIGCONT)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        assert len(set(row.checks.read())) == 1


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=400), min_size=1, max_size=12))
def test_a_blob_gives_back_what_was_written_last_that_fits(writes: list[bytes]) -> None:
    """What is too long changes nothing."""
    blob = Blob(memoryview(bytearray(Blob.HEAD + 2 * 200)))
    last = b""
    for data in writes:
        fits = len(data) <= 200
        assert blob.write(data) is fits
        if fits:
            last = data
        assert blob.read() == last


def test_two_writing_processes_are_told_by_the_checksum_and_mended_by_the_next_write() -> None:
    """Two leaders for a moment: a mixture reads as nothing rather than as nonsense."""
    area = memoryview(bytearray(Blob.HEAD + 2 * 64))
    blob = Blob(area)
    assert blob.write(b"before")
    area[Blob.HEAD + 64] ^= 1
    assert blob.read() == b""
    assert blob.write(b"after")
    assert blob.read() == b"after"


def test_a_signal_handler_may_count_while_its_thread_counts() -> None:
    """The handler interrupts its own thread anywhere, also inside the lock."""
    row = Scoreboard.anonymous(1).rows[0]
    handled = 0

    def handle(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        row.add(sb.W_EXCEPTIONS)
        row.exceptions.write(b"x")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        end = time.monotonic() + 30
        while handled < 300 and time.monotonic() < end:
            row.add(sb.W_LOG_DROPS)
            row.exceptions.write(b"y")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled >= 300


@given(st.integers(0, 10**12))
def test_a_duration_is_inside_its_bucket(duration: int) -> None:
    """Between the bounds of the bucket it is counted in."""
    bucket = sb.bucket_of(duration)
    assert duration / 1e9 < sb.bucket_bound(bucket) or bucket == sb.BUCKETS - 1
    assert bucket == 0 or duration / 1e9 >= sb.bucket_bound(bucket - 1)


@given(st.one_of(st.integers(0, 10**12), st.sampled_from(BUCKET_STARTS).flatmap(lambda start: st.sampled_from(
    [start - 1, start, start + 1]))))
def test_a_request_is_counted_in_that_bucket(duration: int) -> None:
    """At the bounds too, and beyond the durations whose bucket is found by one look."""
    row = runtime.my_row()
    before = row.histogram.tolist()
    row.observe("GET", "view", 200, duration)
    after = row.histogram.tolist()
    assert [bucket for bucket, number in enumerate(after) if number != before[bucket]] == [sb.bucket_of(duration)]


@given(st.lists(st.integers(70_000, 10**11), min_size=20, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_percentiles_are_as_exact_as_the_buckets(durations: list[int], share: float) -> None:
    """Within a quarter of an octave of the true value."""
    histogram = [0] * sb.BUCKETS
    for duration in durations:
        histogram[sb.bucket_of(duration)] += 1
    exact = sorted(durations)[max(0, int(share * len(durations) + 0.999999) - 1)] / 1e9
    assert exact / 1.3 <= sb.percentile(histogram, share) <= exact * 1.3


def test_another_process_reads_the_file(tmp_path: Path) -> None:
    """Read-only, of the same user, and removed at the end."""
    board, problem = Scoreboard.create(4, str(tmp_path))
    assert not problem
    assert board.path is not None
    row = board.allocate(1)
    assert row is not None
    row.observe("GET", "index", 200, 1000)
    script = ("import sys; from flask_stability.scoreboard import Scoreboard, board_files;"
              "(pid, path), = board_files(sys.argv[1]); print(pid, Scoreboard.attach(path).totals().requests)")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(os.getpid()), "1"]
    assert stat.S_IMODE(os.stat(board.path).st_mode) == 0o600
    board.unlink()
    assert not list(tmp_path.iterdir())


def test_a_foreign_file_or_link_in_its_place_is_left_alone(tmp_path: Path) -> None:
    """The service has its file all the same, under another name that says whose it is."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / f"flask_stability-{os.getpid()}.board").symlink_to(victim)
    board, problem = Scoreboard.create(2, str(run_dir))
    assert (board.path, problem) == (board_files(str(run_dir))[0][1], "")
    assert victim.read_text() == "precious"
    assert board.allocate(1) is not None
    assert running([str(run_dir)]) == [(os.getpid(), board.path)]
    board.unlink()
    assert len(list(run_dir.iterdir())) == 1


def test_a_missing_directory_and_a_full_disk_give_a_board_without_a_file(tmp_path: Path) -> None:
    """A page that the disk has no room for would be SIGBUS at the first store: room is made sure of first."""
    board, problem = Scoreboard.create(2, str(tmp_path / "missing"))
    assert board.path is None
    assert problem

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        found, why = Scoreboard.create(2, str(tmp_path))
        assert found.path is None
        assert os.strerror(errno.EFBIG) in why
        row = found.allocate(1)
        assert row is not None
        row.observe("GET", "index", 200, 1)

    _join(fork(full))
    assert not list(tmp_path.glob("*.board"))


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs to mount")
@pytest.mark.parametrize("options", ["size=64k", "ro,size=64m"])
def test_a_full_and_a_read_only_disk_give_a_board_without_a_file(tmp_path: Path, options: str) -> None:
    """On a real file system, in a mount namespace that ends with the process."""
    script = ("import sys; from flask_stability.scoreboard import Scoreboard;"
              "board, why = Scoreboard.create(8, sys.argv[1]); row = board.allocate(1);"
              "row.observe('GET', 'e', 200, 1);"
              "print(board.path, board.totals().requests, bool(why))")
    done = subprocess.run(["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o {options} none '{tmp_path}' || exit 77; "
                           'exec "$@"', "sh", sys.executable, "-c", script, str(tmp_path)],
                          capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("may not mount")
    assert (done.returncode, done.stdout.split()) == (0, ["None", "1", "True"]), done.stderr


def test_a_board_is_not_opened_through_a_link_nor_of_another_user(tmp_path: Path) -> None:
    """Nor does a pipe in its place block who looks."""
    board, _ = Scoreboard.create(1, str(tmp_path))
    assert board.path is not None
    link = tmp_path / "link"
    link.symlink_to(board.path)
    with pytest.raises(OSError):
        Scoreboard.attach(str(link))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PermissionError):
        Scoreboard.attach(str(tmp_path / "pipe"))
    if os.geteuid() == 0:
        def as_another() -> None:
            os.chmod(tmp_path, 0o755)
            os.chmod(str(board.path), 0o666)
            os.setuid(65534)
            with pytest.raises(PermissionError):
                Scoreboard.attach(str(board.path))
        open_to_all(tmp_path)
        _join(fork(as_another))
    board.unlink()


def test_files_of_masters_that_were_killed_are_removed(tmp_path: Path) -> None:
    """The next start tidies up, after those that nobody reaps too; a living process's file stays."""
    dead = fork(lambda: None)
    _join(dead)
    zombie = fork(lambda: None)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    for pid in (dead, zombie):
        (tmp_path / f"flask_stability-{pid}.board").write_bytes(b"x")
    (tmp_path / f"flask_stability-{os.getppid()}.board").write_bytes(b"x")
    (tmp_path / f"flask_stability-{10**30}.board").write_bytes(b"x")
    board, _ = Scoreboard.create(1, str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    _join(zombie)
    assert not names & {f"flask_stability-{dead}.board", f"flask_stability-{zombie}.board"}
    assert f"flask_stability-{os.getppid()}.board" in names
    board.unlink()


@pytest.mark.parametrize("content", [b"", b"FSTABLE1" + bytes(16), b"something else entirely, long enough"])
def test_a_file_that_is_no_board_is_refused(tmp_path: Path, content: bytes) -> None:
    """With a clear error, not with nonsense."""
    path = tmp_path / "flask_stability-1.board"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no scoreboard"):
        Scoreboard.attach(str(path))


def test_the_leader_is_the_lowest_ready_row_with_a_fresh_heartbeat() -> None:
    """A silent leader is followed by the next."""
    board = Scoreboard.anonymous(3)
    now = 10**12
    for age in range(3):
        row = board.allocate(age)
        assert row is not None
        row.words[sb.W_PID], row.words[sb.W_STATE], row.words[sb.W_HEARTBEAT_NS] = 100 + age, sb.STATE_READY, now
    leader = board.leader(now)
    assert leader is not None
    assert leader.slot == 0
    board.rows[0].words[sb.W_HEARTBEAT_NS] = now - 4 * 10**9
    leader = board.leader(now)
    assert leader is not None
    assert leader.slot == 1
    board.rows[1].words[sb.W_STATE] = sb.STATE_STOPPING
    leader = board.leader(now)
    assert leader is not None
    assert leader.slot == 2


def test_a_forked_child_of_a_worker_does_not_write_into_its_row() -> None:
    """One writer per word: a child process that a view makes keeps its own books."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    runtime.install(board, row)
    try:
        pid = fork(lambda: runtime.my_row().observe("GET", "child", 200, 1))
        _join(pid)
        assert board.totals().requests == 0
    finally:
        runtime.forget_board()


def test_waits_and_what_was_not_begun_are_counted() -> None:
    """By route, also when the worker is gone; percentiles of the wait from what waited and what did not."""
    board = Scoreboard.anonymous(2)
    row = board.allocate(1)
    assert row is not None
    for _ in range(90):
        row.observe("GET", "index", 200, 1_000_000)
    for _ in range(10):
        row.observe("GET", "index", 200, 1_000_000)
        row.waited(0.3)
    row.shed("GET", "index")
    row.shed("GET", "index")
    row.abandon("GET", "other")
    for _ in range(2):
        totals = board.totals()
        assert (totals.shed, totals.refused, totals.requests) == (2, 2, 102)
        assert totals.endpoints["GET", "index"][9] == 2
        assert totals.endpoints["GET", "other"][10] == 1
        assert totals.wait(0.5) == 0.0
        assert 0.25 < totals.wait(0.95) <= 0.5
        board.release(row)
