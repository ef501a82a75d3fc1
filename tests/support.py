"""What the live tests share: a real gunicorn on a free port, waiting for conditions, an open-loop load."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import requests

from flask_stability.health.results import CheckResult
from flask_stability.operate.loadgen import Load, Result

__all__ = ["Load", "Result", "Server", "Standstills", "copy_project", "free_port", "open_to_all", "runs",
           "cached_source", "source_distribution", "wait_until"]

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable  #: what servers are started with
_given: set[int] = set()  #: what `free_port` gave
CONFIG = """
import os
bind = "127.0.0.1:" + os.environ["SERVER_PORT"]
{extra}
from flask_stability.server import install
install(globals())
"""


def fork(function: Callable[[], None]) -> int:
    """Run in a child that ends without a trace; its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return pid


def wait_until(predicate: Callable[[], Any], timeout: float = 30.0, interval: float = 0.05, message: str = "") -> Any:
    """Wait for a true value and return it; fail after `timeout` seconds, not without a look after them.

    :param interval: seconds between two looks; more when it takes long, a twentieth of the time, so that the looks of
        several tests leave the machine to what they wait for.
    """
    began = time.monotonic()
    while True:
        waited = time.monotonic() - began
        value = predicate()
        if value:
            return value
        if waited > timeout:
            raise AssertionError(f"not within {timeout:g} s: {message or predicate}")
        time.sleep(max(interval, min(waited / 20, 0.25)))


