"""What the live tests of supervision share: an app that can be made to fail in every way, the board from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import requests

from flask_stability import processes
from flask_stability.operate.control import ask
from flask_stability.scoreboard import (
    M_RELOADS,
    O_RETIRE_SINCE_NS,
    STATE_READY,
    W_BUSY,
    W_STATE,
    Scoreboard,
    board_files,
)
from flask_stability.server.control import path_of
from support import Server, wait_until

SOURCE = '''
import ctypes, faulthandler, os, re, sys, threading, time
from pathlib import Path
from flask import Flask, request
from flask_stability import StabilityExt

if Path("broken").exists():
    raise RuntimeError("broken on purpose")
if Path("dies").exists():
    threading.Timer(0.2, os._exit, (1,)).start()
time.sleep(float(os.environ.get("IMPORT_SECONDS", 0)))
app = Flask(__name__)
stability = StabilityExt(app)

@app.get("/")
def index():
    return {"pid": os.getpid()}

@app.get("/slow/<float:seconds>")
def slow(seconds):
    time.sleep(seconds)
    return {"pid": os.getpid()}

@app.get("/hang")
def hang():
    while True:
        time.sleep(0.1)

@app.get("/until-told")
def until_told():
    while not Path("told").exists():
        time.sleep(0.1)
    return {"pid": os.getpid()}

@app.get("/hang-stubborn")
def hang_stubborn():
    while True:
        try:
            time.sleep(0.1)
        except BaseException:
            pass

@app.get("/hang-gil")
def hang_gil():
    Path("holds-gil").touch()
    ctypes.PyDLL(None).sleep(600)

@app.get("/own-deadline")
@stability.request_timeout(1)
def own_deadline():
    time.sleep(600)

opened = []

@app.get("/files/<int:number>")
def files(number):
    opened.extend(open(os.devnull) for _ in range(number))
    return {"pid": os.getpid()}

@app.get("/exit/<int:code>")
def leave(code):
    os._exit(code)

@app.get("/segv")
def segv():
    faulthandler._sigsegv()
'''


class Supervised(Server):
    """A server with that app, and its scoreboard."""

    def __init__(self, folder: Path, *, env: dict[str, str] | None = None, **options: Any) -> None:
        self.run_dir = folder / "run"
        self.run_dir.mkdir(parents=True)
        self._board: tuple[tuple[str, int], Scoreboard] | None = None
        options.setdefault("source", SOURCE)
        super().__init__(folder, env={"STABILITY_RUN_DIR": str(self.run_dir), "STABILITY_CRASH_MIN_UPTIME": "0",
                                      **(env or {})}, **options)

    @property
    def environ(self) -> dict[str, str]:
        """The service's own environment."""
        return self._env

    def board(self, *, write: bool = False) -> Scoreboard:
        """The scoreboard, opened from outside: one to read it is opened once, tests look at it all the time."""
        path = dict(board_files(str(self.run_dir)))[self.pid]
        if write:
            return Scoreboard.attach(path, write=True)
        which = path, os.stat(path).st_ino
        if self._board is None or self._board[0] != which:
            self._board = which, Scoreboard.attach(path)
        return self._board[1]

    def retire(self, pid: int) -> None:
        """As the command line does it."""
        ask(path_of(self.board().path or ""), {"command": "retire", "pid": pid}, timeout=60)

    def retired(self, pid: int, timeout: float = 40.0) -> None:
        """Wait until a worker is gone."""
        wait_until(lambda: processes.look(pid) is None, timeout, message=f"worker {pid} is gone")

    def kill(self, pid: int) -> None:
        """SIGKILL, and wait until the worker is gone: the signal takes its time, as long it is there and looks well."""
        os.kill(pid, signal.SIGKILL)
        self.retired(pid)

    def kill_holding(self, pid: int) -> int:
        """As `kill`, at a moment at which all of the service stands still; gives how many clients' connections it
        held.
        """
        worker, master = psutil.Process(pid), psutil.Process(self.pid)
        for process in (master, worker):  # else the master would let the worker go on
            process.suspend()
            wait_until(lambda process=process: process.status() == psutil.STATUS_STOPPED)  # type: ignore[misc]
        held = sum(connection.laddr.port == self.port and connection.status != psutil.CONN_LISTEN
                   for connection in worker.net_connections("tcp"))
        worker.kill()
        master.resume()
        self.retired(pid)
        return held

    def reload(self) -> None:
        """SIGHUP, and wait until the master acts on it."""
        words = self.board().master.words
        before = words[M_RELOADS]
        self.signal(signal.SIGHUP)
        wait_until(lambda: words[M_RELOADS] > before, message="the master heard of it")

    def full(self, number: int, timeout: float = 40.0) -> None:
        """Wait until exactly so many workers are there, all of them ready."""
        def ready() -> bool:
            rows = self.board().live()
            return len(rows) == number and all(row.words[W_STATE] == STATE_READY for row in rows) and (
                len(self.worker_pids()) == number)  # last: it looks at every process of the machine
        wait_until(ready, timeout, message=f"{number} ready workers")

    def busy(self) -> None:
        """Wait until a worker is known to have a request in flight."""
        wait_until(lambda: any(row.words[W_BUSY] for row in self.board().live()), message="a request in flight")

    def lost(self, path: str) -> None:
        """A request that kills its worker."""
        with contextlib.suppress(requests.RequestException):
            self.get(path)

    def exits(self) -> list[str]:
        """Reasons of the exits so far: of all that the board counts, whose records come right after that."""
        with contextlib.suppress(KeyError, FileNotFoundError):  # the board goes with the master
            counted = sum(self.board().master.reasons)
            wait_until(lambda: len(self.records("process-manager", "worker_exit")) >= counted, message="exits are told")
        return [record["reason"] for record in self.records("process-manager", "worker_exit")]


@contextlib.contextmanager
def fewest_serving(server: Supervised) -> Iterator[Callable[[], int]]:
    """Watches the board: the fewest workers that served at any moment."""
    fewest, done = 1000, threading.Event()
    board = server.board()

    def serving() -> set[int]:
        return {row.pid for row in board.live()
                if row.words[W_STATE] >= STATE_READY and not row.orders[O_RETIRE_SINCE_NS]}

    def watch() -> None:
        nonlocal fewest
        while not done.is_set():
            found = serving()
            if found == serving():  # else some rows were read before a change and others after it
                fewest = min(fewest, len(found))
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: fewest
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[Callable[..., Supervised]]:
    """Gives a function that starts servers; they end with the block."""
    started: list[Supervised] = []

    def start(*, wait: bool = True, **options: Any) -> Supervised:
        one = Supervised(folder / f"server{len(started)}", **options)
        started.append(one)
        one.start(wait=wait)
        return one

    try:
        yield start
    finally:
        for one in started:
            one.stop()
