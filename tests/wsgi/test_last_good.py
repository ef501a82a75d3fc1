"""`StabilityExt.keep`: what is stored, for whom, and what clients get while the view cannot answer."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Request, Response, abort, g, make_response, request, send_file, session, stream_with_context
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_stability import DatabaseUnavailable, StabilityExt, logs, scoreboard
from flask_stability.config import Settings
from flask_stability.request import in_flight
from flask_stability.runtime import runtime
from flask_stability.wsgi import last_good
from flask_stability.wsgi.answer_store import NAME
from support import wait_until


class Service:
    """An app whose view can be told what to do; counts how often it ran.

    :ivar do: what the view does.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self.runs = 0
        self.folder = folder
        self.do: Callable[[], Any] = lambda: f"answer {self.runs}"
        self.app = Flask("kept", instance_path=str(folder))
        self.app.secret_key = "secret"
        self.app.config.update(TESTING=True, STABILITY_KEEP_DIR=str(folder), STABILITY_DB_TIMEOUT="5")
        self.stability = StabilityExt(self.app)
        options = {"fresh": 100, "stale": 300, **options}

        @self.app.get("/a")
        @self.app.get("/b/<name>")
        @self.stability.keep(**options)
        def view(name: str = "") -> Any:
            self.runs += 1
            return self.do()

    def get(self, path: str = "/a", headers: dict[str, str] | None = None, method: str = "GET", **more: Any
            ) -> TestResponse:
        client: FlaskClient = self.app.test_client(use_cookies=False)
        return client.open(path, method=method, headers=headers, **more)

    def fails(self, error: BaseException | None = None) -> None:
        def do() -> Any:
            raise error or DatabaseUnavailable("gone")

        self.do = do


Make = Callable[..., Service]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Services with one store; no refresh outlives the test."""
    logs.setup(Settings(log_dir=str(tmp_path / "logs")), "worker")
    logs.forget_storms()
    yield lambda **options: Service(tmp_path, **options)
    wait_until(lambda: not any(thread.name == "stability-keep" for thread in threading.enumerate()))
    logs.teardown()
    assert not in_flight()


def events(service: Service, name: str) -> list[dict[str, Any]]:
    path = service.folder / "logs" / "error.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if record["event"] == name]


def refreshed() -> None:
    wait_until(lambda: not any(thread.name == "stability-keep" for thread in threading.enumerate()))


def test_a_fresh_answer_is_given_without_the_view(make: Make) -> None:
    """Also by another process's object, and with all headers."""
    service = make()
    service.do = lambda: Response("ok", headers=[("X-Own", "1"), ("Link", "<a>"), ("Link", "<b>")],
                                  content_type="text/x-own")
    first = service.get()
    assert first.headers["Cache-Status"] == "flask_stability; fwd=miss; stored"
    assert "Age" not in first.headers
    other = make()
    for answer in (service.get(), other.get()):
        assert (answer.status_code, answer.data, answer.content_type) == (200, b"ok", "text/x-own")
        assert answer.headers.getlist("Link") == ["<a>", "<b>"]
        assert answer.headers["Age"] in "01"
        assert answer.headers["Cache-Status"].startswith("flask_stability; hit; ttl=9")
        assert answer.headers["ETag"] == first.headers["ETag"]
    assert (service.runs, other.runs) == (1, 0)


def test_a_stale_answer_is_given_at_once_while_one_is_made(make: Make) -> None:
    """The view runs in a thread of its own, once, with nobody waiting for it."""
    service = make(fresh=0)
    go, began = threading.Event(), threading.Event()
    service.get()

    def slow() -> str:
        began.set()
        assert go.wait(20)
        return "new"

    service.do = slow
    for _ in range(3):
        answer = service.get()
        assert (answer.data, answer.headers["Cache-Status"]) == (b"answer 1", "flask_stability; hit; ttl=-1")
        assert began.wait(10)
    assert service.runs == 2
    go.set()
    refreshed()
    assert service.get().data == b"new"


def test_where_answers_come_from_is_counted(make: Make) -> None:
    """Made by the view, fresh from the store, stale from it; not where the view runs without the store."""
    words = (scoreboard.W_KEPT_MADE, scoreboard.W_KEPT_FRESH, scoreboard.W_KEPT_STALE)
    before = [runtime.my_row().words[word] for word in words]

    def counted() -> list[int]:
        return [runtime.my_row().words[word] - was for word, was in zip(words, before, strict=True)]

    service = make()
    service.get()
    service.get()
    service.get(headers={"Cookie": "user=1"})
    assert counted() == [1, 1, 0]
    stale = make(fresh=0)
    stale.get("/b/stale")
    stale.get("/b/stale")
    refreshed()
    assert counted() == [3, 1, 1]


