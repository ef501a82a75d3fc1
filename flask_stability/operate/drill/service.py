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
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, build_opener

import psutil

from ...exceptions import StabilityError
from ..find_service import gunicorn_arguments

STEADY = 2.0  #: seconds that the number of workers stays the same once all are there


class DrillError(StabilityError):
    """The drill could not be run."""


class Service:
    """The service under test: a master process and its workers."""

    def __init__(self, url: str, pid: int, paths: Sequence[str] = ("/",)) -> None:
        self.url, self.master, self.paths = url, psutil.Process(pid), list(paths)
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

    def answers(self, path: str | None = None) -> bool:
        """Whether anything is answered at all."""
        return bool(_status(self.url + (path or self.paths[0]), 5.0))

    def examine(self) -> list[str]:
        """Ask each path once, before anything is done to the service.

        :returns: what to know of the paths before the drill is believed, a line each.
        :raises DrillError: if a path is not there, always fails, or does not answer: a drill would measure nothing.
        """
        notes = []
        for path in self.paths:
            status = _status(self.url + path, 30.0)
            if not status or status in _USELESS or status >= 500:
                said = f"answers {status}" if status else "does not answer within 30 s"
                raise DrillError(f"{path} {said} before anything was done to the service: name paths that it serves "
                                 "with --path")
            if status >= 300:
                notes.append(f"{path} answers {status}: that answer, and not what lies behind it, is what is tested")
        return notes


#: Statuses of GET that say that a path is not one of the service's.
_USELESS = frozenset({404, 405, 410})


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _status(url: str, timeout: float) -> int:
    """The status that a GET is answered with; 0 without an answer."""
    try:
        with build_opener(_NoRedirect).open(url, timeout=timeout) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return int(error.code)
    except (OSError, HTTPException, ValueError):
        return 0


@contextlib.contextmanager
def started(app: str | None, config: str | None, directory: str,
            paths: Sequence[str] = ("/",)) -> Iterator[Service]:
    """The app under gunicorn on a free port of the loopback interface; ended afterwards.

    :raises DrillError: with the end of its log, if it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--no-control-socket",
               *gunicorn_arguments(config, app, directory)]
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory(prefix="drill-") as run_dir:
        # a run directory of its own: the command line is not to take it for the service that runs here
        process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True, env={**os.environ, "SERVER_PORT": str(port),
                                                                "STABILITY_RUN_DIR": run_dir})
        try:
            service = Service(f"http://127.0.0.1:{port}", process.pid, paths)
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
