"""The schedule of a process's checks: one thread that starts them, one thread for each check while it runs.

Local checks run in every worker, shared ones in the leader. A check that hangs is reported and not started again
while it hangs.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from .. import logs, scoreboard
from ..config import Settings
from ..scoreboard import Row, Scoreboard
from .admin import AdminListener
from .alerts import Alerts
from .checks import Check, Worry, builtin
from .history import History, Sample
from .report import build
from .state import ORDER, CheckState

FAILING_INTERVAL = 5.0


@dataclass
class _Run:
    """A check and how it goes."""

    check: Check
    interval: float
    timeout: float
    due: float = 0.0
    state: CheckState = field(default_factory=CheckState)
    started: float = 0.0
    running: bool = False
    told_hanging: bool = False
    worried: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    reported: str = "pass"


class Monitor:
    """Runs the checks of one process."""

    def __init__(self, settings: Settings, board: Scoreboard, row: Row, checks: list[Check]) -> None:
        self._settings, self._board, self._row = settings, board, row
        self._runs: dict[str, _Run] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = False
        self._alerts = Alerts(settings)
        self._history = History(board.master.history)
        self._admin = AdminListener(settings, board)
        self._next_round = 0.0
        self._rounds = 0
        self._led = False
        self._before: scoreboard.Totals | None = None
        self._thread = threading.Thread(target=self._loop, name="stability-monitor", daemon=True)
        for check in [*builtin(settings, board, row), *checks]:
            self.add(check)

    def start(self) -> None:
        """Begin with a first round at once."""
        self._thread.start()

    def stop(self) -> None:
        """Start no more checks."""
        self._stop = True
        self._wake.set()
        self._alerts.stop()
        self._admin.close()

    def add(self, check: Check) -> None:
        """One more check; a second one of the same name gets a number."""
        with self._lock:
            name, number = check.name, 2
            while name in self._runs:
                if self._runs[name].check == check:
                    return
                name, number = f"{check.name}-{number}", number + 1
            self._runs[name] = _Run(check, check.interval or self._settings.health_interval,
                                    check.timeout or self._settings.health_timeout)
        self._wake.set()

    # -- the schedule --------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stop:
            try:
                pause = self._step(time.monotonic())
            except Exception as error:
                logs.error("monitor_failed", error=f"{type(error).__name__}: {error}"[:300])
                pause = 1.0
            self._wake.wait(pause)
            self._wake.clear()

    def _step(self, now: float) -> float:
        """Start what is due, tell of what hangs; seconds until there is something to do."""
        leader = self._board.leader()
        leading = leader is not None and leader.slot == self._row.slot and leader.pid == self._row.pid
        if leading and not self._led:
            self._take_over()
        self._led = leading
        self._admin.keep(leading)
        with self._lock:
            runs = list(self._runs.items())
        for name, run in runs:
            if run.check.shared and not leading:
                run.result = {}
                continue
            if run.running:
                if now - run.started > run.timeout and (not run.told_hanging or now >= run.due):
                    run.told_hanging = True
                    run.due = now + FAILING_INTERVAL
                    self._result(name, run, False, error="timeout", detail={"running_s": round(now - run.started, 1)})
            elif now >= run.due:
                self._begin(name, run, now)
        if leading and now >= self._next_round:
            self._round(now, first=not self._rounds)
        moments = [run.started + run.timeout if run.running and not run.told_hanging else run.due for _, run in runs
                   if leading or not run.check.shared]
        return max(0.05, min([1.0, *(moment - now for moment in moments)]))

    def _begin(self, name: str, run: _Run, now: float) -> None:
        run.running, run.started, run.told_hanging = True, now, False
        thread = threading.Thread(target=self._execute, args=(name, run), name=f"stability-check-{name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads to be had
            run.running = False
            run.due = now + FAILING_INTERVAL

    def _execute(self, name: str, run: _Run) -> None:
        try:
            detail = run.check.function()
            self._result(name, run, True, detail=detail if isinstance(detail, dict) else {})
        except Worry as worry:
            self._result(name, run, True, worry=str(worry), detail=worry.details)
        except Exception as error:
            self._result(name, run, False, error=_class_of(error))
            logs.error("check_failed", level="WARNING", check=name, error=f"{type(error).__name__}: {error}"[:300])
        finally:
            run.running = False
            self._wake.set()

    def _result(self, name: str, run: _Run, ok: bool, *, error: str | None = None, worry: str | None = None,
                detail: dict[str, Any] | None = None) -> None:
        settings, check = self._settings, run.check
        now = time.monotonic()
        with self._lock:
            run.state = run.state.after(ok, threshold=settings.health_failure_threshold,
                                        recovery=settings.health_success_threshold)
            run.worried = worry is not None
            status = run.state.status(critical=check.critical, worried=run.worried or (not ok and not run.state.down))
            interval = min(FAILING_INTERVAL, run.interval) if not ok or run.state.down else run.interval
            run.due = now + interval * random.uniform(0.9, 1.1)
            run.result = {"status": status, "ok": ok, "at_ns": time.monotonic_ns(),
                          "took_ms": round((now - run.started) * 1000, 2), "failures": run.state.failures,
                          "critical": check.critical, "shared": check.shared, "interval": run.interval,
                          "timeout": run.timeout, "error": error, "note": worry, "detail": detail or {},
                          "down": run.state.down, "successes": run.state.successes}
            old, run.reported = run.reported, status
            results = {known: other.result for known, other in self._runs.items() if other.result}
        if not self._row.checks.write_json(results):
            self._row.checks.write_json({known: {**result, "detail": {}} for known, result in results.items()})
        if check.shared:
            self._board.master.shared.write_json(
                {known: result for known, result in results.items() if result["shared"]})
        if old != status:
            self._history.transition(self._alerts.transition(name, old, status, error or worry or ""))

    # -- the leader's part ---------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Go on where the last leader stopped."""
        known = self._board.master.shared.read_json({})
        now = time.monotonic()
        with self._lock:
            for name, run in self._runs.items():
                before = known.get(name)
                if run.check.shared and isinstance(before, dict):
                    run.state = CheckState(bool(before.get("down")), int(before.get("failures", 0)),
                                           int(before.get("successes", 0)))
                    run.reported = str(before.get("status", "pass"))
                    run.result = before
                run.due = min(run.due, now) if run.check.shared else run.due
        last = self._history.last()
        if last is not None:
            self._rounds = 1
            self._next_round = now + max(0.0, self._settings.health_interval - (time.time() - last.time))

    def _round(self, now: float, *, first: bool) -> None:
        """A sample for the history, a line for the log, a reminder where something has long been failing."""
        self._next_round = now + (1.5 if first else self._settings.health_interval)
        self._rounds += 1
        document = build(self._board, self._settings)
        totals, before = self._board.totals(), self._before
        self._before = totals
        histogram = totals.histogram
        requests, duration = totals.requests, totals.duration_ns
        if before is not None:
            histogram = [a - b for a, b in zip(histogram, before.histogram, strict=True)]
            requests, duration = requests - before.requests, duration - before.duration_ns
        detailed = document["detailed"]
        pool = detailed["database"].get("pool") or {}
        rows = self._board.live()
        sample = Sample(
            time=time.time(), requests=totals.requests, errors=totals.errors,
            p50_ms=scoreboard.percentile(histogram, 0.5) * 1000, p95_ms=scoreboard.percentile(histogram, 0.95) * 1000,
            p99_ms=scoreboard.percentile(histogram, 0.99) * 1000,
            mean_ms=duration / requests / 1e6 if requests > 0 else 0.0,
            rss=sum(int(row.words[scoreboard.W_RSS]) for row in rows), workers=len(rows),
            db_in_use=pool.get("in_use", 0), db_idle=pool.get("idle", 0), db_waiting=pool.get("waiting", 0),
            db_latency_ms=detailed["database"].get("latency_ms") or 0.0, restarts=sum(totals.restarts.values()),
            status=ORDER[document["status"]])
        self._history.append(sample)
        logs.health("round", status=document["status"], notes=document["notes"], workers=len(rows),
                    requests=totals.requests, errors=totals.errors, mean_ms=round(sample.mean_ms, 2),
                    checks={name: run.result.get("status") for name, run in self._runs.items() if run.result})
        failing = {name: run.reported for name, run in self._runs.items() if run.result and run.reported != "pass"}
        self._alerts.remind(failing)


def _class_of(error: BaseException) -> str:
    """Class and number of an error: its text may tell a stranger too much."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else None
    return f"{type(error).__name__} {code}" if code is not None else type(error).__name__
