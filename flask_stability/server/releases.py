"""A reload on trial: one worker with the new code serves beside the old ones, and the judge says what follows.

::

            SIGHUP                 as good                  all new ones serve
    QUIET ─────────▶ JUDGING ─────────────────▶ FOLLOWING ─────────────────────▶ WATCHING ──time over──▶ QUIET
                        │                           │     (old ones are parked)   │    ▲        (old ones leave)
                        │ worse                     │ worse                alarm  ▼    │ as good
                        ▼                           ▼                           CONFIRMING
                      QUIET: the new ones leave, the old ones serve on ◀── worse ──┘

Whether a release is worse is decided in `release`; here the workers of both are told apart by gunicorn's number of
them, and what is decided is ordered. The workers of the release that does not count now are *aside*: the supervision
of replacements does not see them.

After a refusal the code on disk is the refused one. Until the next reload no worker is replaced that can serve on, and
the place of one that is gone stays empty while at least half of the old ones are there.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

from .. import logs, scoreboard
from ..config import Settings
from ..scoreboard import Reason, Scoreboard
from . import release_figures
from .release import FATAL, Alarm, Finding, Judge, Verdict
from .release_counts import Figures, Key, Route, since, together
from .workers import Child

LOOK = 0.1  #: seconds between two looks while two releases are compared
KEPT = 10  #: maximum number of verdicts remembered
UNPARKED = 2.0  #: seconds that the old workers have to serve again before the new ones leave
HANGING = 3.0  #: seconds that workers of a hanging release have to leave


class Phase(enum.Enum):
    """The phase of the reload."""

    QUIET = "quiet"
    JUDGING = "judging"
    FOLLOWING = "following"
    WATCHING = "watching"
    CONFIRMING = "confirming"


class Fleet(Protocol):
    """The supervisor's methods that a trial calls."""

    children: dict[Any, Child]

    def look_again(self, at: float) -> None:
        """See `Supervision`."""

    def terminate(self, child: Child, now: float) -> None:
        """Send a worker SIGTERM, so that it leaves in good order."""

    def replace_all(self, old: list[Child], now: float) -> None:
        """Replace the old workers of a reload, which leave once enough others serve."""

    def restore(self) -> None:
        """Restore configuration, environment and settings of before the reload."""

    def boot_patience(self) -> float:
        """Return the seconds that a worker has to become ready."""

    def base(self) -> int:
        """Return how many workers there should be."""

    def may_keep(self) -> bool:
        """Return whether memory has room for the workers of two releases."""


