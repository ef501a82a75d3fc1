"""The importance of a view under overload, as set by the app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

PRIORITIES = ("critical", "normal", "sheddable")
_MARK = "_flask_stability_priority"


def priority(level: str) -> Callable[[F], F]:
    """See `StabilityExt.priority`.

    :raises ValueError: if `level` is none of `PRIORITIES`.
    """
    if level not in PRIORITIES:
        raise ValueError(f"priority({level!r}): give one of {', '.join(map(repr, PRIORITIES))}")

    def decorate(view: F) -> F:
        setattr(view, _MARK, level)
        return view

    return decorate


def priority_of(view: Any) -> str:
    """Return the level of a view's decorator, or "" without one."""
    return str(getattr(view, _MARK, ""))
