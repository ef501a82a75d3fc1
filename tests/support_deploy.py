"""The files of sample_app/deploy as tests read them: with their documented placeholders replaced, else as shipped."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from support import ROOT

DEPLOY = ROOT / "sample_app" / "deploy"
UNIT = DEPLOY / "systemd" / "orders@.service"
#: What a service of the tests' own must not inherit.
_FOREIGN = ("STABILITY_", "DB_", "SAMPLE_", "SERVER_", "GUNICORN", "NOTIFY_", "WATCHDOG_", "PYTHONPATH")


def unit(section: str = "Service") -> dict[str, str]:
    """A section of the unit; of a key that stands more than once, the last."""
    text = UNIT.read_text().partition(f"[{section}]")[2].partition("\n[")[0]
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def unit_environment(port: int, folder: Path) -> dict[str, str]:
    """The environment that the unit gives an instance, its directories in `folder`, made as systemd makes them."""
    found: dict[str, str] = {}
    for line in re.findall(r"^Environment=(.*)$", UNIT.read_text(), re.MULTILINE):
        for word in shlex.split(line):
            name, _, value = word.partition("=")
            found[name] = re.sub(r"/(run|var/log|var/lib)/(?=orders)", f"{folder}/\\1/", value.replace("%i", str(port)))
    for name in ("STABILITY_RUN_DIR", "STABILITY_LOG_DIR", "SAMPLE_INSTANCE"):
        Path(found[name]).mkdir(parents=True, exist_ok=True)
    return found


def environment(own: dict[str, str]) -> dict[str, str]:
    """This process's environment without settings of the service, and `own`."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)},
            "PYTHONPATH": str(ROOT), **own}


def gunicorn_settings(own: dict[str, str], folder: Path) -> dict[str, str]:
    """What gunicorn makes of the sample's gunicorn.conf.py in that environment, as it prints it."""
    env = environment({**own, "SAMPLE_INSTANCE": str(folder / "instance")})
    done = subprocess.run([sys.executable, "-m", "gunicorn", "--print-config"], cwd=ROOT, env=env, capture_output=True,
                          text=True, timeout=60, check=True)
    return dict(re.findall(r"^(\w+)\s+= (.*)$", done.stdout, re.MULTILINE))


def manifests() -> dict[str, dict[str, Any]]:
    """The Kubernetes objects by their kind."""
    found = {}
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found[document["kind"]] = document
    return found


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = "\n".join(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    return [(name, rest) for name, _, rest in
            (line.strip().partition(" ") for line in text.replace("\\\n", " ").splitlines() if line.strip())]


def docker_environment() -> dict[str, str]:
    """What ENV in the Dockerfile sets."""
    words = (word for name, rest in dockerfile() if name == "ENV" for word in shlex.split(rest))
    return {name: value for name, _, value in (word.partition("=") for word in words)}
