"""The log directory belongs to the workers' user, and the master may be root: what one can have the other do."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_stability import logs
from flask_stability.config import ConfigError, Settings
from second_user import NOBODY, as_nobody, given, needs_root, reachable

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(autouse=True)
def _teardown() -> Iterator[None]:
    umask = os.umask(0o022)
    yield
    os.umask(umask)
    logs.teardown()


def master(folder: Path, **settings: Any) -> str:
    """As root's, whose workers are nobody; as any other user's own."""
    return logs.setup(Settings(log_dir=str(folder), **settings), "master", uid=NOBODY, gid=NOBODY)


def events(text: str) -> list[str]:
    return [json.loads(line)["event"] for line in text.splitlines()]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@needs_root
@pytest.mark.parametrize("there", [True, False], ids=["of a file", "that leads nowhere"])
def test_root_follows_no_link_of_a_worker(tmp_path: Path, capfd: pytest.CaptureFixture[str], there: bool) -> None:
    """Neither does it append to the file, nor make and give it away: the lines go to stderr, which says why, once."""
    folder, victim = given(tmp_path / "logs"), tmp_path / "victim"
    if there:
        victim.write_text("root's")
    assert master(folder) == ""
    as_nobody(lambda: os.symlink(victim, folder / "process-manager.log"))
    logs.process("one")
    logs.process("two")
    said = capfd.readouterr().err
    assert events(said) == ["log_refused", "one", "two"]
    assert str(NOBODY) in json.loads(said.splitlines()[0])["error"]
    assert victim.read_text() == "root's" if there else not victim.exists()
    as_nobody(lambda: os.unlink(folder / "process-manager.log"))
    logs.process("three")
    assert events((folder / "process-manager.log").read_text()) == ["three"]
    assert (folder / "process-manager.log").stat().st_uid == NOBODY


@needs_root
def test_a_link_in_place_of_the_directory_leads_root_nowhere(tmp_path: Path) -> None:
    """The parent is the worker's too: what it puts there is neither used at the start nor after USR1."""
    home, victim = given(tmp_path / "home"), tmp_path / "victim"
    victim.mkdir()
    folder = home / "logs"
    assert master(folder) == ""
    assert (folder.stat().st_uid, mode(folder)) == (NOBODY, 0o750)
    logs.process("one")

    def swap() -> None:
        folder.rename(home / "old")
        folder.symlink_to(victim)

    as_nobody(swap)
    logs.reopen()
    logs.process("two")
    assert events((home / "old/process-manager.log").read_text()) == ["one", "two"]
    problem = master(folder)
    assert f"logs is a link that user {NOBODY} made" in problem
    assert problem.endswith("logging to stderr: name the directory itself, or have root make the link")
    assert not list(victim.iterdir())


@needs_root
def test_a_link_of_root_that_the_worker_could_have_moved_lends_it_nothing(tmp_path: Path) -> None:
    """It leads to what is the worker's, or to a stream, and neither to root's file nor into root's directory."""
    folder, theirs, roots = given(tmp_path / "logs"), given(tmp_path / "theirs"), tmp_path / "roots"
    roots.mkdir()
    (roots / "there").write_text("root's")
    for name, target in (("process-manager.log", roots / "there"), ("health.log", roots / "new"),
                         ("error.log", theirs / "error.log")):
        (folder / name).symlink_to(target)
    assert master(folder) == ""
    logs.process("x")
    logs.health("x")
    logs.error("x")
    assert (roots / "there").read_text() == "root's"
    assert not (roots / "new").exists()
    assert events((theirs / "error.log").read_text()) == ["x"]


@needs_root
def test_a_second_name_of_a_link_of_root_is_not_followed(tmp_path: Path) -> None:
    """Where the kernel lets everybody make one (fs.protected_hardlinks = 0)."""
    folder, victim = given(tmp_path / "logs"), tmp_path / "victim"
    (tmp_path / "link").symlink_to(victim)
    os.link(tmp_path / "link", folder / "error.log", follow_symlinks=False)
    assert logs.setup(Settings(log_dir=str(folder)), "master") == ""
    logs.error("x")
    assert not victim.exists()


