"""The tests' own tools: several processes share the machine, and what each pass runs adds up to everything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SUITE = '''
import os, tempfile, time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(2))
def test_shared(number):
    folders = tempfile.gettempdir(), os.environ["XDG_RUNTIME_DIR"]
    assert all(os.listdir(folder) == [] for folder in folders)
    Path(f"process{number}").write_text("\\n".join((str(os.getpid()), *folders)))
    while not (Path("process0").exists() and Path("process1").exists()):
        time.sleep(0.05)

@pytest.mark.alone("counts processes")
def test_alone():
    assert "PYTEST_XDIST_WORKER" not in os.environ
    raise AssertionError("for the summary")
'''


LEAKS = '''
import gc, socket, subprocess

class Circle:
    def __init__(self, thing):
        self.thing, self.itself = thing, self

def test_leaves_a_socket():
    Circle(socket.socket())

def test_follows_a_socket():
    gc.collect()

def test_leaves_a_process():
    Circle(subprocess.Popen(["sleep", "60"])).thing.kill()

def test_follows_a_process():
    gc.collect()

def test_fails_with_a_socket():
    kept = Circle(socket.socket())
    raise AssertionError("on purpose")

def test_follows_a_failure():
    gc.collect()

def test_takes_care():
    with socket.socket():
        pass
'''


def _pytest(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "support_parallel", "-p", "support_measure",
                           "--tally=tally", *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(TESTS)},
                          capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_both_passes_together_run_everything_once(tmp_path: Path) -> None:
    """The tests marked ``alone`` by themselves, the others side by side with folders of their own; the last line is
    of both.
    """
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = alone(reason)\n")
    (tmp_path / "test_it.py").write_text(SUITE)
    code, output = _pytest(tmp_path, "-n", "2", "--dist", "load", "--maxschedchunk", "1")
    assert (code, "2 passed" in output, "all passes" in output) == (0, True, False), output
    one, two = ((tmp_path / f"process{number}").read_text().split() for number in range(2))
    assert not set(one) & set(two)
    assert not any(os.path.exists(folder) for folder in (*one[1:], *two[1:]))
    code, output = _pytest(tmp_path, "--alone")
    assert code == 1
    assert output.splitlines()[-1].startswith("===== all passes: 1 failed, 2 passed in "), output


BUSY = '''
import subprocess, sys, time

def test_busy():
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass

def test_busy_program():
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 1.5: pass"], check=True)
'''


@pytest.mark.parametrize("arguments", [(), ("-n", "2")])
def test_the_costliest_tests_are_told(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """By the processor seconds of theirs and of the programs that they ran, whichever process they were in."""
    (tmp_path / "test_it.py").write_text(BUSY)
    code, output = _pytest(tmp_path, "--measure", *arguments)
    assert code == 0, output
    told = re.findall(r"^ +(\d+\.\d)  test_it\.py(\S*)$", output, re.MULTILINE)
    assert [name for _, name in told] == ["", "::test_busy_program", "::test_busy"], output
    assert float(told[0][0]) >= 2.0
    assert float(told[1][0]) >= 1.5
    assert float(told[2][0]) >= 0.5


def test_what_a_test_leaves_to_the_collector_is_blamed_on_it(tmp_path: Path) -> None:
    """And on none that comes after it; one that fails is blamed for that alone."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_it.py").write_text(LEAKS)
    code, output = _pytest(tmp_path, "-p", "support_leaks", "-rEfp")
    assert code == 1
    assert set(re.findall(r"^(\w+) test_it.py::(\w+)", output, re.MULTILINE)) == {
        ("PASSED", "test_leaves_a_socket"), ("ERROR", "test_leaves_a_socket"), ("PASSED", "test_follows_a_socket"),
        ("PASSED", "test_leaves_a_process"), ("ERROR", "test_leaves_a_process"), ("PASSED", "test_follows_a_process"),
        ("FAILED", "test_fails_with_a_socket"), ("PASSED", "test_follows_a_failure"),
        ("PASSED", "test_takes_care")}, output


def test_a_test_says_why_it_is_alone(tmp_path: Path) -> None:
    """In the mark."""
    (tmp_path / "test_it.py").write_text(SUITE.replace('alone("counts processes")', "alone"))
    code, output = _pytest(tmp_path, "--alone")
    assert code == 4
    assert "test_alone: say why" in output, output


def test_a_port_is_given_to_one_process_only() -> None:
    """Each of four takes 300 of the 22,768 that there are: without a lock, about thirty would be given twice."""
    program = "from support import free_port; print(*(free_port() for _ in range(300)), flush=True); input()"
    processes = [subprocess.Popen([sys.executable, "-c", program], cwd=TESTS, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        given = [port for process in processes if process.stdout for port in process.stdout.readline().split()]
    finally:
        for process in processes:
            process.communicate("\n", timeout=60)
    assert len(given) == len(set(given)) == 1200
