"""The dashboard's page, files and login: who gets what, what the cookie is, what guessing costs."""

from __future__ import annotations

import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import Client, TestResponse

from flask_stability import scoreboard as sb
from flask_stability.config import Settings
from flask_stability.health import access, dashboard, sessions
from flask_stability.health.access import COOKIE, LIFETIME, REFILL, TELL_EVERY, TRIES, Access, Guesses, Refused
from flask_stability.health.blueprint import make_health_app
from flask_stability.health.history import SAMPLES, History, Memory, Sample

TOKEN = "a-long-token-of-ours"
PAGE = "/health/dashboard"
FORM = "application/x-www-form-urlencoded"
STATIC = Path(dashboard.__file__).parent / "static"
_guarded = replace(Settings(), health_details="token", health_token=TOKEN)
_open = replace(Settings(), health_details="always", service_id="orders@here")


def _client(settings: Settings = _guarded) -> Client:
    return make_health_app(settings).test_client()


def _login(client: Client, token: str = TOKEN, **options: Any) -> TestResponse:
    return client.post(PAGE, data={"token": token}, **options)


def _strip(answer: TestResponse) -> str:
    return answer.headers["Set-Cookie"].partition("=")[2].partition(";")[0]


@pytest.fixture(autouse=True)
def _nothing_refused_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tests before."""
    monkeypatch.setattr(access, "refused", Refused())


# -- who gets what -------------------------------------------------------------------------------------------------


def test_without_a_token_a_stranger_gets_nothing() -> None:
    """No page, no form, no file, and no login to try."""
    client = _client(Settings())
    for path in (PAGE, f"{PAGE}/style.css", f"{PAGE}/app.js", f"{PAGE}/none"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert answer.json == {"status": "fail", "notes": ["details are not for everyone: STABILITY_HEALTH_DETAILS"]}
    assert _login(client).status_code == client.post("/health/logout").status_code == 401


def test_with_a_token_a_stranger_gets_the_form_alone() -> None:
    """The form and what it is made of; neither the page nor its scripts, nor the service's name."""
    client = _client(replace(_guarded, service_id="orders@here"))
    answer = client.get(PAGE)
    assert answer.status_code == 200
    assert 'type="password"' in answer.text
    assert "orders" not in answer.text
    assert "app.js" not in answer.text
    for name in (path.name for path in STATIC.iterdir()):
        assert client.get(f"{PAGE}/{name}").status_code == (200 if name in dashboard.FORM_FILES else 401), name


@pytest.mark.parametrize("given", [{"headers": {"Authorization": f"Bearer {TOKEN}"}}, {}])
def test_a_friend_gets_the_page(given: dict[str, Any]) -> None:
    """By the token in the header, or by a login."""
    client = _client()
    if not given:
        assert _login(client).status_code == 303
    assert "app.js" in client.get(PAGE, **given).text
    assert client.get(f"{PAGE}/app.js", **given).status_code == 200
    assert "samples" in client.get("/health/history", **given).json
    assert "detailed" in client.get("/health", **given).json


def test_everybody_gets_it_where_details_are_for_all() -> None:
    """Without a form, and without a way to log out of nothing."""
    answer = _client(_open).get(PAGE)
    assert "app.js" in answer.text
    assert "orders@here" in answer.text
    assert 'action="logout"' not in answer.text


def test_all_that_is_html_is_guarded() -> None:
    """A strict policy for content; no inline script, style or handler; nothing kept in a cache or told to others."""
    for answer in (_client(_open).get(PAGE), _client().get(PAGE), _login(_client(), "wrong")):
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert "unsafe" not in str(policy)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://", answer.text)


