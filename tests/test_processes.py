"""Signals to processes that only a shared file names: whoever can write the file has root kill nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from flask_stability import processes
from flask_stability import scoreboard as sb
from flask_stability.operate.cli import stability
from flask_stability.scoreboard import Scoreboard, running
from flask_stability.scoreboard import file as scoreboard_file
from flask_stability.server import orphans
from second_user import NOBODY, as_nobody, become, given, needs_root, reachable
from support import fork, wait_until

Victim = subprocess.Popen[bytes]


@pytest.fixture
def victim() -> Iterator[Victim]:
    """A process of this user's that is to live."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def lives(process: Victim) -> bool:
    """It answers: no signal is on its way to it either."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"there?\n")
    process.stdin.flush()
    return process.stdout.readline() == b"there?\n"


def test_what_is_told_of_a_process() -> None:
    """Its parent, that it is there, and since when; of a zombie or of nobody nothing."""
    child = fork(lambda: time.sleep(60))
    try:
        found = processes.look(child)
        assert found is not None
        assert found.parent == os.getpid()
        assert found.is_older_than(time.monotonic_ns())
        assert not found.is_older_than(time.monotonic_ns() - 60_000_000_000)
    finally:
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: processes.look(child) is None)
    os.waitpid(child, 0)
    assert processes.look(child) is None
    assert processes.look(-1) is None


@pytest.mark.parametrize("pid", [-1, 0, 1, 2**31, -2**63, 2**63 - 1])
def test_numbers_that_mean_all_or_nobody_get_no_signal(pid: int) -> None:
    """kill(-1) would be everybody's end."""
    assert not processes.send(pid, signal.SIGKILL, owner=os.geteuid(), check=lambda process: True)


def test_a_signal_goes_to_who_was_looked_at(victim: Victim) -> None:
    """And to nobody whom the look refuses."""
    assert not processes.send(victim.pid, signal.SIGKILL, owner=os.geteuid(), check=lambda process: False)
    assert lives(victim)
    assert processes.send(victim.pid, signal.SIGTERM, owner=os.geteuid(), check=lambda found: found.pid == victim.pid)
    assert victim.wait(30) == -signal.SIGTERM


def test_a_process_that_ends_during_the_look_is_not_confused_with_the_next(victim: Victim) -> None:
    """The descriptor is dead by then, whoever has the number."""
    def check(process: processes.Process) -> bool:
        victim.kill()
        victim.wait()
        return True

    assert not processes.send(victim.pid, signal.SIGTERM, owner=os.geteuid(), check=check)


def test_a_kernel_without_descriptors_of_processes_is_no_reason_not_to_signal(victim: Victim,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """As some sandboxes are; the look, and the rights of the owner, stay."""
    def none(pid: int) -> int:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "pidfd_open", none)
    assert not processes.send(victim.pid, signal.SIGTERM, owner=os.geteuid(), check=lambda process: False)
    if os.geteuid() == 0:
        assert not processes.send(victim.pid, signal.SIGTERM, owner=NOBODY, check=lambda process: True)
    assert lives(victim)
    monkeypatch.delattr(os, "pidfd_open")
    assert processes.send(victim.pid, signal.SIGTERM, owner=os.geteuid(), check=lambda process: True)
    assert victim.wait(30) == -signal.SIGTERM


@needs_root
def test_root_signals_with_the_rights_of_the_files_owner(victim: Victim) -> None:
    """Its real user too is another then: either one would do for the kernel. Afterwards it is root again."""
    assert not processes.send(victim.pid, signal.SIGKILL, owner=NOBODY, check=lambda process: True)
    assert lives(victim)
    assert os.getresuid() == (0, 0, 0)

    def sleep() -> None:
        become()
        time.sleep(60)

    own = fork(sleep)
    wait_until(lambda: os.stat(f"/proc/{own}").st_uid == NOBODY)
    assert processes.send(own, signal.SIGKILL, owner=NOBODY, check=lambda process: True)
    assert os.waitpid(own, 0)[1] == signal.SIGKILL


def planted(folder: Path, victim: int, *, master: int, owner: int = NOBODY) -> Path:
    """A board whose owner says that `victim` is a worker of `master`, silent for hours."""
    board, problem = Scoreboard.create(1, str(folder))
    assert not problem
    row = board.allocate(1)
    assert row is not None
    assert board.path is not None
    row.words[sb.W_PID], row.words[sb.W_STATE] = victim, sb.STATE_READY
    row.words[sb.W_STARTED_NS] = time.monotonic_ns()
    board.master.words[sb.M_PID] = master
    path = folder / f"flask_stability-{master}.board"
    os.rename(board.path, path)
    if os.geteuid() == 0:
        os.chown(path, owner, owner)
    return path


