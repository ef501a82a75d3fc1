"""What a worker that grew was holding: a record that a developer can act on. Bounded in time and objects."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from .process import confirmed, resident
from .trackers import is_timer, names_in_modules, signals

MOST_OBJECTS = 10_000_000
CHUNK = 50_000
SECONDS = 2.0
SAMPLE = 200  #: objects of a type that its size is told from
WALK = 300  #: things that are followed from one object
TOP = 10
FEWEST = 20  #: items of a container in a module that make it worth remembering
# types are told apart by their ids: a metaclass may say anything of equality, hashes, names and flags
_PLAIN = frozenset(map(id, (bytes, bytearray, str, int, float, complex, memoryview)))
_CONTAINERS = frozenset(map(id, (dict, list, tuple, set, frozenset, deque)))
_SIZED = frozenset(map(id, (dict, list, set, deque)))
_HEAP_TYPE = 1 << 9  #: a class made by a class statement
_state_of = threading.Thread.__dict__["__dict__"].__get__
_flags, _module, _qualname = (type.__dict__[name].__get__ for name in ("__flags__", "__module__", "__qualname__"))


@dataclass
class _Baseline:
    """What there was when the worker was warm: the objects of each type, and the items of each container."""

    types: Counter[str] = field(default_factory=Counter)
    containers: dict[str, int] = field(default_factory=dict)


_warm = _Baseline()


def baseline() -> None:
    """Remember what there is now that the worker is warm: 90 ms for two million objects."""
    _warm.types = _count(gc.get_objects())
    _warm.containers = {name: len(value) for name, value in _containers()}


def report(reason: str) -> dict[str, Any]:
    """What grew since the baseline (or is there, without one), and what is held open; takes some three seconds at most.

    ``grown_types``: the types whose new objects hold most, each counted with the plain values and containers inside it
    (so that what one holds for another counts for both); bytes are told from a sample.
    """
    private = confirmed()[1]
    found: dict[str, Any] = {"reason": reason, "rss_bytes": resident(), "private_bytes": private,
                             "since_warm": bool(_warm.types)}
    for name, look in _LOOKS:
        try:
            found[name] = look()
        except Exception as error:  # what an application's objects do when looked at is not ours to know
            found[name] = f"{type(error).__name__}: {error}"[:200]
    return found


def _grown_types() -> list[dict[str, Any]]:
    deadline = time.monotonic() + SECONDS
    objects = gc.get_objects()
    counts = _count(objects)
    warm = _warm.types
    grown = {name: count - warm.get(name, 0) for name, count in counts.items() if count > warm.get(name, 0)}
    samples = _samples(objects, set(grown), deadline)
    del objects
    held = {name: number * sum(map(_held, samples[name])) // len(samples[name])
            for name, number in grown.items() if samples.get(name)}
    first = sorted(held, key=lambda name: -held[name])[:TOP]
    return [{"type": name, "bytes": held[name], "objects": grown[name]} for name in first]


def _name(kind: type) -> str:
    """As the class statement gave it; what a metaclass or a property would say is not asked."""
    try:
        module = _module(kind)
    except AttributeError:
        module = None
    return f"{module}.{_qualname(kind)}" if type(module) is str else str(_qualname(kind))


def _count(objects: list[Any]) -> Counter[str]:
    """Objects that the collector tracks, by type; counted in C, a chunk at a time."""
    numbers: Counter[int] = Counter()
    kinds: dict[int, type] = {}
    deadline = time.monotonic() + SECONDS
    found = map(type, itertools.islice(objects, MOST_OBJECTS))
    while chunk := list(itertools.islice(found, CHUNK)):
        numbers.update(map(id, chunk))
        kinds.update(zip(map(id, chunk), chunk, strict=True))
        if time.monotonic() > deadline:
            break
    named: Counter[str] = Counter()
    for key, number in numbers.items():
        named[_name(kinds[key])] += number
    return named


def _samples(objects: list[Any], names: set[str], deadline: float) -> dict[str, list[Any]]:
    """The youngest of the old objects of each of these types: `gc.get_objects` gives the oldest generation last."""
    found: dict[str, list[Any]] = {}
    known: dict[int, str] = {}
    for number, thing in enumerate(reversed(objects)):
        if number >= MOST_OBJECTS or (not number & 0xFFF and time.monotonic() > deadline):
            break
        kind = type(thing)
        name = known.get(id(kind)) or known.setdefault(id(kind), _name(kind))
        if name in names:
            chosen = found.setdefault(name, [])
            if len(chosen) < SAMPLE:
                chosen.append(thing)
    return found


def _held(thing: Any, objects_inside: bool = False) -> int:
    """Bytes of an object with the plain values inside it, through containers: big ones hide in small ones.

    `gc.get_referents` runs no code of the object's, and makes no ``__dict__`` where there was none.

    :param objects_inside: with those of other objects in it as well.
    """
    total, todo, walked = object.__sizeof__(thing), [thing], 0
    # a function leads to the names of its module, which belong to all of them: a hundred megabytes in any program
    shared = {id(thing.__globals__), id(getattr(thing, "__builtins__", None))} if type(thing) is FunctionType else set()
    while todo and walked < WALK:
        inside = gc.get_referents(todo.pop())
        if shared:
            inside, shared = [value for value in inside if id(value) not in shared], set()
        walked += len(inside)
        found = 0
        for value in inside[:WALK]:
            kind = type(value)
            if id(kind) in _PLAIN:
                found += sys.getsizeof(value, 0)
            elif id(kind) in _CONTAINERS:
                found += sys.getsizeof(value, 0)
                todo.append(value)
            elif objects_inside and _flags(kind) & _HEAP_TYPE and not issubclass(kind, type):
                found += _held(value)
        total += found * len(inside) // min(len(inside), WALK) if inside else 0
    return total


def _containers() -> Iterator[tuple[str, Any]]:
    """The containers that stand in modules under a name, one name each."""
    seen: set[int] = set()
    for module, names in names_in_modules():
        for name, value in list(names.items()):
            if id(type(value)) in _SIZED and len(value) >= FEWEST and id(value) not in seen and module != __name__:
                seen.add(id(value))
                yield f"{module}.{name}", value


def _grown_globals() -> list[dict[str, Any]]:
    """Containers in modules that have more in them than at the baseline: most leaks end in one."""
    grown = [(len(value) - _warm.containers.get(name, 0), name, value) for name, value in _containers()]
    found = [{"name": name, "bytes": _held(value, True), "items": len(value), "more_items": more}
             for more, name, value in sorted(grown, key=lambda item: -item[0])[:5 * TOP] if more > 0]
    return sorted(found, key=lambda item: -int(str(item["bytes"])))[:TOP]


def _threads() -> dict[str, Any]:
    threads = threading.enumerate()
    timers = [thread for thread in threads if is_timer(thread)]
    return {"number": len(threads),
            "names": dict(Counter(map(_thread_name, threads)).most_common(TOP)),
            "timers": len(timers),
            "timers_call": dict(Counter(_function(_state_of(timer).get("function"))
                                        for timer in timers).most_common(TOP))}


def _thread_name(thread: threading.Thread) -> str:
    name = _state_of(thread).get("_name")
    return (name.rstrip("0123456789-_") or name)[:100] if type(name) is str else _name(type(thread))


def _function(function: Any) -> str:
    """Its name, or its type's: what is called may be any object."""
    if type(function) is MethodType:
        function = function.__func__
    if type(function) is FunctionType:
        return function.__qualname__[:100]
    return (function.__name__ if type(function) is BuiltinFunctionType else _name(type(function)))[:100]


