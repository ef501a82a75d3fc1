"""Slow clients beside ordinary ones: which share of the ordinary requests is answered within a second, and at what cost
in memory, here and with gunicorn alone in the same run.

``python tests/benchmarks/bench_slow_clients.py [--clients 300] [--seconds 25] [--class gthread|sync] [--kind KIND]
[--only ours|bare]``, from the project's folder. The kinds: *silent* sends nothing, *half* half a head and nothing more,
*header* half a head and a line of it every three seconds, *body* a whole head and then a byte of the body every three
seconds, *reader* asks for a long response and reads none of it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import selectors
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from support import Server

APP = '''
import os
from flask import Flask, request
app = Flask(__name__)
if os.environ["STABILITY_LOG_DIR"]:
    from flask_stability import StabilityExt
    StabilityExt(app)
else:
    app.add_url_rule("/health/live", "live", lambda: "ok")

@app.route("/ok")
def ok():
    return "ok"

@app.route("/body", methods=["POST"])
def body():
    return str(len(request.get_data()))

@app.route("/stream")
def stream():
    return app.response_class((b"x" * 65536 for _ in range(int(request.args["n"]))), mimetype="text/plain")
'''
HALF = b"GET /ok HTTP/1.1\r\nHost: a\r\n"
FIRST = {"silent": b"", "half": HALF, "header": HALF,
         "body": b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n",
         "reader": b"GET /stream?n=200 HTTP/1.1\r\nHost: a\r\n\r\n"}
DRIP = {"header": b"X-a: b\r\n", "body": b"x"}
PAUSE = 3.0  #: seconds between two drips


class SlowClients(threading.Thread):
    """So many connections of one kind, each replaced by a new one when the server ends it; a context manager."""

    def __init__(self, port: int, kind: str, number: int) -> None:
        super().__init__(daemon=True)
        self._port, self._kind, self._number = port, kind, number
        self._sockets: dict[socket.socket, float] = {}
        self._selector = selectors.DefaultSelector()
        self._end = threading.Event()
        self.opened = 0

    def __enter__(self) -> SlowClients:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self.join()
        for sock in list(self._sockets):
            self._drop(sock)

    def run(self) -> None:
        """Keep them."""
        while not self._end.is_set():
            while len(self._sockets) < self._number:
                self._open()
            for key, _ in self._selector.select(0.2) if self._kind != "reader" else ():
                self._read(key.fileobj)  # type: ignore[arg-type]
            now = time.monotonic()
            for sock, due in list(self._sockets.items()):
                if now >= due:
                    self._sockets[sock] = now + PAUSE
                    self._drip(sock)
            if self._kind == "reader":
                self._end.wait(0.2)

    def _open(self) -> None:
        sock = socket.socket()
        if self._kind == "reader":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.settimeout(5)
        try:
            sock.connect(("127.0.0.1", self._port))
            sock.sendall(FIRST[self._kind])
        except OSError:
            sock.close()
            time.sleep(0.05)
            return
        sock.setblocking(False)
        self.opened += 1
        self._sockets[sock] = time.monotonic() + PAUSE
        self._selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                sock.recv(65536)  # an answer, or the end: in any case the server is done with it
            except BlockingIOError:
                raise
            except OSError:
                pass
            self._drop(sock)

    def _drip(self, sock: socket.socket) -> None:
        try:
            if self._kind in DRIP:
                sock.send(DRIP[self._kind])
            elif self._kind == "reader" and _closed(sock):
                self._drop(sock)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        self._sockets.pop(sock, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()


def _closed(sock: socket.socket) -> bool:
    """The server has ended it; what came before is not read."""
    poll = selectors.select.poll()  # type: ignore[attr-defined]
    poll.register(sock, selectors.select.POLLRDHUP | selectors.select.POLLHUP)  # type: ignore[attr-defined]
    return bool(poll.poll(0))


class Ordinary(threading.Thread):
    """A client that asks four times a second."""

    def __init__(self, port: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self._port, self._until = port, time.monotonic() + seconds
        self.times: list[float] = []  #: seconds of each answer; those without one are infinite

    def run(self) -> None:
        """Ask."""
        while time.monotonic() < self._until:
            begun = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            try:
                connection.request("GET", "/ok")
                response = connection.getresponse()
                response.read()
                self.times.append(time.monotonic() - begun if response.status == 200 else float("inf"))
            except (OSError, http.client.HTTPException):
                self.times.append(float("inf"))
            finally:
                connection.close()
            time.sleep(0.25)


def memory(master: int) -> tuple[int, int]:
    """Workers, and their proportional memory in MB, without the master's."""
    total = number = 0
    for child in psutil.Process(master).children():
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE:
                total += child.memory_info().rss
                number += 1
    return number, total >> 20


def measure(worker_class: str, kind: str, number: int, seconds: float, ours: bool, folder: Path) -> str:
    """One line."""
    with Server(folder, source=APP, worker_class=worker_class, workers=4, use_hooks=ours,
                config="worker_connections = 12\nkeepalive = 5" if ours else "",
                env={} if ours else {"STABILITY_LOG_DIR": ""}) as server:
        time.sleep(2)
        before = memory(server.pid)
        most = before
        with SlowClients(server.port, kind, number) as slow:
            clients = [Ordinary(server.port, seconds) for _ in range(3)]
            for client in clients:
                client.start()
            while any(client.is_alive() for client in clients):
                now = memory(server.pid)
                most = max(most[0], now[0]), max(most[1], now[1])
                time.sleep(1)
        times = sorted(taken for client in clients for taken in client.times)
        soon, ever = sum(taken <= 1 for taken in times), sum(taken < 100 for taken in times)
        after = ""
        if ours:
            since = time.monotonic()
            while time.monotonic() - since < 30:
                with contextlib.suppress(Exception):
                    if server.get("/health/ready", timeout=5).status_code == 200 and (
                            len(server.worker_pids()) <= 4):
                        break
                time.sleep(0.2)
            events = sorted({record["event"] for record in server.records("process-manager")
                             if record["level"] in ("ERROR", "CRITICAL", "WARNING")})
            after = f"; whole again {time.monotonic() - since:.1f} s after them {events}"
        return (f"{worker_class:8}{kind:8}{'ours' if ours else 'bare':5} within 1 s {soon}/{len(times)} = "
                f"{100 * soon / len(times):.1f} %, ever {100 * ever / len(times):.1f} %, median "
                f"{times[len(times) // 2]:.3f} s; workers {before[0]}→{most[0]}, memory {before[1]}→{most[1]} MB; "
                f"slow opened {slow.opened}{after}")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=25)
    parser.add_argument("--class", dest="classes", action="append", choices=["gthread", "sync"])
    parser.add_argument("--kind", action="append", choices=sorted(FIRST))
    parser.add_argument("--only", choices=["ours", "bare"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for worker_class in asked.classes or ["gthread", "sync"]:
            for kind in asked.kind or list(FIRST):
                for ours in [which == "ours" for which in ("bare", "ours") if asked.only in (None, which)]:
                    print(measure(worker_class, kind, asked.clients, asked.seconds, ours,
                                  Path(folder, f"{worker_class}-{kind}-{ours}")), flush=True)


if __name__ == "__main__":
    main()