@pytest.mark.parametrize("failure", [DatabaseUnavailable("gone"), ValueError("bug"), SystemExit(3)])
def test_the_last_good_answer_stays_while_the_view_fails(make: Make, failure: BaseException) -> None:
    """It is tried again a second later, not with each request."""
    service = make(fresh=0)
    service.get()
    service.fails(failure)
    for _ in range(20):
        assert service.get().data == b"answer 1"
        refreshed()
    assert 2 <= service.runs <= 3
    service.do = lambda: "back"
    wait_until(lambda: service.get().data == b"back", 10)


@pytest.mark.parametrize("code", [500, 502, 503])
def test_an_answer_of_5xx_is_a_failure_too(make: Make, code: int) -> None:
    """Whether it is returned or raised."""
    service = make(fresh=0)
    service.get()
    service.do = lambda: ("no", code)
    assert service.get().data == b"answer 1"
    refreshed()
    service.do = lambda: abort(code)
    assert service.get().data == b"answer 1"


def test_after_the_stale_time_clients_see_the_failure(make: Make) -> None:
    """What is older than was promised is not given."""
    service = make(fresh=0, stale=0.2)
    service.get()
    service.fails()
    service.app.config["PROPAGATE_EXCEPTIONS"] = False
    wait_until(lambda: service.get().status_code == 503, 10)


def test_a_404_replaces_the_last_good_answer(make: Make) -> None:
    """What was deleted is not there any more: that is an answer, no failure."""
    service = make(fresh=0)
    service.get()
    service.do = lambda: abort(404)
    assert service.get().data == b"answer 1"
    refreshed()
    assert service.get().status_code == 404
    assert service.get().status_code == 404


def test_an_exception_that_the_app_answers_with_404_replaces_it_too(make: Make) -> None:
    """The app's own handler has the word."""
    service = make(fresh=0)
    service.app.register_error_handler(KeyError, lambda _: ("gone", 404))
    service.get()
    service.fails(KeyError("x"))
    service.get()
    refreshed()
    assert (service.get().data, service.get().status_code) == (b"gone", 404)


def _stream() -> Any:
    return Response(stream_with_context(iter(["a", "b"])))


def _session_write() -> str:
    session["a"] = 1
    return "ok"


def _session_read() -> str:
    return str(session.get("a"))


def _cookie() -> Any:
    response = make_response("ok")
    response.set_cookie("a", "1")
    return response


@pytest.mark.parametrize("do", [
    _stream, _session_write, _session_read, _cookie, lambda: send_file(__file__), lambda: ("ok", 201),
    lambda: ("", 204),
    lambda: ("ok", 302, {"Location": "/"}), lambda: ("no", 404), lambda: ("ok", {"Cache-Control": "private"}),
    lambda: ("ok", {"Cache-Control": "max-age=5, private=\"x\""}), lambda: ("ok", {"Cache-Control": "No-Store"}),
    lambda: ("ok", {"Cache-Control": "no-cache"}), lambda: ("ok", {"Vary": "*"}),
    lambda: ("ok", {"Vary": "Accept, Accept-Language"})])
def test_what_is_never_stored(make: Make, do: Callable[[], Any]) -> None:
    """The view runs for each request, as without us, and the answer is the view's own."""
    service = make(vary=())
    service.do = do
    for number in (1, 2, 3):
        answer = service.get()
        assert "hit" not in answer.headers.get("Cache-Status", "")
        answer.close()
        assert service.runs == number
    assert not [name for name in os.listdir(service.folder / NAME) if name.rpartition("-")[2].isalnum()
                and "-" in name and "." not in name]


@pytest.mark.parametrize("header", ["Set-Cookie", "Cache-Control"])
def test_what_hooks_after_the_view_forbid_is_not_stored(make: Make, header: str) -> None:
    """An app that marks everything as private, or gives a cookie with everything."""
    service = make(vary=())
    service.app.after_request(lambda response: response.headers.set(header, "private, a=1") or response)
    service.get()
    service.get()
    assert service.runs == 2


