"""The store of answers: shared, bounded, and harmless when the disk, a crash or another user damages it."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flask_stability.wsgi import answer_store
from flask_stability.wsgi.answer_store import NAME, Answer, AnswerStore
from second_user import NOBODY, as_nobody, given, needs_root, reachable
from support import fork, wait_until

MOST = 1 << 20  # 256 answers of a page


def answer(body: bytes = b"body", *, fresh: float = 5.0, stale: float = 300.0, ago: float = 0.0) -> Answer:
    return Answer(time.monotonic() - ago, fresh, stale, [("Content-Type", "text/plain"), ("X-Länge", "ü")], body)


@pytest.fixture
def store(tmp_path: Path) -> AnswerStore:
    return AnswerStore(str(tmp_path), MOST)


def size(store: AnswerStore) -> int:
    """Bytes that the directory really takes."""
    return sum(path.stat().st_blocks * 512 for path in Path(store.path).iterdir())


def test_what_was_put_is_got_by_another_process(store: AnswerStore, tmp_path: Path) -> None:
    """With headers and every byte of the body."""
    made = answer(bytes(range(256)) * 40)

    def put() -> None:
        assert store.put("a", made)

    assert os.waitpid(fork(put), 0)[1] == 0
    assert AnswerStore(str(tmp_path), MOST).get("a") == made
    assert store.get("b") is None


def test_it_is_this_users_alone(store: AnswerStore) -> None:
    """Whatever the umask is: answers may be of those who are logged in."""
    store.put("a", answer())
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in Path(store.path).iterdir())


def test_an_answer_ends_with_its_stale_time(store: AnswerStore) -> None:
    """And one from the future, as after a restart of the machine, is none."""
    store.put("old", answer(ago=306))
    store.put("stale", answer(ago=304))
    store.put("future", answer(ago=-10))
    assert store.get("old") is None
    assert store.get("future") is None
    assert store.get("stale") is not None


@pytest.mark.parametrize("damage", [b"", b"FSA1", b"\0" * 500, b"cut", b"bit", b"json"])
def test_a_damaged_answer_is_missing_and_removed(store: AnswerStore, damage: bytes) -> None:
    """A disk that lies, or a restore from a backup; no exception reaches a request."""
    store.put("a", answer(b"x" * 5000))
    path = Path(store.path) / "a"
    data = path.read_bytes()
    path.write_bytes({b"cut": data[:-7], b"bit": data[:700] + bytes([data[700] ^ 4]) + data[701:],
                      b"json": answer_store._MAGIC + data[4:12] + b"{" + data[13:]}.get(damage, damage))
    assert store.get("a") is None
    assert not path.exists()
    assert store.put("a", answer())
    assert store.get("a") is not None


def test_damaged_totals_are_counted_again(store: AnswerStore) -> None:
    """The bound holds from the next store on."""
    (Path(store.path) / "totals").write_bytes(b"\xff" * 24)
    for number in range(600):
        store.put(f"k{number}", answer())
    assert size(store) <= MOST + 8192


def test_it_takes_no_more_than_it_may_and_keeps_what_is_in_use(store: AnswerStore) -> None:
    """A flood of keys that are asked for once pushes out others of its kind alone."""
    used = [f"used{number}" for number in range(100)]
    for key in used:
        store.put(key, answer())
        assert store.get(key) is not None
    for number in range(2000):
        store.put(f"once{number}", answer(b"x" * 3000))
        assert number % 100 or size(store) <= MOST + 8192
    assert all(store.get(key) is not None for key in used)
    assert sum(name.startswith("once") for name in os.listdir(store.path)) > 100


def test_a_store_that_is_full_of_what_is_in_use_takes_nothing(store: AnswerStore, monkeypatch: pytest.MonkeyPatch
                                                              ) -> None:
    """Until some of it is not used any more; what is renewed keeps its place."""
    number = 0
    while store.put(f"used{number}", answer()):
        store.get(f"used{number}")
        number += 1
    assert not store.put("new", answer())
    assert store.put("used3", answer(b"renewed"))
    monkeypatch.setattr(answer_store, "IN_USE", -1.0)
    wait_until(lambda: store.put("new", answer()), 10)
    assert store.get("new") is not None


def test_an_answer_that_would_fill_it_is_not_stored(store: AnswerStore) -> None:
    """One may take an eighth."""
    assert not store.put("large", answer(b"x" * (MOST // 8)))
    assert store.put("smaller", answer(b"x" * (MOST // 10)))


def test_many_threads_and_processes_break_nothing(store: AnswerStore) -> None:
    """Whole answers only, and the totals stay true."""
    def work() -> None:
        for number in range(150):
            key = f"k{number % 40}"
            store.put(key, answer(key.encode() * 300))
            found = store.get(key)
            assert found is None or found.body == key.encode() * 300
            lock = store.lock(key)
            if lock is not None:
                lock.release(0.01 if number % 3 else 0.0)
            if number % 7 == 0:
                store.drop(key)

    def threads() -> None:
        failed: list[BaseException] = []

        def guarded() -> None:
            try:
                work()
            except TimeoutError:
                pass  # another one was stopped by the scheduler in the middle
            except BaseException as error:
                failed.append(error)

        started = [threading.Thread(target=guarded) for _ in range(4)]
        for one in started:
            one.start()
        for one in started:
            one.join()
        assert not failed

    children = [fork(threads) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert size(store) <= MOST


def test_a_key_is_one_threads_until_it_releases_it(store: AnswerStore) -> None:
    """In this process and in others."""
    lock = store.lock("a")
    assert lock is not None
    assert store.lock("a") is None
    other = store.lock("b")
    assert other is not None
    other.release()

    def refused() -> None:
        assert store.lock("a") is None

    assert os.waitpid(fork(refused), 0)[1] == 0
    lock.release()
    lock.release()
    again = store.lock("a")
    assert again is not None
    again.release()
    assert not [name for name in os.listdir(store.path) if name.endswith(".lock")]


def test_a_holder_that_is_killed_gives_it_back_even_if_it_forked(store: AnswerStore) -> None:
    """SIGKILL leaves no time for anything; its child, which goes on, must not keep the lock."""
    read, write = os.pipe()

    def hold() -> None:
        assert store.lock("a") is not None
        child = os.fork()
        if child == 0:
            os.close(read)
            signal.pause()
        os.write(write, b"%d\n" % child)
        signal.pause()

    pid = fork(hold)
    child = int(os.read(read, 20))
    try:
        assert store.lock("a") is None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        lock = wait_until(lambda: store.lock("a"), 5)
        lock.release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(read)
        os.close(write)


def test_a_key_can_be_held_off_for_a_while(store: AnswerStore) -> None:
    """A new lock file holds nobody off, one that was released so does, and a release without end clears it."""
    lock = store.lock("a")
    assert lock is not None
    assert not store.held_off("a")
    lock.release(30.0)
    assert store.held_off("a")
    lock = store.lock("a")
    assert lock is not None
    lock.release(None)
    assert store.held_off("a")
    lock = store.lock("a")
    assert lock is not None
    lock.release(0.0)
    assert not store.held_off("a")


def test_held_off_keys_count(store: AnswerStore) -> None:
    """A client that invents addresses fills nothing with them."""
    for number in range(1500):
        lock = store.lock(f"k{number}")
        assert lock is not None
        lock.release(0.001)
    assert len(os.listdir(store.path)) < 600


def test_a_full_disk_says_so_and_loses_nothing(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it belongs to the logs and the database; nothing half written stays."""
    store.put("a", answer())
    found = os.statvfs(store.path)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*found[:4], 1000, *found[5:])))
    with pytest.raises(OSError, match="nearly full") as raised:
        store.put("b", answer())
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    monkeypatch.setattr(os, "write", lambda _, data: len(data) - 1)
    with pytest.raises(OSError, match="No space"):
        store.put("b", answer())
    monkeypatch.undo()
    assert store.get("a") is not None
    assert sorted(os.listdir(store.path)) == ["a", "totals"]


