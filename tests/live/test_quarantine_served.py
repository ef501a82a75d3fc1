"""A request that kills workers is served alone, then refused; nobody else is; an operator can turn a view off."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from supervised import SOURCE, Supervised, starting

from support import PYTHON, wait_until

APP = SOURCE + '''

@app.get("/search")
def search():
    if request.args["q"] == "poison" and Path("poisonous").exists():
        faulthandler._sigsegv()
    return {"pid": os.getpid(), "q": request.args["q"]}

@app.get("/profile")
def profile():
    if request.cookies.get("user") == "mallory":
        faulthandler._sigsegv()
    return {"pid": os.getpid()}

@app.route("/echo/<path:rest>", methods=["GET", "POST"])
def echo(rest):
    shown = ("PATH_INFO", "SCRIPT_NAME", "QUERY_STRING", "REQUEST_METHOD", "REMOTE_ADDR", "CONTENT_TYPE",
             "CONTENT_LENGTH", "HTTP_COOKIE", "HTTP_HOST", "HTTP_X_OWN", "SERVER_PORT", "wsgi.url_scheme")
    answer = app.make_response({"rest": rest, "body": request.get_data(as_text=True)[:20], "length": len(request.data),
                                **{name: request.environ.get(name) for name in shown}})
    answer.headers["X-Pid"] = str(os.getpid())
    answer.set_cookie("one", "1")
    answer.set_cookie("two", "2")
    return answer, 201
'''
Start = Callable[..., Supervised]


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that end with the test."""
    with starting(tmp_path) as start:
        yield lambda **options: start(source=APP, **options)


def good(server: Supervised, number: int = 12) -> None:
    """Requests that are answered; those that meet a crash are sent again."""
    done = 0
    while done < number:
        with contextlib.suppress(requests.RequestException):
            assert server.get("/search?q=good").status_code == 200
            done += 1


def crash(server: Supervised, path: str) -> None:
    """A request that kills a worker, told by the master."""
    before = len(exits(server))
    with pytest.raises(requests.RequestException):
        server.get(path)
    wait_until(lambda: len(exits(server)) > before, message="the exit is told")


def exits(server: Supervised) -> list[dict[str, Any]]:
    """Records of exits."""
    return server.records("process-manager", "worker_exit")


def ordinary_crashes(server: Supervised) -> list[dict[str, Any]]:
    """Those of workers that serve others as well."""
    return [record for record in exits(server) if record["reason"] == "crash_signal" and not record.get("isolated")]


def events(server: Supervised) -> list[str]:
    """Of the quarantine."""
    return [record["event"] for record in server.records("process-manager") if record["event"].startswith("poison")]


def quarantine(server: Supervised, *arguments: str) -> str:
    """The command."""
    return subprocess.run([PYTHON, "-m", "flask", "stability", "quarantine", *arguments, "--master", str(server.pid)],
                          env=server.environ, cwd=server.folder, capture_output=True, text=True, timeout=60,
                          check=True).stdout


def test_the_request_that_kills_workers_is_refused_after_two_and_nobody_else_is(supervised: Start,
                                                                               worker_class: str) -> None:
    """Its third attempt meets only the isolation worker; the same route with another query is served throughout."""
    server = supervised(worker_class=worker_class)
    server.full(2)
    (server.folder / "poisonous").touch()
    for _ in range(2):
        crash(server, "/search?q=poison")
        good(server)
    assert events(server) == ["poison_suspected", "poison_isolated"]
    answer = server.get("/search?q=poison", timeout=120)
    assert answer.status_code == 503
    wait_until(lambda: "poison_refused" in events(server), message="it is convicted")
    for _ in range(5):
        answer = server.get("/search?q=poison")
        assert answer.status_code == 503
        assert 0 < int(answer.headers["Retry-After"]) <= 3600
        good(server, 1)
    # a slow machine may take so long that it is tried again, alone
    assert len(ordinary_crashes(server)) == 2
    assert "GET /search: " in quarantine(server, "list")
    assert not server.records("error", "server_error")


