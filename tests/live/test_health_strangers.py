"""Whoever is no friend sees the status alone: over TCP, a unix socket, and a real nginx on the same machine."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from health_service import SOURCE

from support import Server, free_port, wait_until

TOKEN = "a-long-token-of-ours"
PATHS = ("/health", "/health/live", "/health/ready", "/health/startup", "/health/history", "/health/metrics",
         "/health/dashboard", "/health/dashboard/app.js")
#: What only details contain.
SECRET = (b"detailed", b"flask_stability_", b"samples", b"search", b"rss_bytes", b"app.js", b"import")
FORGED = [
    {"Host": "localhost"}, {"Host": "127.0.0.1"}, {"Host": "[::1]"}, {"Host": "evil.example\t"}, {"Host": ""},
    {"X-Forwarded-For": "127.0.0.1"}, {"X-Forwarded-For": "127.0.0.1, 10.0.0.1, ::1"}, {"X-Real-IP": "127.0.0.1"},
    {"Forwarded": 'for=127.0.0.1;host=localhost;by="[::1]"'}, {"X-Forwarded-Host": "localhost"},
    {"X-Forwarded-Port": "9001"}, {"X-Forwarded-Proto": "https"}, {"X-Forwarded-Prefix": "/admin"},
    {"X-Original-URL": "/health"}, {"X-Rewrite-URL": "/health"}, {"X-HTTP-Method-Override": "POST"},
    {"Remote-Addr": "127.0.0.1"}, {"Server-Port": "9001"}, {"Script-Name": "/health"}, {"Client-IP": "127.0.0.1"},
    {"Authorization": "Bearer"}, {"Authorization": "Bearer wrong-token-of-ours"}, {"Authorization": f"Basic {TOKEN}"},
    {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Authorization": f"Bearer {TOKEN}x"}, {"Cookie": f"token={TOKEN}"},
    {"Cookie": f"stability_login={TOKEN}"}, {"Cookie": "stability_login=9999999999." + "0" * 64},
    {"Authorization": f"Bearer {TOKEN}, Bearer x"}, {"Proxy-Authorization": f"Bearer {TOKEN}"}]
NGINX = """
{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 2000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{plain}; location / {{ proxy_pass http://127.0.0.1:{backend}; }} }}
  server {{ listen 127.0.0.1:{over_unix}; location / {{ proxy_pass http://unix:{folder}/gunicorn.sock:; }} }}
  server {{ listen 127.0.0.1:{forwarding}; location / {{
    proxy_pass http://127.0.0.1:{backend}; proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; }} }}
}}
"""
DETAILS = {"STABILITY_HEALTH_DETAILS": "token", "STABILITY_HEALTH_TOKEN": TOKEN}
Address = tuple[str, int] | str


class Service:
    """The app behind gunicorn's two sockets, and nginx in front of both."""

    def __init__(self, server: Server, ways: dict[str, Address]) -> None:
        self.server, self.ways = server, ways

    def runs(self) -> int:
        """How often the check ran."""
        return len((self.server.folder / "search.runs").read_text().split())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Running, with a check that is due once; all tests ask the same one."""
    tmp_path = tmp_path_factory.mktemp("strangers")
    sockets = f'"127.0.0.1:" + os.environ["SERVER_PORT"], "unix:{tmp_path}/gunicorn.sock"'
    with Server(tmp_path / "server", source=SOURCE, config=f"bind = [{sockets}]",
                env={**DETAILS, "SEARCH_INTERVAL": "3600", "STABILITY_HEALTH_INTERVAL": "3600"}) as one:
        yield from _behind_nginx(one, tmp_path)


def _behind_nginx(one: Server, tmp_path: Path) -> Iterator[Service]:
    ports = {name: free_port() for name in ("plain", "over_unix", "forwarding")}
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, backend=one.port, **ports,
                                                        user="user root;" if os.geteuid() == 0 else ""))
    nginx = subprocess.Popen(["nginx", "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")],
                             stdin=subprocess.DEVNULL, start_new_session=True)
    ways: dict[str, Address] = {"tcp": ("127.0.0.1", one.port), "unix": str(tmp_path / "gunicorn.sock"),
                                **{f"nginx {name}": ("127.0.0.1", port) for name, port in ports.items()}}
    try:
        for way in ways.values():
            wait_until(lambda way=way: _answers(way), message=(tmp_path / "error.log").read_text()
                       if (tmp_path / "error.log").exists() else "nginx answers")
        wait_until(lambda: one.get("/health/startup").status_code == 200)
        yield Service(one, ways)
    finally:
        os.killpg(nginx.pid, signal.SIGTERM)
        nginx.wait(30)


def _answers(way: Address) -> bool:
    try:
        return _send(way, b"GET /health/live HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.")
    except OSError:
        return False


def _send(way: Address, data: bytes) -> bytes:
    """All that comes back for some bytes."""
    with socket.socket(socket.AF_UNIX if isinstance(way, str) else socket.AF_INET) as connection:
        connection.settimeout(30)
        connection.connect(way)
        connection.sendall(data)
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
    return found


def _request(way: Address, path: str, headers: dict[str, str], method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in
                                           {"Host": "service.example", "Connection": "close", **headers}.items())]
    return _send(way, "\r\n".join([*lines, "", ""]).encode())


def _body(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.needs("nginx")
def test_no_header_and_no_way_shows_details_to_a_stranger(service: Service) -> None:
    """The same headers on every way; and no check runs because someone asked."""
    before = service.runs()
    for name, way in service.ways.items():
        for path in PATHS:
            for headers in FORGED:
                answer = _request(way, path, headers)
                assert answer.startswith(b"HTTP/1.1 "), (name, path, headers)
                assert not any(word in answer for word in SECRET), (name, path, headers)
        assert set(_body(_request(way, "/health", {}))) == {"status"}
        assert b" 401 " in _request(way, "/health/history", {}).splitlines()[0]
    # once, and once more whenever another worker leads: at the start, or where this machine stopped one for seconds
    assert 1 <= service.runs() < before + 10


@pytest.mark.parametrize("line", [
    "GET http://localhost/health HTTP/1.1", "GET //health HTTP/1.1", "GET /health/../health HTTP/1.1",
    "GET /%68ealth/history HTTP/1.1", "GET /health?token=" + TOKEN + " HTTP/1.1", "GET /health;a=b HTTP/1.1",
    "GET /health/live/../history HTTP/1.1", "GET /health%2fmetrics HTTP/1.1", "GET /health#x HTTP/1.1",
    "GET /health/history HTTP/1.0", "get /health/metrics HTTP/1.1", "GET /HEALTH HTTP/1.1",
    "GET /health/dashboard?token=" + TOKEN + " HTTP/1.1", "GET /health/dashboard/../dashboard/app.js HTTP/1.1",
    "GET /health/dashboard/%2e%2e/dashboard.py HTTP/1.1", "POST /health/dashboard?token=" + TOKEN + " HTTP/1.1",
    "TRACE /health HTTP/1.1", "CONNECT /health HTTP/1.1", "PROPFIND /health/history HTTP/1.1"])
def test_no_request_line_does_either(line: str, direct: Server) -> None:
    """However the path is written."""
    answer = _send(("127.0.0.1", direct.port), f"{line}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.")
    assert not any(word in answer for word in SECRET)
    assert TOKEN.encode() not in answer


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all request lines, without nginx."""
    with Server(tmp_path_factory.mktemp("direct"), source=SOURCE, workers=1, env=DETAILS) as one:
        yield one


@pytest.mark.needs("nginx")
def test_the_token_shows_details_on_every_way(service: Service) -> None:
    """Through nginx as well."""
    friend = {"Authorization": f"Bearer {TOKEN}"}
    for way in service.ways.values():
        assert "detailed" in _body(_request(way, "/health", friend))
        assert "samples" in _body(_request(way, "/health/history", friend))
        assert b"flask_stability_check_status" in _request(way, "/health/metrics", friend)


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.needs("nginx")
def test_a_thousand_at_once_are_all_answered(path: str, service: Service) -> None:
    """On every endpoint, strangers and friends; the service goes on, and no check runs because of them."""
    before = service.runs()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))

    async def ask(number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.server.port)
        friend = f"Authorization: Bearer {TOKEN}\r\n" if number % 2 else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{friend}\r\n".encode())
        await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer

    async def all_at_once() -> list[bytes]:
        return await asyncio.wait_for(asyncio.gather(*(ask(number) for number in range(1000))), 120)

    try:
        answers = asyncio.run(all_at_once())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    closed = path in ("/health/history", "/health/metrics", "/health/dashboard/app.js")
    statuses = {(number % 2, answer.split(b" ", 2)[1]) for number, answer in enumerate(answers)}
    assert statuses == {(0, b"401" if closed else b"200"), (1, b"200")}
    assert not any(word in answer for answer in answers[::2] for word in SECRET)
    assert service.runs() < before + 10  # a leader that was too busy to give a sign of life is followed by another
