"""Exceptions born outside of a request. In a process of its own each: the hooks belong to the whole process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).resolve().parents[2])
HEAD = """
import gc, os, signal, sys, threading, time, warnings
from flask_stability.runtime import runtime
from flask_stability import logs
from flask_stability.config import Settings
from flask_stability.errors import hooks, report
logs.setup(Settings(log_dir=sys.argv[1]), "worker")
hooks.install(Settings())
"""


def run(directory: Path, program: str) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    """The records of error.log, and how the process ended."""
    done = subprocess.run([sys.executable, "-c", HEAD + program, str(directory)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120, check=False)
    path = directory / "error.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{")], done


@pytest.mark.parametrize(("program", "event", "kind"), [
    ("t = threading.Thread(target=lambda: 1 / 0, name='T'); t.start(); t.join()", "thread_failed",
     "ZeroDivisionError"),
    ("t = threading.Timer(0, lambda: 1 / 0); t.start(); t.join()", "thread_failed", "ZeroDivisionError"),
    ("t = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()", "thread_failed", "SystemExit"),
    ("class A:\n def __del__(self): raise ValueError('del')\na = A(); del a; gc.collect()", "unraisable",
     "ValueError"),
    ("import weakref\nclass A: pass\na = A(); r = weakref.ref(a, lambda _: 1 / 0); del a", "unraisable",
     "ZeroDivisionError"),
    ("import atexit; atexit.register(lambda: 1 / 0)", "unraisable", "ZeroDivisionError"),
    ("1 / 0", "uncaught", "ZeroDivisionError"),
    ("from concurrent.futures import ThreadPoolExecutor as E\nwith E() as e: hooks.watch(e.submit(lambda: 1 / 0))",
     "future_failed", "ZeroDivisionError"),
    ("import asyncio\nasync def f(): 1 / 0\nasync def main():\n asyncio.ensure_future(f())\n await asyncio.sleep(0)\n"
     "asyncio.run(main()); gc.collect()", "asyncio", "ZeroDivisionError")])
def test_each_is_one_record_and_no_raw_traceback(program: str, event: str, kind: str, tmp_path: Path) -> None:
    """Threads, timers, finalizers, atexit functions, futures and tasks that nobody reads."""
    records, done = run(tmp_path, program)
    record, = records
    assert record["event"] == event
    assert record["exception"][0]["type"] == kind
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", [
    "t = threading.Thread(target=sys.exit); t.start(); t.join()",
    "from concurrent.futures import Future\nf = Future(); hooks.watch(f); f.cancel(); f.set_running_or_notify_cancel()",
    "from concurrent.futures import Future\nf = Future(); hooks.watch(f); f.set_result(1)",
    "sys.exit(0)"])
def test_what_is_no_failure_is_no_record(program: str, tmp_path: Path) -> None:
    """sys.exit() is how a thread ends itself; a cancelled future was cancelled."""
    records, done = run(tmp_path, program)
    assert records == []
    assert done.returncode == 0


def test_a_coroutine_never_awaited_is_told(tmp_path: Path) -> None:
    """As every warning that would have gone to stderr."""
    records, done = run(tmp_path, "async def f(): pass\nf(); gc.collect()")
    record, = records
    assert (record["event"], record["category"], record["level"]) == ("warning", "RuntimeWarning", "WARNING")
    assert "never awaited" in record["message"]
    assert "never awaited" not in done.stderr


@pytest.mark.parametrize("category", ["DeprecationWarning", "UserWarning", "RuntimeWarning", "FutureWarning"])
def test_a_warning_that_tells_of_no_loss_goes_where_python_sends_it(category: str, tmp_path: Path) -> None:
    """error.log is not the place for it."""
    records, done = run(tmp_path, f"warnings.warn('divide by zero', {category})")
    assert records == []
    assert f"{category}: divide by zero" in done.stderr


def test_hooks_of_others_are_chained_and_put_back(tmp_path: Path) -> None:
    """What was there is called after us, its failure is told, and `uninstall` restores it."""
    program = """
