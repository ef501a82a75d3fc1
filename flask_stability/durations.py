"""Parse and format spans of time."""

from __future__ import annotations

import re

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse(text: str) -> float:
    """Return the seconds of ``30m``, ``12h``, ``14d``, ``1.5h``, ``2w``.

    :raises ValueError: with the accepted forms.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if not match:
        raise ValueError(f"{text!r}: give a number and a unit: 30m, 12h, 14d or 2w")
    return float(match[1]) * _UNITS[match[2]]


def option(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Read the value of an option that takes a span of time (a click callback)."""
    try:
        return parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def in_words(seconds: float | None) -> str:
    """Return the two largest units of a span: ``8 min 24 s``, ``3 d 4 h``; "–" for None."""
    if seconds is None:
        return "–"
    whole = round(max(0.0, seconds))
    for size, name, smaller, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {below}" if rest else "")
    return f"{seconds:.1f} s" if seconds < 10 and whole != seconds else f"{whole} s"