def runs(process: psutil.Process) -> bool:
    """It is there, and no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):  # gone between the two questions
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class Standstills:
    """Notices when this process, and with it most likely the machine, stood still; a context manager."""

    def __init__(self) -> None:
        self._found: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Standstills:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._done.wait(0.05):
            now = time.monotonic()
            if now - before > 0.3:
                self._found.append((before, now))
            before = now

    def seconds(self, since: float, until: float) -> float:
        """How much of that time was standstill; `time.monotonic` seconds."""
        return sum(max(0.0, min(until, end) - max(since, begin)) for begin, end in list(self._found))


def source_distribution(folder: Path, requirement: str, *options: str) -> Path:
    """The unpacked source distribution of ``name==version`` from the package index."""
    name = requirement.partition("=")[0]
    done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name,
                           *options, "--dest", str(folder), requirement], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, f"{requirement} cannot be downloaded: {done.stderr[-2000:]}"
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as packed:
        # Python before 3.11.4 knows no filters
        packed.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder / archive.name.removesuffix(".tar.gz")


def cached_source(name: str, number: str) -> Path:
    """As `source_distribution`, kept in the user's cache: for a package whose metadata take long to build."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flask_stability" / "sources"
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"{name}-{number}"
    with open(f"{kept}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be at it
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                source_distribution(Path(folder), f"{name}=={number}").rename(kept)
    return kept


def free_port() -> int:
    """A port of the loopback interface that is free now.

    None of those that the kernel gives to connections: one of these could take it before the server does, or while that
    is away for a moment, and a client that asks for it until somebody listens would at last, by chance, be connected to
    itself. None is given twice, in no process of this user: a lock on the byte of that number, in a file that all of
    them know, is held until the process ends.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 10_000 + secrets.randbelow(lowest - 10_000) if lowest > 12_000 else 0
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            port = int(probe.getsockname()[1])
            if port not in _given and _reserve(port):
                _given.add(port)
                return port


@functools.cache
def _reservations() -> int:
    """The file of the locks; not a folder of this run, since others' runs matter too."""
    path = f"/tmp/stability-tests-ports-{os.geteuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _reserve(port: int) -> bool:
    """False if another process has it."""
    try:
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def open_to_all(folder: Path) -> None:
    """Let other users reach a temporary folder."""
    for one in (folder, *folder.parents):
        if not one.stat().st_mode & 0o001:
            one.chmod(0o755)


def copy_project(target: Path) -> Path:
    """What a user gets, without tests and without what earlier builds left; returns the folder."""
    target.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "gunicorn.conf.py", "README.rst", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for name in ("flask_stability", "sample_app"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


class Server:
    """A real gunicorn with the extension's hooks; a context manager that ends all it started.

    :param app: what gunicorn is to load; or `source`, the text of a module with an ``app``.
    :param config: further lines of gunicorn.conf.py.
    :param prefix: the command that starts gunicorn, before it.
    :param output: a descriptor for the output; then `logs` is empty.
    """

    def __init__(self, folder: Path, *, app: str = "app:app", source: str | None = None, worker_class: str = "gthread",
                 workers: int = 2, threads: int = 4, env: dict[str, str] | None = None, config: str = "",
                 use_hooks: bool = True, prefix: Sequence[str] = (), output: int | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        if source is not None:
            (folder / "app.py").write_text(source)
        if worker_class == "sync":
            threads = 1  # with more of them gunicorn makes it gthread
        settings = (f"workers = {workers}\nthreads = {threads}\nworker_class = {worker_class!r}\ntimeout = 30\n"
                    f"graceful_timeout = 10\nkeepalive = 2\ncontrol_socket_disable = True\n{config}\n")
        text = CONFIG.format(extra=settings)
        (folder / "gunicorn.conf.py").write_text(text if use_hooks else text.split("from flask_stability")[0])
        self.logs_dir = folder / "logs"
        self._use_hooks, self._app = use_hooks, app
        self._env = {**os.environ, "SERVER_PORT": str(self.port), "PYTHONPATH": f"{folder}:{ROOT}",
                     "STABILITY_LOG_DIR": str(self.logs_dir), "STABILITY_HEALTH_DETAILS": "always",
                     "STABILITY_HEALTH_INTERVAL": "2", "STABILITY_RELEASE_JUDGE": "off",
                     "SAMPLE_INSTANCE": str(folder / "instance"),
                     "PYTHONWARNINGS": "default", **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._clients = contextlib.ExitStack()
        self._output = folder / "output.log"
        self._prefix, self._given_output = prefix, output

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self, *, wait: bool = True) -> Server:
        """Start, and wait until it answers."""
        with self._output.open("ab") as output:
            to = output if self._given_output is None else self._given_output
            self._process = subprocess.Popen([*self._prefix, PYTHON, "-m", "gunicorn", self._app],
                                             cwd=self.folder, env=self._env, stdin=subprocess.DEVNULL, stdout=to,
                                             stderr=to, start_new_session=True)
        if wait:
            wait_until(self._answers, 60, message="the server answers")
            if self._use_hooks:
                wait_until(lambda: self.get("/health/live").status_code == 200, 30)
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the server ended with {self._process.returncode}:\n{self.logs()[-3000:]}")
        with contextlib.suppress(requests.RequestException):
            self.get("/health/live")
            return True
        return False

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The master's."""
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        """The master's process id."""
        return self.process.pid

    def workers(self) -> list[psutil.Process]:
        """The live workers, oldest first."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.status() != psutil.STATUS_ZOMBIE:
                        found.append((child.create_time(), child.pid, child))
        return [child for _, _, child in sorted(found, key=lambda item: item[:2])]

    def worker_pids(self) -> list[int]:
        """Process ids of the live workers, oldest first."""
        return [child.pid for child in self.workers()]

    def alive(self) -> bool:
        """The master is running."""
        return self.process.poll() is None

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """One request on a connection of its own."""
        options.setdefault("timeout", 30)
        headers = {"Connection": "close", **options.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        """One GET on a connection of its own."""
        return self.request("GET", path, **options)

    def connect(self, first: bytes = b"", timeout: float = 60.0) -> socket.socket:
        """A client's connection, with that sent; it is closed with the server at the latest."""
        connection = self._clients.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout))
        connection.sendall(first)
        return connection

    def health(self) -> dict[str, Any]:
        """The health document."""
        document: dict[str, Any] = self.get("/health").json()
        return document

    def logs(self) -> str:
        """All output of master and workers."""
        return self._output.read_text(errors="replace")

    def records(self, name: str = "error", event: str | None = None) -> list[dict[str, Any]]:
        """The records of a log: error, health or process-manager."""
        path = self.logs_dir / f"{name}.log"
        if not path.exists():
            return []
        found = []
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # faulthandler's stacks are text
                found.append(json.loads(line))
        return [record for record in found if event is None or record["event"] == event]

    def signal(self, number: int) -> None:
        """A signal to the master."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """End it: politely, then not; nothing is left."""
        self._clients.close()
        process = self._process
        if process is None:
            return
        workers = self.workers()
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(25)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        for child in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._process = None


def check_result(status: str = "pass", **more: Any) -> CheckResult:
    """A result of a check, a shared and critical one of now."""
    return CheckResult(**{"status": status, "settled": status, "down": False, "ok": status == "pass",
                          "at_ns": time.monotonic_ns(), "took_ms": 1.5, "failures": 0, "critical": True, "shared": True,
                          "interval": 30.0, "timeout": 2.0, **more})