def test_nobody_can_have_the_request_of_another_refused(supervised: Start) -> None:
    """One user's page kills workers: other users' pages have the same path; they are served alone, later as ever."""
    server = supervised()
    server.full(2)

    def profile(user: str) -> requests.Response:
        return requests.get(f"{server.url}/profile", cookies={"user": user}, timeout=120)

    for number in (1, 2):
        with pytest.raises(requests.RequestException):
            profile("mallory")
        wait_until(lambda number=number: len(exits(server)) >= number, message="the exit is told")
        good(server)
    wait_until(lambda: "poison_isolated" in events(server), message="it is isolated")
    assert profile("mallory").status_code == 503
    wait_until(lambda: "poison_refused" in events(server), message="it is convicted")
    for number in range(5):
        assert profile(f"alice{number}").status_code == 200
    wait_until(lambda: "poison_cleared" in events(server), message="the others are served as ever")
    ordinary = {row.pid for row in server.board().live()}
    wait_until(lambda: profile("alice").json()["pid"] in ordinary, message="any worker serves them")
    for _ in range(3):
        assert profile("mallory").status_code == 503
    assert len(ordinary_crashes(server)) == 2


def test_a_suspect_that_behaves_is_cleared_after_five_answers(supervised: Start) -> None:
    """They come from a worker of its own, the later ones from any."""
    server = supervised()
    server.full(2)
    (server.folder / "poisonous").touch()
    for _ in range(2):
        crash(server, "/search?q=poison")
        good(server)
    server.full(2)
    (server.folder / "poisonous").unlink()
    ordinary = {row.pid for row in server.board().live()}
    pids = [server.get("/search?q=poison", timeout=120).json()["pid"] for _ in range(5)]
    assert len(set(pids)) == 1
    assert pids[0] not in ordinary
    wait_until(lambda: events(server)[-1] == "poison_cleared", message="it is cleared")
    wait_until(lambda: server.get("/search?q=poison").json()["pid"] in ordinary, message="any worker serves it")


def test_a_kill_from_outside_convicts_nobody(supervised: Start) -> None:
    """However often the same request was in flight."""
    server = supervised()
    server.full(2)
    for number in (1, 2, 3):
        thread = threading.Thread(target=server.lost, args=("/slow/600.5",))
        thread.start()
        server.busy()
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        thread.join(60)
        wait_until(lambda number=number: len(exits(server)) == 2 * number, message="the exits are told")
        server.full(2)
        good(server)
    told = [record for record in exits(server) if record.get("in_flight")]
    assert len(told) == 3
    assert {record["quarantine"] for record in told} == {"nobody: killed from outside"}
    assert events(server) == []


def test_a_view_is_turned_off_and_on_at_run_time(supervised: Start, worker_class: str) -> None:
    """By path, route or method; health endpoints are never refused."""
    server = supervised(worker_class=worker_class)
    server.full(2)
    rule = quarantine(server, "add", "--path", "/*").split()[1]
    answer = server.get("/")
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    assert server.get("/health/live").status_code == 200
    assert "path /*" in quarantine(server, "list")
    quarantine(server, "clear", rule)
    quarantine(server, "add", "--route", "/slow/<float:seconds>", "--method", "get")
    assert server.get("/").status_code == 200
    assert server.get("/slow/0.1").status_code == 503
    quarantine(server, "clear", "--all")
    assert server.get("/slow/0.1").status_code == 200


def test_what_is_served_alone_comes_as_it_was_sent_and_back_as_it_was_answered(supervised: Start,
                                                                              worker_class: str) -> None:
    """Path, query, headers, body in any framing, the client's address; status, headers, cookies."""
    server = supervised(worker_class=worker_class)
    server.full(2)

    def ask() -> list[tuple[Any, ...]]:
        found = []
        for options in ({}, {"data": b"x" * 200_000}, {"data": iter([b"ab", b"cde"])}, {"params": {"q": "ä &/"}},
                        {"headers": {"X-Own": "y" * 3000, "X-Stability-Handover": "e30=", "Cookie": "a=b"}}):
            method = "POST" if "data" in options else "GET"
            answer: Any = requests.request(method, f"{server.url}/echo/a%20b/ä", timeout=120,
                                           **options)  # type: ignore[arg-type]
            found.append((answer.status_code, answer.json(), sorted(answer.cookies.items()),
                          int(answer.headers["X-Pid"]) in {row.pid for row in server.board().live()}))
        return found

    before = ask()
    assert [one[-1] for one in before] == [True] * 5
    quarantine(server, "add", "--path", "/echo/*", "--isolate")
    after = ask()
    assert [one[-1] for one in after] == [False] * 5
    assert [one[:-1] for one in after] == [one[:-1] for one in before]
