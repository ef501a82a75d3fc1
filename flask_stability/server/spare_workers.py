"""Decide how many spare workers help sync workers that all hang in a request while others wait. Pure."""

from __future__ import annotations

from .. import logs, scoreboard
from . import replacement
from .workers import Child

ROWS_KEPT = 2  #: rows that neither a spare worker nor a reload gets: they are for replacement workers


def look(before: int, children: list[Child], base: int, room: int) -> int:
    """Return how many spare workers there should be now.

    :param before: how many spare workers there should have been until now.
    :param base: the number of configured workers.
    :param room: how many more may be started.
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
    """Return how many more spare workers memory, the setting and the rows allow; a reload needs a row for each worker.

    :param most: STABILITY_SPARE_MAX.
    :param memory: how many more workers fit into memory.
    """
    return min(memory, max(0, most - spares), max(0, rows - 2 * base - ROWS_KEPT - spares))