def test_hooks_after_the_view_see_each_answer(make: Make) -> None:
    """What they add for one client is nobody else's."""
    service = make()
    numbers = iter(range(100))

    @service.app.after_request
    def add(response: Response) -> Response:
        response.headers["X-Number"] = str(next(numbers))
        return response

    assert [service.get().headers["X-Number"] for _ in range(3)] == ["0", "1", "2"]
    assert service.runs == 1


def test_hooks_before_the_view_can_refuse(make: Make) -> None:
    """What is stored is not a way around a login."""
    service = make(vary=())
    service.get()
    service.app.before_request_funcs.setdefault(None, []).append(lambda: ("login", 401) if "Cookie" in request.headers
                                                                 else None)
    assert service.get(headers={"Cookie": "a=1"}).status_code == 401
    assert service.get().status_code == 200


@pytest.mark.parametrize("private", [{"headers": {"Cookie": "a=1"}}, {"headers": {"Authorization": "Bearer x"}},
                                     {"environ_overrides": {"REMOTE_USER": "ada"}}])
def test_requests_of_users_bypass_the_store(make: Make, private: dict[str, Any]) -> None:
    """They neither get what others see nor leave what others would."""
    service = make()
    service.do = lambda: f"for {request.headers.get('Cookie')} {request.headers.get('Authorization')}"
    service.get(**private)
    assert service.get().data == b"for None None"
    assert service.get(**private).data != b"for None None" or "environ_overrides" in private
    assert service.runs == 3


def test_vary_names_what_the_answer_depends_on(make: Make) -> None:
    """Each value has an answer of its own; what is not named is the same for all, deliberately."""
    service = make(vary=("Accept-Language",))
    service.do = lambda: (request.headers.get("Accept-Language", "-"), {"Vary": "Accept-Language"})
    for _ in range(2):
        assert service.get(headers={"Accept-Language": "de", "Cookie": "a=1"}).data == b"de"
        assert service.get(headers={"Accept-Language": "zh", "Authorization": "x"}).data == b"zh"
        assert service.get().data == b"-"
    assert service.runs == 3


def test_a_view_that_reads_the_session_is_stored_where_vary_covers_it(make: Make) -> None:
    """One answer for each cookie; a session that is written makes a Set-Cookie and is not stored."""
    service = make(vary=("Cookie",))
    service.do = _session_read
    for _ in range(2):
        assert service.get(headers={"Cookie": "session=1"}).headers["Vary"].lower() == "cookie"
        service.get(headers={"Cookie": "session=2"})
    assert service.runs == 2
    service.do = _session_write
    service.get(headers={"Cookie": "session=3"})
    service.get(headers={"Cookie": "session=3"})
    assert service.runs == 4


@pytest.mark.parametrize(("one", "other"), [
    ({"path": "/b/1"}, {"path": "/b/2"}), ({"headers": {"Host": "a"}}, {"headers": {"Host": "b"}}),
    ({"base_url": "http://localhost"}, {"base_url": "https://localhost"}),
    ({"base_url": "http://localhost/one"}, {"base_url": "http://localhost/two"}),
    ({"headers": {"Accept": "text/html"}}, {"headers": {"Accept": "application/json"}}),
    ({"headers": {"Accept-Encoding": "gzip"}}, {"headers": {"Accept-Encoding": "br"}}),
    ({"path": "/a?page=1"}, {"path": "/a?page=2"}), ({"path": "/a?page=1"}, {"path": "/a?page=1&page=2"}),
    ({"path": "/a?page=1&size=2"}, {"path": "/a?page=1%26size%3D2"})])
def test_what_makes_another_answer(make: Make, one: dict[str, Any], other: dict[str, Any]) -> None:
    """Each part of the key."""
    service = make(query=("page", "size"))
    assert len({service.get(**options).data for options in (one, other, one, other)}) == 2
    assert service.runs == 2


def test_query_parameters_that_are_not_named_reach_neither_key_nor_view(make: Make) -> None:
    """Else one client's would be in the answer to all (cache poisoning)."""
    service = make(query=("page",), fresh=0)
    service.do = lambda: {"args": request.args, "url": request.url, "q": request.query_string.decode(),
                          "full": request.full_path, "values": request.values.to_dict()}
    seen: list[Any] = []
    service.app.before_request(lambda: seen.append(request.url))
    service.app.teardown_request(lambda _: seen.append(request.args.to_dict()))
    answer = service.get("/a?evil=1&page=2&utm=3")
    clean = {"args": {"page": "2"}, "url": "http://localhost/a?page=2", "q": "page=2", "full": "/a?page=2",
             "values": {"page": "2"}}
    assert answer.get_json() == clean
    assert seen == ["http://localhost/a?evil=1&page=2&utm=3", {"evil": "1", "page": "2", "utm": "3"}]
    assert service.get("/a?page=2&evil=2").get_json() == clean
    refreshed()
    assert service.get("/a?page=2&evil=3").get_json() == clean
    refreshed()


