"""Two instances of the sample as the unit starts them, and the shipped proxies in front: all on free ports."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from flask_stability.scoreboard import Scoreboard, board_files
from support import copy_project, free_port, wait_until
from support_deploy import DEPLOY, environment, unit_environment
from support_systemd import Systemd

PORTS = ("3007", "3008", "8080")  #: the placeholders in the shipped files


class Instance:
    """One instance; `start` and `stop` do what systemd does."""

    def __init__(self, folder: Path, project: Path, worker_class: str, extra: dict[str, str]) -> None:
        self.port, self._folder, self._project = free_port(), folder, project
        own = unit_environment(self.port, folder)
        self.run_dir, self.instance = Path(own["STABILITY_RUN_DIR"]), Path(own["SAMPLE_INSTANCE"])
        if worker_class == "sync":
            own["GUNICORN_CMD_ARGS"] += " --worker-class sync --threads 1"
        self._env = environment({**own, **extra, "PYTHONPATH": str(project)})
        self._starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it says READY=1, as ``systemctl start`` does."""
        self._starts += 1
        systemd = Systemd(self._folder / f"{self.port}.{self._starts}")
        try:
            with (self._folder / f"{self.port}.log").open("ab") as log:
                self.process = subprocess.Popen([Path(sys.executable).with_name("gunicorn")], cwd=self._project,
                                                env={**self._env, **systemd.env}, stdin=subprocess.DEVNULL, stdout=log,
                                                stderr=log, start_new_session=True)
            wait_until(lambda: systemd.times("READY=1") or self._gone(), 90, message="READY=1")
        finally:
            systemd.close()
        assert not self._gone(), self.log()

    def _gone(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def stop(self) -> None:
        """SIGTERM to the master alone, and the time that the unit gives."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(90) == 0

    def kill(self) -> None:
        """Master and workers at once, as a power cut does."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def end(self) -> None:
        """Nothing is left of it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def log(self) -> str:
        """What it said."""
        return (self._folder / f"{self.port}.log").read_text()[-3000:]

    def served(self) -> int:
        """Requests answered since the start."""
        assert self.process is not None
        path = dict(board_files(str(self.run_dir)))[self.process.pid]
        return Scoreboard.attach(path).totals().requests


class Proxy:
    """HAProxy or nginx with the shipped configuration."""

    def __init__(self, kind: str, folder: Path, instances: list[Instance]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        ports = dict(zip(PORTS, [*(one.port for one in instances), self.port], strict=True))
        name = "haproxy.cfg" if kind == "haproxy" else "nginx.conf"
        text = re.sub(r"\b(3007|3008|8080)\b", lambda found: str(ports[found[0]]), (DEPLOY / name).read_text())
        self._folder, self.socket = folder, folder / "admin.sock"
        folder.mkdir()
        command = self._haproxy(text) if kind == "haproxy" else self._nginx(text)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             start_new_session=True)
        wait_until(self._answers, 60, message=f"{kind} answers")

    def _haproxy(self, text: str) -> list[str]:
        text = text.replace("/run/haproxy/admin.sock", str(self.socket))
        # an instance that is slow to answer since this machine starts the other one is not to be taken for dead as well
        text = text.replace("timeout check 1s", "timeout check 10s")
        if os.geteuid():
            text = re.sub(r"^ +(user|group|chroot) .*\n", "", text, flags=re.MULTILINE)
        (self._folder / "haproxy.cfg").write_text(text)
        return ["haproxy", "-db", "-f", str(self._folder / "haproxy.cfg")]

    def _nginx(self, text: str) -> list[str]:
        """In the frame that Debian's nginx.conf puts around conf.d."""
        (self._folder / "orders.conf").write_text(text)
        places = "".join(f"{name}_temp_path {self._folder}/{name};" for name in
                         ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (self._folder / "nginx.conf").write_text(
            f"daemon off; pid {self._folder}/pid; error_log {self._folder}/error.log; worker_processes 2;\n"
            + ("" if os.geteuid() else "user root;\n") +
            f"events {{}}\nhttp {{ access_log off; {places} include {self._folder}/orders.conf; }}\n")
        return ["nginx", "-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log()
        with contextlib.suppress(requests.RequestException):
            return requests.get(self.url, timeout=10).ok
        return False

    def servers_up(self) -> int:
        """How many instances HAProxy would send to."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.socket))
            line.sendall(b"show stat\n")
            rows = b"".join(iter(lambda: line.recv(65536), b"")).decode().splitlines()
        return sum(row.split(",")[17] == "UP" and row.split(",")[1] != "BACKEND" for row in rows[1:] if row)

    def log(self) -> str:
        """What it said."""
        files = [self._folder / name for name in ("log", "error.log")]
        return "".join(file.read_text()[-3000:] for file in files if file.exists())

    def end(self) -> None:
        """Nothing is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)


class Orders:
    """POSTs orders one after the other, each with a customer of its own; no order may be lost or stored twice."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self.answers: dict[str, int | str] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(0.05):
            customer = f"{self._name} {len(self.answers)}"
            try:
                answer = requests.post(self._url + "/orders", timeout=60,
                                       json={"sku": "A-1", "quantity": 1, "customer": customer})
                self.answers[customer] = answer.status_code
            except requests.RequestException as error:
                self.answers[customer] = type(error).__name__

    def stop(self) -> dict[str, int | str]:
        """The answers by customer."""
        self._end.set()
        self._thread.join(90)
        return self.answers


class KeptAlive:
    """Clients that keep their connections and do not look whether they were closed."""

    def __init__(self, port: int) -> None:
        script = Path(__file__).with_name("keepalive_clients.py")
        self._process = subprocess.Popen([sys.executable, str(script), str(port), "0.1,0.3,0.5,1.1,2.3"],
                                         stdout=subprocess.PIPE, text=True)

    def stop(self) -> str:
        """What they met."""
        if self._process.poll() is None:
            self._process.terminate()
        return self._process.communicate(timeout=60)[0]


class Site:
    """Both instances, and the proxies asked for."""

    def __init__(self, folder: Path, worker_class: str, *kinds: str, extra: dict[str, str] | None = None) -> None:
        project = copy_project(folder / "project")
        self.instances = [Instance(folder, project, worker_class, extra or {}) for _ in range(2)]
        self.proxies: dict[str, Proxy] = {}
        try:
            for one in self.instances:
                one.start()
            for kind in kinds:
                self.proxies[kind] = Proxy(kind, folder / kind, self.instances)
            self.settled()
        except BaseException:
            self.end()
            raise

    def settled(self) -> None:
        """HAProxy sends to both."""
        if "haproxy" in self.proxies:
            wait_until(lambda: self.proxies["haproxy"].servers_up() == 2, 60, message="both are up")

    def stored(self) -> Counter[str]:
        """How often each customer's order is in the database."""
        with contextlib.closing(sqlite3.connect(self.instances[0].instance / "sample_app.db")) as database:
            return Counter(name for name, in database.execute("SELECT customer FROM orders"))

    def end(self) -> None:
        """Nothing is left of it."""
        for one in [*self.proxies.values(), *self.instances]:
            one.end()


@contextlib.contextmanager
def site(folder: Path, worker_class: str, *kinds: str, **options: Any) -> Iterator[Site]:
    """A site that ends with the block."""
    one = Site(folder, worker_class, *kinds, **options)
    try:
        yield one
    finally:
        one.end()
