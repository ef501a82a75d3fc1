"""sample_app/deploy: each file is valid to the program that reads it, and the numbers in them fit each other."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from flask_stability import scoreboard
from flask_stability.config import KEYS, Settings, unknown_keys
from flask_stability.config_types import parse_size
from flask_stability.memory.policy import default_limit
from support import ROOT
from support_deploy import (
    DEPLOY,
    UNIT,
    docker_environment,
    dockerfile,
    gunicorn_settings,
    manifests,
    unit,
    unit_environment,
)

MARGIN = 5.0  #: seconds between what the service needs to end and what it is given
NEWEST = "1.37"


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)\s*(ms|s|m|min|h)?", text.strip())
    assert found, text
    return float(found[1]) * {"ms": 0.001, None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}[found[2]]


def _pod() -> dict[str, Any]:
    pod: dict[str, Any] = manifests()["Deployment"]["spec"]["template"]["spec"]
    return pod


def _container() -> dict[str, Any]:
    container, = _pod()["containers"]
    assert isinstance(container, dict)
    return container


def _pod_environment() -> dict[str, str]:
    own = {entry["name"]: entry["value"] for entry in _container()["env"] if "value" in entry}
    return {**docker_environment(), **manifests()["Secret"]["stringData"], **own}


# -- systemd -----------------------------------------------------------------------------------------------------


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """No unknown key, no bad value; /opt/orders is the documented placeholder. It does find what is wrong."""
    path = tmp_path / "orders@3007.service"
    path.write_text(UNIT.read_text().replace("/opt/orders/.venv/bin/gunicorn", shutil.which("true") or "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    path.write_text(path.read_text() + "\n[Service]\nWatchdogSecs=30\n")
    assert "Unknown key" in subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


def test_the_unit_gives_the_service_the_time_that_it_takes(tmp_path: Path) -> None:
    """To drain and to end; a watchdog that a busy machine does not trip; SIGTERM for the master alone."""
    service, env = unit(), unit_environment(3007, tmp_path)
    gunicorn = gunicorn_settings(env, tmp_path)
    assert gunicorn["bind"] == "['127.0.0.1:3007']"
    assert gunicorn["worker_tmp_dir"] == env["STABILITY_RUN_DIR"]
    settings = Settings.from_environ(env)
    assert settings.drain_delay > 0
    assert _seconds(service["TimeoutStopSec"]) >= settings.drain_delay + float(gunicorn["graceful_timeout"]) + MARGIN
    assert _seconds(service["WatchdogSec"]) >= 30
    assert (service["Type"], service["KillMode"], service["Restart"]) == ("notify", "mixed", "always")
    assert service["OOMPolicy"] == "continue"
    assert service["NotifyAccess"] == "main"
    directories = {env[name].removeprefix(str(tmp_path)) for name in ("STABILITY_RUN_DIR", "STABILITY_LOG_DIR")}
    assert directories == {"/run/" + service["RuntimeDirectory"].replace("%i", "3007"),
                           "/var/log/" + service["LogsDirectory"].replace("%i", "3007")}
    restarts = unit("Unit")
    assert float(restarts["StartLimitBurst"]) * _seconds(service["RestartSec"]) < _seconds(
        restarts["StartLimitIntervalSec"]), "the limit can be reached"
    _enough_memory(service["MemoryMax"], int(gunicorn["workers"]))


def _enough_memory(container: str, workers: int) -> None:
    """A worker's limit that follows from the container's lets one of the sample's size, with room, live."""
    assert default_limit(parse_size(container), workers) > 100 << 20


def test_every_setting_in_the_files_is_one(tmp_path: Path) -> None:
    """No misspelt STABILITY_ key anywhere, and all values are accepted."""
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            named = set(re.findall(r"STABILITY_[A-Z_]*[A-Z]", path.read_text()))
            assert not unknown_keys(named), path
    Settings.from_environ(docker_environment())
    Settings.from_environ(_pod_environment())
    example = (DEPLOY / "systemd" / "orders.env.example").read_text()
    lines = dict(re.findall(r"^#?(STABILITY_\w+)=(.*)$", example, re.MULTILINE))
    assert set(lines) <= set(KEYS)
    assert Settings.from_environ({**unit_environment(3007, tmp_path), **lines}).health_details == "token"


def test_nothing_is_shown_to_strangers(tmp_path: Path) -> None:
    """The sample shows details to all, for development; deployed it does not."""
    assert Settings.from_environ(unit_environment(3007, tmp_path)).health_details == "never"
    assert Settings.from_environ(docker_environment()).health_details == "never"
    assert Settings.from_environ(_pod_environment()).health_details == "token"


# -- Kubernetes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.27", NEWEST])
@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Secret"])
def test_the_manifests_fit_the_published_schemas(kind: str, version: str) -> None:
    """Strictly: a field that does not exist is an error as well."""
    kubernetes_validate.validate(manifests()[kind], version, strict=True)


def test_the_schemas_would_find_a_misspelt_field() -> None:
    """So that the test above can fail."""
    deployment = manifests()["Deployment"]
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, NEWEST, strict=True)


