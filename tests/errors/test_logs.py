"""The logs: one line a record, and no record can hurt."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stability import logs
from flask_stability.config import Settings
from flask_stability.logs import events
from flask_stability.logs import handler as handlers
from flask_stability.runtime import runtime

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the logs are."""
    assert logs.setup(Settings(log_dir=str(tmp_path)), "worker") == ""
    yield tmp_path
    logs.teardown()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_log_has_its_file_and_each_record_its_head(directory: Path) -> None:
    """Time, level, event, process and fields, in that order."""
    logs.error("one", a=1)
    logs.health("two", level="WARNING")
    logs.process("three")
    record, = lines(directory / "error.log")
    assert list(record) == ["ts", "level", "event", "pid", "worker", "a"]
    assert (record["level"], record["event"], record["pid"], record["a"]) == ("ERROR", "one", os.getpid(), 1)
    assert record["ts"].endswith("Z")
    assert lines(directory / "health.log")[0]["level"] == "WARNING"
    assert lines(directory / "process-manager.log")[0]["level"] == "INFO"


@given(st.text(), st.dictionaries(st.text(), st.text() | st.binary() | st.floats() | st.none()))
@pytest.mark.parametrize("form", ["json", "text"])
def test_one_record_is_one_line_of_printable_ascii(form: str, text: str, more: dict[str, Any]) -> None:
    """Whatever a client sends: no second line, no escape sequence, no character that an editor would act on."""
    handler = handlers.LineHandler(None, "x.log", events.record, form)
    record = logging.LogRecord("x", 40, "", 0, "x", None, None)
    record.fields = {"ts": "t", "level": "ERROR", "event": "e", "text": text, "more": more}
    line = handler.format(record).encode("ascii", "backslashreplace").decode()
    assert line.isprintable()
    if form == "json" and not any(isinstance(value, (bytes, float)) for value in more.values()):
        assert json.loads(line)["text"] == text


def test_objects_that_cannot_be_shown_do_no_harm(directory: Path) -> None:
    """Neither do those that raise when they are."""
    class Bad:
        def __str__(self) -> str:
            raise ValueError

        __repr__ = __str__

    before = logs.drops()
    logs.error("x", bad=Bad(), plain=object())
    assert lines(directory / "error.log")[0]["bad"] == "<Bad>"
    cycle: list[Any] = []
    cycle.append(cycle)
    logs.error("x", cycle=cycle)
    assert logs.drops() == before + 1


def test_a_renamed_file_is_left_for_a_new_one(directory: Path) -> None:
    """As logrotate does it."""
    logs.error("one")
    (directory / "error.log").rename(directory / "old")
    logs.error("two")
    assert [lines(directory / name)[0]["event"] for name in ("old", "error.log")] == ["one", "two"]
    logs.reopen()
    logs.error("three")
    assert len(lines(directory / "error.log")) == 2


def test_rotation_keeps_as_many_as_asked_for(tmp_path: Path) -> None:
    """The oldest goes."""
    logs.setup(Settings(log_dir=str(tmp_path), log_max_bytes=1, log_backups=2), "master")
    try:
        assert logs.rotate_if_needed() == []
        for number in range(4):
            logs.error("x", number=number)
            assert logs.rotate_if_needed() == ["error.log"]
        logs.error("x", number=4)
        assert [lines(tmp_path / name)[0]["number"] for name in ("error.log", "error.log.1", "error.log.2")] \
            == [4, 3, 2]
        assert not (tmp_path / "error.log.3").exists()
    finally:
        logs.teardown()


def test_nothing_is_lost_while_files_are_rotated_under_four_processes(tmp_path: Path) -> None:
    """Python's own rotating handler loses a fifth of the lines of four processes."""
    program = ("import os, sys, time\nfrom flask_stability import logs\nfrom flask_stability.config import Settings\n"
               "logs.setup(Settings(log_dir=sys.argv[1]), 'worker')\n"
               "written = 0\nwhile written < 1500 or not os.path.exists(sys.argv[1] + '/error.log.3'):\n"
               "    logs.error('x', number=written, text='y' * 200)\n    written += 1\n"
               "    time.sleep(0.001 * (written > 1500))\nprint(written, logs.drops())")
    logs.setup(Settings(log_dir=str(tmp_path), log_max_bytes=100_000, log_backups=1000), "master")
    try:
        children = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
                    for _ in range(4)]
        while any(child.poll() is None for child in children):
            logs.rotate_if_needed()
        told = [child.communicate()[0].split() for child in children]
        assert [dropped for _, dropped in told] == [b"0"] * 4
        found = [record for path in tmp_path.glob("error.log*") for record in lines(path)]
        assert len(found) == sum(int(written) for written, _ in told) >= 4 * 1500
        assert len(list(tmp_path.glob("error.log*"))) > 3
    finally:
        logs.teardown()