@needs_root
def test_a_worker_follows_no_link_of_a_third_user(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Into a directory that others can write."""
    folder = given(tmp_path / "logs")
    folder.chmod(0o777)
    precious = folder / "precious"
    precious.write_text("the worker's")
    os.chown(precious, NOBODY, NOBODY)
    as_nobody(lambda: os.symlink("precious", folder / "error.log"), uid=NOBODY - 1)
    (folder / "health.log").write_text("")
    (folder / "health.log").chmod(0o666)
    os.chown(folder / "health.log", NOBODY - 1, NOBODY - 1)

    def worker() -> None:
        assert logs.setup(Settings(log_dir=str(folder)), "worker") == ""
        logs.error("x")
        logs.health("y")

    as_nobody(worker)
    assert precious.read_text() == "the worker's"
    assert (folder / "health.log").read_text() == ""
    assert events(capfd.readouterr().err) == ["log_refused", "x", "log_refused", "y"]


@needs_root
def test_rotation_by_root_moves_no_more_than_files_of_the_directory(tmp_path: Path) -> None:
    """A link stays where it is, and what lies in a backup's place goes, not what it leads to."""
    folder, victim = given(tmp_path / "logs"), tmp_path / "victim"
    victim.write_text("root's, and long enough")
    assert master(folder, log_max_bytes=10, log_backups=1) == ""
    logs.health("x")

    def plant() -> None:
        (folder / "error.log").symlink_to(victim)
        (folder / "health.log.1").symlink_to(victim)

    as_nobody(plant)
    assert logs.rotate_if_needed() == ["health.log"]
    assert events((folder / "health.log.1").read_text()) == ["x"]
    assert victim.read_text() == "root's, and long enough"
    assert (folder / "error.log").is_symlink()


@needs_root
def test_the_crash_dumps_file_is_opened_as_carefully(tmp_path: Path) -> None:
    """faulthandler's descriptor was made by name."""
    folder, victim = given(tmp_path / "logs"), tmp_path / "victim"
    assert master(folder) == ""
    as_nobody(lambda: os.symlink(victim, folder / "error.log"))
    assert logs.error_file() is sys.__stderr__
    assert not victim.exists()
    as_nobody(lambda: os.unlink(folder / "error.log"))
    with logs.error_file() as file:
        assert file.name == str(folder / "error.log")
    assert (mode(folder / "error.log"), (folder / "error.log").stat().st_uid) == (0o640, NOBODY)


@pytest.mark.parametrize("kind", ["hard link", "pipe", "directory"])
def test_what_is_no_file_of_its_own_is_refused_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                                       kind: str) -> None:
    """A pipe without a reader would hold the process; a second name is somebody's trick."""
    other = tmp_path / "other"
    other.write_text("precious")
    place = tmp_path / "logs/process-manager.log"
    place.parent.mkdir()
    {"hard link": lambda: os.link(other, place), "pipe": lambda: os.mkfifo(place), "directory": place.mkdir}[kind]()
    assert logs.setup(Settings(log_dir=str(place.parent)), "master") == ""
    logs.process("x")
    assert events(capfd.readouterr().err)[-1] == "x"
    assert other.read_text() == "precious"


def test_links_of_root_and_of_ones_own_go_on_working(tmp_path: Path) -> None:
    """A directory that is a link, relative ones, a file elsewhere, one that is not there yet; its owner rotates it."""
    real, elsewhere = tmp_path / "real", tmp_path / "elsewhere"
    real.mkdir()
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "logs").symlink_to(tmp_path / "link/../link")
    (real / "error.log").symlink_to("../elsewhere/error.log")
    assert logs.setup(Settings(log_dir=str(tmp_path / "logs"), log_max_bytes=1), "master") == ""
    logs.error("one")
    logs.process("here")
    assert events((elsewhere / "error.log").read_text()) == ["one"]
    assert events((real / "process-manager.log").read_text()) == ["here"]
    (elsewhere / "error.log").rename(elsewhere / "old")
    logs.error("two")
    assert events((elsewhere / "error.log").read_text()) == ["two"]
    assert logs.rotate_if_needed() == ["process-manager.log"]
    assert (real / "error.log").is_symlink()


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/{pid}/fd/1"])
def test_a_link_to_stdout_reaches_its_pipe_and_never_waits_for_its_reader(tmp_path: Path, target: str) -> None:
    """As container images have it; what a full pipe does not take goes to stderr, else it is counted."""
    program = ("import os, sys\nfrom flask_stability import logs\nfrom flask_stability.config import Settings\n"
               "os.symlink(sys.argv[2].format(pid=os.getpid()), sys.argv[1] + '/error.log')\n"
               "assert logs.setup(Settings(log_dir=sys.argv[1]), 'worker') == ''\n"
               "for number in range(400): logs.error('x', number=number, text='y' * 500)\n"
               "assert logs.drops() > 0 and os.get_blocking(1)\n")
    read, write = os.pipe()
    with open(read) as pipe, open("/dev/full", "w") as full:
        child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), target], stdout=write, stderr=full,
                                 cwd=ROOT)
        os.close(write)
        assert child.wait(60) == 0
        lines = pipe.read().splitlines()
    assert json.loads(lines[0])["number"] == 0
    assert 60 < len(lines) < 400