def test_a_directory_that_was_removed_is_made_again(store: AnswerStore) -> None:
    """systemd-tmpfiles and tidy people remove what looks temporary."""
    store.put("a", answer())
    for path in Path(store.path).iterdir():
        path.unlink()
    Path(store.path).rmdir()
    assert store.get("a") is None
    assert store.put("a", answer())
    assert store.get("a") is not None


def test_leftovers_of_killed_processes_are_swept(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files half written, locks that nobody holds, answers that have expired."""
    folder = Path(store.path)
    (folder / "a.1234.new").write_bytes(b"half")
    (folder / "b.lock").touch()
    store.put("old", answer(ago=400))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert store._sweep(0) == 0
    assert os.listdir(store.path) == ["totals"]


def test_answers_of_a_release_can_be_dropped(store: AnswerStore) -> None:
    """And no other's."""
    for key in ("one-1", "one-2", "two-1"):
        store.put(key, answer())
    assert store.drop_release("one") == 2
    assert store.get("two-1") is not None
    assert store.get("one-1") is None


def _link(path: Path) -> None:
    path.symlink_to("/tmp")


def _open_directory(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def _file(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize("plant", [_open_directory, _file])
def test_a_directory_that_is_not_right_is_refused(tmp_path: Path, plant: Callable[[Path], Any]) -> None:
    """Whoever may read it reads what the service answers."""
    plant(tmp_path / NAME)
    with pytest.raises(OSError):
        AnswerStore(str(tmp_path), MOST)


@needs_root
def test_what_another_user_planted_is_refused(tmp_path: Path) -> None:
    """A directory, a link to one, or files in a directory that was theirs."""
    folder = given(tmp_path / "theirs")
    as_nobody(lambda: _open_directory(folder / NAME))
    with pytest.raises(PermissionError):
        AnswerStore(str(folder), MOST)
    (folder / NAME).rmdir()
    as_nobody(lambda: _link(folder / NAME))
    with pytest.raises(PermissionError):
        AnswerStore(str(folder), MOST)


@needs_root
def test_a_file_system_that_became_read_only_still_answers(tmp_path: Path) -> None:
    """As disks do after an error; played by a user who may only read."""
    store = AnswerStore(str(tmp_path), MOST)
    store.put("a", answer())
    reachable(tmp_path)
    for path in (Path(store.path), *Path(store.path).iterdir()):
        os.chown(path, 0, NOBODY)
        path.chmod(0o750 if path.is_dir() else 0o640)

    def read() -> None:
        with pytest.raises(PermissionError):
            store.put("a", answer(b"new"))

    as_nobody(read)
    assert store.get("a") is not None
