"""The shipped nginx and HAProxy in front of two instances that are started as the shipped unit starts them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import requests
from deployed import KeptAlive, Orders, site

from support import Load, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
needs_proxies = pytest.mark.needs("haproxy", "nginx")
TOKEN = "a-long-token-of-ours"
PATHS = ["/", "/stock", "/orders?limit=3"]
#: So that an instance takes its time to end.
SLOW, SLOW_ENV = ["/faults/hang?seconds=3"], {"SAMPLE_FAULTS": "1"}


def _more(loads: dict[str, Load]) -> None:
    """Wait until each proxy has answered, or failed, four seconds' worth of requests more."""
    before = {kind: len(load.result.outcomes) for kind, load in loads.items()}
    wait_until(lambda: all(len(load.result.outcomes) >= before[kind] + 80 for kind, load in loads.items()), 120,
               message="more requests")


@needs_proxies
def test_a_rolling_restart_loses_nothing(tmp_path: Path, worker_class: str) -> None:
    """Both instances one after the other, under load on new and on kept connections: no request fails, through neither
    proxy, and every order is stored once.
    """
    with site(tmp_path, worker_class, "haproxy", "nginx", extra=SLOW_ENV) as one, contextlib.ExitStack() as clients:
        before = [instance.process.pid for instance in one.instances if instance.process]
        loads = {kind: Load(proxy.url, PATHS, 20).start() for kind, proxy in one.proxies.items()}
        slow = {kind: Load(proxy.url, SLOW, 0.5).start() for kind, proxy in one.proxies.items()}
        orders = {kind: Orders(proxy.url, kind) for kind, proxy in one.proxies.items()}
        kept = {kind: KeptAlive(proxy.port) for kind, proxy in one.proxies.items()}
        for client in (*loads.values(), *slow.values(), *orders.values(), *kept.values()):
            clients.callback(client.stop)
        _more(loads)
        for instance in one.instances:
            instance.stop()
            instance.start()
            one.settled()
        _more(loads)
        wait_until(lambda: all(instance.served() > 50 for instance in one.instances), 60, message="both serve")
        results = {kind: load.stop() for kind, load in loads.items()}
        ends = {kind: load.stop() for kind, load in slow.items()}
        answers = {kind: order.stop() for kind, order in orders.items()}
        said = {kind: client.stop() for kind, client in kept.items()}
        clients.pop_all()
        for kind, proxy in one.proxies.items():
            assert results[kind].failed == 0, (kind, results[kind].errors(), proxy.log())
            assert results[kind].total > 200
            assert ends[kind].failed == 0, (kind, ends[kind].errors())
            assert '"failed": []' in said[kind], (kind, said[kind])
            assert set(answers[kind].values()) == {201}, (kind, proxy.log())
        assert one.stored() == {customer: 1 for found in answers.values() for customer in found}
        assert not set(before) & {instance.process.pid for instance in one.instances if instance.process}


@needs_proxies
def test_an_instance_that_was_killed_is_not_missed_and_comes_back(tmp_path: Path, worker_class: str) -> None:
    """Master and workers get SIGKILL under load: what was in flight there is asked of the other one."""
    with site(tmp_path, worker_class, "haproxy", "nginx") as one, contextlib.ExitStack() as clients:
        loads = {kind: Load(proxy.url, PATHS, 20).start() for kind, proxy in one.proxies.items()}
        for load in loads.values():
            clients.callback(load.stop)
        _more(loads)
        for instance in one.instances:
            instance.kill()
            _more(loads)
            instance.start()
            one.settled()
            wait_until(lambda instance=instance: instance.served() > 50, 60, message="it is sent requests again")
        results = {kind: load.stop() for kind, load in loads.items()}
        clients.pop_all()
        for kind, result in results.items():
            assert result.failed == 0, (kind, result.errors(), one.proxies[kind].log())
            assert result.total > 200


@needs_proxies
def test_strangers_see_the_status_alone(tmp_path: Path) -> None:
    """Through both proxies: pass or fail at /health, nothing of what lies below it; the request's id is the proxy's.

    A client that says by a header of gunicorn's what the path is in truth is not believed, though the proxies' address
    is.
    """
    env = {"STABILITY_HEALTH_DETAILS": "token", "STABILITY_HEALTH_TOKEN": TOKEN}
    with site(tmp_path, "gthread", "haproxy", "nginx", extra=env) as one:
        ways = [*(proxy.url for proxy in one.proxies.values()), f"http://127.0.0.1:{one.instances[0].port}"]
        for url in ways:
            for headers in ({"SCRIPT_NAME": "/foo"}, {"script_name": "/foo"}, {"PATH_INFO": "/health/metrics"},
                            {"SCRIPT-NAME": "/foo"}, {"X-Forwarded-Prefix": "/foo"}):
                answer = requests.get(url + "/foo/health/metrics", timeout=30,
                                      headers={**headers, "Authorization": f"Bearer {TOKEN}"})
                assert answer.status_code == 404, (url, headers)
        # its scheme is: the instances' proxies say when a client came by HTTPS
        login = requests.post(ways[-1] + "/health/dashboard", {"token": TOKEN}, timeout=30, allow_redirects=False,
                              headers={"X-Forwarded-Proto": "https"})
        assert "Secure" in login.headers["Set-Cookie"]
        for proxy in one.proxies.values():
            assert set(requests.get(proxy.url + "/health", timeout=30).json()) == {"status"}
            for path in ("/health/metrics", "/health/history", "/health/ready", "/HEALTH/metrics", "/health%2Fmetrics"):
                assert requests.get(proxy.url + path, timeout=30).status_code == 404
            forged = {"X-Request-ID": "forged-forged-forged"}
            assert requests.get(proxy.url, headers=forged, timeout=30).headers["X-Request-ID"] != forged["X-Request-ID"]
