"""A reload that judges itself: a bad release is refused by itself, and a good one takes over without a loss."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from release_app import PATHS, SOURCE

from support import Load, Server, wait_until


class Service(Server):
    """A service whose next release is what a file says."""

    def __init__(self, folder: Path, *, env: dict[str, str] | None = None, **options: Any) -> None:
        self.run_dir = folder / "run"
        self.run_dir.mkdir(parents=True)
        super().__init__(folder, source=SOURCE, env={
            "STABILITY_RELEASE_JUDGE": "on", "STABILITY_RELEASE_WATCH": "0", "STABILITY_RUN_DIR": str(self.run_dir),
            **(env or {})}, **options)

    @property
    def environ(self) -> dict[str, str]:
        """The service's own environment."""
        return self._env

    def release(self, name: str) -> None:
        """What the next reload loads."""
        (self.folder / "release").write_text(name)

    def told(self, event: str, number: int = 1) -> dict[str, Any]:
        """Wait for a record of the master's, the last of so many."""
        def found() -> dict[str, Any] | None:
            records = self.records("process-manager", event)
            return records[number - 1] if len(records) >= number else None
        record: dict[str, Any] = wait_until(found, 90, message=event)
        return record

    def releases(self) -> set[str]:
        """Which releases answer now."""
        return {str(self.get("/r1").json().get("release")) for _ in range(12)}


@pytest.fixture
def service(tmp_path: Path, worker_class: str, request: pytest.FixtureRequest) -> Iterator[Service]:
    """Two workers of a good release; its environment: the test's parameter."""
    one = Service(tmp_path / "server", worker_class=worker_class, env=getattr(request, "param", None))
    one.release("good")
    try:
        one.start()
        wait_until(lambda: len(one.worker_pids()) == 2, message="two workers")
        yield one
    finally:
        one.stop()


def test_a_release_that_fails_every_request_is_refused(service: Service) -> None:
    """The old workers serve on with the old code; who looks is told why; the next good release is taken."""
    old = service.worker_pids()
    load = Load(service.url, PATHS, 40).start()
    time.sleep(2.0)
    service.release("fails")
    service.signal(signal.SIGHUP)
    refused = service.told("release_refused")
    assert refused["measure"] in ("failed", "exceptions")
    assert "KeyError" in refused["text"]
    assert refused["text"].endswith("serves on")
    wait_until(lambda: service.worker_pids() == old, 60, message="the old workers alone")
    load.stop()
    assert service.releases() == {"good"}
    wait_until(lambda: any(refused["text"] in note for note in service.health()["notes"]), 60, message="a note")
    assert service.health()["detailed"]["release"]["refused"]["text"] == refused["text"]
    service.release("good again")
    service.signal(signal.SIGHUP)
    service.told("release_settled")
    wait_until(lambda: set(old).isdisjoint(service.worker_pids()), 60, message="the old workers are gone")
    assert service.releases() == {"good again"}


@pytest.mark.parametrize("service", [{"STABILITY_RELEASE_TIME": "40"}], indirect=True)
def test_a_release_with_one_bad_route_is_refused(service: Service) -> None:
    """One route of three that are asked for."""
    load = Load(service.url, ["/r6", "/r7", "/r8"], 40).start()
    time.sleep(2.0)
    service.release("one")
    service.signal(signal.SIGHUP)
    assert "KeyError in /r7" in service.told("release_refused")["text"]
    load.stop()
    wait_until(lambda: service.releases() == {"good"}, 60)


def test_a_good_release_takes_over_and_loses_nothing(service: Service) -> None:
    """Every request is answered while it is judged, and while the others follow."""
    old = service.worker_pids()
    load = Load(service.url, PATHS, 30).start()
    service.release("better")
    service.signal(signal.SIGHUP)
    service.told("release_settled")
    wait_until(lambda: set(old).isdisjoint(service.worker_pids()), 60, message="the old workers are gone")
    wait_until(lambda: len(service.worker_pids()) == 2, 60)
    assert load.stop().errors() == {}
    assert service.releases() == {"better"}


@pytest.mark.parametrize("service", [{"STABILITY_RELEASE_WATCH": "300", "STABILITY_RELEASE_TIME": "1"}], indirect=True)
def test_what_shows_later_turns_back(service: Service) -> None:
    """The old workers were kept, and accept again; the new ones go."""
    old = service.worker_pids()
    load = Load(service.url, PATHS, 40).start()
    time.sleep(2.0)
    service.release("later")
    service.signal(signal.SIGHUP)
    service.told("release_watched")
    wait_until(lambda: service.releases() == {"later"}, 60, message="the old workers are parked")
    assert set(old) < set(service.worker_pids())
    (service.folder / "later").touch()
    assert service.told("release_refused")["turned_back"]
    wait_until(lambda: service.worker_pids() == old, 60, message="the old workers alone")
    load.stop()
    assert service.releases() == {"good"}


PROBES = [{"STABILITY_RELEASE_PROBES": "/r1 /r7", "STABILITY_RELEASE_TIME": "1"}]


def _stability(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flask", "stability", *arguments, "--master", str(service.pid)],
                          capture_output=True, text=True, timeout=150, cwd=service.folder,
                          env={**service.environ, "FLASK_APP": "app"})


@pytest.mark.parametrize("service", PROBES, indirect=True)
def test_a_deployment_hears_of_a_refusal(service: Service) -> None:
    """`flask stability reload --wait` ends with 1 for a release whose probe fails, and `releases` lists it."""
    service.release("one")
    done = _stability(service, "reload", "--wait")
    assert (done.returncode, "probe GET /r7: " in done.stderr) == (1, True), done.stderr
    assert "probe GET /r7: " in _stability(service, "releases").stdout


@pytest.mark.parametrize("service", PROBES, indirect=True)
def test_a_deployment_hears_that_the_release_serves(service: Service) -> None:
    """It ends with 0."""
    service.release("better")
    done = _stability(service, "reload", "--wait")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: service.releases() == {"better"}, 60)
