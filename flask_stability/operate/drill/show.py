"""Show a drill to a person: the current fault, and two tables at the end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

import click

from .report import STEADY, Report

FAULT_HEADS = ("fault", "requests", "failed", "availability", "recovery", "workers back")
TARGET_HEADS = ("figure", "measured", "target", "")


def _fault_lines(report: Report) -> list[tuple[str, ...]]:
    return [(step.name, str(step.requests), str(step.failed), f"{step.availability:.2%}", f"{step.recovery:.1f} s",
             "–" if step.name == STEADY else "yes" if step.restored else "NO") for step in report.steps]


def _failures(report: Report) -> list[str]:
    """Return the failures of each row, in lines of their own, since no column is wide enough."""
    return [f"  {step.name}: " + ", ".join(f"{count} × {name}" for name, count in step.errors.items())
            for step in report.steps if step.errors]


def _target_lines(report: Report) -> list[tuple[str, ...]]:
    marks = {True: "passed", False: "MISSED", None: "–"}
    return [(verdict.figure, verdict.measured, verdict.target, marks[verdict.passed]) for verdict in report.verdicts]


def show(report: Report) -> None:
    """Print two tables and a closing line; in plain text if rich is not installed."""
    table("Faults", FAULT_HEADS, _fault_lines(report))
    table("Targets", TARGET_HEADS, _target_lines(report))
    failures = _failures(report)
    for line in (*(["Failures", *failures, ""] if failures else []), *(f"note: {note}" for note in report.notes),
                 report.summary()):
        click.echo(line)


def table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table, with rich if it is installed."""
    try:
        _rich_table(title, heads, lines)
    except ImportError:
        click.echo(f"{title}\n" + "\n".join("  ".join(line).rstrip() for line in (heads, *lines)) + "\n")


def _rich_table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")  # on a narrow terminal wrapped, never cut
    colours = {"passed": "[green]passed", "MISSED": "[red]MISSED"}
    for line in lines:
        table.add_row(*(colours.get(cell, cell) for cell in line))
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a CI server's log
    console.print(table)


@contextlib.contextmanager
def display(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step: live with rich, else line by line."""
    if quiet:
        yield lambda text: None
        return
    try:
        from rich.console import Console

        live = sys.stderr.isatty()
    except ImportError:
        live = False
    if not live:
        yield lambda text: click.echo(f"{text} …", err=True)
        return
    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(f"{text} …")