def test_the_files_are_asked_for_again_and_sent_when_they_changed() -> None:
    """By ETag; a name leads to no file but ours."""
    client = _client(_open)
    for path in STATIC.iterdir():
        answer = client.get(f"{PAGE}/{path.name}")
        assert answer.data == path.read_bytes()
        again = client.get(f"{PAGE}/{path.name}", headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")
    for name in ("..", "../dashboard.py", "%2e%2e/dashboard.py", "....//templates/login.html", "app.js%00", "none"):
        assert client.get(f"{PAGE}/{name}").status_code in (401, 404), name


BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_browser_at_the_folder_is_told_what_is_here_and_how_to_get_in(language: str) -> None:
    """Without a token, with one to ask for, and where details are for all; nothing internal for a stranger."""
    texts = dashboard.words(language)
    for options, says, silent in ((Settings(), "index_set", "index_login"), (_guarded, "index_login", "index_set"),
                                  (_open, "index_open", "index_set")):
        client = _client(replace(options, service_id="orders@here"))
        answer = client.get("/health/", headers={**BROWSER, "Accept-Language": language})
        assert answer.status_code == 200
        assert answer.mimetype == "text/html"
        assert texts[says] in answer.text
        assert texts[silent] not in answer.text
        assert "orders" not in answer.text
        links = set(re.findall(r'<a href="([^"]+)"', answer.text))
        assert {"../health", "live", "ready", "startup", "dashboard", "history", "metrics"} <= links
        for link in re.findall(r'<link [^>]*href="([^"]+)"', answer.text):
            assert client.get(f"/health/{link}").status_code == 200, "a page never links to what is refused"
    client = _client()
    _login(client)
    assert texts["index_token"] not in client.get("/health/", headers={**BROWSER, "Accept-Language": language}).text


@pytest.mark.parametrize("accept", [{}, {"Accept": "*/*"}, {"Accept": "application/json"},
                                    {"Accept": "application/health+json, */*;q=0.1"}])
def test_all_others_get_the_document_there(accept: dict[str, str]) -> None:
    """A program that adds a slash; a browser at the path itself as well, as monitors are tried there."""
    for headers in (accept, {**accept, "Authorization": f"Bearer {TOKEN}"}):
        known, found = (_client().get(path, headers=headers).json for path in ("/health", "/health/"))
        assert set(found) == set(known)


# -- the cookie ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "path", "prefix"), [("http", "/health", ""), ("https", "/ops/state", "/api")])
def test_the_cookie_is_for_the_health_path_alone(scheme: str, path: str, prefix: str) -> None:
    """HttpOnly, SameSite=Strict, Secure under HTTPS, with an end; and it is not the token."""
    client = _client(replace(_guarded, health_path=path))
    answer = client.post(f"{path}/dashboard", data={"token": TOKEN}, base_url=f"{scheme}://here{prefix}")
    flags = {part.strip() for part in answer.headers["Set-Cookie"].split(";")[1:]}
    assert {"HttpOnly", "SameSite=Strict", f"Max-Age={LIFETIME}"} <= flags
    # the browser's own choice: the folder of the address it asked, however much of that a proxy took off
    assert "Path" not in str(flags)
    assert ("Secure" in flags) == (scheme == "https")
    assert "Domain" not in str(flags)
    assert TOKEN not in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("header", ["X-Forwarded-Proto", "X-Forwarded-Ssl", "Forwarded", "Front-End-Https"])
def test_no_header_makes_it_secure(header: str) -> None:
    """The scheme is the server's word."""
    answer = _login(_client(), headers={header: "https"})
    assert "Secure" not in answer.headers["Set-Cookie"]


def test_the_cookie_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """After twelve hours, whatever the browser does."""
    client = _client()
    _login(client)
    now = time.time()
    for later, status in ((LIFETIME - 60, 200), (LIFETIME + 60, 401)):
        monkeypatch.setattr(access.time, "time", lambda later=later: now + later)
        assert client.get("/health/history").status_code == status


def test_the_cookie_is_of_one_token_and_one_path() -> None:
    """A new token ends all logins; a service on another path has logins of its own."""
    value = _strip(_login(_client()))
    for other, status in ((_guarded, 200), (replace(_guarded, health_token=TOKEN + "2"), 401)):
        client = _client(other)
        client.set_cookie(COOKIE, value, path="/health")
        assert client.get("/health/history").status_code == status
    client = _client(replace(_guarded, health_path="/state"))
    client.set_cookie(COOKIE, value, path="/")
    assert client.get("/state/history").status_code == 401


@settings(max_examples=60)
@given(st.one_of(st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_categories=("Cc",)), max_size=120),
                 st.from_regex(r"[0-9]{1,12}\.[0-9a-f]{16}\.[0-9a-f]{64}", fullmatch=True)))
def test_no_other_cookie_does(value: str) -> None:
    """Whatever it looks like: made up, the token itself, or a real one changed."""
    until, name, signature = _REAL.split(".")
    for forged in (value, TOKEN, f"{int(until) + 1}.{name}.{signature}", f"{until}.{name}.{signature[:-1]}",
                   f"{until}.{name[::-1]}.{signature}", f"{until}.{signature}", f" {_REAL}x",
                   f"0{until}.{name}.{signature}"):
        answer = _other.get("/health/history", headers={"Cookie": f"{COOKIE}={forged}"})
        assert answer.status_code == 401


