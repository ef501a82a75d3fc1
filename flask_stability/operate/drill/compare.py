"""The same faults and the same load for the app without the extension and with it, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from ...dburl import DatabaseURL
from .. import inspect as facts
from ..find_service import gunicorn_arguments
from .report import STEADY, Report, Step
from .run import run
from .service import DrillError, started
from .show import table

HEADS = ("fault", "failed without", "failed with", "recovery without", "recovery with", "workers back without",
         "workers back with")


@dataclass(frozen=True)
class Comparison:
    """Two drills of one app."""

    without: Report
    with_it: Report

    def as_json(self) -> str:
        """Both reports, for machines."""
        return json.dumps({"without": self.without.as_dict(), "with": self.with_it.as_dict()}, indent=2)

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row for each fault, and one for all of them; see `HEADS`."""
        pairs = zip(self.without.steps, self.with_it.steps, strict=True)
        found = [(one.name, _failed(one), _failed(other), _recovery(one), _recovery(other), _back(one), _back(other))
                 for one, other in pairs]
        in_all = [("in all", *(f"{1 - _share(report.steps):.2%}" for report in (self.without, self.with_it)), "", "",
                   "", "")]
        return [*found, *in_all]


def _share(steps: Sequence[Step]) -> float:
    """Share of the requests that were answered well."""
    requests = sum(step.requests for step in steps)
    return 1 - sum(step.failed for step in steps) / requests if requests else 1.0


def _failed(step: Step) -> str:
    return f"{step.failed} of {step.requests}"


def _recovery(step: Step) -> str:
    return f"{step.recovery:.1f} s"


def _back(step: Step) -> str:
    return "–" if step.name == STEADY else "yes" if step.restored else "NO"


def compare(app: str | None, config: str | None, directory: str, paths: Sequence[str], *, rate: float, seconds: float,
            database: DatabaseURL | None = None, progress: Callable[[str], None] = lambda _: None) -> Comparison:
    """Run the drill twice: first without the extension, on a gunicorn with as many workers and threads of its own kind.

    :param rate, seconds, database: as for `run`.
    :raises DrillError: if the app does not start in both ways, or a path is not served in both.
    """
    options = _same_server(app, config, directory)
    try:
        with started(app, config, directory, paths, without=options) as service:
            without = run(service, rate=rate, seconds=seconds, database=database, tolerant=True,
                          progress=lambda text: progress(f"without the extension: {text}"))
    except DrillError as error:
        raise DrillError(f"without the extension: {error}") from error
    with started(app, config, directory, paths) as service:
        with_it = run(service, rate=rate, seconds=seconds, database=database,
                      progress=lambda text: progress(f"with the extension: {text}"))
    return Comparison(without, with_it)


def _same_server(app: str | None, config: str | None, directory: str) -> list[str]:
    """Return gunicorn's options for as many workers and threads as the service has, of gunicorn's own class."""
    try:
        found = facts.read(gunicorn_arguments(config, app, directory), with_app=False)
    except facts.FactsError as error:
        raise DrillError(str(error)) from error
    kinds = [name for name in ("gthread", "sync") if f"gunicorn.workers.{name}" in found.worker_modules]
    return ["--workers", str(found.gunicorn["workers"]), "--threads", str(found.gunicorn["threads"]),
            *(["--worker-class", kinds[0]] if kinds else [])]


def show_comparison(comparison: Comparison) -> None:
    """Print one table, what failed in each row, and the closing line of the drill with the extension."""
    table("Without the extension and with it", HEADS, comparison.rows())
    for name, report in (("without", comparison.without), ("with", comparison.with_it)):
        for step in report.steps:
            if step.errors:
                click.echo(f"  {name}, {step.name}: " + ", ".join(f"{count} × {error}"
                                                                  for error, count in step.errors.items()))
    for note in comparison.with_it.notes:
        click.echo(f"note: {note}")
    click.echo(f"with the extension: {comparison.with_it.summary()}")
