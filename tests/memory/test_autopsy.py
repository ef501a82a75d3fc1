"""What a worker that grew was holding."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
import tracemalloc
import types
from collections.abc import Callable, Iterator

import blinker
import pytest
from werkzeug.local import LocalProxy

from flask_stability.memory import autopsy, trackers

kept: list[object] = []
grown_signal = blinker.Namespace().signal("grown-signal")


class Leaked:
    """What the autopsy has to name."""

    def __init__(self) -> None:
        self.data = os.urandom(100) * 500


class Rows:
    """Holds much in containers of its own."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows = [{"text": "x" * 1000 + str(number)} for number in range(20)]


class Hostile:
    """Objects that must not be asked anything."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"asked for {name}")

    def __sizeof__(self) -> int:
        raise AssertionError("asked for its size")


class Meta(type):
    """A metaclass is code as well."""

    armed = False

    def __getattribute__(cls, name: str) -> object:
        if Meta.armed:
            raise AssertionError(f"a class was asked for {name}")
        return super().__getattribute__(name)

    def __eq__(cls, other: object) -> bool:
        if Meta.armed:
            raise AssertionError("a class was compared")
        return cls is other

    def __hash__(cls) -> int:
        if Meta.armed:
            raise AssertionError("a class was hashed")
        return 1


class Lying(metaclass=Meta):
    """Says that it is something else."""

    def __init__(self) -> None:
        self.data = b"x" * 10_000

    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise AssertionError("asked for its class")

    def __call__(self) -> None: ...

    def __str__(self) -> str:
        raise AssertionError("asked for its text")


class Module(types.ModuleType):
    """One that loads what it is asked for."""

    def __getattribute__(self, name: str) -> object:
        if Meta.armed:
            raise AssertionError(f"a module was asked for {name}")
        return super().__getattribute__(name)


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(autopsy, "SECONDS", 100.0)  # a look that a busy machine holds up sees no less
    yield
    kept.clear()


def _end(*timers: threading.Timer) -> None:
    """No later look finds them."""
    for timer in timers:
        timer.cancel()
    for timer in timers:
        timer.join(60)


def test_the_type_that_grew_is_named_first() -> None:
    """With the bytes that its objects hold, and the container in a module that keeps them."""
    autopsy.baseline()
    kept.extend(Leaked() for _ in range(400))
    report = autopsy.report("memory")
    first = report["grown_types"][0]
    assert first["type"] == f"{__name__}.Leaked"
    assert first["objects"] == 400
    assert first["bytes"] == pytest.approx(400 * 50_000, rel=0.1)
    assert report["grown_globals"][0]["name"] == f"{__name__}.kept"
    assert report["grown_globals"][0]["more_items"] == 400
    assert report["grown_globals"][0]["bytes"] == pytest.approx(400 * 50_000, rel=0.1)
    assert report["since_warm"]
    assert report["reason"] == "memory"
    assert report["private_bytes"] > 0


def test_what_an_object_holds_in_containers_counts_for_it() -> None:
    """And not only for the lists and dicts that everyone has."""
    autopsy.baseline()
    kept.extend(Rows() for _ in range(300))
    assert autopsy.report("memory")["grown_types"][0]["type"] == f"{__name__}.Rows"


def test_functions_do_not_hold_their_modules() -> None:
    """Without a baseline all of a program's functions count: they would come before most of what leaks."""
    functions = [thing for thing in gc.get_objects() if type(thing) is types.FunctionType]
    assert sum(map(autopsy._held, functions)) < 2000 * len(functions)


def test_plain_values_in_one_container_are_found_by_its_name() -> None:
    """No new object that the collector knows, and yet 20 MB."""
    kept.extend([b""] * 30)
    autopsy.baseline()
    kept.extend(os.urandom(100) * 2000 for _ in range(100))
    found = autopsy.report("memory")["grown_globals"][0]
    assert (found["name"], found["more_items"]) == (f"{__name__}.kept", 100)
    assert found["bytes"] == pytest.approx(100 * 200_000, rel=0.1)


