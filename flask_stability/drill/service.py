"""The service under test: a running one, or one that is started for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from ..exceptions import StabilityError

STEADY = 2.0  #: seconds that the number of workers stays the same once all are there


class DrillError(StabilityError):
    """The drill could not be run."""


class Service:
    """The service under test: a master process and its workers."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.master = url, psutil.Process(pid)
        self.size = 0

    def workers(self) -> list[psutil.Process]:
        """The live workers, oldest first."""
        found = []
        for process in self.master.children():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def oldest(self) -> psutil.Process:
        """The worker that faults are done to.

        :raises DrillError: if there is none.
        """
        workers = self.workers()
        if not workers:
            raise DrillError("the service has no worker left: see its log")
        return workers[0]

    def thaw(self) -> None:
        """Whatever was stopped goes on."""
        for process in self.workers():
            with contextlib.suppress(psutil.Error):
                process.resume()

    def memory(self) -> int:
        """Bytes resident in all workers."""
        total = 0
        for process in self.workers():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def count(self) -> None:
        """Learn how many workers there are, once that number has been the same for a while: the first may serve before
        the last was forked.
        """
        deadline = time.monotonic() + 30
        same_since = time.monotonic()
        while time.monotonic() < min(deadline, same_since + STEADY):
            time.sleep(0.1)
            number = len(self.workers())
            if number != self.size or not number:
                self.size, same_since = number, time.monotonic()

    def settle(self, seconds: float = 30.0) -> bool:
        """Wait until as many workers are there as at the start, none of them stopped."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            workers = self.workers()
            if len(workers) == self.size and self.answers():
                return True
            time.sleep(0.1)
        return False

    def answers(self) -> bool:
        """Whether anything is answered at all."""
        try:
            with urlopen(self.url + "/", timeout=5) as answer:
                return bool(answer.status)
        except URLError as error:
            return hasattr(error, "code")
        except OSError:
            return False


@contextlib.contextmanager
def started(app: str | None, config: str | None, directory: str) -> Iterator[Service]:
    """The app under gunicorn on a free port of the loopback interface; ended afterwards.

    :raises DrillError: with the end of its log, if it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    if config is not None or not Path(directory, "gunicorn.conf.py").exists():
        command += ["-c", config or "python:flask_stability.server.conf"]
    command += [app] if app else []
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory(prefix="drill-") as run_dir:
        # a run directory of its own: the command line is not to take it for the service that runs here
        process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True, env={**os.environ, "SERVER_PORT": str(port),
                                                                "STABILITY_RUN_DIR": run_dir})
        try:
            service = Service(f"http://127.0.0.1:{port}", process.pid)
            deadline = time.monotonic() + 60
            while not (service.workers() and service.answers()):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise DrillError("the service does not start:\n" + "".join(log.readlines()[-15:]))
                time.sleep(0.1)
            yield service
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the service's whole group: politely, then not."""
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
