"""The dashboard in a real Chromium, against the sample app under gunicorn: what happens is seen in the page."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from flask_stability.health import dashboard
from flask_stability.health.access import COOKIE, TRIES
from support import Load, Server, free_port, wait_until
from support_browser import Tab, browser, tabs
from support_db import MariaDB

__all__ = ["browser", "tabs"]

TOKEN = "a-long-token-of-ours"
PAGE = "/health/dashboard"
SAMPLE: dict[str, Any] = {"app": "sample_app:create_app()", "env": {
    "SAMPLE_FAULTS": "1", "STABILITY_HEALTH_INTERVAL": "1", "STABILITY_MEMORY_LIMIT": "400M"}}
GUARDED: dict[str, Any] = {"app": "sample_app:create_app()", "env": {
    "STABILITY_HEALTH_DETAILS": "token", "STABILITY_HEALTH_TOKEN": TOKEN, "STABILITY_HEALTH_INTERVAL": "1"}}
VIEWS = {"desk-light": (1280, 800, "light"), "desk-dark": (1280, 800, "dark"), "phone-light": (390, 844, "light"),
         "phone-dark": (390, 844, "dark")}
CHARTS = ("response", "requests", "memory", "pool", "latency")
#: Pixels of a chart's canvas that are not empty.
PAINTED = """(name) => {
  const canvas = document.querySelector(`#${name}-plot canvas`);
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let painted = 0;
  for (let at = 3; at < data.length; at += 4) painted += data[at] > 0;
  return painted;
}"""
#: The three exceptions of that route are in the table.
RAISED = """[...document.querySelectorAll("#exceptions tbody tr")].some((row) => row.textContent.includes("ValueError")
  && row.textContent.includes("/faults/raise") && row.querySelector("td.number").textContent === "3")"""
Open = Callable[..., Tab]


def _shots(tmp_path: Path) -> Path:
    """Where screenshots go: DASHBOARD_SHOTS, else the test's folder."""
    folder = Path(os.environ.get("DASHBOARD_SHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _log_in(tab: Tab, token: str) -> None:
    tab.page.fill("#token", token)
    tab.page.press("#token", "Enter")


def _with_checks(one: Server) -> Any:
    answer = one.get("/health/history?with=health").json()
    return answer if answer["check_names"] and answer["samples"] else None


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_happens_to_the_service_is_seen(server: Callable[..., Server], tabs: Open, mariadb: MariaDB,
                                             tmp_path: Path) -> None:
    """Exceptions, slow routes, a killed worker, a database that is gone and comes back; in light and dark, on a desk
    and on a phone, without a complaint of the console or of axe-core."""
    one = server(app=SAMPLE["app"], workers=2, env={
        **SAMPLE["env"], **mariadb.env, "STABILITY_DB_FROM_ENV": "on", "STABILITY_SERVICE_ID": "orders"})
    wait_until(lambda: one.get("/health/startup").status_code == 200)
    load = Load(one.url, ["/", "/stock", "/orders", "/nowhere"], 20).start()
    try:
        tab = tabs(one.url + PAGE)
        tab.wait_text("#state", "All is well")
        assert tab.text("#service") == "orders"
        for check in ("database · critical", "disk", "memory", "pool"):
            tab.wait_text("#checks .name", check)
        tab.wait("document.querySelectorAll('#checks .beats i.pass').length > 5", "beats of good rounds")

        for _ in range(3):
            one.get("/faults/raise")
        one.get("/faults/slow-query?seconds=0.3")
        tab.wait(RAISED, "all three")
        tab.wait_text("#slow tbody tr", "faults.slow_query")

        victim = one.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        tab.wait("[...document.querySelectorAll('#restarts tbody tr')].some((row) => "
                 f"row.textContent.includes('{victim}') && row.textContent.includes('killed by a signal'))", "its end")
        wait_until(lambda: len(one.worker_pids()) == 2, 60)
        for pid in one.worker_pids():
            tab.wait_text("#workers tbody tr", str(pid))
        tab.wait(f"!document.querySelector('#workers').textContent.includes('{victim}')", "the dead worker is gone")
        tab.wait(RAISED, "those of the dead worker are remembered")
        # the browser's own words, if a poll was with the worker that died
        assert all("net::ERR_" in one for one in tab.complaints)
        tab.complaints.clear()

        mariadb.kill9()
        tab.wait_text("#state", "Failing")
        tab.wait("document.querySelector('#banner').dataset.status === 'fail' && document.title.startsWith('✕')",
                 "the banner and the title say so")
        tab.wait_text("#notes li", "database")
        tab.wait("document.querySelectorAll('#checks .beats i.fail').length > 0", "a bad beat")
        tab.wait_text("#transitions tbody tr", "pass → fail")
        mariadb.start()
        tab.wait_text("#state", "All is well")
        tab.wait_text("#since", "since ")
        tab.wait_text("#transitions tbody tr", "fail → pass")

        for name in CHARTS:
            wait_until(lambda name=name: tab.page.evaluate(PAINTED, name) > 500, 60, message=name)  # type: ignore[misc]
            tab.wait(f"[...document.querySelectorAll('#{name}-key b')].some((one) => /[0-9]/.test(one.textContent))",
                     f"values of {name}")
        tab.wait_text("#memory-key li", "limit")
        assert tab.complaints == []

        for name, (width, height, scheme) in VIEWS.items():
            view = tabs(one.url + PAGE, width=width, height=height, scheme=scheme)
            view.wait_text("#state", "All is well")
            view.page.wait_for_timeout(300)
            assert view.overflow() <= 0, name
            view.page.screenshot(path=_shots(tmp_path) / f"dashboard-{name}.png")
            view.page.screenshot(path=_shots(tmp_path) / f"dashboard-{name}-whole.png", full_page=True)
            assert view.violations() == [], name
            assert view.complaints == [], name
    finally:
        load.stop()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_last_picture_stays_when_there_is_no_answer(server: Callable[..., Server], tabs: Open,
                                                        tmp_path: Path) -> None:
    """And is said to be the last; when the service is there again the page goes on by itself, with its new history."""
    one = server(**SAMPLE)
    tab = tabs(one.url + PAGE)
    tab.wait_text("#state", "All is well")
    tab.wait("document.querySelectorAll('#checks .beats i.pass').length > 5", "beats")
    pids = one.worker_pids()
    one.stop()
    tab.wait_text("#state", "The service does not answer")
    assert "Last answer" in tab.text("#since")
    assert "ago" in tab.text("#since")
    assert all(str(pid) in tab.text("#workers") for pid in pids)
    assert tab.page.evaluate(PAINTED, "memory") > 500
    assert tab.page.evaluate("document.body.classList.contains('stale')")
    assert tab.violations() == []
    tab.page.screenshot(path=_shots(tmp_path) / "dashboard-stale.png")
    # the browser's own words on a poll in vain, while or after the service stopped
    assert all("net::ERR_" in one or "status of 503" in one for one in tab.complaints)
    one.start()
    tab.wait_text("#state", "All is well")
    wait_until(lambda: len(one.worker_pids()) == 2, 60)
    tab.wait_text("#workers tbody tr", str(one.worker_pids()[0]))
    tab.wait("!document.body.classList.contains('stale')", "it is the latest picture")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_frozen_service_is_told_from_one_at_rest(server: Callable[..., Server], tabs: Open) -> None:
    """A connection that is accepted and never answered is no answer, within the page's own patience."""
    one = server(**SAMPLE, workers=1)
    tab = tabs(one.url + PAGE)
    tab.wait_text("#state", "All is well")
    os.kill(one.pid, signal.SIGSTOP)  # else it replaces the worker
    worker, = one.worker_pids()
    try:
        os.kill(worker, signal.SIGSTOP)
        tab.wait_text("#state", "The service does not answer")
    finally:
        os.kill(worker, signal.SIGCONT)
        os.kill(one.pid, signal.SIGCONT)
    tab.wait_text("#state", "All is well")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_stranger_logs_in_and_out(server: Callable[..., Server], tabs: Open, tmp_path: Path) -> None:
    """With the token in no address; the cookie is out of the scripts' reach; a login that ends is told."""
    one = server(**GUARDED)
    tab = tabs(one.url + PAGE, width=390, height=844)
    tab.wait("document.activeElement.id === 'token'", "one can type at once")
    assert tab.violations() == []
    _log_in(tab, "not-the-token")
    tab.wait_text("[role=alert]", "That is not the token.")
    assert tab.violations() == []
    tab.page.screenshot(path=_shots(tmp_path) / "dashboard-login.png")
    addresses: list[str] = []
    tab.page.on("request", lambda request: addresses.append(request.url))
    _log_in(tab, TOKEN)
    tab.wait_text("#state", "All is well")
    assert tab.page.url == one.url + PAGE
    assert not any(TOKEN in address for address in addresses)
    cookie, = tab.context.cookies()
    assert (cookie["name"], cookie["path"], cookie["httpOnly"], cookie["sameSite"]) == (
        COOKIE, "/health", True, "Strict")
    assert TOKEN not in str(cookie)
    assert tab.page.evaluate("document.cookie") == ""
    assert all("403" in complaint for complaint in tab.complaints)  # of the wrong token

    tab.context.clear_cookies()
    tab.wait_text("#state", "Your login has ended")
    assert tab.text("#workers") != ""
    tab.page.click("#refused a")
    _log_in(tab, TOKEN)
    tab.wait_text("#state", "All is well")
    tab.page.click("form button")
    tab.page.wait_for_selector("#token")
    assert tab.context.cookies() == []
    assert one.get(PAGE).text.count("app.js") == 0


def test_the_page_speaks_chinese(server: Callable[..., Server], tabs: Open, tmp_path: Path) -> None:
    """By the browser's language: headings, banner, key of the charts, times; the form too."""
    words = dashboard.words("zh")
    one = server(**SAMPLE)
    wait_until(lambda: _with_checks(one))
    tab = tabs(one.url + PAGE, locale="zh-CN")
    tab.wait_text("#state", words["pass"])
    assert tab.page.evaluate("document.documentElement.lang") == "zh"
    for key in ("checks", "response", "memory", "transitions", "restarts", "slow", "exceptions"):
        assert words[key] in tab.text(f"#{key}-title")
    tab.wait_text("#memory-key li", words["limit"])

    def just_now() -> bool:
        """It is said for five seconds, of which the page sees one."""
        one.get("/faults/raise")
        return bool(tab.page.evaluate("document.querySelector('#exceptions tbody').textContent.includes('刚刚')"))

    wait_until(just_now, 60, 0.5)
    left = tab.page.evaluate("[...document.querySelectorAll('h2, thead th, dt, button')].map((one) => one.textContent)")
    english = set(dashboard.words("en").values()) - set(words.values())
    assert not english & set(left)
    assert tab.violations() == []
    assert tab.complaints == []
    tab.page.screenshot(path=_shots(tmp_path) / "dashboard-zh.png")


def test_the_keyboard_does_it_all(server: Callable[..., Server], tabs: Open) -> None:
    """The range is a button; the arrow keys read a chart, and what they find is said."""
    one = server(**SAMPLE)
    tab = tabs(one.url + PAGE)
    tab.wait("[...document.querySelectorAll('#memory-key b')].some((one) => /[0-9]/.test(one.textContent))", "a chart")
    for _ in range(10):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("document.activeElement.id") == "day":
            break
    tab.page.keyboard.press("Enter")
    assert tab.page.get_attribute("#day", "aria-pressed") == "true"
    assert tab.page.get_attribute("#hour", "aria-pressed") == "false"
    for _ in range(30):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("document.activeElement.id") == "memory-plot":
            break
    assert "arrow keys" in (tab.page.get_attribute("#memory-plot", "aria-label") or "")
    tab.page.keyboard.press("Home")
    tab.wait_text("#memory-point", "worker 0")
    assert "MiB" in tab.text("#memory-point")
    assert tab.complaints == []


def test_whoever_reaches_the_second_listener_sees_the_page(server: Callable[..., Server], tabs: Open) -> None:
    """Without a login; the service's own address still asks for one."""
    port = free_port()
    one = server(app=GUARDED["app"], env={**GUARDED["env"], "STABILITY_ADMIN_BIND": f"127.0.0.1:{port}"},
                 workers=1)  # of several the first that is ready holds it until one of a lower row is

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens)
    tab = tabs(f"http://127.0.0.1:{port}{PAGE}")
    tab.wait_text("#state", "All is well")
    assert tab.complaints == []
    assert "app.js" not in one.get(PAGE).text


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_login_that_never_arrives_holds_nobody(server: Callable[..., Server], worker_class: str) -> None:
    """Bodies that are announced and not sent, or sent byte by byte, are given up after a few seconds."""
    one = server(**GUARDED, worker_class=worker_class, workers=1, threads=2)
    head = (f"POST {PAGE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            "Content-Length: 200\r\n\r\n").encode()
    slow = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(2)]
    try:
        for connection in slow:
            connection.sendall(head)
        begin = time.monotonic()
        slow[0].settimeout(60)
        while time.monotonic() - begin < 12:
            try:
                slow[1].sendall(b"t")
            except OSError:
                break
            time.sleep(0.05)
        assert slow[0].recv(100).startswith(b"HTTP/1.1 408")
        wait_until(lambda: one.get("/health/live").status_code == 200)
    finally:
        for connection in slow:
            connection.close()
    restarts = one.get("/health", headers={"Authorization": f"Bearer {TOKEN}"}).json()["detailed"]["restarts"]
    assert set(restarts["by_reason"]) <= {"asked", "scale"}  # a spare worker may have helped out meanwhile


@pytest.mark.long
def test_guessing_stops_at_a_few(server: Callable[..., Server]) -> None:
    """Against one worker; a header that names another address is no way around."""
    one = server(**GUARDED, workers=1)
    answers = [one.request("POST", PAGE, data={"token": f"guess-{number}"}, allow_redirects=False,
                           headers={"X-Forwarded-For": f"10.0.0.{number}"}).status_code for number in range(3 * TRIES)]
    assert answers.count(403) <= 2 * TRIES  # tries come back while they are made
    assert 429 in answers
    assert set(answers) <= {403, 429}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert requests.get(one.url + "/health/history", headers=bearer, timeout=30).status_code == 200


#: In the page: `fetch` answers from here with a clock of its own, `polls` of the page's own polls are made.
DAY = """async ({polls, known, calm}) => {
  const simulated = window.simulated ??= {now: known.now - 86400, number: 0, requests: 0, changes: 0, rounds: [],
    ages: [1, 2, 3, 4]};
  Date.now = () => simulated.now * 1000;
  const random = (most) => calm ? most - 1 : Math.floor(Math.random() * most);
  const sample = (time) => {
    const values = known.fields.map(() => Math.random() * 100);
    simulated.requests += 300;
    if (random(200) === 0) simulated.ages[random(4)] += 4;
    for (const [name, value] of Object.entries({time, requests: simulated.requests, answers_2xx: simulated.requests,
      status: random(50) ? 0 : 2, memory_limit: 2e8, restarts: simulated.ages.reduce((a, b) => a + b)}))
      values[known.fields.indexOf(name)] = value;
    return {values, beats: known.check_names.map(() => 1 + random(3)).join(""),
      workers: simulated.ages.map((age, slot) => [slot, age, 5e7 + random(1e8)])};
  };
  const answer = (url) => {
    const since = Number(new URL(url, location).searchParams.get("since"));
    const rounds = simulated.rounds.filter((one) => one.number >= since).slice(0, 480), last = rounds.at(-1);
    const cursor = last ? last.number + 1 : simulated.number, more = cursor < simulated.number;
    const health = structuredClone(known.health);
    health.status = ["pass", "warn", "fail"][random(3)];
    health.notes = Array.from({length: random(4)}, () => `note ${random(1e9)}`);
    health.detailed.requests.total = simulated.requests;
    health.detailed.workers.forEach((one) => { one.pid = random(1e6); one.uptime_s = random(1e6); });
    health.detailed.exceptions.latest = Array.from({length: random(11)}, () => (
      {class: `Error${random(1e9)}`, route: `/route/${random(1e9)}`, count: random(1e6), last: simulated.now}));
    const transitions = random(4) ? [] : [{id: String(simulated.changes += 1), time: simulated.now, check: "disk",
      old: "pass", new: "warn", detail: `detail ${random(1e9)}`}];
    return {...known, cursor, more, life: "simulated", samples: rounds.map((one) => one.values), transitions,
      beats: rounds.map((one) => one.beats), workers: rounds.map((one) => one.workers), changes: simulated.changes,
      now: simulated.now, health: more ? undefined : health};
  };
  // no Response: its body is read in tasks, between which the browser would paint 17,280 pictures that nobody sees
  window.fetch = async (url) => {
    const ok = random(500) > 0, text = JSON.stringify(answer(url));
    return {ok, status: ok ? 200 : 503, json: async () => JSON.parse(text)};
  };
  const round = () => {
    simulated.rounds.push({number: simulated.number, ...sample(simulated.now)});
    simulated.number += 1;
    simulated.rounds.splice(0, simulated.rounds.length - 2880);
  };
  for (; simulated.now < known.now; simulated.now += 30) round();  // the day before
  const app = await import(new URL("dashboard/app.js", location));
  for (let poll = 0; poll < polls; poll += 1) {
    simulated.now += 5;
    if (poll % 6 === 0) round();
    await app.poll();
  }
  return simulated.number;
}"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_page_left_open_for_a_day_does_not_grow(server: Callable[..., Server], tabs: Open) -> None:
    """Of a day's 17,280 polls a third, with all that can change changing, at 24 h in the charts, and a third of what a
    day may add: heap and elements stay as they were.
    """
    one = server(**SAMPLE)
    known = wait_until(lambda: _with_checks(one))
    tab = tabs(one.url + PAGE)
    tab.wait_text("#state", "All is well")
    tab.page.click("#day")
    tools = tab.context.new_cdp_session(tab.page)

    def live(polls: int) -> tuple[float, int]:
        for _ in range(polls // 240):
            tab.page.evaluate(DAY, {"polls": 240, "known": known, "calm": False})
        sizes = []
        for _ in range(3):
            tab.page.evaluate(DAY, {"polls": 1, "known": known, "calm": True})  # the same is shown at each look
            tools.send("HeapProfiler.collectGarbage")
            sizes.append(float(tools.send("Runtime.getHeapUsage")["usedSize"]))
        return min(sizes), int(tools.send("Memory.getDOMCounters")["nodes"])

    heap, nodes = live(1_920)  # until what the engine compiles and caches has settled
    assert tab.page.evaluate("simulated.rounds.length") == 2880
    later_heap, later_nodes = live(5_760)
    print(f"heap {heap / 1e6:.2f} MB, later {later_heap / 1e6:.2f} MB; nodes {nodes}, then {later_nodes}")
    assert later_heap < heap * 1.03 + 0.2e6
    assert later_nodes < nodes * 1.07 + 70
    assert [complaint for complaint in tab.complaints if "503" not in complaint] == []


NGINX = """
{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port};
    location /svc/ {{ proxy_pass http://127.0.0.1:{backend}/; }}
    location / {{ proxy_pass http://127.0.0.1:{backend}; }} }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend public
  bind 127.0.0.1:{port}
  http-request replace-path /svc/(.*) /\\1 if {{ path_beg /svc/ }}
  default_backend service
backend service
  server one 127.0.0.1:{backend}
"""


def _proxy(kind: str, folder: Path, backend: int) -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    text = (NGINX if kind == "nginx" else HAPROXY).format(folder=folder, port=port, backend=backend,
                                                          user="user root;" if os.geteuid() == 0 else "")
    path = folder / f"{kind}.conf"
    path.write_text(text)
    command = ["nginx", "-e", f"{folder}/error.log", "-c", str(path)] if kind == "nginx" else [
        "haproxy", "-db", "-f", str(path)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True), f"http://127.0.0.1:{port}"


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=30).ok
    except requests.RequestException:
        return False


@pytest.mark.long
@pytest.mark.needs("nginx", "haproxy")
@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_a_login_holds_behind_a_proxy_that_takes_a_prefix_off(kind: str, server: Callable[..., Server], tabs: Open,
                                                              tmp_path: Path) -> None:
    """With the prefix and without, and where the app has an APPLICATION_ROOT: the cookie is sent, the page polls, and
    logging out ends it on the server.
    """
    one = server(source=PREFIXED, env={"STABILITY_HEALTH_TOKEN": TOKEN, "STABILITY_HEALTH_DETAILS": "token"})
    proxy, url = _proxy(kind, tmp_path, one.port)
    try:
        wait_until(lambda: _answers(url + "/svc/health/live"), 60)
        for prefix in ("/svc", "", "/root"):
            tab = tabs(url + prefix + PAGE)
            _log_in(tab, TOKEN)
            tab.wait_text("#state", "All is well")
            assert tab.page.url == url + prefix + PAGE
            cookie, = tab.context.cookies()
            assert cookie["path"] == prefix + "/health"
            tab.page.click("form button[type=submit]")
            tab.wait("document.querySelector('#token') !== null", "the form again")
            assert tab.context.cookies() == []
            copied = {"Cookie": f"{COOKIE}={cookie['value']}"}
            assert requests.get(url + prefix + "/health/history", headers=copied, timeout=30).status_code == 401
    finally:
        os.killpg(proxy.pid, signal.SIGTERM)
        proxy.wait(30)


#: The same app at the root, where the proxy takes the prefix off, and below its APPLICATION_ROOT, where nobody does.
PREFIXED = '''
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from flask_stability import StabilityExt

flask_app = Flask(__name__)
flask_app.config["APPLICATION_ROOT"] = "/root"
StabilityExt(flask_app)
app = DispatcherMiddleware(flask_app, {"/root": flask_app})
'''


@pytest.mark.long
def test_requests_that_hang_are_seen_with_their_line(server: Callable[..., Server], tabs: Open) -> None:
    """And the page does not say that all is well meanwhile."""
    one = server(**SAMPLE)
    hanging = threading.Thread(target=lambda: requests.get(one.url + "/faults/hang?seconds=25", timeout=60))
    hanging.start()
    try:
        tab = tabs(one.url + PAGE, locale="zh-CN")
        tab.wait_text("#hung tbody td", "faults.py:")
        tab.wait_text("#hung tbody td", "GET /faults/hang")
        tab.wait_text("#state", dashboard.words("zh")["warn"])
        tab.wait("document.querySelector('#hung-card').hidden", "it is over")
        assert tab.overflow() <= 0
    finally:
        hanging.join(90)
