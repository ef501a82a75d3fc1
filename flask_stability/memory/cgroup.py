"""Read the memory figures of the container and the machine. Any of them may be unavailable."""

from __future__ import annotations

import os

import psutil

_ROOT = "/sys/fs/cgroup"
_OWN = "/proc/self/cgroup"
_UNLIMITED = 1 << 60


def _own(controller: str = "") -> list[str]:
    """Return the directories of this process's cgroup, innermost first, up to the root."""
    try:
        with open(_OWN, encoding="ascii", errors="replace") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    base, path = _ROOT, None
    for _, names, where in (line for line in lines if len(line) == 3):
        if not controller and names == "":
            path = where
        elif controller and controller in names.split(","):
            base, path = f"{_ROOT}/{controller}", where
    if path is None:
        return []
    found = []
    while True:
        found.append(base + path.rstrip("/"))
        if path in ("/", ""):
            # in a container the path is often the host's, and what is mounted is the container's own
            return [folder for folder in found if os.path.isdir(folder)]
        path = os.path.dirname(path)


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            number = int(file.read())
    except (OSError, ValueError):
        return None
    return number if number < _UNLIMITED else None


def limit() -> int | None:
    """Return the smallest memory limit in bytes of this process's cgroups (v2, else v1); None without one."""
    found = [_number(f"{folder}/memory.max") for folder in _own()]
    found += [_number(f"{folder}/memory.limit_in_bytes") for folder in _own("memory")]
    return min((number for number in found if number is not None), default=None)


def _left() -> int | None:
    """Return the bytes left below the nearest limit of this process's cgroups; None without a limit.

    File cache that the kernel can drop counts as free.
    """
    found = []
    for folder, maximum, current, prefix in (
            *((folder, "memory.max", "memory.current", "") for folder in _own()),
            *((folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_") for folder in _own("memory"))):
        bound, used = _number(f"{folder}/{maximum}"), _number(f"{folder}/{current}")
        if bound is not None and used is not None:
            cache = sum(_stat(f"{folder}/memory.stat", f"{prefix}{kind}_file") for kind in ("active", "inactive"))
            found.append(max(0, bound - max(0, used - cache)))
    return min(found, default=None)


def _stat(path: str, name: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                key, _, number = line.partition(" ")
                if key == name:
                    return int(number)
    except (OSError, ValueError):
        pass
    return 0


def oom_kills() -> int:
    """Return how many processes of this cgroup the kernel's OOM killer has killed (v2, else v1)."""
    return max((*(_stat(f"{folder}/memory.events", "oom_kill") for folder in _own()[:1]),
                *(_stat(f"{folder}/memory.oom_control", "oom_kill") for folder in _own("memory")[:1])), default=0)


def total() -> int:
    """Return the container's memory limit in bytes, else the machine's memory; 0 if neither is known."""
    bound = limit()
    return bound if bound is not None else _machine()[0]


def _machine() -> tuple[int, int | None]:
    """Return the machine's total and available memory in bytes."""
    try:
        found = psutil.virtual_memory()
        return int(found.total), int(found.available)
    except Exception:  # /proc may be hidden, and each system fails in its own way
        return 0, None


def pressure() -> float:
    """Return the percentage of the last ten seconds in which a task waited for memory (PSI); 0.0 if unknown."""
    for path in (*(f"{folder}/memory.pressure" for folder in _own()[:1]), "/proc/pressure/memory"):
        try:
            with open(path, encoding="ascii") as file:
                fields = dict(part.split("=", 1) for part in file.readline().split()[1:])
            return float(fields["avg10"])
        except (OSError, ValueError, KeyError):
            continue
    return 0.0


def available() -> int | None:
    """Return the bytes that may still be used in the container and on the machine; None if neither is known."""
    return min((number for number in (_machine()[1], _left()) if number is not None), default=None)