def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def a_listener(path: Path) -> tuple[Victim, int]:
    """A process that listens, and has the board in its memory."""
    code = ("import mmap, socket, sys; f = open(sys.argv[1], 'rb')\n"
            "m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n"
            "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
            "while True: print(input(), flush=True)")
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("whose", ["its own", pytest.param("another's", marks=needs_root)])
def test_a_board_has_a_starting_master_kill_only_what_its_owner_could(tmp_path: Path, whose: str) -> None:
    """An orphan that is silent is ended where the board is its user's; another's board has root's process live."""
    path = planted(tmp_path, 1, master=dead(), owner=NOBODY if whose == "another's" else os.geteuid())
    process, port = a_listener(path)
    try:
        board = Scoreboard.attach(str(path), write=True)
        board.rows[0].words[sb.W_STARTED_NS] = time.monotonic_ns()
        board.rows[0].words[sb.W_PID] = process.pid
        until, orphans.PATIENCE = orphans.PATIENCE, 0.5
        try:
            orphans.end_stuck([str(tmp_path)], {port})
        finally:
            orphans.PATIENCE = until
        if whose == "another's":
            assert lives(process)
        else:
            assert process.wait(30) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()


def test_a_process_that_is_younger_than_the_worker_is_another(tmp_path: Path) -> None:
    """Its number was the worker's, and even the board is in its memory."""
    path = planted(tmp_path, 1, master=dead(), owner=os.geteuid())
    process, port = a_listener(path)
    try:
        board = Scoreboard.attach(str(path), write=True)
        board.rows[0].words[sb.W_STARTED_NS] = time.monotonic_ns() - 3600 * 10**9
        board.rows[0].words[sb.W_PID] = process.pid
        orphans.end_stuck([str(tmp_path)], {port})
        assert lives(process)
    finally:
        process.kill()
        process.communicate()


