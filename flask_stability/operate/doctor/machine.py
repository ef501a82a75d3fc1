"""Examine the machine: ports, disks, permissions, versions. Changes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from ... import scoreboard
from ...server.gunicorn.port_in_use import listener
from ..finding import Finding
from ..inspect import Facts

MB = 1 << 20
PACKAGE = "flask_stability"


def ports(facts: Facts) -> Iterator[Finding]:
    """Check that the service could listen, and name the process that prevents it."""
    for bind in facts.binds:
        if isinstance(bind, list):
            yield _port(str(bind[0]), int(bind[1]), facts)
        elif isinstance(bind, str):
            yield _socket_file(bind)


def _port(host: str, port: int, facts: Facts) -> Finding:
    name = f"port {port}"
    if not 0 <= port < 65536:  # getaddrinfo takes it modulo 65536
        return Finding(name, "fail", "no port", "give one between 1 and 65535 (SERVER_PORT, bind)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _used(name, port, facts)
        remedy = {errno.EACCES: "ports below 1024 are root's: choose a higher one behind a proxy",
                  errno.EADDRNOTAVAIL: "this machine has no such address: 0.0.0.0 means all"}
        return Finding(name, "fail", f"{host}: {error.strerror or error}",
                       remedy.get(error.errno or 0, "correct `bind`"))
    return Finding(name, "ok", f"free on {host}")


def _used(name: str, port: int, facts: Facts) -> Finding:
    """Return the finding about a port in use: by the running service itself, or by another process."""
    owner = listener(port)
    if owner is None:
        return Finding(name, "fail", "in use by a process that this user may not see",
                       f"as root: ss -ltnp 'sport = :{port}'")
    master = _master(owner, facts)
    if master is not None:
        return Finding(name, "ok", f"in use by the running service (master {master})")
    return Finding(name, "fail", f"in use by {owner.name()}, process {owner.pid}",
                   "stop it, or choose another port (SERVER_PORT, bind)")


def _master(process: psutil.Process, facts: Facts) -> int | None:
    """Return the master that a process is, or whose worker it is: a worker listens on the master's socket."""
    folder = facts.settings.run_dir
    known = {pid for pid, _ in scoreboard.running([folder] if folder else scoreboard.default_run_dirs())}
    with contextlib.suppress(psutil.Error):
        for one in (process, *process.parents()):
            if one.pid in known:
                return one.pid
    return None


def _socket_file(path: str) -> Finding:
    name = f"socket {path}"
    folder = os.path.dirname(path) or "."
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, "fail", f"{folder} cannot be written to", "give the service's user a directory for it")
    if os.path.exists(path):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(path)
                return Finding(name, "warn", "a process listens there already: a start would take its address away",
                               "stop the other service first")
            except OSError:
                pass
    return Finding(name, "ok", "free")


def versions(facts: Facts) -> Iterator[Finding]:
    """Compare Python and the packages with what we need and with what is pinned beside the service."""
    wanted = {_name(requirement): requirement for requirement in _requirements(facts)}
    found = [f"Python {sys.version.split()[0]}"]
    for _, requirement in sorted(wanted.items()):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding("packages", "fail", f"{requirement.name} is missing", f"pip install '{_given(requirement)}'")
            continue
        found.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            yield Finding("packages", "fail", f"{requirement.name} {version} is installed, {_given(requirement)} is "
                          "needed", f"pip install '{_given(requirement)}'")
    yield Finding("packages", "ok", ", ".join(found))
    yield from _pins(wanted)


def _name(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def _given(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _requirements(facts: Facts) -> Iterator[Requirement]:
    """Return what this package needs, including its extra for MySQL if a MySQL is named."""
    url = facts.app_settings.db_url or ""
    extra = "pymysql" if "+pymysql:" in url[:20] else "mysql" if url.startswith(("mysql", "mariadb")) else ""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return  # run from a checkout
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def _pins(wanted: dict[str, Requirement]) -> Iterator[Finding]:
    """Report pins in requirements.txt that are too old for us, or differ from what is installed."""
    path = Path("requirements.txt")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        try:
            pinned = Requirement(line.partition("#")[0].partition(" --")[0].strip())
        except InvalidRequirement:
            continue
        exact = [clause.version for clause in pinned.specifier if clause.operator in ("==", "===")]
        needed = wanted.get(_name(pinned))
        if needed is None or not exact or "*" in exact[0]:
            continue
        if not needed.specifier.contains(exact[0], prereleases=True):
            yield Finding("pins", "fail", f"{path} pins {pinned.name} {exact[0]}, {_given(needed)} is needed",
                          "raise the pin")
        elif _differs(pinned.name, exact[0]):
            yield Finding("pins", "warn", f"{path} pins {pinned.name} {exact[0]}, {metadata.version(pinned.name)} is "
                          "installed", "install what is pinned (pip install -r requirements.txt), or pin what was "
                          "tested")


def _differs(name: str, pinned: str) -> bool:
    try:
        return Version(metadata.version(name)) != Version(pinned)
    except (metadata.PackageNotFoundError, InvalidVersion):
        return False


def disks(facts: Facts) -> Iterator[Finding]:
    """Check the free space where logs, the board and the embedded database are written."""
    found = facts.app_settings
    places = [("logs", found.log_dir), ("scoreboard", facts.settings.run_dir or scoreboard.default_run_dirs()[-1]),
              *(("instance", app.instance_path) for app in facts.apps)]
    for what, place in places:
        if not place:
            continue
        folder = existing(os.path.join(facts.gunicorn.get("chdir", ""), place))
        usage = shutil.disk_usage(folder)
        share = usage.free / usage.total if usage.total else 0.0
        full = usage.free < 16 * MB or share < 0.01
        status = "fail" if full else "warn" if share < found.health_disk_min_free else "ok"
        yield Finding(f"disk of {what}", status, f"{usage.free // MB} MB ({share:.0%}) free at {folder}",
                      "" if status == "ok" else "make room: flask stability clean-logs, or a larger disk")


def existing(path: str) -> str:
    """Return the path, or the nearest existing folder above it."""
    path = os.path.abspath(path)
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def permissions(facts: Facts) -> Iterator[Finding]:
    """Check the service's user, what it may write, and which users may read its secrets."""
    if os.geteuid() == 0 and not facts.gunicorn.get("uid"):
        yield Finding("user", "warn", "the workers would run as root", "start as a user of its own, or set `user`")
    for what, place in {"STABILITY_LOG_DIR": facts.app_settings.log_dir,
                        "STABILITY_RUN_DIR": facts.settings.run_dir}.items():
        if place is None:
            continue
        folder = existing(os.path.join(facts.gunicorn.get("chdir", ""), place))
        good = os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
        yield Finding("permissions", "ok" if good else "fail", f"{what}: {folder} can "
                      + ("be written to" if good else "not be written to by this user"),
                      "" if good else f"make {place} a directory that the service's user may write to")
        if good and os.stat(folder).st_mode & stat.S_IWOTH:
            yield Finding("permissions", "warn", f"{what}: every user of this machine may write to {folder}",
                          "give the service a directory of its own, mode 0750")
    if facts.app_settings.log_dir is None:
        yield Finding("logs", "ok", "go to stderr")
    try:
        mode = os.stat(".env").st_mode
    except OSError:
        return
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        yield Finding("permissions", "warn", ".env may be read by every user of this machine", "chmod 600 .env")


#: Every look at the machine.
LOOKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (ports, versions, disks, permissions)