hooks.uninstall()
told = []
def theirs(*args):
    told.append(len(args))
    raise RuntimeError("theirs")
names = [(sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook"), (warnings, "showwarning")]
for owner, name in names: setattr(owner, name, theirs)
hooks.install(); hooks.install()
t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()
warnings.simplefilter("always"); warnings.warn("w", ResourceWarning)
assert told == [1, 6], told
hooks.uninstall(); hooks.uninstall()
assert all(getattr(owner, name) is theirs for owner, name in names)
print("done")
"""
    records, done = run(tmp_path, program)
    assert done.stdout == "done\n", done.stderr
    assert [record["event"] for record in records] == ["thread_failed", "hook_failed", "warning", "hook_failed"]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"])
def test_a_crash_leaves_the_stacks_of_all_threads_in_the_error_log(name: str, tmp_path: Path) -> None:
    """Written by faulthandler, which needs neither lock nor memory."""
    _, done = run(tmp_path, f"def here(): os.kill(os.getpid(), signal.{name}); time.sleep(60)\n"
                            "threading.Thread(target=threading.Event().wait, daemon=True).start()\nhere()")
    assert done.returncode == -getattr(signal, name)
    text = (tmp_path / "error.log").read_text()
    assert "Fatal Python error" in text
    assert " in here" in text
    assert text.count("hread 0x") == 2


def test_an_exception_without_a_good_word_is_recorded_all_the_same(tmp_path: Path) -> None:
    """Those whose ``__str__`` raises, that have no room for a mark, that form a ring, that hold others."""
    program = """
class Mute(Exception):
    def __str__(self): raise ValueError
class Closed(Exception):
    __dict__ = property(lambda self: 1 / 0)
    def __setattr__(self, *a): raise TypeError
a, b = ValueError("a"), ValueError("b")
a.__cause__, b.__cause__ = b, a
def deep(n): return deep(n + 1)
errors = [Mute(), Closed(), a, ExceptionGroup("g", [ValueError(1), Mute()])]
try: deep(0)
except RecursionError as e: errors.append(e)
for error in errors: report.record(error)
assert logs.drops() == 0
"""
    records, done = run(tmp_path, program)
    assert done.returncode == 0, done.stderr
    assert [record["exception"][0]["type"].rpartition(".")[2] for record in records] \
        == ["Mute", "Closed", "ValueError", "ExceptionGroup", "RecursionError"]
    assert "raised ValueError" in records[0]["exception"][0]["message"]
    assert len(records[2]["exception"]) == 2
    assert [part["type"].rpartition(".")[2] for part in records[3]["exception"][0]["group"]] == ["ValueError", "Mute"]
    assert len(records[4]["exception"][0]["frames"]) <= 41


def test_a_storm_is_a_few_lines(tmp_path: Path) -> None:
    """10,000 of one exception do not fill the disk, and are counted nevertheless."""
    program = """
from flask_stability import scoreboard
from flask_stability.runtime import runtime
for _ in range(10_000):
    try: 1 / 0
    except ZeroDivisionError as e: report.record(e)
print(runtime.my_row().words[scoreboard.W_EXCEPTIONS], runtime.my_row().words[scoreboard.W_LOG_SAMPLED])
import time
row, deadline = runtime.my_row(), time.monotonic() + 60
while "'count': 10000" not in str(row.exceptions.read_json()) and time.monotonic() < deadline:
    report.write_latest(row)
    time.sleep(0.02)
print(row.exceptions.read_json())
"""
    records, done = run(tmp_path, program)
    assert len(records) < 40
    counted, left_out = map(int, done.stdout.splitlines()[0].split())
    assert counted == 10_000 == left_out + len(records)
    assert "{'class': 'ZeroDivisionError', 'route': '', 'count': 10000" in done.stdout
    assert os.path.getsize(tmp_path / "error.log") < 100_000
