"""The schedule of a process's checks: one thread that starts them, one thread for each check while it runs.

Local checks run in every worker, shared ones in the leader, which also keeps the history and reports what changes.
A check that hangs is reported and not started again while it hangs.
"""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from .. import logs, scoreboard
from ..config import Settings
from ..errors.report import write_latest
from ..redact import cause_of, secrets_of
from ..scoreboard import Row, Scoreboard
from . import access, report, results
from .admin import AdminListener
from .alerts import Alerts
from .checks import Check, CheckWarning, builtin
from .history import History, Memory, Sample
from .results import CheckResult
from .state import ORDER, PASS, CheckState

FAILING_INTERVAL = 5.0  #: maximum seconds to the next run while a check fails, or is about to change its status
LOOK = 5.0  #: maximum seconds between two looks of the leader at the results of all workers
MOST_DETAIL = 2000  #: maximum bytes of a check's details


@dataclass
class _Run:
    """A check and its progress.

    :ivar state, trouble: the counts of failures; and of failures or warnings.
    :ivar shared: the leader alone runs it.
    :ivar sign: the latest value of its sign.
    """

    check: Check
    interval: float
    timeout: float
    due: float = 0.0
    started: float = 0.0
    running: bool = False
    told_hanging: bool = False
    sign: object = None
    state: CheckState = field(default_factory=CheckState)
    trouble: CheckState = field(default_factory=CheckState)
    result: CheckResult | None = None

    def moment(self) -> float:
        """Return when the schedule has to look at it."""
        return self.started + self.timeout if self.running and not self.told_hanging else self.due