def test_no_code_of_what_it_looks_at_is_run() -> None:
    """Properties, proxies and __getattr__ of an application may do anything."""
    autopsy.baseline()
    kept.extend(object.__new__(Hostile) for _ in range(1000))
    report = autopsy.report("memory")
    assert isinstance(report["grown_types"], list), report["grown_types"]
    assert isinstance(report["grown_globals"], list), report["grown_globals"]
    assert f"{__name__}.Hostile" in {entry["type"] for entry in report["grown_types"]}


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever runs code of the classes and modules above fails from here on."""
    monkeypatch.setitem(sys.modules, "tests_autopsy_module", Module("tests_autopsy_module"))
    monkeypatch.setitem(sys.modules, "tests_autopsy_proxy", LocalProxy(_unbound))
    yield
    Meta.armed = False


def _unbound() -> types.ModuleType:
    raise AssertionError("a proxy was asked for what it stands for")


def test_neither_metaclasses_nor_modules_nor_proxies_are_asked(armed: None) -> None:
    """What lies about its class, proxies of nothing, modules that load when looked at, and timers that call these."""
    autopsy.baseline()
    proxy: Callable[[], object] = LocalProxy(_unbound)
    found = [Lying() for _ in range(500)]
    kept.extend([*found, *(LocalProxy(_unbound) for _ in range(500))])
    timers = [threading.Timer(3600, call) for call in (proxy, found[0], types.MethodType(proxy, 1), "x".upper)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    Meta.armed = True
    try:
        autopsy.baseline()
        autopsy._warm.types["builtins.list"] = 0
        autopsy._warm.types[f"{__name__}.Lying"] = 0
        report = autopsy.report("memory")
        counted = trackers.receivers()
    finally:
        Meta.armed = False
        _end(*timers)
    assert not [value for value in report.values() if "AssertionError" in str(value)], report
    assert f"{__name__}.Lying" in {entry["type"] for entry in report["grown_types"]}
    assert report["threads"]["timers"] == 4
    assert {f"{__name__}.Lying", "upper"} <= set(report["threads"]["timers_call"])
    assert counted >= 0


def test_a_huge_dict_costs_no_more_than_a_small_one() -> None:
    """What is in it is told from a part."""
    autopsy.baseline()
    huge = {number: [number] for number in range(1_000_000)}
    kept.append(huge)

    def cost(function: Callable[[], int]) -> tuple[float, int]:
        """The least of three, of this thread's own time: not what others do meanwhile; and what it returns."""
        times = []
        for _ in range(3):
            started = time.thread_time()
            found = function()
            times.append(time.thread_time() - started)
        return min(times), found

    one, size = cost(lambda: autopsy._held(huge))
    other, whole = cost(lambda: sum(sys.getsizeof(value) for value in huge.values()))
    assert one < 2 * other
    assert size == pytest.approx(whole + sys.getsizeof(huge), rel=0.5)


def test_a_look_makes_nothing_in_what_it_looks_at() -> None:
    """A dict for each object would be paid for ever after."""
    autopsy.baseline()
    kept.extend(Leaked() for _ in range(1000))
    gc.collect()
    before = len(gc.get_objects())
    autopsy.report("memory")
    gc.collect()
    assert len(gc.get_objects()) < before + 500


def test_threads_timers_files_receivers_and_garbage_are_told() -> None:
    """With names."""
    def receiver(sender: object) -> None: ...
    grown_signal.connect(receiver)
    timer = threading.Timer(3600, receiver, [None])
    timer.daemon = True
    timer.start()
    try:
        with open(__file__):
            report = autopsy.report("memory_growth")
    finally:
        _end(timer)
    assert report["threads"]["number"] >= 2
    assert report["threads"]["timers"] == 1
    assert any("receiver" in name for name in report["threads"]["timers_call"])
    assert report["open_files"]["most"][__file__] == 1
    assert report["open_files"]["kinds"]["file"] >= 1
    assert report["receivers"][f"{__name__}.grown_signal"] == 1
    assert report["garbage"] == [f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage[:10]]
    assert report["allocated_at"] == []
    json.dumps(report)


def test_with_tracemalloc_the_sites_are_told() -> None:
    """The line that allocated most."""
    tracemalloc.start()
    try:
        kept.append([bytes(1000) for _ in range(20_000)])
        sites = autopsy.report("memory")["allocated_at"]
    finally:
        tracemalloc.stop()
    assert os.path.basename(__file__) in sites[0]


def test_one_look_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record with a gap is better than none."""
    def broken() -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(autopsy, "_LOOKS", (("first", broken), ("threads", autopsy._threads)))
    report = autopsy.report("memory")
    assert report["first"] == "RuntimeError: no"
    assert report["threads"]["number"] >= 1


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In objects and in time, and says what it found by then."""
    kept.extend([number] for number in range(200_000))
    monkeypatch.setattr(autopsy, "MOST_OBJECTS", 50_000)
    autopsy.baseline()
    assert sum(autopsy._warm.types.values()) == 50_000
    monkeypatch.setattr(autopsy, "SECONDS", 0.0)
    autopsy.baseline()
    assert 0 < sum(autopsy._warm.types.values()) <= 50_000
    assert isinstance(autopsy.report("memory")["grown_types"], list)
