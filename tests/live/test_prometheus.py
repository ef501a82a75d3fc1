"""Metrics of a real service: scraped by a real Prometheus while its workers are replaced all the time."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from flask_stability.config import Settings
from flask_stability.health import metrics, results
from flask_stability.scoreboard import Scoreboard, board_files
from support import Server, free_port, wait_until

ROUTES = 50
#: What is lost at one replacement in fifty is found 19 times of 20; `test_hundreds_of_workers` counts more of them.
RECYCLED = 150
TOKEN = "scrape-me-if-you-may"
SOURCE = f'''
from flask import Flask
from flask_stability import StabilityExt
app = Flask(__name__)
StabilityExt(app)
for number in range({ROUTES}):
    app.add_url_rule(f"/{{number}}/<name>", f"route{{number}}", lambda name: name)
'''
CONFIG = """
scrape_configs:
- job_name: service
  scrape_interval: 1s
  scrape_timeout: 1s
  metrics_path: /health/metrics
  authorization: {{credentials: {token}}}
  static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@contextlib.contextmanager
def _prometheus(folder: Path, target: int) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Prometheus scraping a port of this machine; gives a function that asks it a query."""
    folder.mkdir()
    port = free_port()
    (folder / "prometheus.yml").write_text(CONFIG.format(token=TOKEN, port=target))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", f"--config.file={folder}/prometheus.yml",
                                    f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"],
                                   stdout=log, stderr=log)

    def ask(query: str) -> list[dict[str, Any]]:
        with contextlib.suppress(requests.ConnectionError):
            answer = requests.get(f"http://127.0.0.1:{port}/api/v1/query", {"query": query}, timeout=30).json()
            return list(answer["data"]["result"]) if answer["status"] == "success" else []
        return []

    try:
        yield ask
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _value(found: list[dict[str, Any]]) -> float | None:
    return float(found[0]["value"][1]) if found else None


def _cost(function: Callable[[], Any]) -> float:
    """Seconds of a processor for a call, of many the least: what else this machine does is not in it."""
    times = []
    for _ in range(100):
        begin = time.thread_time()
        function()
        times.append(time.thread_time() - begin)
    return min(times)


def _files(folder: Path) -> set[str]:
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {name for name in found if "__pycache__" not in name}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.needs("prometheus", "promtool")
def test_after_many_workers_prometheus_has_seen_no_counter_fall_and_a_scrape_costs_no_more(
        tmp_path: Path) -> None:
    """And every request is in the counters, once; no file is left by any of the workers."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    env = {"STABILITY_RUN_DIR": str(run_dir), "STABILITY_HEALTH_DETAILS": "token", "STABILITY_HEALTH_TOKEN": TOKEN}
    sent = 0
    with Server(tmp_path / "server", source=SOURCE, worker_class="sync", workers=4, env=env,
                config="preload_app = True\nmax_requests = 6") as server, \
            _prometheus(tmp_path / "prometheus", server.port) as ask, ThreadPoolExecutor(4) as pool:
        def load(number: int) -> bool:
            return server.get(f"/{number % ROUTES}/anybody").text == "anybody"

        sent += ROUTES
        assert all(pool.map(load, range(ROUTES)))
        (_, path), = board_files(str(run_dir))
        board = Scoreboard.attach(path)
        settings = replace(Settings(), health_details="always")
        wait_until(lambda: results.started(board))

        def scrape() -> None:
            metrics.exposition(board, settings, "")

        before, files = _cost(scrape), _files(tmp_path / "server")
        wait_until(lambda: _value(ask('up{job="service"}')) == 1.0, 60, message="Prometheus scrapes")
        while (ended := sum(board.totals().restarts.values())) < RECYCLED:
            sent += 200
            assert all(pool.map(load, range(200)))
            wait_until(lambda ended=ended: sum(board.totals().restarts.values()) > ended,  # type: ignore[misc]
                       message="more workers have ended")
        wait_until(lambda: len(board.live()) == 4)
        after = _cost(scrape)
        totals = board.totals()
        assert set(totals.restarts) - {"scale"} == {"max_requests"}  # spare workers help where this machine rests
        assert totals.requests == sent == sum(totals.histogram)
        assert after < 3 * before, (before, after)
        # waited for, each of them: after a scrape that took too long there is no value at all until the next one
        for query, value in (("flask_stability_http_request_duration_seconds_count", sent),
                             ("sum(flask_stability_http_requests_total)", sent),
                             ("count(flask_stability_http_requests_total)", ROUTES)):
            wait_until(lambda query=query, value=value: _value(ask(query)) == value, 60,  # type: ignore[misc]
                       message=query)
        for counter in ("flask_stability_http_request_duration_seconds_count", "flask_stability_http_requests_total",
                        "flask_stability_worker_restarts_total"):
            assert _value(ask(f"max(resets({counter}[10m]))")) == 0, counter
        checked = subprocess.run(["promtool", "check", "metrics"], capture_output=True, input=server.get(
            "/health/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).content)
        assert (checked.returncode, checked.stderr) == (0, b"")
        assert server.get("/health/metrics").status_code == 401
        assert _files(tmp_path / "server") - files <= {"logs/error.log", "logs/health.log", "logs/process-manager.log"}
        print(f"{sum(totals.restarts.values())} workers, {sent} requests; a scrape {before * 1e3:.2f} ms before, "
              f"{after * 1e3:.2f} ms after")
    assert not list(run_dir.iterdir())