class Monitor:
    """Runs the checks of one process."""

    def __init__(self, settings: Settings, board: Scoreboard, row: Row, checks: list[Check]) -> None:
        self._settings, self._board, self._row = settings, board, row
        self._secrets = secrets_of(settings)
        self._runs: dict[str, _Run] = {}
        self._lock = threading.Lock()  # protects the runs; no check runs under it
        self._wake = threading.Event()
        self._stop = False
        self._alerts = Alerts(settings)
        self._history = History(board.master.history)
        self._admin = AdminListener(settings)
        self._told: dict[str, str] = {}
        self._worst: dict[str, int] = {}  # worst status of each check since the last round
        self._seen: tuple[tuple[int, int], ...] = ()
        self._next_look = self._next_round = self._expected = 0.0
        self._led = self._beats = False
        self._before: scoreboard.Totals | None = None
        self._thread = threading.Thread(target=self._loop, name="stability-monitor", daemon=True)
        for check in [*builtin(settings, board, row), *checks]:
            self.add(check)

    def start(self) -> None:
        """Start the thread, with a first round of checks immediately."""
        words = self._row.words
        # where no server's guard gives signs of life
        self._beats = words[scoreboard.W_STATE] == scoreboard.STATE_READY and not words[scoreboard.W_HEARTBEAT_NS]
        self._thread.start()

    def stop(self) -> None:
        """Start no more checks; alerts that wait have one more second."""
        self._stop = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(1.0)
        self._alerts.stop()
        self._admin.close()

    def add(self, check: Check, *, prefix: str = "") -> None:
        """Add a check, unless the same one runs already; a second one with the same name gets a number.

        :param prefix: of its name.
        """
        with self._lock:
            if any(run.check == check for run in self._runs.values()):
                return
            name, number = prefix + check.name, 2
            while name in self._runs:
                name, number = f"{prefix}{check.name}-{number}", number + 1
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
            self._expected = time.monotonic() + pause
            self._wake.wait(pause)
            self._wake.clear()

    def _step(self, now: float) -> float:
        """Start due checks and report hanging ones; return the seconds until the next step."""
        if self._beats:
            self._row.words[scoreboard.W_HEARTBEAT_NS] = time.monotonic_ns()
        write_latest(self._row)
        access.refused.tell(now)
        leader = self._board.leader()
        leading = leader is not None and leader.slot == self._row.slot and leader.pid == self._row.pid
        led, self._led = self._led, leading
        if leading and not led:
            self._take_over(now)
        self._admin.keep(leading, now)
        asleep = now - self._expected if self._expected else 0.0
        with self._lock:
            runs = [(name, run) for name, run in self._runs.items() if leading or not run.check.shared]
            if asleep > 1.0:  # the process was stopped, which is not the running checks' fault
                for _, run in runs:
                    run.started += asleep
        for name, run in runs:
            if not run.running:
                if now >= run.due or self._shows_a_sign(run, now):
                    self._begin(name, run, now)
            elif now >= run.moment():
                self._tell_hanging(name, run, now)
        if leading:
            self._lead(now, runs)
        return max(0.02, min([1.0 if leader else 0.1, *(run.moment() - now for _, run in runs)]))

    def _shows_a_sign(self, run: _Run, now: float) -> bool:
        """Return whether a check's sign has changed; look at most once a second."""
        if run.check.sign is None or now - run.started < 1.0:
            return False
        before, run.sign = run.sign, run.check.sign()
        return before is not None and before != run.sign

    def _begin(self, name: str, run: _Run, now: float) -> None:
        run.running, run.started, run.told_hanging = True, now, False
        if run.sign is None and run.check.sign is not None:  # a change from now on is news
            run.sign = run.check.sign()
        thread = threading.Thread(target=self._execute, args=(name, run), name=f"stability-check-{name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be started
            with self._lock:
                run.running = False
                self._result(run, False, now, error="no thread for it")

    def _execute(self, name: str, run: _Run) -> None:
        ok, error, worry, cause, detail = True, "", "", "", {}
        try:
            detail = _clean(run.check.function())
        except CheckWarning as trouble:
            worry, detail = str(trouble)[:200], _clean(trouble.details)
        except BaseException as failure:
            ok, error, cause = False, _class_of(failure), cause_of(failure, self._secrets)
            detail = _clean(getattr(failure, "details", None))
            logs.error("check_failed", level="WARNING", check=name, error=f"{type(failure).__name__}: {failure}"[:300])
        with self._lock:
            run.running = False
            # otherwise it was judged already, or another worker leads
            if not run.told_hanging and (self._led or not run.check.shared):
                self._result(run, ok, time.monotonic(), error=error, worry=worry, cause=cause,
                             detail=detail)
        self._wake.set()

    def _tell_hanging(self, name: str, run: _Run, now: float) -> None:
        seconds = round(now - run.started, 1)
        with self._lock:
            if not run.running:
                return
            first, run.told_hanging = not run.told_hanging, True
            self._result(run, False, now, error=f"timeout, running {seconds:.0f} s", detail={"running_s": seconds})
        if first:
            logs.error("check_hangs", level="WARNING", check=name, seconds=seconds)

    def _result(self, run: _Run, ok: bool, now: float, *, error: str = "", worry: str = "", cause: str = "",
                detail: dict[str, Any] | None = None) -> None:
        """Record one result and publish it. The caller holds the lock."""
        check, old = run.check, run.trouble.down
        rule = {"threshold": self._settings.health_failure_threshold,
                "recovery": self._settings.health_success_threshold}
        run.state = run.state.after(ok, **rule)
        run.trouble = run.trouble.after(ok and not worry, **rule)
        settled = run.state.status(critical=check.critical, worried=run.trouble.down)
        changing = (not ok or bool(worry)) != run.trouble.down or old != run.trouble.down
        interval = min(FAILING_INTERVAL, run.interval) if not ok or run.state.down or changing else run.interval
        run.due = now + interval * random.uniform(0.9, 1.1)
        run.result = CheckResult(
            status=run.state.status(critical=check.critical, worried=run.trouble.down or bool(worry) or not ok),
            settled=settled, down=run.state.down, ok=ok, at_ns=time.monotonic_ns(),
            took_ms=round((now - run.started) * 1000, 2), failures=run.state.failures, critical=check.critical,
            shared=check.shared, interval=run.interval, timeout=run.timeout, error=error or None, note=worry or None,
            cause=cause or None, detail=detail or {}, state=run.state, trouble=run.trouble)
        found = {name: one.result for name, one in self._runs.items()
                 if one.result is not None and (self._led or not one.check.shared)}
        results.publish(self._row.checks, found)
        if check.shared and all(one.result for one in self._runs.values() if one.check.shared):
            results.publish(self._board.master.shared, {name: one for name, one in found.items() if one.shared})

    # -- the leader's part ---------------------------------------------------------------------------------------

    def _take_over(self, now: float) -> None:
        """Continue where the last leader stopped."""
        known = results.read(self._board.master.shared)
        with self._lock:
            for name, run in self._runs.items():
                before = known.get(name)
                if run.check.shared and not run.running:
                    run.due, run.result = now, None
                    if before is not None and before.shared:
                        run.result, run.state, run.trouble = before, before.state, before.trouble
        changes = self._history.transitions()
        self._told = {str(one.get("check")): str(one.get("new")) for one in reversed(changes)}
        self._alerts.resume(changes, now)
        self._before, self._seen, self._next_look, self._worst = self._board.totals(), (), 0.0, {}
        last, interval = self._history.last(), self._settings.health_interval
        # never later than a whole interval, even if the clock was set back
        self._next_round = now + min(interval, interval - (time.time() - last.time)) if last is not None else now

    def _lead(self, now: float, runs: list[tuple[str, _Run]]) -> None:
        rows = self._board.live()
        written = tuple((row.pid, row.checks.writes) for row in rows)
        if written != self._seen or now >= self._next_look:
            self._seen, self._next_look = written, now + LOOK
            self._look(now)
        if now >= self._next_round and all(run.result for _, run in runs):
            self._next_round = now + self._settings.health_interval
            self._round(rows)

    def _look(self, now: float) -> None:
        """Report changes of status since the last report, of any worker, stale results included."""
        found = results.results(self._board)
        failing = {name: result.settled for name, result in found.items() if result.settled != PASS}
        self._alerts.silence(frozenset(str(one.get("check")) for one in report.mutes(self._board)), failing, now)
        for name, result in found.items():
            self._worst[name] = max(self._worst.get(name, 0), ORDER[result.status])
            old, new = self._told.get(name, PASS), result.settled
            if old != new:
                self._told[name] = new
                self._history.transition(self._alerts.transition(
                    name, old, new, result.reason, results.summary(self._board), now))
        self._alerts.remind(failing, now)

    def _round(self, rows: list[Row]) -> None:
        """Write a sample into the history, and a line into the log."""
        document = report.build(self._board, self._settings)
        totals, before = self._board.totals(), self._before or self._board.totals()
        self._before = totals
        recent = [max(0, new - old) for new, old in zip(totals.histogram, before.histogram, strict=True)]
        requests, duration = totals.requests - before.requests, totals.duration_ns - before.duration_ns
        p50, p95, p99 = (scoreboard.percentile(recent, share) * 1000 for share in (0.5, 0.95, 0.99))
        database = document["detailed"]["database"]
        pool, by_class = database["pool"], totals.by_class
        memory = [Memory(row.slot, row.orders[scoreboard.O_AGE], int(row.words[scoreboard.W_RSS])) for row in rows]
        limits = [int(row.words[scoreboard.W_MEMORY_LIMIT]) for row in rows]
        sample = Sample(
            time=time.time(), requests=totals.requests, errors=totals.errors, p50_ms=p50, p95_ms=p95, p99_ms=p99,
            mean_ms=duration / requests / 1e6 if requests > 0 else 0.0,
            rss=sum(one.rss for one in memory), workers=len(rows), db_in_use=pool["in_use"],
            db_idle=pool["idle"], db_waiting=pool["waiting"], db_latency_ms=database.get("latency_ms") or 0.0,
            restarts=sum(totals.restarts.values()), rss_max=max((one.rss for one in memory), default=0),
            memory_limit=min((limit for limit in limits if limit), default=0), answers_2xx=by_class[2],
            answers_3xx=by_class[3], answers_4xx=by_class[4], status=ORDER[document["status"]],
            db_held=pool["held"])
        checks = {name: part["status"] for name, part in document["detailed"]["checks"].items()}
        worst, self._worst = self._worst, {}
        self._history.append(sample, memory, {name: max(worst.get(name, 0), ORDER[status])
                                              for name, status in checks.items()})
        unknown = [name for name in self._settings.health_ready_checks if name not in checks]
        extra: dict[str, Any] = {"unknown_ready_checks": unknown} if unknown else {}
        logs.health("round", status=document["status"], notes=document["notes"], workers=len(rows),
                    requests=totals.requests, errors=totals.errors, mean_ms=round(sample.mean_ms, 2), checks=checks,
                    **extra)


def _clean(detail: object) -> dict[str, Any]:
    """Return a check's result as plain JSON of limited size."""
    if not isinstance(detail, dict):
        return {}
    try:
        text = json.dumps(detail, default=str, allow_nan=False)
        found: dict[str, Any] = json.loads(text)
    except Exception as error:
        return {"details": f"not shown: {type(error).__name__}"}
    return found if len(text) <= MOST_DETAIL else {"details": f"not shown: {len(text)} bytes"}


def _class_of(error: BaseException) -> str:
    """Return class and number of an error, for programs; `cause_of` returns the text for people."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else None
    return f"{type(error).__name__} {code}" if code is not None else type(error).__name__
