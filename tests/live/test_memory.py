"""Memory: workers that grow are replaced before they hurt, and nobody notices."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from support import Load, Server, Standstills, wait_until

Start = Callable[..., Server]
MB = 1 << 20
LIMIT = 200 * MB
SAMPLE = {"app": "sample_app:create_app()"}
ENV = {"SAMPLE_FAULTS": "1", "STABILITY_GUARD_INTERVAL": "0.25"}

LEAK_IN_ONE = '''
import os
from flask import Flask
from flask_stability import StabilityExt, scoreboard
app = Flask(__name__)
StabilityExt(app)
kept = []
chosen = os.environ["CHOSEN"]
@app.get("/")
def index():
    if not os.path.exists(chosen):
        open(chosen, "w").write(str(os.getpid()))
    if open(chosen).read() == str(os.getpid()):
        kept.append(os.urandom(1000) * 2000)
    return "ok"
'''


def _sizes(server: Server) -> list[int]:
    found = []
    for worker in server.workers():
        with contextlib.suppress(psutil.Error):
            found.append(worker.memory_info().rss)
    return found


def _restarts(server: Server) -> dict[str, int]:
    found: dict[str, int] = server.health()["detailed"]["restarts"]["by_reason"]
    return found


@pytest.mark.long
@pytest.mark.alone("judges how far memory gets before a worker is replaced, at a given rate of requests")
@pytest.mark.parametrize(("worker_class", "seconds"), [("gthread", 60), ("sync", 20)])
def test_leaking_workers_are_replaced_without_losing_a_request(server: Start, worker_class: str, seconds: int) -> None:
    """120 requests/s of which every fourth leaks 2 MB: no worker beyond 1.3 × its limit, nor all of them together with
    one more, nothing lost, and the log names the type.
    """
    workers = 2
    one = server(**SAMPLE, worker_class=worker_class, workers=workers,
                 env={"SAMPLE_FAULTS": "1", "STABILITY_MEMORY_LIMIT": "200M"})
    load = Load(one.url, ["/faults/leak?mb=2", "/", "/", "/"], rate=120, timeout=60).start()
    largest = together = 0
    end = time.monotonic() + seconds
    try:
        with Standstills() as standstills:
            while time.monotonic() < end or not one.records("error", "memory_autopsy"):
                sizes, now = _sizes(one), time.monotonic()
                # after a standstill of the machine all that was due meanwhile comes at once: far more than 120 a second
                if not standstills.seconds(now - 5, now):
                    largest, together = max(largest, *sizes, 0), max(together, sum(sizes))
                assert now < end + 60, "a worker was to be replaced"
                time.sleep(0.05)
    finally:
        result = load.stop()
    reasons = _restarts(one)
    print(f"\n{worker_class}: {result.total} requests, {result.failed} failed, worst {result.worst:.2f} s; largest "
          f"worker {largest / LIMIT:.2f} × the limit, together {together / LIMIT:.2f} ×; replaced {reasons}")
    assert result.failed == 0, result.errors()
    assert {outcome.status for outcome in result.outcomes} == {200}
    assert largest <= 1.3 * LIMIT
    assert together <= 1.3 * (workers + 1) * LIMIT
    assert sum(number for reason, number in reasons.items() if reason.startswith("memory")) >= 1
    assert not set(reasons) & {"crash_signal", "out_of_memory", "timeout", "unknown"}
    for record in one.records("error", "memory_autopsy"):
        assert record["grown_types"][0]["type"] == "sample_app.faults.LeakedThing", record["grown_types"]
        assert record["grown_globals"][0]["name"] == "sample_app.faults._kept", record["grown_globals"]


@pytest.mark.long
def test_a_leak_in_one_worker_replaces_that_one(server: Start, tmp_path: object) -> None:
    """The others stay."""
    one = server(source=LEAK_IN_ONE, workers=4,
                 env={**ENV, "STABILITY_MEMORY_LIMIT": "150M", "CHOSEN": f"{tmp_path}/chosen"})
    wait_until(lambda: len(one.health()["detailed"]["workers"]) == 4)
    before = set(one.worker_pids())
    with contextlib.ExitStack() as stack:
        load = Load(one.url, ["/"], rate=60, timeout=60).start()
        stack.callback(load.stop)
        wait_until(lambda: sum(_restarts(one).values()) >= 1, 90, message="the leaking worker is replaced")
    with open(f"{tmp_path}/chosen") as file:
        leaking = int(file.read())
    assert before - set(one.worker_pids()) == {leaking}
    assert load.result.failed == 0


@pytest.mark.long
def test_four_workers_that_cross_together_are_replaced_one_after_the_other(server: Start) -> None:
    """Never more than one newcomer at a time, and no request lost."""
    one = server(**SAMPLE, workers=4, env={
        **ENV, "STABILITY_MEMORY_LIMIT": "120M", "STABILITY_MEMORY_LIMIT_JITTER": "0",
        "STABILITY_MEMORY_HARD_FACTOR": "5"})
    wait_until(lambda: len(one.health()["detailed"]["workers"]) == 4)
    before = set(one.worker_pids())
    load = Load(one.url, ["/faults/leak?mb=1", "/"], rate=40, timeout=60).start()
    try:
        wait_until(lambda: not before & set(one.worker_pids()), 120, message="all four are replaced")
    finally:
        result = load.stop()
    assert result.failed == 0, result.errors()
    steps = [record["action"] for record in one.records("process-manager", "replacement")
             if record["action"] in ("surge", "term")]
    assert steps[:8] == ["surge", "term"] * 4, steps


@pytest.mark.long
def test_much_memory_for_a_moment_replaces_nobody(server: Start) -> None:
    """A view takes 300 MB and gives it back, under a limit of 500 MB."""
    one = server(**SAMPLE, workers=2, env={**ENV, "STABILITY_MEMORY_LIMIT": "500M"})
    wait_until(lambda: len(one.health()["detailed"]["workers"]) == 2)
    before = one.worker_pids()
    for _ in range(12):
        assert one.get("/faults/transient?mb=300").status_code == 200
    wait_until(lambda: max(_sizes(one)) < 300 * MB, message="the memory is given back")
    assert one.worker_pids() == before
    assert _restarts(one) == {}
    assert one.records("process-manager", "replacement_asked") == []


@pytest.mark.long
def test_a_limit_below_what_the_app_needs_is_told_of_once(server: Start) -> None:
    """No worker is replaced for it, since the next would be as large; one line says what to do."""
    one = server(**SAMPLE, env={**ENV, "STABILITY_MEMORY_LIMIT": "5M"})
    wait_until(lambda: one.records("process-manager", "memory_limit_too_low"), message="it is told")
    before = one.worker_pids()
    end = time.monotonic() + 5  # it would be enforced on the third look, within a second
    while time.monotonic() < end:
        assert one.get("/").status_code == 200
        time.sleep(0.1)
    assert one.worker_pids() == before
    assert one.records("process-manager", "replacement_asked") == []
    found = one.records("process-manager", "memory_limit_too_low")
    assert len(found) == 1, found
    assert found[0]["warm_floor_bytes"] > 5 * MB
    assert "STABILITY_MEMORY_LIMIT" in found[0]["remedy"]


MAPPED = '''
import mmap, os
from flask import Flask
from flask_stability import StabilityExt
app = Flask(__name__)
StabilityExt(app)
model = bytearray(os.urandom(1 << 20) * int(os.environ["MODEL_MB"]))
with open(os.environ["INDEX"], "rb") as file:
    index = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
@app.get("/")
def look_up():
    found = sum(index[place] for place in range(0, len(index), mmap.PAGESIZE))
    return str(found + model[-1])
'''


@pytest.mark.long
@pytest.mark.parametrize("model", [1, 300])
def test_a_mapped_file_and_a_preloaded_model_replace_nobody(server: Start, tmp_path: Path, worker_class: str,
                                                            model: int) -> None:
    """Both are larger than the limit, and neither is given back by replacing a worker."""
    index = tmp_path / "index"
    index.write_bytes(b"some" * (75 * MB))
    one = server(source=MAPPED, worker_class=worker_class, config=f"preload_app = {model > 1}",
                 env={"STABILITY_GUARD_INTERVAL": "0.25", "STABILITY_MEMORY_LIMIT": "150M", "INDEX": str(index),
                      "MODEL_MB": str(model)})
    wait_until(lambda: len(one.health()["detailed"]["workers"]) == 2)
    before = one.worker_pids()
    end = time.monotonic() + 8  # the limit is looked at four times a second, and three looks are enough
    while time.monotonic() < end or max(_sizes(one)) < 300 * MB:
        assert one.get("/").status_code == 200
        assert time.monotonic() < end + 60, "the file was to be in memory"
        time.sleep(0.1)
    assert one.worker_pids() == before
    assert one.records("process-manager", "replacement_asked") == []
    assert one.records("process-manager", "memory_limit_too_low") == []