_REAL = _strip(_login(_client()))
_other = make_health_app(_guarded).test_client(use_cookies=False)


def test_logout_takes_it_back() -> None:
    """And only a POST does it, so that no picture in a page can."""
    client = _client()
    _login(client)
    kept = _strip(_login(client))
    assert client.get("/health/logout").status_code == 405
    assert client.get("/health/history").status_code == 200
    answer = client.post("/health/logout")
    assert (answer.status_code, answer.headers["Location"]) == (303, "dashboard")
    assert client.get("/health/history").status_code == 401
    assert _with_cookie(kept) == 401, "whoever kept the cookie has nothing"
    assert _with_cookie(_strip(_login(client))) == 200, "another login of the same moment is another session"


def _with_cookie(value: str) -> int:
    return _other.get("/health/history", headers={"Cookie": f"{COOKIE}={value}"}).status_code


def test_a_session_that_was_ended_stays_so_in_every_worker_and_beyond_it() -> None:
    """It is kept in the row of the worker that was asked; the next worker in that row goes on with it."""
    board = sb.Scoreboard.anonymous(2)
    rows = [board.allocate(1), board.allocate(2)]
    assert rows[0] is not None
    assert rows[1] is not None
    sessions.end(rows[1], 7, 2000, 1000)
    assert sessions.is_ended(board, 7, 900)
    assert not sessions.is_ended(board, 8, 900)
    board.release(rows[1])
    again = board.allocate(3)
    assert again is rows[1]
    assert sessions.is_ended(board, 7, 900)


def test_where_too_many_sessions_were_ended_all_are() -> None:
    """None of them comes back, however many logouts; those that ended by themselves make room."""
    board = sb.Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    for number in range(1, sb.ENDED_LOGINS + 1):
        sessions.end(row, number, 2000, 1000)
    assert not sessions.is_ended(board, 999, 1000)
    sessions.end(row, sb.ENDED_LOGINS + 1, 2000, 1100)
    assert all(sessions.is_ended(board, number, 1100) for number in range(1, sb.ENDED_LOGINS + 2))
    assert not sessions.is_ended(board, 999, 1101)
    sessions.end(row, 500, 9000, 3000)
    assert sessions.is_ended(board, 500, 2900)
    assert not sessions.is_ended(board, 1, 2900)


# -- logging in ----------------------------------------------------------------------------------------------------


def test_a_wrong_token_is_told_and_recorded_without_it(capfd: pytest.CaptureFixture[str]) -> None:
    """The form comes again; neither page nor log repeat what was typed."""
    answer = _login(_client(), "a-wrong-token<script>")
    assert answer.status_code == 403
    assert 'role="alert"' in answer.text
    assert "Set-Cookie" not in answer.headers
    logged = capfd.readouterr().err
    assert "dashboard_login_refused" in logged
    assert "a-wrong-token" not in answer.text + logged


def _guess(client: Client, kind: str) -> TestResponse:
    if kind == "form":
        return _login(client, "a-guess-of-theirs")
    return client.get("/health/metrics", headers={"Authorization": "Bearer a-guess-of-theirs"})