def test_the_objects_find_each_other() -> None:
    """Labels, names and ports that have to be the same are."""
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == found["Deployment"]["spec"]["selector"]["matchLabels"] == found["Service"]["spec"]["selector"]
    assert labels == found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    assert _container()["envFrom"] == [{"secretRef": {"name": found["Secret"]["metadata"]["name"]}}]
    port, = _container()["ports"]
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert str(port["containerPort"]) == docker_environment()["SERVER_PORT"]
    mounts = {mount["name"]: mount["mountPath"] for mount in _container()["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in _pod()["volumes"]}
    assert _pod_environment()["STABILITY_RUN_DIR"] == mounts["run"], "the root file system is read-only"
    assert found["PodDisruptionBudget"]["spec"]["minAvailable"] < found["Deployment"]["spec"]["replicas"]


def test_the_pods_numbers_fit_each_other(tmp_path: Path) -> None:
    """Grace over drain and graceful timeout; drain over the probe's notice; liveness the most patient of all."""
    env, container = _pod_environment(), _container()
    gunicorn = gunicorn_settings({name: value for name, value in env.items() if not name.startswith("DB_")}, tmp_path)
    settings = Settings.from_environ(env)
    graceful = float(gunicorn["graceful_timeout"])
    assert _pod()["terminationGracePeriodSeconds"] >= settings.drain_delay + graceful + MARGIN
    ready, live, startup = (container[f"{name}Probe"] for name in ("readiness", "liveness", "startup"))
    notice = ready["periodSeconds"] * ready["failureThreshold"] + ready["timeoutSeconds"]
    assert notice + MARGIN <= settings.drain_delay
    patience = live["periodSeconds"] * live["failureThreshold"]
    assert patience > float(gunicorn["timeout"])
    assert patience > notice
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60
    assert {probe["httpGet"]["path"] for probe in (ready, live, startup)} == {
        settings.health_path + suffix for suffix in ("/ready", "/live", "/startup")}
    limit = container["resources"]["limits"]["memory"]
    assert parse_size(container["resources"]["requests"]["memory"] + "B") <= parse_size(limit + "B")
    assert "cpu" not in container["resources"]["limits"]
    _enough_memory(limit + "B", int(gunicorn["workers"]))


def test_the_pod_has_no_rights_that_it_does_not_need() -> None:
    """Pod security's level "restricted", and a root file system that cannot be written."""
    secure, pod = _container()["securityContext"], _pod()
    assert secure == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                      "capabilities": {"drop": ["ALL"]}}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    user = next(rest for name, rest in dockerfile() if name == "USER")
    assert user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"


# -- Docker ------------------------------------------------------------------------------------------------------


def test_the_dockerfile_copies_what_is_there_and_sent() -> None:
    """Every source of a COPY exists and is let through by .dockerignore; the commands need no shell."""
    sent = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    for name, rest in dockerfile():
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source in sent, source
    commands = [json.loads(rest) for name, rest in dockerfile() if name == "CMD"]
    assert commands == [["gunicorn"]], "exec form: gunicorn itself gets SIGTERM"
    check = next(rest for name, rest in dockerfile() if name == "HEALTHCHECK").partition("CMD ")[2]
    assert json.loads(check)[:2] == ["python", "-c"]
    compile(json.loads(check)[2], "HEALTHCHECK", "exec")
    assert next(rest for name, rest in dockerfile() if name == "STOPSIGNAL") == "SIGTERM"


def test_the_image_is_built_from_what_the_package_declares() -> None:
    """The wheel is built with the extras that the package has, and nothing the project needs is missing."""
    wheel = next(rest for name, rest in dockerfile() if name == "RUN" and "pip wheel" in rest)
    extras = set(re.findall(r"\.\[([\w,]+)\]", wheel)[0].split(","))
    assert extras == {"mysql", "metrics", "cli"}
    declared = (ROOT / "setup.cfg").read_text()
    assert all(re.search(rf"^{extra} =$", declared, re.MULTILINE) for extra in extras)


# -- Prometheus --------------------------------------------------------------------------------------------------


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("command", ["check rules alerts.yml", "test rules alerts_test.yml",
                                     "check rules instances.yml", "test rules instances_test.yml",
                                     "check config prometheus.yml"])
def test_prometheus_accepts_rules_and_configuration(command: str, tmp_path: Path) -> None:
    """And the rules say what they should on series made for each of them."""
    for path in (DEPLOY / "prometheus").iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace("/etc/prometheus/orders.token", "token"))
    (tmp_path / "token").write_text("secret")
    done = subprocess.run(["promtool", *shlex.split(command)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    """No rule that was never seen to say anything."""
    for name in ("alerts", "instances"):
        rules = set(re.findall(r"alert: (\w+)", (DEPLOY / "prometheus" / f"{name}.yml").read_text()))
        cases = (DEPLOY / "prometheus" / f"{name}_test.yml").read_text()
        assert set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", cases)) == rules


def test_the_crash_alert_names_the_reasons_that_are_crashes() -> None:
    """As the supervisor counts them."""
    text = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    assert set(re.findall(r'reason=~"(crash_signal[\w|]*)"', text)[0].split("|")) == scoreboard.CRASHES


# -- the proxies -------------------------------------------------------------------------------------------------


def test_the_proxies_wait_longer_than_the_service_and_notice_before_it_closes(tmp_path: Path) -> None:
    """Their read timeout is above a request's deadline; HAProxy sees the drain before it ends."""
    settings = Settings.from_environ(unit_environment(3007, tmp_path))
    haproxy, nginx = (DEPLOY / "haproxy.cfg").read_text(), (DEPLOY / "nginx.conf").read_text()
    assert _seconds(re.findall(r"timeout server (\S+)", haproxy)[0]) > settings.request_timeout
    assert _seconds(re.findall(r"proxy_read_timeout (\S+);", nginx)[0]) > settings.request_timeout
    inter, fall = re.findall(r"check inter (\S+) fall (\d+)", haproxy)[0]
    check = _seconds(re.findall(r"timeout check (\S+)", haproxy)[0])
    assert _seconds(inter) * int(fall) + check + MARGIN <= settings.drain_delay
    assert set(re.findall(r"127\.0\.0\.1:\d+", haproxy)) == set(re.findall(r"127\.0\.0\.1:\d+", nginx))