def test_a_full_disk_is_replaced_by_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And the file is used again once it can be."""
    (tmp_path / "error.log").symlink_to("/dev/full")
    logs.setup(Settings(log_dir=str(tmp_path)), "worker")
    try:
        logs.error("lost")
        assert json.loads(capfd.readouterr().err)["event"] == "lost"
        (tmp_path / "error.log").unlink()
        logs.error("found")
        assert lines(tmp_path / "error.log")[0]["event"] == "found"
        assert capfd.readouterr().err == ""
    finally:
        logs.teardown()


def test_a_directory_that_cannot_be_used_is_told_and_replaced_by_stderr(tmp_path: Path,
                                                                        capfd: pytest.CaptureFixture[str]) -> None:
    """The service starts all the same."""
    (tmp_path / "file").write_text("")
    problem = logs.setup(Settings(log_dir=str(tmp_path / "file")), "worker")
    assert "STABILITY_LOG_DIR" in problem
    assert str(tmp_path / "file") in problem
    logs.error("here")
    assert json.loads(capfd.readouterr().err)["event"] == "here"


def _run(program: str, **kwargs: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "from flask_stability import logs\n" + program], cwd=ROOT, **kwargs)


def test_what_fits_nowhere_is_counted() -> None:
    """A stderr on a full disk."""
    with open("/dev/full", "wb") as full:
        child = _run("logs.error('x'); logs.error('y'); print(logs.drops())", stderr=full, stdout=subprocess.PIPE)
        assert child.communicate(timeout=60)[0] == b"2\n"


def test_a_stderr_that_nobody_reads_does_not_hold_the_process() -> None:
    """Half a second once, then lines are dropped at once, until someone reads again: whole lines again then."""
    program = ("import sys\nfor i in range(3000): logs.error('x', number=i, text='y' * 300)\n"
               "print(logs.drops(), flush=True)\nsys.stdin.readline()\nlogs.error('last')\nprint(logs.drops())")
    child = _run(program, stderr=subprocess.PIPE, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdin is not None
    dropped = int(child.stdout.readline())
    assert 2000 < dropped < 3000
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(child.stderr.read()))  # type: ignore[union-attr]
    reader.start()
    child.stdin.write(b"\n")
    child.stdin.flush()
    assert int(child.stdout.readline()) - dropped <= 1
    assert child.wait(60) == 0
    reader.join(60)
    found = [json.loads(line) for line in read[0].splitlines()]
    assert found[-1]["event"] in ("last", "x")
    assert len(found) >= 3000 - dropped
    for stream in (child.stdout, child.stderr, child.stdin):
        stream.close()


def test_stderr_itself_stays_as_it_was() -> None:
    """Whoever shares the pipe does not find it non-blocking."""
    child = _run("logs.error('x')\nimport os\nprint(os.get_blocking(2))", stderr=subprocess.PIPE,
                 stdout=subprocess.PIPE)
    assert child.communicate(timeout=60)[0] == b"True\n"


def test_a_fork_while_other_threads_log_leaves_no_lock_behind(directory: Path) -> None:
    """Every child logs, though the parent's threads held every lock at some fork."""
    stop = threading.Event()

    def chatter() -> None:
        while not stop.is_set():
            logs.error("chatter", text="x" * 500)
            logs.sample("chatter")

    threads = [threading.Thread(target=chatter) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            child = os.fork()
            if child == 0:
                logs.sample("child")
                logs.error("child")
                os._exit(0 if logs.drops() == 0 else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sum(record["event"] == "child" for record in lines(directory / "error.log")) == 30


def test_a_stuck_thread_holds_no_other_for_long(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is not to be had costs a record, not the thread."""
    monkeypatch.setattr(handlers, "LOCK_PATIENCE", 0.01)
    before = logs.drops()
    lock = runtime.parts["logs"].handlers["error"].lock  # type: ignore[attr-defined]
    assert lock is not None
    with lock:
        other = threading.Thread(target=logs.error, args=("x",))
        other.start()
        other.join(30)
        assert not other.is_alive()
    assert logs.drops() == before + 1


def test_an_app_that_configures_logging_does_not_silence_us(directory: Path) -> None:
    """dictConfig disables every logger that it does not name."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    disabled = {name: logger.disabled for name, logger in root.manager.loggerDict.items()
                if isinstance(logger, logging.Logger)}
    try:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
        logging.disable(logging.CRITICAL)
        logs.error("still here")
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:], root.level = handlers, level
        for name, value in disabled.items():
            logging.getLogger(name).disabled = value
    assert lines(directory / "error.log")[0]["event"] == "still here"


def test_debug_records_are_written_only_where_logging_asks_for_them(directory: Path) -> None:
    """By the level of the logger ``flask_stability``."""
    logs.error("quiet", level="DEBUG")
    logger = logging.getLogger("flask_stability")
    logger.setLevel(logging.DEBUG)
    try:
        logs.error("loud", level="DEBUG")
    finally:
        logger.setLevel(logging.NOTSET)
    assert [record["event"] for record in lines(directory / "error.log")] == ["loud"]


def test_a_storm_is_sampled_and_its_size_told() -> None:
    """10,000 of one kind in a minute are a few dozen lines whose counts add up."""
    logs.forget_storms()
    told = [logs.sample("storm", now=second / 200) for second in range(10_000)]
    written = [left_out for left_out in told if left_out is not None]
    assert len(written) < 40
    after = logs.sample("storm", now=120.0)
    assert after is not None
    assert sum(written) + len(written) + after == 10_000
    assert logs.sample("another", now=1.0) == 0


def test_crash_dumps_follow_a_rotation(directory: Path) -> None:
    """faulthandler keeps a descriptor number: it leads to the new file once a line was written there."""
    file = logs.error_file()
    logs.error("one")
    (directory / "error.log").rename(directory / "old")
    logs.error("two")
    os.write(file.fileno(), b"dump\n")
    assert (directory / "error.log").read_text().endswith("dump\n")
    file.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files to give away")
def test_a_master_that_is_root_gives_the_files_to_the_workers(tmp_path: Path) -> None:
    """Else the workers could write to none of them."""
    logs.setup(Settings(log_dir=str(tmp_path / "logs")), "master", uid=65534, gid=65534)
    try:
        logs.error("x")
        assert [(tmp_path / name).stat().st_uid for name in ("logs", "logs/error.log")] == [65534, 65534]
    finally:
        logs.teardown()


def test_setup_is_undone(capfd: pytest.CaptureFixture[str], directory: Path, records: Callable[..., Any]) -> None:
    """After teardown lines go to stderr."""
    logs.teardown()
    logs.error("x")
    assert json.loads(capfd.readouterr().err)["event"] == "x"