@pytest.mark.parametrize("kind", ["form", "header"])
@pytest.mark.parametrize("other", ["form", "header"])
def test_guessing_is_limited_and_locks_nobody_out(kind: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few wrong tokens, in the form or in the header, all more are told to wait; the right one never is,
    whatever address it comes from: behind a proxy all have one.
    """
    client = _client()
    monkeypatch.setattr(access.time, "monotonic", lambda: 1000.0)  # else tries come back meanwhile
    statuses = {_guess(client, kind).status_code for _ in range(TRIES)}
    assert statuses == {403 if kind == "form" else 401}
    answer = _guess(client, other)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["Retry-After"]) <= REFILL + 1
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/health/history", headers=right).status_code == 200
    assert _login(client).status_code == 303
    assert client.get("/health/history").status_code == 200, "the login's cookie is good as well"
    # a prober whose token is out of date still learns whether the service is well
    stale = _client().get("/health", headers={"Authorization": "Bearer of-last-year-of-ours"})
    assert (stale.status_code, stale.json) == (200, {"status": "pass"})


def test_tries_come_back_with_time() -> None:
    """One for each `REFILL` seconds."""
    guesses = Guesses()
    assert [guesses.take(1.0) for _ in range(TRIES)] == [0.0] * TRIES
    assert guesses.take(1.0) == pytest.approx(REFILL)
    assert guesses.take(1.0 + REFILL + 0.001) == 0.0
    assert guesses.take(1.0 + REFILL + 0.002) > 0


def test_refused_tokens_are_told_of_once_a_minute_with_a_count(capfd: pytest.CaptureFixture[str]) -> None:
    """The first one at once, the last ones too; none of them is shown."""
    refused = Refused()
    for number in range(1300):
        refused.count("health_token_refused", f"192.0.2.{number % 9}", 1000.0 + number / 260)
    refused.tell(1000.0 + TELL_EVERY - 0.1)
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(one["event"], one["level"], one["count"]) for one in told] == [("health_token_refused", "WARNING", 1)]
    refused.tell(1000.0 + TELL_EVERY)
    refused.tell(1000.0 + 9 * TELL_EVERY)
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(one["count"], one["address"]) for one in told] == [(1299, "192.0.2.3")]


@pytest.mark.parametrize("token", ["x", "change-me", "fifteen-letters"])
def test_a_short_token_shows_nothing(token: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The service runs, an ERROR says why nobody is let in, and there is no form to guess it in."""
    from flask_stability import StabilityExt

    app = Flask("orders", instance_path=str(tmp_path))
    app.config.update(TESTING=True, STABILITY_HEALTH_TOKEN=token)
    StabilityExt(app)
    told, = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (told["event"], told["level"]) == ("health_token_short", "ERROR")
    assert token not in str(told) or token == "x"
    client = app.test_client()
    assert client.get("/health", headers={"Authorization": f"Bearer {token}"}).json == {"status": "pass"}
    assert client.get("/health/metrics", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert _login(client, token).status_code == client.get(PAGE).status_code == 401


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/elsewhere", "javascript:alert(1)"])
def test_a_login_leads_to_the_page_and_nowhere_else(target: str) -> None:
    """Whatever a link or a header says."""
    answer = _client().post(f"{PAGE}?next={target}&url={target}", data={"token": TOKEN, "next": target},
                            headers={"Referer": target, "X-Forwarded-Host": "evil.example", "Host": "evil.example"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "dashboard")


@pytest.mark.parametrize(("options", "status"), [
    ({"query_string": {"token": TOKEN}}, 400), ({"json": {"token": TOKEN}}, 400), ({"data": {"other": "x"}}, 400),
    ({"data": {"token": "x" * 5000}}, 400), ({"data": b"token=\xff\xfe", "content_type": FORM}, 400),
    ({"data": b"token=" + TOKEN.encode() + b"&a&b&c&d&e=1&f=2&g=3&h=4", "content_type": FORM}, 400),
    ({"data": {"token": "é" * 10}}, 403), ({"data": {"token": ""}}, 400),
    ({"data": {"token": TOKEN, "file": (io.BytesIO(b"x"), "x")}}, 400)])
def test_only_a_small_form_is_read(options: dict[str, Any], status: int) -> None:
    """Never the token in an address; nothing is a server error."""
    answer = _client().post(PAGE, **options)
    assert answer.status_code == status
    assert "Set-Cookie" not in answer.headers


# -- languages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accept", "language"), [
    ("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("zh-TW", "zh"), ("en-GB", "en"), ("", "en"), ("de,fr;q=0.5", "en"),
    ("fr, zh;q=0.3, en;q=0.2", "zh"), ("\x00;;;q=x", "en")])
def test_the_page_speaks_the_browsers_language(accept: str, language: str) -> None:
    """English or Chinese; English where neither is asked for."""
    for client, key in ((_client(_open), "transitions"), (_client(), "login_title")):
        answer = client.get(PAGE, headers={"Accept-Language": accept})
        assert f'<html lang="{language}">' in answer.text
        assert dashboard.words(language)[key] in answer.text
        assert "Accept-Language" in answer.headers["Vary"]


def test_both_languages_say_the_same() -> None:
    """The same keys with the same places to fill in, and each key that the page asks for."""
    english, chinese = dashboard.words("en"), dashboard.words("zh")
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", chinese[key])), key
        assert text.strip()
        assert chinese[key].strip()
    asked = set()
    for path in STATIC.glob("*.js"):
        if "uPlot" not in path.name:
            asked |= set(re.findall(r"""\bt\("([a-z_0-9]+)"[,)]""", path.read_text()))
    for path in (STATIC.parent / "templates").glob("*.html"):
        asked |= set(re.findall(r"\bt\.([a-z_0-9]+)", path.read_text()))
    assert asked <= set(english), asked - set(english)
    assert {f"reason_{reason}" for reason in sb.REASONS} <= set(english)
    assert set(sb.STATE_NAMES) <= set(english)


def test_the_words_cannot_break_out_of_the_page() -> None:
    """A service's name is text, not markup."""
    answer = _client(replace(_open, service_id="<script>alert(1)</script>\"'")).get(PAGE)
    assert "<script>alert" not in answer.text


# -- what the page polls -------------------------------------------------------------------------------------------


@pytest.fixture
def history() -> Any:
    """A board of our own with a full history."""
    board = sb.Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    sb.install(board, row)
    found = History(board.master.history)
    for number in range(SAMPLES + 100):
        found.append(Sample(1000.0 + number), [Memory(0, 1, 1 << 20)], {"disk": 0})
    yield found
    sb.forget()


def test_a_page_asks_for_all_in_pieces_and_then_for_what_is_new(history: History) -> None:
    """By a cursor; the health document comes with the last piece; no piece is long."""
    client, cursor, times = _client(_open), 0, []
    while True:
        answer = client.get(f"/health/history?since={cursor}&limit=480&with=health").json
        assert len(answer["samples"]) == len(answer["workers"]) == len(answer["beats"]) <= 480
        times += [sample[0] for sample in answer["samples"]]
        assert ("health" in answer) is not answer["more"]
        cursor = answer["cursor"]
        if not answer["more"]:
            break
    assert times == [1100.0 + number for number in range(SAMPLES)]
    assert answer["health"]["detailed"]["checks"] == {}
    history.append(Sample(9999.0))
    history.transition({"id": "1"})
    answer = client.get(f"/health/history?since={cursor}&changes={answer['changes']}").json
    assert [sample[0] for sample in answer["samples"]] == [9999.0]
    assert [one["id"] for one in answer["transitions"]] == ["1"]
    assert "health" not in answer
    answer = client.get(f"/health/history?since={answer['cursor']}&changes={answer['changes']}").json
    assert (answer["samples"], answer["transitions"], answer["more"]) == ([], [], False)


def test_a_cursor_of_another_life_begins_anew(history: History) -> None:
    """A service that was restarted has fewer rounds than the page has seen."""
    answer = _client(_open).get(f"/health/history?since={history.count + 1000}&limit=10").json
    assert answer["samples"][0][0] == 1100.0


@pytest.mark.parametrize("query", ["since=x", "limit=", "changes=1e3", "since=1&limit=--1"])
def test_a_cursor_that_is_none_is_refused(query: str) -> None:
    """With what to give instead."""
    answer = _client(_open).get(f"/health/history?{query}")
    assert answer.status_code == 400
    assert "give numbers" in answer.json["notes"][0]


def test_the_trend_is_told_once_for_each_round(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than all the rest of a poll."""
    from flask_stability.health import blueprint

    calls = []
    monkeypatch.setattr(blueprint, "trends", lambda samples: calls.append(len(samples)) or {"rss": 0.0})
    client = _client(_open)
    for _ in range(5):
        assert client.get("/health/history").json["trend_per_min"] == {"rss": 0.0}
    history.append(Sample(9999.0))
    client.get("/health/history")
    assert calls == [120, 120]


def test_registered_by_hand_the_dashboard_is_there_too(tmp_path: Path) -> None:
    """With the app's own templates and processors out of the way."""
    from flask_stability import StabilityExt

    app = Flask("orders", instance_path=str(tmp_path))
    app.config.update(TESTING=True, STABILITY_HEALTH_DETAILS="always")
    stability = StabilityExt(app)
    app.context_processor(lambda: 1 / 0)
    app.register_blueprint(stability.health_blueprint)
    assert "app.js" in app.test_client().get(PAGE).text


def test_the_access_of_a_service_that_never_shows_details_has_no_login() -> None:
    """Even if a token is set."""
    rules = Access(replace(_guarded, health_details="never"))
    assert not rules.has_login
    assert not rules.is_token(TOKEN)