def test_release_and_other_services_are_other_keys(make: Make) -> None:
    """What one release answered, another one does not; nor does a service with another database."""
    service = make()
    service.get()
    for key, value in (("release_id", "2"), ("service_id", "other"), ("db_url", "mysql://u:p@host/other")):
        other = make()
        state = other.app.extensions["stability"]
        state.settings = Settings(**{**vars(state.settings), key: value})
        other.get()
        assert other.runs == 1, key


def test_only_hosts_that_the_app_accepts(make: Make) -> None:
    """Others are refused by Flask (3.1), or bypass the store, as what is no host's name does."""
    service = make()
    service.app.request_class = type("Strict", (Request,), {"trusted_hosts": ["good.example"]})
    for _ in range(2):
        assert "Cache-Status" not in service.get(headers={"Host": "evil.example"}).headers
    assert "stored" in service.get(headers={"Host": "good.example"}).headers["Cache-Status"]
    assert "hit" in service.get(headers={"Host": "good.example"}).headers["Cache-Status"]
    service.app.request_class = Request
    for _ in range(2):
        assert "Cache-Status" not in service.get(headers={"Host": "a b/<>"}).headers


def test_head_and_if_none_match_are_served_from_it(make: Make) -> None:
    """And what they ask for is no reason to store an answer without a body."""
    service = make()
    assert service.get(method="HEAD").status_code == 200
    etag = service.get(headers={"If-None-Match": '"other"'}).headers["ETag"]
    assert service.runs == 2
    head = service.get(method="HEAD")
    assert (head.status_code, head.data, head.headers["Content-Length"]) == (200, b"", "8")
    same = service.get(headers={"If-None-Match": etag})
    assert (same.status_code, same.data, same.headers["ETag"]) == (304, b"", etag)
    assert "Age" in same.headers
    assert service.get().data == b"answer 2"
    assert service.runs == 2


def test_a_client_with_a_condition_may_be_the_first(make: Make) -> None:
    """The view does not see the condition, so the whole answer is stored; the client gets its 304."""
    service = make()

    def own() -> Response:
        response = make_response("body")
        response.set_etag("one")
        return response.make_conditional(request)

    service.do = own
    assert service.get(headers={"If-None-Match": '"one"'}).status_code == 304
    assert service.get().data == b"body"
    assert service.runs == 1


def test_ranges_and_other_methods_run_the_view(make: Make) -> None:
    """A part of an answer is no answer."""
    service = make()
    service.get()
    service.get(headers={"Range": "bytes=0-1"})
    assert service.runs == 2
    assert service.get(method="OPTIONS").status_code == 200
    assert service.get(method="POST").status_code == 405


def test_five_hundred_misses_run_the_view_once(make: Make) -> None:
    """All get its answer; on a busy machine it takes long until all of them wait."""
    service = make()
    service.app.extensions["stability"].settings = Settings(
        **{**vars(service.app.extensions["stability"].settings), "db_timeout": 300.0})
    go = threading.Event()
    answers: list[bytes] = []

    def slow() -> str:
        assert go.wait(200)
        return f"answer {service.runs}"

    service.do = slow
    threads = [threading.Thread(target=lambda: answers.append(service.get().data)) for _ in range(500)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(in_flight()) == 500, 120)
    go.set()
    for thread in threads:
        thread.join(60)
    assert answers == [b"answer 1"] * 500
    assert service.runs == 1


def test_those_that_wait_for_what_cannot_be_stored_run_the_view_side_by_side(make: Make) -> None:
    """Not one after the other."""
    service = make()
    together = threading.Barrier(8)

    def slow() -> tuple[str, int]:
        if service.runs > 1:
            together.wait(20)
        return "no", 404

    service.do = slow
    first = threading.Event()
    original = service.do
    service.do = lambda: first.wait(20) and original()
    threads = [threading.Thread(target=service.get) for _ in range(9)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(in_flight()) == 9, 20)
    first.set()
    for thread in threads:
        thread.join(30)
    assert service.runs == 9
    assert not together.broken