class Releases:
    """The trial under way, and the verdicts of the last ones.

    :ivar settings: those of the latest reload.
    :ivar phase: its phase.
    :ivar held: the code on disk is that of a refused release.
    :ivar outcome: of the latest reload: ``under way``, ``serves``, ``refused`` or ``failed``.
    """

    def __init__(self, board: Scoreboard, settings: Settings, fleet: Fleet) -> None:
        self._board, self._fleet, self.settings = board, fleet, settings
        self.phase, self.held, self.outcome = Phase.QUIET, False, "serves"
        self.force = False
        # Within gunicorn's reload: whether the release is judged, None = not decided yet.
        self.starting: bool | None = None
        self._started = 0
        self._newest, self._since, self._begun = 0, 0.0, 0.0
        self._number = 1
        self._serving, self._coming = self._named(settings), ""
        self._refused: dict[str, Any] | None = None
        self._verdicts: list[dict[str, Any]] = []
        self._judge: Judge | None = None
        self._alarm: Alarm | None = None
        self._found: Finding | None = None
        self._ends: tuple[list[str], list[str]] = [], []
        self._told: set[int] = set()
        self._gone: tuple[dict[int, Figures], dict[int, Figures]] = {}, {}
        self._before: dict[Key, Route] = {}
        self._kill_at = self._asked_at = 0.0
        self._told_empty = False
        self._publish()

    # -- what the supervisor asks --------------------------------------------------------------------------------

    @property
    def under_way(self) -> bool:
        """Return whether new workers are awaited or judged."""
        return self.phase in (Phase.JUDGING, Phase.FOLLOWING)

    @property
    def comparing(self) -> bool:
        """Return whether workers of two releases exist."""
        return self.phase is not Phase.QUIET

    @property
    def frozen(self) -> bool:
        """Return whether no worker of the old release may be replaced: a replacement would run the new code."""
        return self.held or self.phase in (Phase.JUDGING, Phase.CONFIRMING)

    @property
    def begun(self) -> float:
        """Return when the latest trial began, monotonic seconds."""
        return self._begun

    def on_trial(self, child: Child) -> bool:
        """Return whether a worker's release is being judged: until the verdict it takes the blame for the worker's
        crashes.
        """
        return self.phase is Phase.JUDGING and self.is_new(child)

    def is_new(self, child: Child) -> bool:
        """Return whether a worker belongs to the release on trial."""
        return self.comparing and not child.alone and int(child.worker.age) > self._newest

    def aside(self, children: Iterable[Child]) -> list[Child]:
        """Return the workers of the release that does not count: the new ones until acceptance, then the old ones."""
        if not self.comparing:
            return []
        on_trial = self.phase is Phase.JUDGING
        return [child for child in children if not _leaves(child) and self.is_new(child) is on_trial]

    def wanted(self, aside: int) -> int:
        """Return how many workers there should be aside, given how many there are."""
        return max(1, aside) if self.phase is Phase.JUDGING else aside

    def base(self, base: int, children: Iterable[Child]) -> int:
        """Return how many workers of the counting release there should be.

        While replacements are frozen, no more than there are; after a refusal, at least half.

        :param base: the target number of workers.
        """
        if not self.frozen or self.phase is Phase.CONFIRMING:
            return base
        there = sum(not (child.term_at or child.killed or self.is_new(child)) for child in children)
        if not self.held:
            return min(base, there)
        least = half(base)
        if there < least and not self._told_empty:
            self._told_empty = True
            logs.process("release_refused_started", level="ERROR", release=(self._refused or {}).get("release", ""),
                         workers=there, remedy="less than half of the workers are left: new ones have the refused "
                         "code; put the former version back and reload")
        return min(base, max(there, least))

    # -- a reload ------------------------------------------------------------------------------------------------

    def may_start(self) -> bool:
        """Return whether gunicorn's reload may start another worker: a release that is judged gets a single one."""
        if not self.starting:
            return True
        self._started += 1
        return self._started == 1

    def waits(self) -> bool:
        """Return whether a further reload must wait while the rest of the last one's workers start."""
        return self.phase is Phase.FOLLOWING

    def before_reload(self, now: float) -> None:
        """End the trial of the last reload for a further one: give up a release not judged yet, else accept it."""
        if self.phase is Phase.JUDGING:
            for child in self._side(new=True):
                self._fleet.terminate(child, now)
            self._fleet.restore()
            self._end("superseded", Finding())
        elif self.comparing:
            self._settle(now)
        self.outcome = "under way"
        self._publish()

    def prepare(self, problem: str) -> None:
        """Decide, once the new configuration is read, whether its release is judged.

        :param problem: why it cannot be judged, "" if it can.
        """
        forced, self.force = self.force, False
        if forced:
            problem = "it was forced"
        elif not self.settings.release_judge:
            problem = "STABILITY_RELEASE_JUDGE is off"
        self.starting, self._started = not problem, 0
        if problem:
            logs.process("release_not_judged", reason=problem)

    def reloaded(self, newest: int) -> bool:
        """Begin the trial once gunicorn's reload is done; return whether the release is on trial.

        :param newest: the number of the last worker of the old release.
        """
        judged, self.starting = bool(self.starting), None
        now = time.monotonic()
        self._number += 1
        self._coming = self._named(self.settings)
        self.held, self._told_empty = False, False
        if not judged:
            self._refused, self._serving = None, self._coming
            self._words()[scoreboard.M_KEEP_CODE] = 0
            self._publish()
            return False
        self._newest, self._begun, self._since = newest, now, now
        self.phase, self._kill_at = Phase.JUDGING, 0.0
        self._ends, self._told, self._gone, self._found = ([], []), set(), ({}, {}), None
        self._judge = self._new_judge(now, self.settings.release_time)
        self._words()[scoreboard.M_KEEP_CODE] = 1
        logs.process("release_trial", release=self._coming, against=self._serving)
        self._fleet.look_again(now + LOOK)
        self._publish()
        return True

    def failed(self) -> None:
        """Record that gunicorn's reload failed and nothing has changed."""
        self.starting, self.outcome = None, "failed"
        self._publish()

    def arrived(self) -> None:
        """Record the end of a reload that is not judged."""
        if self.outcome == "under way" and not self.comparing:
            self.outcome = "serves"
            self._publish()

    # -- workers -------------------------------------------------------------------------------------------------

    def forking(self, child: Child) -> None:
        """Mark a worker about to be forked as on trial, if its release is."""
        if child.row is not None and (self.starting or self.phase is Phase.JUDGING):
            child.row.orders[scoreboard.O_TRIAL] = 1

    def exited(self, child: Child, reason: Reason, detail: str) -> bool:
        """Record a worker's exit; return whether only the trial has to deal with it."""
        if not self.comparing or child.term_at or child.killed is Reason.RELOAD:
            return False
        if child.row is not None:
            self._gone[self.is_new(child)][child.pid] = release_figures.figures(child.row, child.pid)
            self._probed(child)
        new = self.is_new(child)
        if child.pid not in self._told:
            self._ends[new].append("killed" if reason is Reason.CRASH_SIGNAL and detail == "SIGKILL" else reason)
            self._fleet.look_again(time.monotonic() + 0.01)
        return new and self.phase is Phase.JUDGING

    # -- the tick ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Look, judge, act. Called in the master's tick."""
        if self._kill_at and now >= self._kill_at:
            self._kill_at = 0.0
            for child in self._fleet.children.values():
                if child.asked is Reason.RELEASE_REFUSED:
                    child.kill(Reason.RELEASE_REFUSED)
        if not self.comparing:
            return
        old, new = self._side(new=False), self._side(new=True)
        self._notice(old, new)
        if sum(child.serves() for child in old) < half(self._fleet.base()):
            # too few old workers are left to fall back on
            if self.phase is Phase.JUDGING:
                self._accept(now, new, Finding(Verdict.TOO_FEW))
            elif self.phase is not Phase.FOLLOWING or any(child.serves() for child in new):
                self._settle(now)
            return
        {Phase.JUDGING: self._judging, Phase.FOLLOWING: self._following, Phase.WATCHING: self._watching,
         Phase.CONFIRMING: self._confirming}[self.phase](now, old, new)

    def _notice(self, old: list[Child], new: list[Child]) -> None:
        for side, children in enumerate((old, new)):
            for child in children:
                if child.asked in FATAL and child.pid not in self._told:
                    self._told.add(child.pid)
                    self._ends[side].append(child.asked)
        for child in new:
            self._probed(child)

    def _probed(self, child: Child) -> None:
        found = child.row.release.read_json({}) if child.row is not None and self.is_new(child) else {}
        problem = found.get("failed") if isinstance(found, dict) else ""
        if problem and self._found is None:
            self._found = Finding(Verdict.WORSE, str(problem)[:300], "probe")
        name = str(found.get("id") or "")[:100] if isinstance(found, dict) else ""
        if name and self._coming.startswith("#"):
            self._coming = name

    def _judging(self, now: float, old: list[Child], new: list[Child]) -> None:
        self._fleet.look_again(now + LOOK)
        found = self._found or self._look(now, old, new)
        booting = [child for child in new if not child.ready_at]
        if found.verdict is Verdict.UNDECIDED and booting and now - self._begun > self._fleet.boot_patience():
            found = Finding(Verdict.WORSE, f"its worker is not ready after {now - self._begun:.0f} s", "boot")
        if found.verdict is Verdict.TOO_FEW and self.settings.release_undecided == "refuse":
            found = Finding(Verdict.WORSE, "too few requests to judge it", "", found.requests)
        if found.verdict is Verdict.WORSE:
            self._refuse(now, found)
        elif found.verdict is not Verdict.UNDECIDED:
            self._accept(now, new, found)

    def _accept(self, now: float, new: list[Child], found: Finding) -> None:
        """Accept the release on trial: the rest of the new workers may start."""
        for child in new:
            if child.row is not None:
                child.row.orders[scoreboard.O_TRIAL] = 0
        self.phase, self._since = Phase.FOLLOWING, now
        logs.process("release_accepted", release=self._coming, against=self._serving, verdict=found.verdict.value,
                     requests=found.requests, seconds=round(now - self._begun, 1))
        self._publish()

    def _following(self, now: float, old: list[Child], new: list[Child]) -> None:
        self._fleet.look_again(now + LOOK)
        found = self._look(now, old, new)
        if found.verdict is Verdict.WORSE:
            self._refuse(now, found)
        elif sum(child.serves() for child in new) >= self._fleet.base():
            if not self.settings.release_watch or not self._fleet.may_keep() or not self._park(old, True):
                self._settle(now)
                return
            self.phase, self._since = Phase.WATCHING, now
            self._alarm = Alarm(together(self._figures(old)))
            self.outcome = "serves"
            logs.process("release_watched", release=self._coming, against=self._serving, kept=len(old),
                         seconds=self.settings.release_watch)
            self._publish()

    def _watching(self, now: float, old: list[Child], new: list[Child]) -> None:
        self._fleet.look_again(now + LOOK)
        if now - self._since >= self.settings.release_watch or not self._fleet.may_keep():
            self._settle(now)
            return
        found = self._look(now, old, new)
        figures = self._figures(new)
        assert self._alarm is not None
        text = self._alarm.look(figures)
        if found.verdict is not Verdict.WORSE and not text:
            return
        self._park(old, False)
        self.phase, self._found = Phase.CONFIRMING, found if found.verdict is Verdict.WORSE else None
        self._asked_at = now
        self._judge = self._new_judge(now, self.settings.release_time)
        self._before = together({**self._figures(old), **figures})
        logs.process("release_suspected", level="WARNING", release=self._coming, reason=found.text or text)

    def _confirming(self, now: float, old: list[Child], new: list[Child]) -> None:
        self._fleet.look_again(now + LOOK)
        back = all(child.row is None or not child.row.words[scoreboard.W_PARKED] for child in old)
        found = self._look(now, old, new) if self._found is None else self._found
        if found.verdict is Verdict.WORSE:
            self._found = found
            if back or now - self._asked_at > UNPARKED:
                self._refuse(now, found)
        elif found.verdict is not Verdict.UNDECIDED:
            self._park(old, True)
            self.phase = Phase.WATCHING
            # slowness and failures of both releases are usual from now on
            self._alarm = Alarm(since(self._before, together({**self._figures(old), **self._figures(new)})))

    # -- what follows --------------------------------------------------------------------------------------------

    def _refuse(self, now: float, found: Finding) -> None:
        """Refuse the release: the new workers leave, the old ones serve on, settings and configuration are restored."""
        turned_back = self.phase is not Phase.JUDGING
        old, new = self._side(new=False), self._side(new=True)
        self._park(old, False)
        for child in new:
            child.asked = Reason.NONE
            child.ask(Reason.RELEASE_REFUSED)
            self._fleet.terminate(child, now)
        self._kill_at = now + HANGING if found.measure == "hang" else 0.0
        self._fleet.restore()
        requests = sum(one.requests for one in {**self._gone[1], **self._figures(new)}.values())
        text = f"release {self._coming} refused after {requests} requests: {found.text}; {self._serving} serves on"
        self._refused = {"release": self._coming, "text": text, "time": round(time.time(), 3)}
        self.outcome, self.held = "refused", True
        logs.process("release_refused", level="ERROR", release=self._coming, against=self._serving, text=text,
                     measure=found.measure, reason=found.text, requests=requests, turned_back=turned_back,
                     seconds=round(now - self._begun, 1), remedy="repair it, or put the former version back, and "
                     "reload; `flask stability reload --force` takes it all the same")
        self._end("turned back" if turned_back else "refused", replace(found, requests=requests))

    def _settle(self, now: float) -> None:
        """Accept the release for good: the old workers leave."""
        old = self._side(new=False)
        self._serving, self._refused, self.outcome = self._coming, None, "serves"
        self._words()[scoreboard.M_KEEP_CODE] = 0
        requests = self._judge.requests if self._judge is not None else 0
        logs.process("release_settled", release=self._serving, seconds=round(now - self._begun, 1))
        self._end("accepted", Finding(Verdict.AS_GOOD, "", "", requests))
        self._fleet.replace_all(old, now)

    def _end(self, verdict: str, found: Finding) -> None:
        self._verdicts = [*self._verdicts, {
            "release": self._coming, "against": self._serving if verdict != "accepted" else "", "verdict": verdict,
            "reason": found.text, "measure": found.measure, "requests": found.requests, "time": round(time.time(), 3),
            "seconds": round(time.monotonic() - self._begun, 1)}][-KEPT:]
        self.phase, self._judge, self._alarm, self._found = Phase.QUIET, None, None, None
        self._publish()

    # -- small things --------------------------------------------------------------------------------------------

    def _side(self, *, new: bool) -> list[Child]:
        return [child for child in self._fleet.children.values()
                if self.is_new(child) is new and child.pid and not (child.alone or child.killed or _leaves(child))]

    def _figures(self, children: list[Child]) -> dict[int, Figures]:
        return release_figures.read(child for child in children if child.ready_at)

    def _look(self, now: float, old: list[Child], new: list[Child]) -> Finding:
        assert self._judge is not None
        return self._judge.look(now, {**self._gone[0], **self._figures(old)},
                                {**self._gone[1], **self._figures(new)},
                                old_ends=self._ends[0], new_ends=self._ends[1])

    def _new_judge(self, now: float, limit: float) -> Judge:
        known: set[Key] = set()
        for blob in (self._board.master.exceptions, *(row.exceptions for row in self._board.live())):
            for entry in blob.read_json([]) or []:
                if isinstance(entry, dict):
                    known.add((str(entry.get("class"))[:200], str(entry.get("route"))[:200]))
        return Judge(now, self._figures(self._side(new=False)), known, self._figures(self._side(new=True)), limit=limit)

    def _park(self, old: list[Child], parked: bool) -> bool:
        """Have the old workers stop accepting, or accept again; return False if one of them cannot be parked."""
        rows = [child.row for child in old if child.row is not None]
        if parked and not all(row.words[scoreboard.W_PARKED] >= 0 for row in rows):
            return False
        for row in rows:
            row.orders[scoreboard.O_PARK] = int(parked)
            row.orders[scoreboard.O_RETIRE_STATE] = scoreboard.STATE_RETIRING if parked else 0
        return True

    def _words(self) -> Any:
        return self._board.master.words

    def _named(self, settings: Settings) -> str:
        return settings.release_id or f"#{self._number}"

    def _publish(self) -> None:
        """Publish the state on the board, for the workers and the command line. Never raise."""
        blob = {"reloads": int(self._words()[scoreboard.M_RELOADS]), "outcome": self.outcome,
                "phase": self.phase.value, "serving": self._serving, "coming": self._coming if self.comparing else "",
                "refused": self._refused, "verdicts": self._verdicts}
        while not self._board.master.releases.write_json(blob) and blob["verdicts"]:
            blob["verdicts"] = blob["verdicts"][1:]  # type: ignore[index]


def _leaves(child: Child) -> bool:
    """Return whether a worker was asked to leave, or belongs to a release before these two."""
    return bool(child.term_at) or child.asked is Reason.RELOAD


def half(base: int) -> int:
    """Return the fewest old workers that can serve on without the others."""
    return (base + 1) // 2
