"""What the kernel's files say of the container's memory, for every layout of them, and with any of them missing."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from flask_stability.memory import cgroup, process
from flask_stability.runtime import runtime

NOT_LIMITED = str((1 << 63) - 4096)  #: what version 1 writes for "no limit"


class Files:
    """A tree of control files under a folder of the test's own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.own = folder / "cgroup", folder / "own"
        self.root.mkdir()
        monkeypatch.setattr(cgroup, "_ROOT", str(self.root))
        monkeypatch.setattr(cgroup, "_OWN", str(self.own))

    def write(self, path: str, **files: str) -> None:
        """The control files of one cgroup; __ in a name stands for the dot."""
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Of a machine with much memory available."""
    found = psutil.virtual_memory()._replace(total=64_000, available=32_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)
    return Files(tmp_path, monkeypatch)


def test_version_2(files: Files) -> None:
    """File cache that can be dropped is free; kills are counted; pressure is that of the container."""
    files.own.write_text("0::/app\n")
    files.write("app", memory__max="1000", memory__current="700",
                memory__events="low 0\noom 3\noom_kill 2", memory__pressure="some avg10=12.50 avg60=1.00 total=9",
                memory__stat="anon 5\nfile 350\nshmem 150\ninactive_file 150\nactive_file 50")
    assert (cgroup.limit(), cgroup.total(), cgroup.available()) == (1000, 1000, 500)
    assert (cgroup.oom_kills(), cgroup.pressure()) == (2, 12.5)


def test_version_1(files: Files) -> None:
    """The same by the older names; a kill there stands in memory.oom_control."""
    files.own.write_text("5:cpu:/\n4:memory:/app\n0::/\n")
    files.write("memory/app", memory__limit_in_bytes="1000", memory__usage_in_bytes="700",
                memory__stat="inactive_file 1\nactive_file 2\ntotal_inactive_file 150\ntotal_active_file 50",
                memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 4")
    assert (cgroup.limit(), cgroup.total(), cgroup.available()) == (1000, 1000, 500)
    assert cgroup.oom_kills() == 4


@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_the_path_may_be_the_hosts(files: Files, version: int) -> None:
    """What is mounted is the container's own cgroup."""
    if version == 1:
        files.own.write_text("4:memory:/docker/abc\n")
        files.write("memory", memory__limit_in_bytes="1000", memory__usage_in_bytes="700",
                    memory__oom_control="oom_kill 4")
    else:
        files.own.write_text("0::/docker/abc\n")
        files.write(".", memory__max="1000", memory__current="700", memory__events="oom_kill 4")
    assert (cgroup.limit(), cgroup.available(), cgroup.oom_kills()) == (1000, 300, 4)


def test_the_nearest_of_several_limits_counts(files: Files) -> None:
    """A pod's limit holds for the containers in it: what counts is the one that is nearly used up, outer or inner."""
    files.own.write_text("0::/pod/app\n")
    files.write("pod", memory__max="2000", memory__current="1900")
    files.write("pod/app", memory__max="4000", memory__current="500")
    assert (cgroup.limit(), cgroup.available()) == (2000, 100)
    files.write("pod/app", memory__max="550")
    assert (cgroup.limit(), cgroup.available()) == (550, 50)


@pytest.mark.parametrize("text", ["max", "", "many", NOT_LIMITED, "-"])
def test_no_limit_is_none(files: Files, text: str) -> None:
    """The machine's memory counts then."""
    files.own.write_text("4:memory:/app\n0::/app\n")
    files.write("app", memory__max=text, memory__current="700")
    files.write("memory/app", memory__limit_in_bytes=text, memory__usage_in_bytes="700")
    assert (cgroup.limit(), cgroup.total(), cgroup.available()) == (None, 64_000, 32_000)


@pytest.mark.parametrize("own", [None, "", "nonsense\n", "0::/gone\n", "4:memory:/gone\n"])
def test_files_that_are_missing_say_nothing(files: Files, own: str | None) -> None:
    """Neither a limit nor a kill nor pressure, and no error."""
    if own is not None:
        files.own.write_text(own)
    assert (cgroup.limit(), cgroup.oom_kills(), cgroup.available()) == (None, 0, 32_000)
    assert cgroup.pressure() >= 0.0


def test_files_that_vanish_say_nothing(files: Files) -> None:
    """From one look to the next."""
    files.own.write_text("0::/app\n")
    files.write("app", memory__max="1000", memory__current="700")
    assert cgroup.available() == 300
    (files.root / "app" / "memory.current").unlink()
    assert (cgroup.limit(), cgroup.available()) == (1000, 32_000)


def test_without_proc_there_are_no_figures_and_no_error(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc is hidden, psutil has nothing to say either."""
    def hidden(*_: object) -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", hidden)
    monkeypatch.setattr(psutil, "Process", hidden)
    monkeypatch.setattr(process.os, "open", hidden)
    runtime.parts["memory"].reset_after_fork()
    assert (cgroup.total(), cgroup.available(), process.resident()) == (0, None, 0)
