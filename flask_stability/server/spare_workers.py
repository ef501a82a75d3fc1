"""Sync workers that all hang in a request while others wait get helpers, like threads that are stuck."""

from __future__ import annotations

from .. import logs, scoreboard
from . import replacement
from .workers import Child

ROWS_KEPT = 2  #: rows that no spare worker gets, nor a reload: for replacements


def look(before: int, children: list[Child], base: int, room: int) -> int:
    """How many there are to be now.

    :param before: how many there were to be.
    :param base: workers that the configuration asks for.
    :param room: how many more there may be.
    """
    serving = [child for child in children if child.row is not None and child.serves()]
    held = [child.held() for child in serving if not child.asked]
    overdue = sum(child.held() for child in serving if child.asked in replacement.BROKEN)
    spares = before
    if before or overdue or any(held):
        spares = replacement.spares(
            before, base, held, overdue=overdue, room=room,
            clients=sum(child.waits_for_client() for child in serving if not child.asked and child.held()),
            coming=sum(not (child.ready_at or child.term_at or child.killed) for child in children),
            knocking=any(child.row.words[scoreboard.W_QUEUE] for child in serving if child.row is not None))
    if spares > before or (before and not spares):
        logs.process("spare_workers", level="WARNING" if spares > before else "INFO", spares=spares,
                     stuck=sum(held) + overdue)
    return spares


def room(base: int, spares: int, *, most: int, rows: int, memory: int) -> int:
    """How many more there may be: for the memory, for the setting, and for rows, of which a reload needs as many as
    there are workers.

    :param most: STABILITY_SPARE_MAX.
    :param memory: how many more there is memory for.
    """
    return min(memory, max(0, most - spares), max(0, rows - 2 * base - ROWS_KEPT - spares))