def test_a_board_that_is_cut_while_it_is_read_ends_no_master(tmp_path: Path) -> None:
    """A page of a mapping that is no more is SIGBUS: what others own is read, not mapped."""
    path = planted(tmp_path, 1, master=dead(), owner=os.geteuid())
    copy = Scoreboard.copy_of(str(path))
    os.truncate(path, 4096)
    assert copy.totals().requests == 0
    with pytest.raises(ValueError, match="no scoreboard"):
        Scoreboard.copy_of(str(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="regular file"):
        Scoreboard.copy_of(str(path))


@needs_root
def test_gc_by_root_of_a_planted_board_kills_nobody(tmp_path: Path, victim: Victim,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGUSR2 ends what does not expect it. The victim even is a child of the master that the board names."""
    folder = given(tmp_path / "run")
    monkeypatch.setenv("STABILITY_RUN_DIR", str(folder))
    board, _ = Scoreboard.create(1, str(folder), NOBODY, NOBODY)
    row = board.allocate(1)
    assert row is not None
    row.words[sb.W_PID], row.words[sb.W_STATE] = victim.pid, sb.STATE_READY
    row.words[sb.W_STARTED_NS] = time.monotonic_ns()
    done = CliRunner().invoke(stability, ["gc"])
    assert "Error: the master has no control socket" in done.output  # the master alone signals, and only its children
    assert done.exit_code == 1
    assert lives(victim)
    board.unlink()


def test_gc_of_a_worker_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback: it went after its board was read."""
    monkeypatch.setenv("STABILITY_RUN_DIR", str(tmp_path))
    board, _ = Scoreboard.create(1, str(tmp_path))
    row = board.allocate(1)
    assert row is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        row.words[sb.W_PID], row.words[sb.W_STATE] = worker.pid, sb.STATE_READY
        row.words[sb.W_STARTED_NS] = time.monotonic_ns()
        pidfd_open = os.pidfd_open

        def late(pid: int) -> int:
            worker.kill()
            worker.wait()
            return pidfd_open(pid)

        monkeypatch.setattr(os, "pidfd_open", late)
        done = CliRunner().invoke(stability, ["gc"])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert not isinstance(done.exception, OSError)
    board.unlink()


# -- which service is meant ----------------------------------------------------------------------------------------


def test_a_dead_service_whose_number_another_process_has_is_not_up(tmp_path: Path, victim: Victim,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Its board says when its master was started. The next start removes the file."""
    path = planted(tmp_path, 1, master=victim.pid, owner=os.geteuid())
    assert running([str(tmp_path)]) == []
    monkeypatch.setenv("STABILITY_RUN_DIR", str(tmp_path))
    done = CliRunner().invoke(stability, ["status"])
    assert (done.exit_code, done.output.startswith("Error: no running service")) == (1, True)
    board, problem = Scoreboard.create(1, str(tmp_path))
    assert not problem
    assert not path.exists()
    assert running([str(tmp_path)]) == [(os.getpid(), board.path)]


def test_a_service_of_the_version_before_is_found(tmp_path: Path, victim: Victim) -> None:
    """Its board does not say when it was started, but is in its master's memory."""
    other = planted(tmp_path, 1, master=victim.pid, owner=os.geteuid())
    text = other.read_bytes()
    board, _ = Scoreboard.create(1, str(tmp_path))
    other.write_bytes(text)
    for path in (board.path, other):
        with open(str(path), "r+b") as file:
            file.seek(scoreboard_file._STARTED_AT)
            file.write(bytes(8))
    assert running([str(tmp_path)]) == [(os.getpid(), board.path)]


@needs_root
def test_planted_boards_and_links_do_not_make_root_choose(tmp_path: Path, victim: Victim,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of root's processes and of the planter's own, with the files really in its memory."""
    folder = given(tmp_path / "run")
    board, _ = Scoreboard.create(1, str(folder), NOBODY, NOBODY)
    assert board.path is not None

    def plant() -> None:
        for pid in (1, victim.pid, os.getpid()):
            path = folder / f"flask_stability-{pid}.board"
            path.write_bytes(Path(str(board.path)).read_bytes()[:4096])
        (folder / "flask_stability-2.board").symlink_to(str(board.path))
        mine, _ = Scoreboard.create(1, str(folder))
        assert mine.path is not None
        ready.write_text("")
        time.sleep(60)

    ready = folder / "ready"

    def planter() -> None:
        become()
        plant()

    child = fork(planter)
    try:
        wait_until(ready.exists)
        assert len(list(folder.iterdir())) >= 5
        monkeypatch.setenv("STABILITY_RUN_DIR", str(folder))
        done = CliRunner().invoke(stability, ["status", "--json"])
        assert done.exit_code == 0, done.output
        assert running([str(folder)]) == [(os.getpid(), board.path)]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@needs_root
def test_names_taken_first_do_not_leave_the_service_without_its_file(tmp_path: Path) -> None:
    """In a folder that everybody writes: the board gets another name; what was planted stays."""
    folder = given(tmp_path / "run")
    folder.chmod(0o1777)
    name = f"flask_stability-{os.getpid()}.board"
    as_nobody(lambda: os.symlink("/etc/passwd", folder / name))
    board, problem = Scoreboard.create(1, str(folder))
    assert (problem, os.path.basename(str(board.path)) != name) == ("", True)
    assert os.readlink(folder / name) == "/etc/passwd"
    board.unlink()


# -- where the file is ---------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /dev/shm."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("STABILITY_RUN_DIR", raising=False)
    folder = tmp_path / "shm"
    folder.mkdir()
    reachable(folder)
    folder.chmod(0o1777)
    monkeypatch.setattr(scoreboard_file, "SHARED", str(folder))
    return folder


def test_the_default_directory_is_the_services_own(shared: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_RUNTIME_DIR where it is private, else one in /dev/shm that nobody else may enter; the same for the next."""
    first = sb.default_run_dir()
    assert first is not None
    status = os.stat(first)
    assert (os.path.dirname(first), status.st_uid, status.st_mode & 0o777) == (str(shared), os.geteuid(), 0o700)
    assert sb.default_run_dir() == first
    private, open_to_all = tmp_path / "private", tmp_path / "open"
    private.mkdir(0o700)
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for given_dir, expected in ((private, str(private)), (open_to_all, first), (tmp_path / "missing", first),
                                ("relative", first)):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(given_dir))
        assert sb.default_run_dir() == expected
    board, problem = Scoreboard.create(1, first)
    assert not problem
    assert running(sb.default_run_dirs()) == [(os.getpid(), board.path)]
    done = CliRunner().invoke(stability, ["status"])
    assert done.exit_code == 0
    monkeypatch.setattr(scoreboard_file, "SHARED", str(shared / "missing"))
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert sb.default_run_dir() is None


def test_a_board_in_the_place_of_the_version_before_is_found(shared: Path) -> None:
    """That was /dev/shm itself."""
    board, _ = Scoreboard.create(1, str(shared))
    assert running(sb.default_run_dirs()) == [(os.getpid(), board.path)]


@needs_root
def test_directories_that_others_made_first_are_not_used(shared: Path) -> None:
    """Nor links to such as are root's."""
    (shared / "real").mkdir()

    def plant() -> None:
        (shared / "flask_stability-0").mkdir()
        (shared / "flask_stability-root").symlink_to("real")

    as_nobody(plant)
    found = sb.default_run_dir()
    assert found is not None
    assert os.lstat(found).st_uid == 0
    assert os.path.basename(found) not in ("flask_stability-0", "flask_stability-root", "real")


@needs_root
def test_the_workers_user_reads_its_board_and_plants_none(shared: Path) -> None:
    """Of a master that is root, in root's directory."""
    run_dir = sb.default_run_dir(NOBODY)
    assert run_dir is not None
    board, problem = Scoreboard.create(1, run_dir, NOBODY, NOBODY)
    assert not problem

    def worker() -> None:
        assert running(sb.default_run_dirs()) == [(os.getppid(), board.path)]
        Scoreboard.attach(str(board.path), write=True)
        with pytest.raises(PermissionError):
            Path(run_dir, "flask_stability-1.board").write_text("")

    as_nobody(worker)
    assert running(sb.default_run_dirs()) == [(os.getpid(), board.path)]