def test_a_circle_of_links_is_told(tmp_path: Path) -> None:
    """And does not end in a loop."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert os.strerror(40) in logs.setup(Settings(log_dir=str(tmp_path / "a")), "worker")


@pytest.mark.parametrize(("umask", "setting", "expected"), [(0, None, 0o640), (0o077, None, 0o600),
                                                            (0o077, 0o644, 0o644), (0, 0o600, 0o600)])
def test_files_are_readable_for_whom_the_setting_says(tmp_path: Path, umask: int, setting: int | None,
                                                      expected: int) -> None:
    """0640 less the umask, error.log too, whoever opens it first; directories are nobody else's to write."""
    os.umask(umask)
    folder = tmp_path / "above/logs"
    assert logs.setup(Settings(log_dir=str(folder), log_mode=setting), "master") == ""
    logs.error_file().close()
    logs.health("x")
    logs.process("x")
    assert {mode(path) for path in folder.iterdir()} == {expected}
    assert len(list(folder.iterdir())) == 3
    assert not mode(folder) & 0o027
    assert not mode(folder.parent) & 0o022


@pytest.mark.parametrize("given", ["0666", "0400", "755", "rw-", ""])
def test_permissions_that_make_no_sense_stop_the_start(given: str) -> None:
    """What everybody may write is no log."""
    if given:
        with pytest.raises(ConfigError, match="STABILITY_LOG_MODE"):
            Settings.from_environ({"STABILITY_LOG_MODE": given})
    assert Settings.from_environ({"STABILITY_LOG_MODE": "0644"}).log_mode == 0o644


@needs_root
def test_files_get_the_group_of_a_directory_that_hands_it_on(tmp_path: Path) -> None:
    """With the set-group-id bit; else the workers'."""
    folder = given(tmp_path / "logs")
    os.chown(folder, NOBODY, 4)
    folder.chmod(0o2750)
    assert master(folder) == ""
    logs.error("x")
    status = (folder / "error.log").stat()
    assert (status.st_uid, status.st_gid) == (NOBODY, 4)


def test_a_directory_that_was_moved_is_left_at_usr1_and_a_removed_one_at_once(tmp_path: Path) -> None:
    """It is used by its descriptor until then."""
    folder = tmp_path / "logs"
    assert logs.setup(Settings(log_dir=str(folder)), "worker") == ""
    logs.error("one")
    folder.rename(tmp_path / "old")
    folder.mkdir()
    logs.error("two")
    assert events((tmp_path / "old/error.log").read_text()) == ["one", "two"]
    logs.reopen()
    logs.error("three")
    assert events((folder / "error.log").read_text()) == ["three"]
    (folder / "error.log").unlink()
    folder.rmdir()
    folder.mkdir()
    logs.error("four")
    assert events((folder / "error.log").read_text()) == ["four"]


def test_a_record_that_is_too_long_is_cut_and_kept(tmp_path: Path) -> None:
    """Above 128 KB: long texts, deep or wide structures, many fields, characters that take twelve bytes."""
    assert logs.setup(Settings(log_dir=str(tmp_path)), "worker") == ""
    before = logs.drops()
    logs.error("text", short="kept", text="x" * 1_000_000)
    logs.error("wide", values=list(range(100_000)), text="\U0001f40d" * 100_000)
    logs.error("many", **{f"field_{number}": "x" * 1000 for number in range(1000)})
    logs.error("stacks", stack=["line" * 100] * 5000)
    lines = (tmp_path / "error.log").read_bytes().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["text", "wide", "many", "stacks"]
    assert max(map(len, lines)) <= 128 * 1024
    first = json.loads(lines[0])
    assert first["short"] == "kept"
    assert first["text"].startswith("xxx")
    assert "983616 characters left out" in first["text"]
    assert json.loads(lines[2])["fields_left_out"] > 900
    assert logs.drops() == before


@needs_root
def test_a_folder_that_root_can_get_to_and_the_worker_cannot_is_told(tmp_path: Path) -> None:
    """The worker's lines go to stderr."""
    folder = tmp_path / "private/logs"
    folder.mkdir(parents=True)
    os.chown(folder, NOBODY, NOBODY)
    reachable(tmp_path)
    folder.parent.chmod(0o700)

    def worker() -> None:
        assert "Permission denied" in logs.setup(Settings(log_dir=str(folder)), "worker")

    as_nobody(worker)
