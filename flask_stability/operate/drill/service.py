"""The service under test: a running one, or one that the drill starts."""

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

STEADY = 2.0  #: seconds for which the number of workers must not change to count as complete


class DrillError(StabilityError):
    """The drill could not be run."""


class Service:
    """The service under test: a master process and its workers."""

    def __init__(self, url: str, pid: int, paths: Sequence[str] = ("/",)) -> None:
        self.url, self.master, self.paths = url, psutil.Process(pid), list(paths)
        self.size = 0

    def workers(self) -> list[psutil.Process]:
        """Return the live workers, oldest first."""
        found = []
        for process in self.master.children():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def oldest(self) -> psutil.Process:
        """Return the worker that gets the faults.

        :raises DrillError: if there is none.
        """
        workers = self.workers()
        if not workers:
            raise DrillError("the service has no worker left: see its log")
        return workers[0]

    def thaw(self) -> None:
        """Resume every stopped worker."""
        for process in self.workers():
            with contextlib.suppress(psutil.Error):
                process.resume()

    def memory(self) -> int:
        """Return the resident memory of all workers, in bytes."""
        total = 0
        for process in self.workers():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def count(self) -> None:
        """Learn the number of workers, once it has stayed the same for a while: the first may serve before the last is
        forked.
        """
        deadline = time.monotonic() + 30
        same_since = time.monotonic()
        while time.monotonic() < min(deadline, same_since + STEADY):
            time.sleep(0.1)
            number = len(self.workers())
            if number != self.size or not number:
                self.size, same_since = number, time.monotonic()

    def settle(self, seconds: float = 30.0) -> bool:
        """Wait until there are as many workers as at the start and the service answers; return whether that came."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            workers = self.workers()
            if len(workers) == self.size and self.answers():
                return True
            time.sleep(0.1)
        return False

    def answers(self, path: str | None = None) -> bool:
        """Return whether the service answers at all.

        :param path: asked; None = the first of its paths.
        """
        return bool(_status(self.url + (path or self.paths[0]), 5.0))

    def examine(self) -> list[str]:
        """Request each path once, before the first fault.

        :returns: a remark about each path that is not answered with 2xx.
        :raises DrillError: if a path is missing, fails, or does not answer: a drill would measure nothing.
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


#: Statuses of a GET that mean that the service does not have the path.
_USELESS = frozenset({404, 405, 410})


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _status(url: str, timeout: float) -> int:
    """Return the status of a GET; 0 without an answer."""
    try:
        with build_opener(_NoRedirect).open(url, timeout=timeout) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return int(error.code)
    except (OSError, HTTPException, ValueError):
        return 0


@contextlib.contextmanager
def started(app: str | None, config: str | None, directory: str, paths: Sequence[str] = ("/",), *,
            without: Sequence[str] | None = None) -> Iterator[Service]:
    """Start the app under gunicorn on a free port of the loopback interface, and end it afterwards.

    :param without: further arguments for gunicorn; given, the app runs without the extension (see `without`).
    :raises DrillError: with the end of its log, if it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn" if without is None else f"{__package__}.without",
               "--bind", f"127.0.0.1:{port}", "--no-control-socket", *(without or ()),
               *gunicorn_arguments(config, app, directory)]
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory(prefix="drill-") as run_dir:
        # a run directory of its own: the command line is not to take it for the service that runs here
        process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True, env={
                                       "STABILITY_RELEASE_JUDGE": "off",  # the drill looks at the reload itself
                                       **os.environ, "SERVER_PORT": str(port), "STABILITY_RUN_DIR": run_dir})
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
    """End the service's process group: SIGTERM, then SIGKILL."""
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
