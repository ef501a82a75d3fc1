"""Processes that a view starts: they end when they are told to, and take nothing of the worker's with them."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
from supervised import Supervised, starting

from support import runs, wait_until

SOURCE = """
import multiprocessing, os, pty, signal, subprocess, sys, time
from pathlib import Path
from flask import Flask
from flask_stability import StabilityExt

app = Flask(__name__)
StabilityExt(app)
fork = multiprocessing.get_context("fork")

def rest():
    Path("child").write_text(str(os.getpid()))
    time.sleep(600)

def ended_by(pid, number):
    os.kill(pid, number)
    for _ in range(100):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return str(os.waitstatus_to_exitcode(status))
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "it had to be killed"

@app.get("/")
def index():
    return {"pid": os.getpid()}

@app.get("/terminated")
def terminated():
    child = fork.Process(target=rest)
    child.start()
    while not Path("told").exists():
        time.sleep(0.05)
    child.terminate()
    child.join(10)
    return str(child.exitcode)

@app.get("/at-once")
def at_once():
    child = fork.Process(target=time.sleep, args=(600,))
    child.start()
    child.terminate()
    child.join(10)
    return str(child.exitcode)

@app.get("/left")
def left():
    fork.Process(target=rest).start()
    while not Path("child").exists():
        time.sleep(0.05)
    os._exit(0)

@app.get("/forked/<int:number>")
def forked(number):
    pid = os.fork()
    if not pid:
        try:
            time.sleep(600)
        finally:
            os._exit(77)
    return ended_by(pid, number)

@app.get("/program/<int:number>")
def program(number):
    child = subprocess.Popen(["sleep", "600"])
    child.send_signal(number)
    try:
        return str(child.wait(10))
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return "it had to be killed"

@app.get("/ignored")
def ignored():
    return subprocess.check_output(["sh", "-c", "grep SigIgn /proc/self/status"], text=True)

@app.get("/terminal")
def terminal():
    pid, descriptor = pty.fork()
    if not pid:
        os.execvp("sleep", ["sleep", "600"])
    time.sleep(0.3)
    os.close(descriptor)
    return ended_by(pid, 0)

@app.get("/pool")
def pool():
    with fork.Pool(2) as workers:
        return str(sum(workers.map(abs, range(10))))
"""
Start = Callable[..., Supervised]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that end with the test."""
    with starting(tmp_path) as start:
        yield start


def test_a_child_that_is_terminated_leaves_the_queue_to_the_worker(supervised: Start, worker_class: str) -> None:
    """multiprocessing's, with requests waiting behind the one that starts it; it dies of the signal."""
    server = supervised(source=SOURCE, worker_class=worker_class, workers=1, threads=1,
                        config="worker_connections = 1")
    answers: list[str] = []
    starter = threading.Thread(target=lambda: answers.append(server.get("/terminated", timeout=60).text))
    starter.start()
    wait_until((server.folder / "child").exists)
    clients = [server.connect(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n") for _ in range(4)]
    (server.folder / "told").touch()
    starter.join(60)
    assert answers == [str(-signal.SIGTERM)]
    for client in clients:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
    assert server.get("/at-once").text == str(-signal.SIGTERM)
    assert server.exits() == []


def test_children_have_the_signals_of_a_process_of_their_own(supervised: Start, worker_class: str) -> None:
    """What the worker handles or ignores, its children and its programs do not."""
    server = supervised(source=SOURCE, worker_class=worker_class, workers=1)
    worker = server.worker_pids()
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGABRT):
        assert server.get(f"/forked/{number}").text == str(-number), number
    assert server.get(f"/forked/{signal.SIGINT}").text in ("77", str(-signal.SIGINT)), "KeyboardInterrupt, or too early"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        assert server.get(f"/program/{number}").text == str(-number), number
    assert int(server.get("/ignored").text.split()[1], 16) & (1 << (signal.SIGHUP - 1)) == 0
    assert server.get("/terminal").text == str(-signal.SIGHUP)
    assert server.get("/pool").text == "45"
    os.kill(worker[0], signal.SIGHUP)
    assert server.get("/").json()["pid"] == worker[0], "the worker itself ignores SIGHUP"
    assert server.worker_pids() == worker


def test_a_child_that_outlives_the_service_holds_no_port(supervised: Start, worker_class: str) -> None:
    """Its parent dies at once, the master is killed: the port is free."""
    server = supervised(source=SOURCE, worker_class=worker_class, workers=1)
    with pytest.raises(requests.RequestException):  # the child has the connection as well, and keeps it open
        server.get("/left", timeout=2)
    wait_until((server.folder / "child").exists)
    child = psutil.Process(int((server.folder / "child").read_text()))
    try:
        server.full(1)
        last = psutil.Process(server.worker_pids()[0])
        server.signal(signal.SIGKILL)
        wait_until(lambda: not runs(last), message="the worker goes with its master")
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", server.port)) != 0
        assert runs(child)
    finally:
        child.kill()