def test_the_wait_for_an_answer_is_bounded(make: Make) -> None:
    """503 with Retry-After, sooner for a request that has less time."""
    service = make()
    service.app.extensions["stability"].settings = Settings(
        **{**vars(service.app.extensions["stability"].settings), "db_timeout": 0.3})
    go, began = threading.Event(), threading.Event()

    def slow() -> str:
        began.set()
        assert go.wait(30)
        return "late"

    service.do = slow
    first = threading.Thread(target=service.get)
    first.start()
    assert began.wait(10)
    answer = service.get()
    assert (answer.status_code, answer.headers["Retry-After"], service.runs) == (503, "1", 1)
    go.set()
    first.join(30)
    assert service.get().data == b"late"


def test_the_answer_is_not_lost_with_an_async_view(make: Make, tmp_path: Path) -> None:
    """asyncio views are awaited as Flask does."""
    app = Flask("async", instance_path=str(tmp_path))
    app.config.update(TESTING=True, STABILITY_KEEP_DIR=str(tmp_path))
    runs = []

    @app.get("/")
    @StabilityExt(app).keep(fresh=100, stale=1)
    async def view() -> str:
        await asyncio.sleep(0)
        runs.append(1)
        return "ok"

    assert [app.test_client().get("/").data for _ in range(2)] == [b"ok", b"ok"]
    assert len(runs) == 1


def test_a_refresh_is_a_request_of_its_own(make: Make) -> None:
    """With g, hooks and record of its own, so that its connections go back and its deadline holds."""
    service = make(fresh=0)
    seen: list[Any] = []
    service.app.before_request(lambda: setattr(g, "mine", object()))
    service.app.teardown_request(lambda _: seen.append("teardown"))
    service.do = lambda: seen.append((len(in_flight()), request.method, threading.current_thread().name)) or "ok"
    service.get()
    seen.clear()
    service.get(method="HEAD")
    refreshed()
    assert seen.count("teardown") == 2
    (_, method, name), = (one for one in seen if isinstance(one, tuple))
    assert (method, name) == ("GET", "stability-keep")


@pytest.mark.parametrize("trouble", ["file", "mode", "full", "damaged"])
def test_without_a_store_the_view_runs_as_without_us(make: Make, trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one warning, not one for each request."""
    service = make()
    place = service.folder / NAME
    if trouble == "file":
        place.touch()
    elif trouble == "mode":
        place.mkdir()
        place.chmod(0o777)
    elif trouble == "full":
        found = os.statvfs(service.folder)
        monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*found[:4], 0, *found[5:])))
    else:
        place.mkdir(0o700)
        (place / "totals").mkdir()
    assert [service.get().data for _ in range(5)] == [b"answer %d" % number for number in range(1, 6)]
    (warning,) = events(service, "kept_answers_unusable")
    assert "STABILITY_KEEP_DIR" in warning["remedy"]


def test_tests_and_debug_mode_see_no_earlier_runs_answer(make: Make) -> None:
    """Unless they name a directory."""
    service = make()
    state = service.app.extensions["stability"]
    state.settings = Settings(**{**vars(state.settings), "keep_dir": None})
    service.get()
    service.get()
    assert service.runs == 2


def test_a_fork_in_the_middle_takes_nothing_along(make: Make) -> None:
    """A child of a view that forks neither keeps the key nor waits for threads that are its parent's."""
    service = make()

    def forks() -> str:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if not last_good._kept.apps[service.app]._leading else 1)
        return str(os.waitpid(pid, 0)[1])

    service.do = forks
    assert service.get().data == b"0"
    assert service.get().data == b"0"
    assert service.runs == 1


@pytest.mark.parametrize("options", [{"fresh": -1}, {"fresh": "5"}, {"stale": True}, {"vary": "Cookie"},
                                     {"query": "page"}, {"vary": ("a b",)}, {"query": (1,)}])
def test_bad_options_are_named_when_the_view_is_defined(options: dict[str, Any]) -> None:
    """Not at the first request."""
    with pytest.raises(ValueError, match=r"keep\("):
        StabilityExt().keep(**{"fresh": 5, "stale": 300, **options})


def test_a_view_function_called_without_a_request_or_extension_runs(tmp_path: Path) -> None:
    """In a script, in a unit test of the view, in an app that was not given to the extension."""
    view = StabilityExt().keep(fresh=5, stale=300)(lambda: "ok")
    assert view() == "ok"
    app = Flask("other")
    app.add_url_rule("/", view_func=view)
    assert app.test_client().get("/").data == b"ok"
    with app.test_request_context():
        assert view() == "ok"
