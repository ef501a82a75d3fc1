"""The shipped Prometheus configuration and alert rules against two real instances."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from deployed import PORTS, Site, site

from support import Load, free_port, wait_until
from support_deploy import DEPLOY

TOKEN = "scrape-me-if-you-may"
SHIPPED = DEPLOY / "prometheus"
Ask = Callable[..., Any]


@contextlib.contextmanager
def _prometheus(folder: Path, one: Site) -> Iterator[Ask]:
    """Prometheus with the shipped files, asking every second; gives a function that asks its API."""
    folder.mkdir()
    port = free_port()
    text = (SHIPPED / "prometheus.yml").read_text().replace("15s", "1s")
    text = text.replace("/etc/prometheus/orders.token", "token")
    for placeholder, instance in zip(PORTS, one.instances, strict=False):
        text = text.replace(f"127.0.0.1:{placeholder}", f"127.0.0.1:{instance.port}")
    (folder / "prometheus.yml").write_text(text)
    for name in ("alerts.yml", "instances.yml"):
        shutil.copy(SHIPPED / name, folder)
    (folder / "token").write_text(TOKEN)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", f"--config.file={folder}/prometheus.yml",
                                    f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"],
                                   stdout=log, stderr=log)

    def ask(path: str, **parameters: str) -> Any:
        with contextlib.suppress(requests.RequestException, ValueError):
            return requests.get(f"http://127.0.0.1:{port}/api/v1/{path}", parameters, timeout=30).json().get("data")
        return None

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


def _rules(ask: Ask) -> list[dict[str, Any]]:
    return [rule for group in (ask("rules") or {"groups": []})["groups"] for rule in group["rules"]]


def _panels_have_data(ask: Ask) -> None:
    """Each query of the Grafana dashboard returns something, as does each recorded series."""
    board = json.loads((DEPLOY / "grafana" / "orders.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 20
    queries += re.findall(r"record: (\S+)", (SHIPPED / "instances.yml").read_text())
    for query in queries:
        for name, value in (("$job", "orders"), ("$instance", ".*"), ("$__rate_interval", "1m")):
            query = query.replace(name, value)
        assert "$" not in query
        wait_until(lambda query=query: (ask("query", query=query) or {}).get("result"), 60,  # type: ignore[misc]
                   message=query)
    first = queries[0].replace("$job", "orders").replace("$instance", ".*").replace("$__rate_interval", "1m")

    def instances() -> set[str]:
        return {one["metric"]["instance"] for one in (ask("query", query=first) or {"result": []})["result"]}

    wait_until(lambda: len(instances()) == 2, 60, message="an instance is told from the other by its label")


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.needs("prometheus", "promtool")
@pytest.mark.alone("rules about latency, queues and errors have to be silent: a busy machine's are not")
def test_prometheus_scrapes_both_instances_and_its_rules_see_one_go(tmp_path: Path) -> None:
    """With the token of the service; every metric that a rule names is in a scrape; the rules can be evaluated, are
    silent on a healthy service, and notice an instance that is killed.
    """
    env = {"STABILITY_HEALTH_DETAILS": "token", "STABILITY_HEALTH_TOKEN": TOKEN,
           "STABILITY_HEALTH_DISK_MIN_FREE": "0"}
    with site(tmp_path, "gthread", extra=env) as one, _prometheus(tmp_path / "prometheus", one) as ask:
        addresses = [f"http://127.0.0.1:{instance.port}" for instance in one.instances]
        for address in addresses:
            assert requests.get(address + "/stock", timeout=30).ok
        wait_until(lambda: len((ask("query", query='up{job="orders"} == 1') or {"result": []})["result"]) == 2, 60,
                   message="both are scraped")
        scrape = requests.get(addresses[0] + "/health/metrics", timeout=30,
                              headers={"Authorization": f"Bearer {TOKEN}"}).text
        named = set(re.findall(r"flask_stability_\w+", (SHIPPED / "alerts.yml").read_text()))
        assert len(named) > 10
        assert named <= set(re.findall(r"^(\w+)[{ ]", scrape, re.MULTILINE)) | set(
            re.findall(r"^# TYPE (\w+)", scrape, re.MULTILINE))
        wait_until(lambda: _rules(ask) and all((rule["health"], rule.get("state", "inactive")) == ("ok", "inactive")
                                               for rule in _rules(ask)), 60, message="all rules are well and silent")
        loads = [Load(address, ["/stock"], 5).start() for address in addresses]
        try:
            _panels_have_data(ask)
        finally:
            for load in loads:
                load.stop()
        one.instances[0].kill()
        wait_until(lambda: {rule["name"] for rule in _rules(ask) if rule.get("state") == "pending"} == {
            "OrdersInstanceDown"}, 60)