def _open_files() -> dict[str, Any]:
    """Open descriptors by kind, and the names of files that are open most often."""
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd")[:4096]:
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        kind = "file" if target.startswith("/") else target.partition(":")[0]
        kinds[kind] += 1
        if kind == "file":
            names[target[:200]] += 1
    return {"kinds": dict(kinds), "most": dict(names.most_common(TOP))}


def _receivers() -> dict[str, int]:
    found = Counter({name: len(signal.receivers) for name, signal in signals() if signal.receivers})
    return dict(found.most_common(TOP))


def _garbage() -> list[str]:
    return [_name(type(thing)) for thing in gc.garbage[:TOP]]


def _allocated_at() -> list[str]:
    """Where most was allocated, if tracemalloc is on."""
    if not tracemalloc.is_tracing():
        return []
    statistics = tracemalloc.take_snapshot().statistics("lineno")[:TOP]
    return [f"{item.traceback[0].filename}:{item.traceback[0].lineno} {item.size} bytes in {item.count} objects"
            for item in statistics]


_LOOKS: tuple[tuple[str, Callable[[], Any]], ...] = (
    ("grown_types", _grown_types), ("grown_globals", _grown_globals), ("threads", _threads),
    ("open_files", _open_files), ("receivers", _receivers), ("garbage", _garbage), ("allocated_at", _allocated_at))
